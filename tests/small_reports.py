"""Small reports for tests: of a random graph that ran a random batch."""

from __future__ import annotations

import numpy as np
from random_graphs import random_batch, random_graph

from converters.execution import TokenBatch
from converters.graph import Graph
from converters.report.contents import Report
from converters.report.gather import gather
from converters.report.observe import Observations, observe
from sim.reference import ReferenceEngine


def observations(graph: Graph, batch: TokenBatch) -> Observations:
    execution = ReferenceEngine(graph).run(batch, [node.name for node in graph])
    return observe(graph, execution, batch.mask)


def small_report(graph: Graph | None = None, **options: object) -> Report:
    """`options` go to `gather`."""
    graph = graph or random_graph(np.random.default_rng(0), blocks=2)
    batch = random_batch(np.random.default_rng(1), graph, 3)
    arguments: dict[str, object] = {"name": "small", "labels": ("bad", "so-so", "good")}
    return gather(graph, observations(graph, batch), **(arguments | options))  # type: ignore[arg-type]
