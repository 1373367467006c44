"""Small helpers for passes that rebuild a graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from converters.graph import Graph, Node


def readers_of(graph: Graph) -> dict[str, list[Node]]:
    """Node -> the nodes that read it, in graph order."""
    readers: dict[str, list[Node]] = defaultdict(list)
    for node in graph:
        for name in dict.fromkeys(node.inputs):
            readers[name].append(node)
    return readers


def with_nodes(graph: Graph, instead: Mapping[str, Sequence[Node]]) -> Graph:
    """The graph in which other nodes, or none, stand in the places of those that `instead` names."""
    nodes = [new for node in graph for new in instead.get(node.name, (node,))]
    return Graph(graph.timesteps, graph.n_max, tuple(nodes))


def free_name(graph: Graph, wanted: str) -> str:
    """`wanted`, or where that is taken the first of `wanted`_2, `wanted`_3, ... that is free."""
    name, number = wanted, 1
    while name in graph.features:
        number += 1
        name = f"{wanted}_{number}"
    return name
