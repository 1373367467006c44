"""Removes nodes that nobody reads."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx

from converters.graph import Graph
from converters.passes.rewrite import Rewrite


@dataclass(frozen=True)
class RemoveUnreadNodes:
    """Nodes from which no way leads to the readout go. Exact: no value that is left depends on them."""

    name: str = "remove-unread-nodes"

    def rewrite(self, graph: Graph) -> Rewrite:
        """See the class. The source stays, whatever reads it."""
        read = nx.ancestors(graph.digraph, graph.output) | {graph.output, graph.source.name}
        removed = [node.name for node in graph if node.name not in read]
        if not removed:
            return Rewrite(graph, "every node is read")
        nodes = tuple(node for node in graph if node.name in read)
        summary = f"{len(removed)} nodes removed, first '{removed[0]}'"
        return Rewrite(Graph(graph.timesteps, graph.n_max, nodes), summary)
