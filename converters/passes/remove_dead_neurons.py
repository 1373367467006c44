"""Removes neurons that can never fire."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from converters.graph import LIF, Graph, Node, Readout, Synapses
from converters.passes.rewrite import Rewrite
from converters.ranges import prove_ranges


@dataclass(frozen=True)
class RemoveDeadNeurons:
    """Neurons whose membrane provably never passes their threshold go, with the synapses into and out of them. Exact.

    The identity: `W x` does not change when columns of `W` go whose `x` is 0, and a row of a layer that only such a
    neuron reads is read by nobody.

    It is done where widths are free to change: a LIF that alone reads a layer of synapses, and that only layers of
    synapses and the readout read, as in an MLP. In a residual or a head of an attention other features are bound to
    the same place, so silent ones stay. One neuron of a layer is kept, for a layer of none is no layer.
    """

    name: str = "remove-dead-neurons"

    def rewrite(self, graph: Graph) -> Rewrite:
        """See the class. Neurons that fall silent because of others are found in the same run."""
        ranges = prove_ranges(graph)
        readers = {node.name: [other for other in graph if node.name in other.inputs] for node in graph}
        alive: dict[str, np.ndarray] = {}
        for node in graph:
            if isinstance(node, LIF) and _may_shrink(graph, node, readers):
                kept = np.flatnonzero(~ranges[node.name].silent)
                if len(kept) < graph.features[node.name]:
                    kept = kept if len(kept) else np.array([0])
                    alive[node.name] = alive[node.inputs[0]] = kept
        nodes = tuple(_shrink(node, alive) for node in graph)
        removed = sum(graph.features[name] - len(kept) for name, kept in alive.items() if isinstance(graph[name], LIF))
        summary = f"{removed:,} neurons removed" if removed else "every neuron can fire, or is bound to its place"
        return Rewrite(Graph(graph.timesteps, graph.n_max, nodes) if alive else graph, summary, alive)


def _may_shrink(graph: Graph, node: LIF, readers: dict[str, list[Node]]) -> bool:
    layer = graph[node.inputs[0]]
    alone = isinstance(layer, Synapses) and len(readers[layer.name]) == 1
    return alone and all(isinstance(other, (Synapses, Readout)) for other in readers[node.name])


def _shrink(node: Node, alive: dict[str, np.ndarray]) -> Node:
    """The node without the features that its inputs, or itself, have lost."""
    if isinstance(node, (Synapses, Readout)):
        columns = alive.get(node.inputs[0])
        if columns is not None:
            node = replace(node, weight=node.weight[:, columns])
    rows = alive.get(node.name)
    if rows is None:
        return node
    if isinstance(node, Synapses):
        return replace(node, weight=node.weight[rows], bias=node.bias[rows])
    if isinstance(node, LIF) and isinstance(node.threshold, np.ndarray):
        return replace(node, threshold=node.threshold[rows])
    return node
