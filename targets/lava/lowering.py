"""Lowering: an integer LIF graph becomes a plan (plan.py), a list of Lava processes as plain data.

Two passes come first, and neither changes a spike: `lay_out_bias_lanes` turns biases into synapses from valid lanes,
and `balance_delays` finds what must wait for what. What is left is nearly one process a node:

Doubling  `8 bits with a sign` are even numbers on Lava and on the chip, so a weight `w` becomes `2w`, a threshold
          `2 * threshold`, and Lava shifts by 6 where the graph shifts by 7. Currents are doubled.
Homes     slices and concats are no processes: a value stands in some channels of one process or of several, and who
          reads it picks them (`Segment`). A concat of an add and of what is there earlier widens the add's process.
Routes    what must wait goes through a delay line, and so does what leads into an add.

Lava is not imported here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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
from converters.schedule import LatencyTable
from targets.lava.plan import (
    DOUBLING,
    AdderSpec,
    AttentionSpec,
    FanSpec,
    Home,
    NeuronSpec,
    NormSpec,
    Piece,
    Plan,
    ProductSpec,
    RouteSpec,
    Segment,
    SourceSpec,
    Spec,
    SynapsesSpec,
    cut,
    processes_of,
    selection,
    spread,
)

LATENCIES = LatencyTable()  # its defaults are Lava's


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
