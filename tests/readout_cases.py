"""Graphs whose readout is a membrane."""

from __future__ import annotations

from dataclasses import replace

from converters.graph import Graph


def with_membrane(graph: Graph, dv: int) -> Graph:
    """The same graph, its currents integrated by a membrane that leaks."""
    return replace(graph, nodes=(*graph.nodes[:-1], replace(graph.readout, kind="membrane", dv=dv)))
