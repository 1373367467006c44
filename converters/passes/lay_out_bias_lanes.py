"""Turns biases into synapses from valid lanes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from converters.graph import (
    ACCUMULATOR_MAX,
    LIF,
    Add,
    Attention,
    Concat,
    Graph,
    Node,
    Norm,
    Readout,
    Slice,
    Source,
    Synapses,
    ValidLane,
)
from converters.passes.edit import free_name, readers_of
from converters.passes.rewrite import Rewrite

WEIGHT_MAX = 127  # of 8 bits
BITS = 8


@dataclass(frozen=True)
class LayOutBiasLanes:
    """Every bias becomes synapses from K neurons that spike at each step of a real token. Exact.

    The identity: `W x + b m = [W | b split over K columns] [x; m; ..; m]`, for the valid lane m is 0 or 1. Machines
    add a constant bias at every step, to padding too and while the network fills; a lane is silent there.

    The lanes begin on the host and are carried by the layers themselves: a layer whose spikes are read by one that
    has a bias is K neurons wider. Their weights, from the lanes that it reads, sum to its threshold + 1, so they fire
    at each step of a real token and at no other. So a lane is never ahead of the data, and needs no delay of its own.
    Where a value is made by something else (attention, an add, neurons behind a norm), the lanes of what it was made
    from are put beside it. A norm whose beta is not 0 reads one of the lanes that go with the input of its layer, and
    an attention that would answer a silent query (`Attention.needs_lane`) one of its query's, in place of m.

    K is as small as weights of 8 bits allow: `ceil(max |b| / 127)`, and `threshold // 127 + 1` to fire again. Layers
    that read lanes take 8 bits for a weight. A neuron of threshold 65535 carries no lane, for no current passes it.
    """

    name: str = "lay-out-bias-lanes"

    def rewrite(self, graph: Graph) -> Rewrite:
        """See the class."""
        if not any(_uses_lanes(node) for node in graph):
            return Rewrite(graph, "no biases")
        layout = _Layout(graph)
        lowered = [new for node in graph for new in layout.lower(node)]
        nodes: list[Node] = []
        read: set[str] = set()
        for each in reversed(lowered):
            if each.name in read or each.name in graph.features:  # of the new ones those that somebody reads
                nodes.insert(0, each)
                read |= set(each.inputs)
        new = Graph(graph.timesteps, graph.n_max, tuple(nodes))
        added = {
            node.name: new.features[node.name] - graph.features[node.name]
            for node in graph
            if new.features[node.name] > graph.features[node.name]
        }
        lanes = sum(new.features[name] - graph.features[name] for name in added if isinstance(graph[name], LIF))
        return Rewrite(new, f"biases carried by {lanes:,} lane neurons", added=added)


def _uses_lanes(node: Node) -> bool:
    """Whether something in a node rides on the valid lane, and is not laid out yet."""
    if isinstance(node, Attention):
        return node.needs_lane and node.lane is None
    if isinstance(node, Norm):
        return bool(node.beta.any()) and len(node.inputs) == 1
    return isinstance(node, (Synapses, Readout)) and bool(node.bias.any())


def split_evenly(totals: np.ndarray, parts: int) -> np.ndarray:
    """Integers [rows, parts] that sum to `totals` [rows] and differ by at most 1 within a row."""
    magnitude = np.abs(totals.astype(np.int64))[:, None]
    share = magnitude // parts + (np.arange(parts) < magnitude % parts)
    return np.sign(totals.astype(np.int64))[:, None] * share


def lanes_for_bias(bias: np.ndarray) -> int:
    """Lanes over which a bias must be split so that each part is an 8-bit weight."""
    return -(-int(np.abs(bias.astype(np.int64)).max()) // WEIGHT_MAX)


def lanes_for_threshold(threshold: int) -> int:
    """Lanes that together bring a lane neuron above `threshold`."""
    return threshold // WEIGHT_MAX + 1


class _Layout:
    """Where lanes are, and how many.

    A carrier has lanes that go with its value in time: the valid lane for the source, a widened LIF, and an add with
    lanes beside it. Any other value goes with the lanes of a carrier that it was made from.

    carriers node -> its carrier
    lanes    carrier, or layer of a carrier -> K
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.features, self.readers = graph, graph.features, readers_of(graph)
        self.valid = free_name(graph, "valid_lane")
        self.depth: dict[str, int] = {}
        self.carriers: dict[str, str] = {}
        for node in graph:
            self.depth[node.name] = 1 + max((self.depth[name] for name in node.inputs), default=0)
            self.carriers[node.name] = self._carrier(node)
        self.lanes = self._count()

    def _beside(self, name: str, what: str) -> str:
        """The name of a new node that belongs to a node of the graph."""
        return free_name(self.graph, f"{name}.{what}")

    def _carrier(self, node: Node) -> str:
        if isinstance(node, (Source, ValidLane)):
            return self.valid
        if isinstance(node, LIF):
            layer = self.graph[node.inputs[0]]
            wider = isinstance(layer, Synapses) and all(isinstance(other, LIF) for other in self.readers[layer.name])
            # a lane is 0 or 1: of a graded neuron it would be more, and of a ternary one that is not proven
            if wider and node.spike == "binary" and int(np.max(node.threshold)) < ACCUMULATOR_MAX:
                return node.name
        return node.name if isinstance(node, Add) else self.carriers[node.inputs[0]]

    def _before(self, node: Add) -> str:
        """The carrier whose lanes an add takes: of the input that is there first, so that the others wait anyhow."""
        return self.carriers[min(node.inputs, key=self.depth.__getitem__)]

    def _neurons(self, layer: Synapses) -> list[LIF]:
        """The neurons that a layer drives: they are as wide as it is."""
        return [node for node in self.readers[layer.name] if isinstance(node, LIF)]

    def _count(self) -> dict[str, int]:
        """From the readout backwards: as few as the nodes after a carrier can do with."""
        lanes = dict.fromkeys(self.carriers.values(), 0)
        for node in reversed(self.graph.nodes):
            if isinstance(node, Add):
                carrier, wanted = self._before(node), lanes[node.name]
            elif isinstance(node, Norm):
                carrier, wanted = self.carriers[node.name], int(_uses_lanes(node))
            elif isinstance(node, (Synapses, Readout)):
                carrier, wanted = self.carriers[node.inputs[0]], lanes_for_bias(node.bias)
                own = self._widen(node, lanes) if isinstance(node, Synapses) else 0
                if own and isinstance(node, Synapses):
                    wanted = max(wanted, lanes_for_threshold(self._level(node)))
            elif isinstance(node, Attention) and _uses_lanes(node):
                carrier, wanted = self.carriers[node.inputs[0]], 1
            else:
                continue
            lanes[carrier] = max(lanes[carrier], wanted)
        for node in self.graph:  # an add passes on all that it gets
            if isinstance(node, Add) and lanes[node.name]:
                lanes[node.name] = lanes[self._before(node)]
        return lanes

    def _widen(self, layer: Synapses, lanes: dict[str, int]) -> int:
        """The lanes of a layer, set for it and for all neurons that it drives."""
        neurons = [neuron.name for neuron in self._neurons(layer)]
        own = max((lanes.get(name, 0) for name in neurons), default=0)
        lanes |= dict.fromkeys((layer.name, *neurons), own)
        return own

    def _level(self, layer: Synapses) -> int:
        """The highest threshold that the lanes of a layer must pass."""
        levels = [int(np.max(neuron.threshold)) for neuron in self._neurons(layer)]
        return max(level for level in levels if level < ACCUMULATOR_MAX)

    def lower(self, node: Node) -> list[Node]:
        """What stands instead of a node. It may be more than is read."""
        if isinstance(node, (Synapses, Readout)):
            return [self._linear(node)]
        name, width = node.name, self.features[node.name]
        if isinstance(node, LIF):
            return self._neuron(node, width, self.lanes.get(name, 0))
        if isinstance(node, Norm) and _uses_lanes(node):
            return [replace(node, inputs=(*node.inputs, self._lanes_of(self.carriers[name])))]
        inputs = tuple(map(self._plain, node.inputs))
        if isinstance(node, Attention) and _uses_lanes(node):
            lane = Slice(self._beside(name, "lane"), (self._lanes_of(self.carriers[node.inputs[0]]),), 0, 1)
            return [lane, replace(node, inputs=(*inputs, lane.name)), *self._with_lanes(node)]
        new: list[Node] = [replace(node, inputs=inputs)]
        if isinstance(node, Source) and self.lanes[self.valid]:
            new.append(ValidLane(self.valid, self.lanes[self.valid]))
        if isinstance(node, Add) and self.lanes[name]:
            beside = Concat(self._beside(name, "with_lanes"), (name, self._lanes_of(self._before(node))))
            return [*new, beside, Slice(self._beside(name, "lanes"), (beside.name,), width, width + self.lanes[name])]
        return [*new, *self._with_lanes(node)]

    def _neuron(self, node: LIF, width: int, lanes: int) -> list[Node]:
        if not lanes:
            return [node, *self._with_lanes(node)]
        if isinstance(node.threshold, np.ndarray):
            level = np.full(lanes, node.threshold.max())
            node = replace(node, threshold=np.concatenate([node.threshold, level]))
        features = Slice(self._beside(node.name, "features"), (node.name,), 0, width)
        own = Slice(self._beside(node.name, "lanes"), (node.name,), width, width + lanes)
        return [node, features, own, *self._with_lanes(node)]

    def _with_lanes(self, node: Node) -> list[Node]:
        """A value that is no carrier with the lanes of one beside it."""
        carrier = self.carriers[node.name]
        if carrier == node.name or not self.lanes[carrier]:
            return []
        return [Concat(self._beside(node.name, "with_lanes"), (self._plain(node.name), self._lanes_of(carrier)))]

    def _plain(self, name: str) -> str:
        """The value without lanes."""
        widened = isinstance(self.graph[name], LIF) and self.lanes.get(name, 0)
        return self._beside(name, "features") if widened else name

    def _lanes_of(self, carrier: str) -> str:
        return carrier if carrier == self.valid else self._beside(carrier, "lanes")

    def _linear(self, node: Synapses | Readout) -> Node:
        """`[[W | b over the lanes], [0 | threshold + 1 over the lanes]]`, without a bias."""
        producer = node.inputs[0]
        carrier = self.carriers[producer]
        lanes_in, lanes_out = self.lanes[carrier], self.lanes.get(node.name, 0)
        if not lanes_in or not (lanes_out or node.bias.any()):  # no use for lanes, and weights keep their bits
            return replace(node, inputs=(self._plain(producer),))
        rows, columns = node.weight.shape
        matrix = np.zeros((rows + lanes_out, columns + lanes_in), np.int8)
        matrix[:rows, :columns] = node.weight
        matrix[:rows, columns:] = split_evenly(node.bias, lanes_in)
        if isinstance(node, Synapses) and lanes_out:
            matrix[rows:, columns:] = split_evenly(np.array([self._level(node) + 1]), lanes_in)
        itself = carrier == producer and isinstance(self.graph[producer], LIF)
        inputs = (producer if itself else self._beside(producer, "with_lanes"),)
        bias = np.zeros(len(matrix), np.int32)
        if isinstance(node, Synapses):
            return replace(node, inputs=inputs, weight=matrix, bias=bias, weight_bits=BITS)
        return replace(node, inputs=inputs, weight=matrix, bias=bias)
