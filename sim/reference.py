"""The reference interpreter: the definition of the integer graph, in numpy.

One function a node, each a transcription of the equation in the node's docstring. It is meant to be read
and to be right, not to be fast. Matrix products run in float64, which represents every integer here
exactly: a graph proves |a| <= 65535, far below 2^53.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from converters.encoder import encode, lif
from converters.execution import Execution, TokenBatch, check_observed
from converters.graph import LIF, Add, Attention, Graph, Node, Source


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`W x + bias * m`: x int64 [T, B, N, in], mask int64 [B, N] -> int64 [T, B, N, out]."""
    product = x.astype(np.float64) @ weight.T.astype(np.float64)
    return product.astype(np.int64) + mask[:, :, None] * bias.astype(np.int64)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    """`(q k^T) v` for each head: int64 [T, B, N, D], three times -> int64 [T, B, N, D]."""

    def split(x: np.ndarray) -> np.ndarray:  # [T, B, N, D] -> [T, B, H, N, d]
        return x.reshape(*x.shape[:3], heads, -1).swapaxes(2, 3).astype(np.float64)

    scores = split(q) @ split(k).swapaxes(-1, -2)  # [T, B, H, N, N]
    return (scores @ split(v)).swapaxes(2, 3).reshape(q.shape).astype(np.int64)


def evaluate(graph: Graph, node: Node, inputs: list[np.ndarray], batch: TokenBatch) -> np.ndarray:
    """The value int64 [T, B, N, D] of one node, given the values of its inputs."""
    if isinstance(node, Source):
        return encode(node, batch, graph.timesteps)
    if isinstance(node, LIF):
        return lif(inputs[0], node.threshold, node.dv, node.shift)
    if isinstance(node, Attention):
        return attention(inputs[0], inputs[1], inputs[2], node.heads)
    if isinstance(node, Add):
        return np.sum(inputs, axis=0)
    return linear(inputs[0], node.weight, node.bias, batch.mask)


class ReferenceEngine:
    """Runs a graph node by node, all timesteps of a batch at once."""

    counts_activity = False

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def run(self, batch: TokenBatch, observe: Collection[str] = ()) -> Execution:
        """See `converters.execution.Engine`."""
        batch.check_fits(self.graph)
        check_observed(self.graph, observe)
        values: dict[str, np.ndarray] = {}
        last_use = {name: node.name for node in self.graph for name in node.inputs}
        for node in self.graph:
            values[node.name] = evaluate(self.graph, node, [values[name] for name in node.inputs], batch)
            for name in set(node.inputs) - set(observe):
                if last_use[name] == node.name:
                    del values[name]
        logits = values[self.graph.output].sum(axis=(0, 2))
        return Execution(logits, {name: values[name] for name in observe})

    def close(self) -> None:
        """Nothing to free."""
