"""Lowering: an integer LIF graph becomes a plan, a list of Lava processes as plain data.

Two passes come first, and neither changes a spike: `lay_out_bias_lanes` turns biases into synapses from valid lanes,
and `balance_delays` finds what must wait for what. What is left is nearly one process a node:

Doubling  `8 bits with a sign` are even numbers on Lava and on the chip, so a weight `w` becomes `2w`, a threshold
          `2 * threshold`, and Lava shifts by 6 where the graph shifts by 7. Currents are doubled.
Homes     slices and concats are no processes: a value stands in some channels of one process or of several, and who
          reads it picks them (`Segment`). A concat of an add and of what is there earlier widens the add's process.
Routes    what must wait goes through a delay line, and so does what leads into an add.

Channels of a token: features first, then lanes. Lava is not imported here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Union

import networkx as nx
import numpy as np

from converters.graph import (
    CURRENTS,
    LIF,
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
    ValidLane,
)
from converters.passes.balance_delays import balance_delays
from converters.passes.lay_out_bias_lanes import LayOutBiasLanes
from converters.passes.rewrite import Rewrite
from converters.schedule import LatencyTable, Schedule

DOUBLING = 2  # currents on Lava are twice those of the graph
LATENCIES = LatencyTable()  # its defaults are Lava's


@dataclass(frozen=True)
class Segment:
    """Channels `start .. stop - 1` of what a process sends for a token."""

    process: str
    start: int
    stop: int

    @property
    def width(self) -> int:
        return self.stop - self.start


Home = tuple[Segment, ...]  # where a value stands: side by side for spikes; for currents, parts to be added up


@dataclass(frozen=True)
class SourceSpec:
    """Feeds the spikes encoded on the host. Its process: `targets.lava.processes.streams.SpikeFeed`."""

    name: str
    channels: int
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SynapsesSpec:
    """A linear layer for each token, or the part of one that reads one process. Its process: stock `Conv`, kernel 1x1.

    weight       int32 [channels out, channels in], even
    message_bits 0 for spikes; the bits of the largest payload for graded spikes
    """

    name: str
    inputs: tuple[str, ...]
    weight: np.ndarray
    message_bits: int

    @property
    def channels(self) -> int:
        """Channels a token has on the way out."""
        return self.weight.shape[0]


@dataclass(frozen=True)
class NeuronSpec:
    """A LIF. Its process: stock `LIFReset` with `du = 4095`, or where it does not reset to 0 or sends other spikes than
    bits `targets.lava.processes.neuron.RuleNeuron`. `vth` in doubled accumulator units; reset, spike and cap as
    `converters.graph.LIF` has them."""

    name: str
    inputs: tuple[str, ...]
    channels: int
    vth: int
    dv: int
    reset_interval: int
    reset_offset: int
    reset: str = "zero"
    spike: str = "binary"
    cap: int = 1

    @property
    def is_stock(self) -> bool:
        """Whether a LIFReset does it."""
        return self.reset == "zero" and self.spike == "binary"


@dataclass(frozen=True)
class Piece:
    """Channels `start .. start + count - 1` of input `source` are the next features of q (`slot` 0), k (1), v (2), or
    the valid lane (3)."""

    slot: int
    source: int
    start: int
    count: int


@dataclass(frozen=True, eq=False)
class AttentionSpec:
    """`2 (q k^T) v`, or with other scores. Its process: `targets.lava.processes.attention.SpikingAttention`.

    input_channels of each input; pieces put q, k and v together from them, and the valid lane where there is one
    similarity     "and" or "xnor", as of `converters.graph.Attention`
    bias           int32 [1 or heads, n_max, n_max], or None
    """

    name: str
    inputs: tuple[str, ...]
    channels: int
    heads: int
    input_channels: tuple[int, ...]
    pieces: tuple[Piece, ...]
    similarity: str = "and"
    bias: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class NormSpec:
    """Normalises the current of each token. Its process: `targets.lava.processes.norm.TokenNorm`.

    inputs        the parts of the current, `parts` processes that are added up; then that of the valid lane, if any
    lane_channel  where the lane stands in what that process sends; None without one: beta is then 0
    lane_channels how many channels that process has, 1 without one
    kind, eps, gamma, beta as `converters.graph.Norm` has them
    """

    name: str
    inputs: tuple[str, ...]
    channels: int
    parts: int
    lane_channel: int | None
    lane_channels: int
    kind: str
    eps: int
    gamma: np.ndarray
    beta: np.ndarray


@dataclass(frozen=True, eq=False)
class RouteSpec:
    """Carries channels on unchanged. Its process: stock `Sparse`, or `DelaySparse` where `delay_steps` is above 0.

    weight      int32 [channels out, channels in] of one token, 0 and 1; the same for every token
    delay_steps beyond the one step that every connection takes
    """

    name: str
    inputs: tuple[str, ...]
    weight: np.ndarray
    delay_steps: int
    message_bits: int

    @property
    def channels(self) -> int:
        """Channels a token has on the way out."""
        return self.weight.shape[0]


@dataclass(frozen=True)
class FanSpec:
    """Leads to pairs of a query n and a key m. Its process: stock `Sparse`, or `DelaySparse`, across tokens.

    Output channel `m * width + j` of token n gets, times `weight`,

    kind "query"  feature j of token n
    kind "key"    feature j of token m
    kind "score"  feature `m * heads + j // (width / heads)` of token n

    Feature f stands in input channel `f - first + start`, for `count` features from `first` on; others come from
    elsewhere.
    """

    name: str
    inputs: tuple[str, ...]
    kind: str
    keys: int
    width: int
    heads: int
    weight: int
    first: int
    start: int
    count: int
    input_channels: int
    delay_steps: int
    message_bits: int

    @property
    def channels(self) -> int:
        """Channels a token has on the way out."""
        return self.keys * self.width


@dataclass(frozen=True)
class AdderSpec:
    """Sends the sum of what it gets as graded spikes: an add, or a relay. Its process: stock `GradedVec`.

    vth 0: GradedVec sends what is strictly above, and its default of 1 would drop single spikes.
    """

    name: str
    inputs: tuple[str, ...]
    channels: int
    vth: int = 0


@dataclass(frozen=True)
class ProductSpec:
    """Sends `(a1 * a2) >> exp` as graded spikes; the first `scores` inputs make a1. Its process: stock `ProdNeuron`."""

    name: str
    inputs: tuple[str, ...]
    channels: int
    scores: int
    exp: int
    vth: int = 0


Spec = Union[
    SourceSpec, SynapsesSpec, NeuronSpec, AttentionSpec, NormSpec, RouteSpec, FanSpec, AdderSpec, ProductSpec
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Plan:
    """A lowered graph.

    tokens   n_max: the width at which the network runs
    schedule when each value exists
    specs    the processes, each after its inputs
    homes    node -> where its value stands
    lanes    process -> K, its last channels that are valid lanes
    doubled  nodes whose values on Lava are twice those of the graph
    """

    tokens: int
    schedule: Schedule
    specs: tuple[Spec, ...]
    homes: dict[str, Home]
    lanes: dict[str, int]
    doubled: frozenset[str]

    def __getitem__(self, process: str) -> Spec:
        return self._by_name[process]

    @cached_property
    def _by_name(self) -> dict[str, Spec]:
        return {spec.name: spec for spec in self.specs}


def scalar_threshold(node: LIF) -> int:
    """The one threshold of a LIF. Raises ValueError where features have different ones (see rules.py)."""
    levels = np.unique(np.asarray(node.threshold))
    if levels.size > 1:
        raise ValueError(f"node '{node.name}': {levels.size} different thresholds, a LIFReset of Lava has one")
    return int(levels[0])


def message_bits(value_max: int, signed: bool = False) -> int:
    """0 where the value is 0 or 1 (Lava then sends one bit), else the bits of the largest payload, with its sign."""
    return 0 if value_max <= 1 and not signed else value_max.bit_length() + signed


def route_name(consumer: str, slot: int) -> str:
    """The name of the process on the way into `slot` of `consumer`; no node can be called so."""
    return f"{consumer}#{slot}"


def cut(home: Home, start: int, stop: int) -> Home:
    """Features `start .. stop - 1` of a value."""
    pieces, place = [], 0
    for segment in home:
        low, high = max(start - place, 0), min(stop - place, segment.width)
        if low < high:
            pieces.append(Segment(segment.process, segment.start + low, segment.start + high))
        place += segment.width
    return tuple(pieces)


def selection(home: Home, process: str, channels: int) -> np.ndarray:
    """int32 [width of the value, channels of the process]: 1 where a feature stands in a channel."""
    matrix, place = np.zeros((sum(segment.width for segment in home), channels), dtype=np.int32), 0
    for segment in home:
        rows = np.arange(segment.width)
        if segment.process == process:
            matrix[place + rows, segment.start + rows] = 1
        place += segment.width
    return matrix


def spread(weight: np.ndarray, home: Home, process: str, channels: int) -> np.ndarray:
    """Weights [out, features of a value] on the channels of one process: int32 [out, channels]."""
    matrix, place = np.zeros((len(weight), channels), dtype=np.int32), 0
    for segment in home:
        if segment.process == process:  # added, for a value may have a channel twice
            matrix[:, segment.start : segment.stop] += weight[:, place : place + segment.width]
        place += segment.width
    return matrix


def processes_of(home: Home) -> tuple[str, ...]:
    """The processes in which a value stands, each once."""
    return tuple(dict.fromkeys(segment.process for segment in home))


def lower(graph: Graph, latencies: LatencyTable = LATENCIES) -> Plan:
    """The plan of a graph that `LavaTarget.check` finds legal. Raises ValueError on differing thresholds."""
    return lower_laid_out(lay_out(graph), latencies)


def lay_out(graph: Graph) -> Rewrite:
    """The graph that is really lowered, and where its lanes are."""
    return LayOutBiasLanes().rewrite(graph)


def lower_laid_out(laid: Rewrite, latencies: LatencyTable = LATENCIES) -> Plan:
    """The plan of a graph whose biases `lay_out` has laid out, for a machine that takes so many steps."""
    return _Lowering(laid.graph, laid.added, latencies).plan()


def attention_inputs(laid: Graph) -> dict[str, int]:
    """Attention -> from how many processes its q, k and v come, in a graph whose biases are laid out."""
    lowering = _Lowering(laid, {}, LATENCIES)
    for node in laid:
        lowering.settle(node)
    return {node.name: lowering.count_inputs(node) for node in laid if isinstance(node, Attention)}


class _Lowering:
    """The state of lowering one graph, whose biases are laid out.

    homes    node -> where its value stands
    channels process -> how many a token has
    largest  process -> the largest value it sends
    signed   processes that send values below 0 too, as spikes
    widened  add -> the concat that its process carries
    """

    def __init__(self, graph: Graph, added: Mapping[str, int], latencies: LatencyTable) -> None:
        self.graph, self.schedule = graph, balance_delays(graph, latencies)
        self.specs: list[Spec] = []
        self.homes: dict[str, Home] = {}
        self.channels: dict[str, int] = {}
        self.largest: dict[str, int] = {}
        self.signed: set[str] = set()
        valid = sum(node.lanes for node in graph if isinstance(node, ValidLane))
        self.lanes: dict[str, int] = {graph.source.name: valid}
        self.lanes |= {name: count for name, count in added.items() if isinstance(graph[name], LIF)}
        self.widened = dict(self._find_widened())

    def plan(self) -> Plan:
        """Lower every node."""
        for node in self.graph:
            self.settle(node)
        for node in self.graph:
            self._emit(node)
        order = nx.DiGraph()
        order.add_nodes_from(spec.name for spec in self.specs)
        order.add_edges_from((name, spec.name) for spec in self.specs for name in spec.inputs)
        place = {spec.name: index for index, spec in enumerate(self.specs)}
        by_name = {spec.name: spec for spec in self.specs}
        names = nx.lexicographical_topological_sort(order, key=place.__getitem__)
        doubled = frozenset(node.name for node in self.graph if isinstance(node, (*CURRENTS, Relay)))
        specs = tuple(by_name[name] for name in names)
        return Plan(self.graph.n_max, self.schedule, specs, self.homes, self.lanes, doubled)

    # Homes

    def _find_widened(self) -> Iterator[tuple[str, Concat]]:
        """Adds that carry a concat: its first part is the add, and all others were there before."""
        taken: set[str] = set()
        for node in self.graph:
            if isinstance(node, Concat) and isinstance(self.graph[node.inputs[0]], Add) and node.inputs[0] not in taken:
                first, *waits = self.schedule.delay_steps[node.name]
                if first == 0 and min(waits) > 0:
                    taken.add(node.inputs[0])
                    yield node.inputs[0], node

    def settle(self, node: Node) -> None:
        """Where the value of a node stands, and what its process sends."""
        name, width = node.name, self.graph.features[node.name]
        largest = self.graph.value_max[name]
        if isinstance(node, Slice):
            self.homes[name] = cut(self.homes[node.inputs[0]], node.start, node.stop)
        elif isinstance(node, Concat):
            self.homes[name] = self._concat_home(node)
        elif isinstance(node, ValidLane):
            source, start = self.graph.source.name, self.channels[self.graph.source.name]
            self.homes[name] = (Segment(source, start, start + width),)
            self.channels[source] += width
        elif isinstance(node, (Synapses, Readout)):
            parts = processes_of(self.homes[node.inputs[0]])
            names = [name, *(route_name(name, part) for part in range(1, len(parts)))]
            self.homes[name] = tuple(self._process(part, width, DOUBLING * largest) for part in names)
        else:
            factor = DOUBLING if isinstance(node, (Attention, Norm, Relay)) else 1
            self.homes[name] = (self._process(name, width, factor * largest, name in self.graph.signed),)

    def _process(self, name: str, channels: int, largest: int, signed: bool = False) -> Segment:
        self.channels[name], self.largest[name] = channels, largest
        if signed:
            self.signed.add(name)
        return Segment(name, 0, channels)

    def _message_bits(self, process: str) -> int:
        return message_bits(self.largest[process], process in self.signed)

    def _concat_home(self, node: Concat) -> Home:
        first = node.inputs[0]
        if self.widened.get(first) is node:
            width = self.graph.features[node.name]
            self.channels[first] = width
            lanes = [self._is_lanes(name) for name in node.inputs[1:]]
            self.lanes[first] = width - self.graph.features[first] if all(lanes) else 0
            return (Segment(first, 0, width),)
        waits = self.schedule.delay_steps[node.name]
        parts = [self._after_wait(node, slot, wait) for slot, wait in enumerate(waits)]
        return tuple(segment for part in parts for segment in part)

    def _is_lanes(self, name: str) -> bool:
        """Whether a value is nothing but valid lanes."""
        return all(
            segment.start >= self.channels[segment.process] - self.lanes.get(segment.process, 0)
            for segment in self.homes[name]
        )

    def _routes(self, node: Node, slot: int) -> dict[str, str]:
        """Process in which an input of a node stands -> the route that holds what comes from it."""
        processes = processes_of(self.homes[node.inputs[slot]])
        name = route_name(node.name, slot)
        return {process: name if number == 0 else f"{name}#{number}" for number, process in enumerate(processes)}

    def _after_wait(self, node: Node, slot: int, wait: int) -> Home:
        """Where an input of a node stands once it has waited: in routes, one for each process it comes from."""
        home = self.homes[node.inputs[slot]]
        if wait == 0:
            return home
        routes = self._routes(node, slot)
        filled = dict.fromkeys(routes, 0)
        segments = []
        for segment in home:
            start = filled[segment.process]
            filled[segment.process] += segment.width
            segments.append(Segment(routes[segment.process], start, start + segment.width))
        for process, name in routes.items():
            self._process(name, filled[process], self.largest[process], process in self.signed)
        return tuple(segments)

    def _wait_routes(self, node: Node, slot: int, wait: int) -> Iterator[RouteSpec]:
        """The routes of `_after_wait`. The step that a route takes itself is part of the wait."""
        home = self.homes[node.inputs[slot]]
        for process, name in self._routes(node, slot).items() if wait else ():
            own = tuple(segment for segment in home if segment.process == process)
            weight = selection(own, process, self.channels[process])
            yield RouteSpec(name, (process,), weight, wait - 1, self._message_bits(process))

    # Processes

    def _emit(self, node: Node) -> None:
        """The process of a node, and the routes that lead into it."""
        name, width = node.name, self.graph.features[node.name]
        waits = self.schedule.delay_steps[name]
        if isinstance(node, Source):
            self.specs.append(SourceSpec(name, self.channels[name]))
        elif isinstance(node, (Synapses, Readout)):
            self.specs += self._synapses(node)
        elif isinstance(node, LIF):
            reset = self.schedule.resets[name]
            inputs, vth = processes_of(self.homes[node.inputs[0]]), DOUBLING * scalar_threshold(node)
            times = reset.interval_steps, reset.offset_steps
            self.specs.append(NeuronSpec(name, inputs, width, vth, node.dv, *times, node.reset, node.spike, node.cap))
        elif isinstance(node, Add):
            self.specs += self._add(node)
        elif isinstance(node, Norm):
            self.specs += self._norm(node)
        elif isinstance(node, Attention):
            self.specs += self._attention(node)
        elif isinstance(node, Concat) and self.widened.get(node.inputs[0]) is not node:
            for slot, wait in enumerate(waits):
                self.specs += self._wait_routes(node, slot, wait)
        elif isinstance(node, Relay):
            self.specs.append(AdderSpec(name, processes_of(self.homes[node.inputs[0]]), width))
        elif isinstance(node, Coincidence):
            query, key = (list(self._fans(node, slot, kind, DOUBLING)) for slot, kind in enumerate(("query", "key")))
            inputs = tuple(fan.name for fan in (*query, *key))
            # a single spike is forgotten at once, so it does not matter when the membrane is cleared
            neuron = NeuronSpec(name, inputs, width, DOUBLING, 4095, self.graph.timesteps, 0)
            self.specs += [*query, *key, neuron]
        elif isinstance(node, Product):
            scores, v = (list(self._fans(node, slot, kind, 1)) for slot, kind in enumerate(("score", "key")))
            inputs = tuple(fan.name for fan in (*scores, *v))
            halved = int(isinstance(self.graph[node.inputs[0]], Relay))  # what a relay sends is doubled
            self.specs += [*scores, *v, ProductSpec(name, inputs, width, len(scores), halved)]

    def _synapses(self, node: Synapses | Readout) -> Iterator[SynapsesSpec]:
        """One process for each process that the layer reads."""
        home = self.homes[node.inputs[0]]
        for own, process in zip(self.homes[node.name], processes_of(home)):
            weight = DOUBLING * spread(node.weight, home, process, self.channels[process])
            yield SynapsesSpec(own.process, (process,), weight, self._message_bits(process))

    def _add(self, node: Add) -> Iterator[Spec]:
        """Routes bring the inputs, and what the process carries beside the sum, all at the same step."""
        width, channels = self.graph.features[node.name], self.channels[node.name]
        routes: dict[tuple[int, str, int], np.ndarray] = {}  # (slot, process, delay) -> weight
        for slot, (name, wait) in enumerate(zip(node.inputs, self.schedule.delay_steps[node.name])):
            for process in processes_of(self.homes[name]):
                weight = np.zeros((channels, self.channels[process]), np.int32)
                weight[:width] = selection(self.homes[name], process, self.channels[process])
                routes[slot, process, wait] = weight
        if carried := self.widened.get(node.name):
            row = width
            for name, wait in zip(carried.inputs[1:], self.schedule.delay_steps[carried.name][1:]):
                for process in processes_of(self.homes[name]):
                    picks = selection(self.homes[name], process, self.channels[process])
                    key = next((key for key in routes if key[1:] == (process, wait - 1)), None)
                    key = key or (len(routes) + len(node.inputs), process, wait - 1)
                    weight = routes.setdefault(key, np.zeros((channels, self.channels[process]), np.int32))
                    weight[row : row + len(picks)] += picks
                row += self.graph.features[name]
        names = []
        for (slot, process, delay), weight in routes.items():
            taken = route_name(node.name, slot) in names
            names.append(route_name(node.name, slot) + (f"#{process}" if taken else ""))
            yield RouteSpec(names[-1], (process,), weight, delay, self._message_bits(process))
        yield AdderSpec(node.name, tuple(names), channels)

    def _attention(self, node: Attention) -> Iterator[Spec]:
        inputs: list[str] = []
        pieces: list[Piece] = []
        for slot, wait in enumerate(self.schedule.delay_steps[node.name]):
            for segment in self._after_wait(node, slot, wait):
                if segment.process not in inputs:
                    inputs.append(segment.process)
                pieces.append(Piece(slot, inputs.index(segment.process), segment.start, segment.width))
            yield from self._wait_routes(node, slot, wait)
        width, channels = self.graph.features[node.name], tuple(self.channels[name] for name in inputs)
        yield AttentionSpec(
            node.name, tuple(inputs), width, node.heads, channels, tuple(pieces), node.similarity, node.bias
        )

    def _norm(self, node: Norm) -> Iterator[Spec]:
        waits = self.schedule.delay_steps[node.name]
        parts = processes_of(self._after_wait(node, 0, waits[0]))
        yield from self._wait_routes(node, 0, waits[0])
        lane = self._after_wait(node, 1, waits[1])[0] if len(waits) > 1 else None
        if lane is not None:  # its first feature is enough
            yield from (route for route in self._wait_routes(node, 1, waits[1]) if route.name == lane.process)
        yield NormSpec(
            node.name,
            parts if lane is None else (*parts, lane.process),
            self.graph.features[node.name],
            len(parts),
            None if lane is None else lane.start,
            1 if lane is None else self.channels[lane.process],
            node.kind,
            node.eps,
            node.gamma,
            node.beta,
        )

    def count_inputs(self, node: Attention) -> int:
        """From how many processes q, k and v of a settled attention come, and its valid lane."""
        slots = enumerate(self.schedule.delay_steps[node.name])
        return len({segment.process for slot, wait in slots for segment in self._after_wait(node, slot, wait)})

    def _fans(self, node: Coincidence | Product, slot: int, kind: str, weight: int) -> Iterator[FanSpec]:
        """Connections from one input to all pairs of a query and a key."""
        wait, width = self.schedule.delay_steps[node.name][slot], self.graph.features[node.inputs[-1]]
        heads, first = getattr(node, "heads", 1), 0
        for number, segment in enumerate(self.homes[node.inputs[slot]]):
            name = route_name(node.name, slot) + ("" if number == 0 else f"#{number}")
            yield FanSpec(
                name, (segment.process,), kind, self.graph.n_max, width, heads, weight, first, segment.start,
                segment.width, self.channels[segment.process], wait, self._message_bits(segment.process),
            )  # fmt: skip
            first += segment.width


def fan_entries(spec: FanSpec, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Output and input indices int64 of all synapses of a fan, on flat vectors [tokens * channels]."""
    n, m, j = (each.ravel() for each in np.indices((tokens, spec.keys, spec.width)))
    feature = m * spec.heads + j // (spec.width // spec.heads) if spec.kind == "score" else j
    token = m if spec.kind == "key" else n
    own = (feature >= spec.first) & (feature < spec.first + spec.count)
    out = (n * spec.keys + m) * spec.width + j
    return out[own], (token * spec.input_channels + feature - spec.first + spec.start)[own]


def weight_bytes(specs: Sequence[Spec], tokens: int) -> int:
    """What the weights of all processes take, about."""
    dense = sum(spec.weight.nbytes for spec in specs if isinstance(spec, (SynapsesSpec, RouteSpec)))
    pairs = sum(tokens * spec.channels for spec in specs if isinstance(spec, FanSpec))
    return dense + 12 * pairs  # of a sparse matrix: value and column
