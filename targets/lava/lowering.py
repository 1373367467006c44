"""Lowering: an integer LIF graph becomes a plan, a list of Lava processes as plain data.

Two things change on the way down, and neither changes a spike:

Doubling     `8 bits with a sign` are even numbers on Lava and on the chip, so a weight `w` becomes `2w`, a
             threshold `2 * threshold`, and Lava shifts by 6 where the graph shifts by 7. Currents are doubled.
Valid lanes  a bias is a synapse from "this is a real token". So every token carries K more channels after its D
             features, 1 where the token is real, and the network carries them along with the data:
             `[[2W | 2b split over the K lanes], [0 | lane weights]]`. A lane neuron has its layer's threshold,
             and its lane weights sum to `2 * (threshold + 1)`, so it fires at each step of a real token.

Channels of a token: features first, then lanes. Lava is not imported here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Union

import numpy as np

from converters.graph import LIF, Add, Attention, Graph, Node, Readout, Source, Synapses
from targets.lava.schedule import Schedule, make_schedule

WEIGHT_MAX = 127  # half of the largest even 8-bit weight with a sign, 254
DOUBLING = 2  # currents on Lava are twice those of the graph


@dataclass(frozen=True)
class SourceSpec:
    """Feeds the spikes encoded on the host. Its process: `targets.lava.processes.streams.SpikeFeed`."""

    name: str
    channels: int
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SynapsesSpec:
    """A linear layer for each token. Its process: stock `Conv` with a 1x1 kernel.

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
    """A LIF. Its process: stock `LIFReset` with `du = 4095`. `vth` in doubled accumulator units."""

    name: str
    inputs: tuple[str, ...]
    channels: int
    vth: int
    dv: int
    reset_interval: int
    reset_offset: int


@dataclass(frozen=True, eq=False)
class AttentionSpec:
    """`2 (q k^T) v`. Its process: `targets.lava.processes.attention.SpikingAttention`.

    input_channels of q, k and v
    lane_weight    int32 [lanes out, lanes of q], even
    """

    name: str
    inputs: tuple[str, ...]
    features: int
    heads: int
    input_channels: tuple[int, int, int]
    lane_weight: np.ndarray

    @property
    def channels(self) -> int:
        """Channels a token has on the way out."""
        return self.features + self.lane_weight.shape[0]


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
class AdderSpec:
    """Sends the sum of what its routes bring as graded spikes. Its process: stock `GradedVec`.

    vth 0: GradedVec sends what is strictly above, and its default of 1 would drop single spikes.
    """

    name: str
    inputs: tuple[str, ...]
    channels: int
    vth: int = 0


Spec = Union[SourceSpec, SynapsesSpec, NeuronSpec, AttentionSpec, RouteSpec, AdderSpec]


@dataclass(frozen=True, eq=False)
class Plan:
    """A lowered graph.

    tokens   n_max: the width at which the network runs
    schedule when each value exists
    specs    the processes, each after its inputs; one per node under the node's name, and routes beside them
    lanes    node -> K, valid lanes of each token in that node's value
    doubled  nodes whose values on Lava are twice those of the graph
    """

    tokens: int
    schedule: Schedule
    specs: tuple[Spec, ...]
    lanes: dict[str, int]
    doubled: frozenset[str]

    def __getitem__(self, name: str) -> Spec:
        return next(spec for spec in self.specs if spec.name == name)


def split_evenly(totals: np.ndarray, parts: int) -> np.ndarray:
    """Integers [rows, parts] that sum to `totals` [rows] and differ by at most 1 within a row."""
    magnitude = np.abs(totals.astype(np.int64))[:, None]
    share = magnitude // parts + (np.arange(parts) < magnitude % parts)
    return np.sign(totals.astype(np.int64))[:, None] * share


def scalar_threshold(node: LIF) -> int:
    """The one threshold of a LIF. Raises ValueError where features have different ones (see target.py)."""
    levels = np.unique(np.asarray(node.threshold))
    if levels.size > 1:
        raise ValueError(f"node '{node.name}': {levels.size} different thresholds, a LIFReset of Lava has one")
    return int(levels[0])


def lanes_for_bias(bias: np.ndarray) -> int:
    """Lanes over which a bias must be split so that each part is an 8-bit weight."""
    return -(-int(np.abs(bias.astype(np.int64)).max()) // WEIGHT_MAX)


def lanes_for_threshold(threshold: int) -> int:
    """Lanes that together can carry a lane neuron above `threshold`."""
    return threshold // WEIGHT_MAX + 1


def lane_thresholds(graph: Graph) -> dict[str, int]:
    """Current-giving node -> the highest threshold among the LIFs it drives."""
    highest: dict[str, int] = {}
    for node in graph:
        if isinstance(node, LIF):
            highest[node.inputs[0]] = max(highest.get(node.inputs[0], 0), scalar_threshold(node))
    return highest


def lane_slot(node: Add | Attention, schedule: Schedule) -> int:
    """The one input from which lanes are taken: q of an attention, the shortest way into an add.

    From one only, or a sum would count a real token twice.
    """
    if isinstance(node, Attention):
        return 0
    waits = schedule.delay_steps[node.name]
    return waits.index(max(waits))


def count_lanes(graph: Graph, schedule: Schedule) -> dict[str, int]:
    """Node -> K, the valid lanes its value carries: as few as the nodes after it can do with."""
    lanes = dict.fromkeys((node.name for node in graph), 0)
    thresholds = lane_thresholds(graph)

    def require(name: str, count: int) -> None:
        lanes[name] = max(lanes[name], count)

    for node in reversed(graph.nodes):
        own = lanes[node.name]
        regenerate = lanes_for_threshold(thresholds[node.name]) if own and node.name in thresholds else 0
        if isinstance(node, (Synapses, Readout)):
            require(node.inputs[0], max(lanes_for_bias(node.bias), regenerate))
        elif isinstance(node, Attention):
            require(node.inputs[lane_slot(node, schedule)], regenerate)
        elif isinstance(node, Add):
            require(node.inputs[lane_slot(node, schedule)], own)
        elif isinstance(node, LIF):
            require(node.inputs[0], own)
    for node in graph:
        if isinstance(node, LIF):  # a neuron takes exactly the channels its current has
            lanes[node.name] = lanes[node.inputs[0]]
    return lanes


def lane_weights(lanes_out: int, lanes_in: int, threshold: int) -> np.ndarray:
    """int32 [lanes out, lanes in], even: all lanes in together bring each lane neuron just above `threshold`."""
    if lanes_out == 0:
        return np.zeros((0, lanes_in), dtype=np.int32)
    row = DOUBLING * split_evenly(np.array([threshold + 1]), lanes_in)
    return np.repeat(row, lanes_out, axis=0).astype(np.int32)


def synapse_matrix(weight: np.ndarray, bias: np.ndarray, lane_weight: np.ndarray) -> np.ndarray:
    """`[[2W | 2b over the lanes], [0 | lane_weight]]`, int32.

    weight int8 [out, in]; bias int32 [out]; lane_weight int32 [lanes out, lanes in]
    """
    rows, columns = weight.shape
    lanes_out, lanes_in = lane_weight.shape
    matrix = np.zeros((rows + lanes_out, columns + lanes_in), dtype=np.int32)
    matrix[:rows, :columns] = DOUBLING * weight.astype(np.int32)
    if lanes_in:
        matrix[:rows, columns:] = DOUBLING * split_evenly(bias, lanes_in)
    matrix[rows:, columns:] = lane_weight
    return matrix


def route_matrix(features: int, lanes_in: int, lanes_out: int, take_lanes: bool) -> np.ndarray:
    """The identity on the features, and on the first `lanes_out` lanes where they are taken from this branch."""
    matrix = np.zeros((features + lanes_out, features + lanes_in), dtype=np.int32)
    matrix[np.arange(features), np.arange(features)] = 1
    if take_lanes:
        matrix[features + np.arange(lanes_out), features + np.arange(lanes_out)] = 1
    return matrix


def message_bits(value_max: int) -> int:
    """0 where the value is 0 or 1 (Lava then sends one bit), else the bits of the largest payload."""
    return 0 if value_max <= 1 else value_max.bit_length()


def route_name(consumer: str, slot: int) -> str:
    """The name of the process on the way into `slot` of `consumer`; no node can be called so."""
    return f"{consumer}#{slot}"


def lower(graph: Graph) -> Plan:
    """The plan of a graph that `LavaTarget.check` finds legal. Raises ValueError on differing thresholds."""
    schedule = make_schedule(graph)
    lanes = count_lanes(graph, schedule)
    thresholds = lane_thresholds(graph)
    specs = tuple(spec for node in graph for spec in _lower_node(graph, node, schedule, lanes, thresholds))
    doubled = frozenset(node.name for node in graph if isinstance(node, (Synapses, Attention, Readout)))
    return Plan(graph.n_max, schedule, specs, lanes, doubled)


def _lower_node(
    graph: Graph, node: Node, schedule: Schedule, lanes: dict[str, int], thresholds: dict[str, int]
) -> Iterator[Spec]:
    """The process of one node, after the routes that lead into it."""
    name, channels = node.name, graph.features[node.name] + lanes[node.name]
    lane_threshold = thresholds.get(name, 0)
    if isinstance(node, Source):
        yield SourceSpec(name, channels)
    elif isinstance(node, (Synapses, Readout)):
        producer = node.inputs[0]
        lane_weight = lane_weights(lanes[name], lanes[producer], lane_threshold)
        matrix = synapse_matrix(node.weight, node.bias, lane_weight)
        yield SynapsesSpec(name, node.inputs, matrix, message_bits(graph.value_max[producer]))
    elif isinstance(node, LIF):
        reset = schedule.resets[name]
        vth = DOUBLING * scalar_threshold(node)
        yield NeuronSpec(name, node.inputs, channels, vth, node.dv, reset.interval_steps, reset.offset_steps)
    elif isinstance(node, Add):
        routes = [_route(graph, node, slot, schedule, lanes) for slot in range(len(node.inputs))]
        yield from routes
        yield AdderSpec(name, tuple(route.name for route in routes), channels)
    else:
        yield from _lower_attention(graph, node, schedule, lanes, lane_threshold)


def _lower_attention(
    graph: Graph, node: Attention, schedule: Schedule, lanes: dict[str, int], lane_threshold: int
) -> Iterator[Spec]:
    """The attention process, and a route for each of q, k and v that arrives early."""
    inputs = list(node.inputs)
    for slot, wait in enumerate(schedule.delay_steps[node.name]):
        if wait > 0:
            route = _route(graph, node, slot, schedule, lanes)
            yield route
            inputs[slot] = route.name
    q, k, v = (graph.features[producer] + lanes[producer] for producer in node.inputs)
    lane_weight = lane_weights(lanes[node.name], lanes[node.inputs[0]], lane_threshold)
    yield AttentionSpec(node.name, tuple(inputs), graph.features[node.name], node.heads, (q, k, v), lane_weight)


def _route(graph: Graph, node: Add | Attention, slot: int, schedule: Schedule, lanes: dict[str, int]) -> RouteSpec:
    """The connection that brings input `slot` to `node` at the right step."""
    producer, wait = node.inputs[slot], schedule.delay_steps[node.name][slot]
    bits = message_bits(graph.value_max[producer])
    features, name = graph.features[producer], route_name(node.name, slot)
    if isinstance(node, Add):  # the step of the connection itself is the add's latency
        take_lanes = slot == lane_slot(node, schedule)
        matrix = route_matrix(features, lanes[producer], lanes[node.name], take_lanes)
        return RouteSpec(name, (producer,), matrix, wait, bits)
    matrix = route_matrix(features, lanes[producer], lanes[producer], True)
    return RouteSpec(name, (producer,), matrix, wait - 1, bits)  # here it is part of the wait
