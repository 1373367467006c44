"""What a network can do at most: proven ranges of every value and membrane, for any text whatever.

An interval analysis, feature by feature, from the token table to the logits. It is sound: nothing that the network
ever does lies outside. It is not always tight: inputs are taken to vary independently of each other and over time.

    ranges = prove_ranges(graph)
    ranges["blocks.0.up"].high.max()           # the largest current that any text can cause there, accumulator units
    reaching_inputs(graph, ranges, "blocks.0.up")     # what must spike for it
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converters.encoder import decay, fire
from converters.graph import (
    ACCUMULATOR_MAX,
    CURRENTS,
    LIF,
    MEMBRANE_MAX,
    Add,
    Attention,
    Coincidence,
    Concat,
    Graph,
    Node,
    Norm,
    Product,
    Readout,
    Relay,
    Slice,
    Source,
    Synapses,
)
from converters.readout import integrate

INT64_MAX = 2**63 - 1


@dataclass(frozen=True, eq=False)
class Range:
    """What one feature of a node can be at a real token; at padding every value is 0. All int64 [D].

    low, high  the value: of spikes and their sums, or of currents, in accumulator units
    membrane_low, membrane_high  of a neuron with memory, the membrane after it was charged and before saturation, in
               membrane units; None for all other nodes
    """

    low: np.ndarray
    high: np.ndarray
    membrane_low: np.ndarray | None = None
    membrane_high: np.ndarray | None = None

    @property
    def bits(self) -> int:
        """The fewest bits that hold every value: unsigned where none is below 0, else two's complement."""
        return bits_for(int(self.low.min()), int(self.high.max()))

    @property
    def membrane_bits(self) -> int | None:
        """The same for the membrane."""
        if self.membrane_low is None or self.membrane_high is None:
            return None
        return bits_for(int(self.membrane_low.min()), int(self.membrane_high.max()))

    @property
    def reach(self) -> int:
        """The largest |value|."""
        return max(-int(self.low.min()), int(self.high.max()))

    @property
    def saturable(self) -> np.ndarray:
        """bool [D]: features whose membrane may be cut at +-(2^23 - 1): part of the rule, but no longer what was
        trained."""
        if self.membrane_low is None or self.membrane_high is None:
            return np.zeros(self.low.shape, bool)
        saturable: np.ndarray = (self.membrane_low < -MEMBRANE_MAX) | (self.membrane_high > MEMBRANE_MAX)
        return saturable

    @property
    def may_saturate(self) -> bool:
        """Whether a membrane of any feature may be cut."""
        return bool(self.saturable.any())

    @property
    def silent(self) -> np.ndarray:
        """bool [D]: features that are 0 whatever the text."""
        silent: np.ndarray = (self.low == 0) & (self.high == 0)
        return silent


@dataclass(frozen=True)
class Reach:
    """How a layer gets to its largest |current|: `bound` at `feature`, when these inputs are at their most, and all
    others at their least."""

    feature: int
    bound: int
    inputs: tuple[int, ...]


def bits_for(low: int, high: int) -> int:
    """The fewest bits that hold low .. high: unsigned where low is 0 or more, else two's complement; at least 1."""
    if low >= 0:
        return max(1, high.bit_length())
    return max((-low - 1).bit_length(), high.bit_length() if high > 0 else 0) + 1


def prove_ranges(graph: Graph) -> dict[str, Range]:
    """The range of every node, in graph order."""
    ranges: dict[str, Range] = {}
    for node in graph:
        ranges[node.name] = _range(graph, node, [ranges[name] for name in node.inputs])
    return ranges


def logit_range(graph: Graph, ranges: dict[str, Range]) -> Range:
    """The integer logits: of T timesteps and 1 .. n_max real tokens. They rise with every current of the readout."""
    token = ranges[graph.output]
    low, high = np.minimum(token.low, token.low * graph.n_max), np.maximum(token.high, token.high * graph.n_max)
    steps = graph.timesteps, 1
    return Range(*(integrate(graph.readout, np.tile(each, steps), 0)[-1] for each in (low, high)))


def largest_current(graph: Graph, ranges: dict[str, Range]) -> tuple[str, int]:
    """The node whose |current| may grow largest, and what it is proven not to pass, in accumulator units."""
    reach = {node.name: ranges[node.name].reach for node in graph if isinstance(node, CURRENTS)}
    return max(reach.items(), key=lambda item: item[1])


def reaching_inputs(graph: Graph, ranges: dict[str, Range], name: str) -> Reach:
    """What brings a layer of synapses, or the readout, to its largest |current|.

    Raises ValueError for a node of another kind.
    """
    node = graph[name]
    if not isinstance(node, (Synapses, Readout)):
        raise ValueError(f"node '{name}' has no weights: only synapses and the readout have inputs to reach")
    x, own = ranges[node.inputs[0]], ranges[name]
    feature = int(np.maximum(np.abs(own.low), np.abs(own.high)).argmax())
    upward = own.high[feature] >= -own.low[feature]
    helps = node.weight[feature] > 0 if upward else node.weight[feature] < 0
    inputs = np.flatnonzero(helps & (x.high > x.low))
    return Reach(feature, int(own.high[feature] if upward else own.low[feature]), tuple(inputs.tolist()))


def _range(graph: Graph, node: Node, inputs: list[Range]) -> Range:
    if isinstance(node, Source):
        return _source(graph, node)
    if isinstance(node, (Synapses, Readout)):
        return _linear(node.weight, node.bias, inputs[0])
    if isinstance(node, Norm):
        return _norm(node, inputs)
    if isinstance(node, Attention):
        return _attention(graph, node, *inputs[:3])
    if isinstance(node, LIF):
        return _lif(inputs[0], node.threshold, node.dv, node.shift, graph.timesteps, node.reset, node.spike, node.cap)
    if isinstance(node, Add):
        return Range(np.sum([x.low for x in inputs], axis=0), np.sum([x.high for x in inputs], axis=0))
    if isinstance(node, Concat):
        return Range(np.concatenate([x.low for x in inputs]), np.concatenate([x.high for x in inputs]))
    if isinstance(node, Slice):
        return Range(inputs[0].low[node.start : node.stop], inputs[0].high[node.start : node.stop])
    if isinstance(node, Relay):
        return inputs[0]
    if isinstance(node, Coincidence):  # of a key that may be padding: 0 is always possible
        return _from_zero(np.tile(inputs[0].high * inputs[1].high, graph.n_max))
    if isinstance(node, Product):
        of_feature = np.repeat(inputs[0].high, len(inputs[1].high) // node.heads)
        return _from_zero(of_feature * np.tile(inputs[1].high, graph.n_max))
    ones = np.ones(graph.features[node.name], np.int64)
    return Range(ones, ones)  # the valid lane


def _from_zero(high: np.ndarray) -> Range:
    return Range(np.zeros_like(high), high)


def _source(graph: Graph, node: Source) -> Range:
    table = node.table.astype(np.int64)
    low, high = table.min(axis=0), table.max(axis=0)
    if node.position is not None:
        low, high = low + node.position.min(axis=0), high + node.position.max(axis=0)
    if node.kind == "sign":
        spikes = Range((low >= 0).astype(np.int64), (high >= 0).astype(np.int64))
    else:
        rule = node.reset, node.spike, node.cap
        spikes = _lif(Range(low, high), node.threshold, node.dv, node.shift, graph.timesteps, *rule)
    return spikes if node.code is None else _with_code(spikes, node.code)


def _with_code(spikes: Range, code: np.ndarray) -> Range:
    """The range of a source whose last features are `code` [T, n_max, P]; no neuron fires those."""
    low, high = (getattr(code, end)(axis=(0, 1)).astype(np.int64) for end in ("min", "max"))
    membranes = (
        None if values is None else np.concatenate([values, np.zeros_like(low)])
        for values in (spikes.membrane_low, spikes.membrane_high)
    )
    return Range(np.concatenate([spikes.low, low]), np.concatenate([spikes.high, high]), *membranes)


def _linear(weight: np.ndarray, bias: np.ndarray, x: Range) -> Range:
    """`W x + b`: each input at the end of its range that the sign of its weight asks for. float64 is exact here."""
    positive, negative = np.maximum(weight, 0).astype(np.float64), np.minimum(weight, 0).astype(np.float64)
    low = positive @ x.low.astype(np.float64) + negative @ x.high.astype(np.float64)
    high = positive @ x.high.astype(np.float64) + negative @ x.low.astype(np.float64)
    return Range(low.astype(np.int64) + bias, high.astype(np.int64) + bias)


def _norm(node: Norm, inputs: list[Range]) -> Range:
    """What the node proves of itself, around beta at a real token: whatever the currents are, they are normalised."""
    beta, reach = node.beta.astype(np.int64), node.scaled_reach
    if len(inputs) == 1:
        return Range(beta - reach, beta + reach)
    lane = inputs[1]
    ends = np.stack([beta * lane.low[0], beta * lane.high[0]])
    return Range(ends.min(axis=0) - reach, ends.max(axis=0) + reach)


def _attention(graph: Graph, node: Attention, q: Range, k: Range, v: Range) -> Range:
    """A score counts the features of a head at which both q and k may spike, or for "xnor" may be equal; it is at least
    the number of those that must. Each of 1 .. n_max tokens may bring it, with the bias of the places."""
    most, least = q.high * k.high, q.low * k.low
    if node.similarity == "xnor":
        most, least = most | ((1 - q.low) * (1 - k.low)), least + (1 - q.high) * (1 - k.high)
    size = len(q.high) // node.heads
    highest, lowest = (score.reshape(node.heads, size).sum(axis=1) for score in (most, least))  # [H]
    if node.bias is None:
        return _from_zero(graph.n_max * np.repeat(highest, size) * v.high)
    bias = np.broadcast_to(node.bias.astype(np.int64), (node.heads, graph.n_max, graph.n_max))
    high = np.maximum(highest[:, None, None] + bias, 0).sum(axis=2).max(axis=1)
    low = np.minimum(lowest[:, None, None] + bias, 0).sum(axis=2).min(axis=1)
    return Range(np.repeat(low, size) * v.high, np.repeat(high, size) * v.high)


def _lif(
    a: Range,
    threshold: int | np.ndarray,
    dv: int,
    shift: int,
    timesteps: int,
    reset: str = "zero",
    spike: str = "binary",
    cap: int = 1,
) -> Range:
    """The rule of `LIF`, on intervals: the membrane as high, and as low, as it can be when it is charged at each t."""
    level = np.broadcast_to(np.asarray(threshold, np.int64) << shift, a.low.shape)
    low, high = np.zeros_like(a.low), np.zeros_like(a.low)  # of the membrane, between two timesteps
    lowest, highest = np.full_like(low, INT64_MAX), np.full_like(low, -INT64_MAX)
    most, least = np.full_like(low, -cap), np.full_like(low, cap)  # of the spikes
    for _ in range(timesteps):
        charged_low, charged_high = decay(low, dv) + (a.low << shift), decay(high, dv) + (a.high << shift)
        lowest, highest = np.minimum(lowest, charged_low), np.maximum(highest, charged_high)
        charged_low, charged_high = _saturate(charged_low), _saturate(charged_high)
        # what is sent rises with the membrane
        least = np.minimum(least, fire(charged_low, level, spike, cap))
        most = np.maximum(most, fire(charged_high, level, spike, cap))
        low, high = _after_reset(charged_low, charged_high, level, reset, spike, cap)
    return Range(least, most, lowest, highest)


def _after_reset(
    low: np.ndarray, high: np.ndarray, level: np.ndarray, reset: str, spike: str, cap: int
) -> tuple[np.ndarray, np.ndarray]:
    """The interval of a membrane after it fired or did not: what did not is at most at its level, what did is 0, or
    on the same side of 0 and less, at most at its level unless it was at more than `cap + 1` levels."""
    lowest, highest = low, np.minimum(high, level)
    if spike == "ternary":
        lowest = np.maximum(low, -level)
    if reset == "subtract":
        highest = np.maximum(highest, high - cap * level)
        lowest = np.minimum(lowest, low + level) if spike == "ternary" else lowest
    fires_below = low < -level if spike == "ternary" else np.zeros(low.shape, bool)
    return (
        np.where(high > level, np.minimum(lowest, 0), lowest),
        np.where(fires_below, np.maximum(highest, 0), highest),
    )


def _saturate(membrane: np.ndarray) -> np.ndarray:
    return np.clip(membrane, -MEMBRANE_MAX, MEMBRANE_MAX)


def ranges_table(graph: Graph, ranges: dict[str, Range]) -> str:
    """The ranges as text, a line for each node."""
    lines = [
        f"{'node':<28} {'op':<10} {'value':>17} {'bits':>4} {'of ' + str(ACCUMULATOR_MAX):>9} {'membrane':>21} silent"
    ]
    for node in graph:
        own = ranges[node.name]
        low, high = int(own.low.min()), int(own.high.max())
        share = f"{own.reach / ACCUMULATOR_MAX:.0%}" if isinstance(node, CURRENTS) else ""
        membrane = ""
        if own.membrane_low is not None and own.membrane_high is not None:
            membrane = f"{int(own.membrane_low.min())} .. {int(own.membrane_high.max())}"
            membrane += " cut" if own.may_saturate else ""
        silent = int(own.silent.sum()) or ""
        lines.append(
            f"{node.name:<28} {node.op:<10} {f'{low} .. {high}':>17} {own.bits:>4} {share:>9} {membrane:>21} {silent}"
        )
    logits = logit_range(graph, ranges)
    lines.append(
        f"{'logits':<28} {'':<10} {f'{int(logits.low.min())} .. {int(logits.high.max())}':>17} {logits.bits:>4}"
    )
    return "\n".join(line.rstrip() for line in lines) + "\n"
