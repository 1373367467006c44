"""The reference interpreter: the definition of the integer graph, in numpy.

One function a node, each a transcription of the equation in the node's docstring. It is meant to be read
and to be right, not to be fast. Matrix products run in float64, which represents every integer here
exactly: a graph proves |a| <= 65535, far below 2^53. The norm, whose sums are larger, computes in int64.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from converters.early_exit import EarlyExit, stopped_early
from converters.encoder import encode, lif
from converters.execution import Execution, TokenBatch, check_observed
from converters.graph import (
    GAMMA_FRACTION,
    LIF,
    NORMED_FRACTION,
    RECIPROCAL_BITS,
    ROOT_BITS,
    Add,
    Attention,
    Coincidence,
    Concat,
    Graph,
    Node,
    Norm,
    Product,
    Relay,
    Slice,
    Source,
    ValidLane,
)
from converters.readout import logits_over_time


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`W x + bias * m`: x int64 [T, B, N, in], mask int64 [B, N] -> int64 [T, B, N, out]."""
    product = x.astype(np.float64) @ weight.T.astype(np.float64)
    return product.astype(np.int64) + mask[:, :, None] * bias.astype(np.int64)


def attention(node: Attention, q: np.ndarray, k: np.ndarray, v: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """`a[n] = m[n] * sum over j of (score[n, j] + bias[h, n, j]) * v[j]` for each head.

    q, k, v int64 [T, B, N, D]; valid int64 [T or 1, B, N], m -> int64 [T, B, N, D]. At a padded j v is silent.
    """

    def split(x: np.ndarray) -> np.ndarray:  # [T, B, N, D] -> [T, B, H, N, d]
        return x.reshape(*x.shape[:3], node.heads, -1).swapaxes(2, 3).astype(np.float64)

    tokens = q.shape[2]
    scores = split(q) @ split(k).swapaxes(-1, -2)  # [T, B, H, N, N]: features that are 1 in both
    if node.similarity == "xnor":
        scores += split(1 - q) @ split(1 - k).swapaxes(-1, -2)  # and those that are 0 in both
    if node.bias is not None:
        scores += node.bias[:, :tokens, :tokens]
    mixed = (scores @ split(v)).swapaxes(2, 3).reshape(q.shape).astype(np.int64)
    return mixed * valid[..., None]


def norm(a: np.ndarray, node: Norm, lane: np.ndarray) -> np.ndarray:
    """The equations of `Norm`: a int64 [..., D] and lane int64 [..., 1] of 0 and 1 -> int64 [..., D]."""
    features = a.shape[-1]
    sums = a.sum(axis=-1, keepdims=True) if node.kind == "layer" else np.zeros_like(lane)
    distance = features * a - sums
    spread = features * (a * a).sum(axis=-1, keepdims=True) - sums**2 + node.eps  # W
    scaled, doublings = _normalised(spread)
    reciprocal = 2**RECIPROCAL_BITS // integer_root(scaled)
    normed = ((distance << doublings) * reciprocal) >> (RECIPROCAL_BITS - NORMED_FRACTION)
    fraction = NORMED_FRACTION + GAMMA_FRACTION
    gamma, beta = node.gamma.astype(np.int64), node.beta.astype(np.int64)
    return ((gamma * normed + 2 ** (fraction - 1)) >> fraction) + beta * lane


def _normalised(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`n 4^h` and h, both int64, of numbers 1 .. 2^62 - 1: 2^60 <= n 4^h < 2^62."""
    doublings = np.zeros_like(numbers)
    for step in (16, 8, 4, 2, 1):
        small = numbers < 1 << (2 * ROOT_BITS - 2 * step)
        numbers = np.where(small, numbers << 2 * step, numbers)
        doublings += step * small
    return numbers, doublings


def integer_root(numbers: np.ndarray) -> np.ndarray:
    """`floor(sqrt(n))` of int64 0 .. 2^62 - 1, bit by bit from the highest: set where the square still fits."""
    root = np.zeros_like(numbers)
    for bit in reversed(range(ROOT_BITS)):
        longer = root | 1 << bit
        root = np.where(longer * longer <= numbers, longer, root)
    return root


def coincidence(q: np.ndarray, k: np.ndarray, n_max: int) -> np.ndarray:
    """`s[n, m*D + j] = q[n, j] * k[m, j]`: int64 [T, B, N, D], twice -> int64 [T, B, N, n_max * D]."""
    met = q[..., :, None, :] * _every_key(k, n_max)[..., None, :, :]  # [T, B, N, n_max, D]
    return met.reshape(*q.shape[:3], -1)


def product(scores: np.ndarray, v: np.ndarray, heads: int, n_max: int) -> np.ndarray:
    """`x[n, m*D + e] = score[n, m*H + e // d] * v[m, e]`: [T, B, N, n_max*H] and [T, B, N, D] -> [T, B, N, n_max*D]."""
    of_feature = np.repeat(scores, v.shape[-1] // heads, axis=-1).reshape(*v.shape[:3], n_max, -1)
    return (of_feature * _every_key(v, n_max)[..., None, :, :]).reshape(*v.shape[:3], -1)


def _every_key(x: np.ndarray, n_max: int) -> np.ndarray:
    """[T, B, N, D] -> [T, B, n_max, D]: tokens beyond the batch's are silent."""
    return np.pad(x, ((0, 0), (0, 0), (0, n_max - x.shape[2]), (0, 0)))


def evaluate(node: Node, inputs: list[np.ndarray], batch: TokenBatch, timesteps: int, n_max: int) -> np.ndarray:
    """The value int64 [T, B, N, D] of one node, given the values of its inputs."""
    if isinstance(node, Source):
        return encode(node, batch, timesteps)
    if isinstance(node, LIF):
        return lif(inputs[0], node.threshold, node.dv, node.shift, node.reset, node.spike, node.cap)
    if isinstance(node, Norm):
        lane = inputs[1][..., :1] if len(inputs) > 1 else batch.mask[:, :, None]
        return norm(inputs[0], node, lane)
    if isinstance(node, Attention):
        valid = batch.mask[None] if node.lane is None else inputs[3][..., 0]
        return attention(node, inputs[0], inputs[1], inputs[2], valid)
    if isinstance(node, Add):
        return np.sum(inputs, axis=0)
    if isinstance(node, Slice):
        return inputs[0][..., node.start : node.stop]
    if isinstance(node, Concat):
        return np.concatenate(inputs, axis=-1)
    if isinstance(node, ValidLane):
        return np.tile(batch.mask[:, :, None], (timesteps, 1, 1, node.lanes))
    if isinstance(node, Coincidence):
        return coincidence(inputs[0], inputs[1], n_max)
    if isinstance(node, Relay):
        return inputs[0]
    if isinstance(node, Product):
        return product(inputs[0], inputs[1], node.heads, n_max)
    return linear(inputs[0], node.weight, node.bias, batch.mask)


def walk(graph: Graph, batch: TokenBatch) -> Iterator[tuple[Node, np.ndarray]]:
    """Every node with its value int64 [T, B, N, D], in graph order.

    Only the values that a later node reads are kept on the way, so the memory of a whole network is never needed.
    """
    values: dict[str, np.ndarray] = {}
    last_reader = {name: node.name for node in graph for name in node.inputs}
    for node in graph:
        value = evaluate(node, [values[name] for name in node.inputs], batch, graph.timesteps, graph.n_max)
        for name in set(node.inputs):
            if last_reader[name] == node.name:
                del values[name]
        if node.name in last_reader:
            values[node.name] = value
        yield node, value


class ReferenceEngine:
    """Runs a graph node by node, all timesteps of a batch at once, with an early exit too: what comes after is cut."""

    counts_activity = False

    def __init__(self, graph: Graph, early_exit: EarlyExit | None = None) -> None:
        self.graph, self.early_exit = graph, early_exit

    def run(self, batch: TokenBatch, observe: Collection[str] = ()) -> Execution:
        """See `converters.execution.Engine`."""
        batch.check_fits(self.graph)
        check_observed(self.graph, observe)
        values: dict[str, np.ndarray] = {}
        for node, value in walk(self.graph, batch):
            if node.name in observe:
                values[node.name] = value
        logits = logits_over_time(self.graph, value)  # the last node is the readout
        if self.early_exit is not None:
            return stopped_early(self.graph, self.early_exit, logits, values, batch)
        return Execution(logits[-1], values)

    def close(self) -> None:
        """Nothing to free."""
