"""Small networks for SANA-FE, on cores so small that each takes several."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from random_graphs import random_batch, random_graph

from converters.execution import Activity, TokenBatch
from converters.graph import Graph
from targets.sanafe.command import record
from targets.sanafe.layout import Layout, Play, make_layout
from targets.sanafe.machine import CORE

SMALL = replace(CORE, neurons=60, memory_bytes=1500, axons_in=100, axons_out=120)


def transformer(seed: int, n_max: int = 4, neurons: str = "stock") -> Graph:
    return random_graph(np.random.default_rng(seed), blocks=1, hidden=8, n_max=n_max, neurons=neurons)


def recorded(
    seed: int, play: Play, graph: Graph | None = None, samples: int = 2
) -> tuple[Layout, TokenBatch, dict[str, np.ndarray], Activity]:
    """A network that is placed, texts, what every neuron sends, and the activity of the layout's graph."""
    graph = graph or transformer(seed)
    layout = make_layout(graph, play, SMALL)
    batch = random_batch(np.random.default_rng(seed), graph, samples)
    sent, activity, _ = record(layout, graph, batch)
    return layout, batch, sent, activity
