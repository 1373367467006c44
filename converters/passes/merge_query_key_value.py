"""Makes one layer of the query, key and value of an attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from converters.graph import LIF, Attention, Graph, Node, Slice, Synapses
from converters.passes.edit import free_name, readers_of, with_nodes
from converters.passes.rewrite import Rewrite

Pair = tuple[Synapses, LIF]  # a layer and its neurons


@dataclass(frozen=True)
class MergeQueryKeyValue:
    """The layers that make q, k and v of an attention become one, and each of them a slice of its spikes. Exact.

    The identity: `[W1; W2; W3] x` is `W1 x`, `W2 x` and `W3 x` one above the other, and neurons do not know of each
    other. Input spikes are then scanned once, and one process or core takes the place of three.

    It is done where the layers read the same input, decay and reset alike, and nobody else reads their currents.
    Thresholds that differ become a vector, unless `scalar_thresholds`: Lava's stock LIF has one threshold, so there
    such layers stay apart. So does a v whose spikes are graded: then it is q and k that become one.
    """

    scalar_thresholds: bool = False
    name: str = "merge-query-key-value"

    def rewrite(self, graph: Graph) -> Rewrite:
        """See the class."""
        instead: dict[str, Sequence[Node]] = {}
        merged = 0
        for node in graph:
            if isinstance(node, Attention):
                pairs = self._mergeable(graph, node, set(instead))
                if pairs:
                    instead |= _merge(graph, node, pairs)
                    merged += 1
        if not merged:
            return Rewrite(graph, "no q, k and v that could be one layer")
        return Rewrite(with_nodes(graph, instead), f"{merged} times q, k and v made one layer")

    def _mergeable(self, graph: Graph, attention: Attention, done: set[str]) -> list[Pair]:
        """The distinct layers behind q, k and v with their neurons, in graph order; none where they cannot be one."""
        readers = readers_of(graph)
        found = []
        for node in graph:
            if node.name not in attention.inputs[:3]:
                continue
            layer = graph[node.inputs[0]]
            if not isinstance(node, LIF) or not isinstance(layer, Synapses):
                return []
            if len(readers[layer.name]) > 1 or node.name in done:
                return []
            found.append((layer, node))
        found = [pair for pair in found if pair[1].spike == "binary"]  # a graded v stays alone
        alike = len({(layer.inputs, neuron.dv, neuron.reset) for layer, neuron in found}) == 1
        levels = np.unique(np.concatenate([np.atleast_1d(neuron.threshold) for _, neuron in found]))
        return found if len(found) > 1 and alike and (len(levels) == 1 or not self.scalar_thresholds) else []


def _merge(graph: Graph, attention: Attention, pairs: Sequence[Pair]) -> dict[str, Sequence[Node]]:
    """What stands instead of the layers and neurons: one of each, and slices under the names of the neurons."""
    layers, neurons = [layer for layer, _ in pairs], [neuron for _, neuron in pairs]
    widths = [graph.features[layer.name] for layer in layers]
    thresholds = np.concatenate([np.broadcast_to(neuron.threshold, width) for neuron, width in zip(neurons, widths)])
    levels = np.unique(thresholds)
    name = free_name(graph, f"{attention.name}.query_key_value")
    lif_name = free_name(graph, f"{name}.lif")
    layer = Synapses(
        name,
        layers[0].inputs,
        np.concatenate([layer.weight for layer in layers]),
        np.concatenate([layer.bias for layer in layers]),
        max(layer.weight_bits for layer in layers),
    )
    threshold = int(levels[0]) if len(levels) == 1 else thresholds
    neuron = replace(neurons[0], name=lif_name, inputs=(name,), threshold=threshold)
    ends = np.cumsum(widths).tolist()
    slices = [Slice(old.name, (lif_name,), end - width, end) for old, end, width in zip(neurons, ends, widths)]
    old_nodes: list[Node] = [*layers, *neurons]
    instead: dict[str, Sequence[Node]] = {old.name: () for old in old_nodes}
    return instead | {layers[0].name: (layer, neuron, *slices)}
