"""Splits layers that are too wide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from converters.graph import LIF, Concat, Graph, GraphError, Node, Synapses
from converters.passes.edit import free_name, readers_of, with_nodes
from converters.passes.rewrite import Rewrite


@dataclass(frozen=True)
class SplitWideLayers:
    """A layer of more than `most_features` neurons becomes several, and a concat of their spikes. Exact.

    The identity: rows of `W x` do not know of each other. The parts are as wide as each other, or differ by one.

    It is done to layers of synapses that only LIF nodes read: a norm needs all of its layer. A core of Loihi 2 holds
    8,192 neurons (Orchard et al. 2021, arXiv 2111.03746, table 1), which is the default.
    """

    most_features: int = 8192
    name: str = "split-wide-layers"

    def __post_init__(self) -> None:
        if self.most_features < 1:
            raise GraphError(f"most_features is {self.most_features}, a layer has 1 or more")

    def rewrite(self, graph: Graph) -> Rewrite:
        readers = readers_of(graph)
        instead: dict[str, Sequence[Node]] = {}
        for node in graph:
            wide = isinstance(node, Synapses) and graph.features[node.name] > self.most_features
            if isinstance(node, Synapses) and wide and all(isinstance(other, LIF) for other in readers[node.name]):
                neurons = [other for other in readers[node.name] if isinstance(other, LIF)]
                instead |= self._split(graph, node, neurons)
        layers = sum(isinstance(graph[name], Synapses) for name in instead)
        if not layers:
            return Rewrite(graph, f"no layer has more than {self.most_features:,} neurons")
        return Rewrite(with_nodes(graph, instead), f"{layers} layers split")

    def _split(self, graph: Graph, layer: Synapses, neurons: Sequence[LIF]) -> dict[str, Sequence[Node]]:
        """What stands instead of a layer and of the neurons that read it."""
        width = graph.features[layer.name]
        parts = np.array_split(np.arange(width), -(-width // self.most_features))
        names = [free_name(graph, f"{layer.name}.part{number}") for number in range(len(parts))]
        layers = [
            replace(layer, name=name, weight=layer.weight[rows], bias=layer.bias[rows])
            for name, rows in zip(names, parts)
        ]
        instead: dict[str, Sequence[Node]] = {layer.name: layers}
        for neuron in neurons:
            pieces = []
            for number, (name, rows) in enumerate(zip(names, parts)):
                threshold = neuron.threshold
                if isinstance(threshold, np.ndarray):
                    threshold = threshold[rows]
                own = free_name(graph, f"{neuron.name}.part{number}")
                pieces.append(replace(neuron, name=own, inputs=(name,), threshold=threshold))
            instead[neuron.name] = (*pieces, Concat(neuron.name, tuple(piece.name for piece in pieces)))
        return instead
