"""Random chains of layers for the tests of the target `netx`, alive as those of random_graphs.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from random_graphs import _Builder

from converters.execution import TokenBatch
from converters.graph import Graph
from sim.reference import ReferenceEngine
from sim.verify import Comparison, compare
from targets.netx.chain import Layer, make_chain
from targets.netx.engine import NetxEngine
from targets.netx.network_file import write_network

DECAYS = (0, 410, 2048, 4095)


def random_chain(
    rng: np.random.Generator,
    widths: Sequence[int] = (7, 9, 5),
    timesteps: int = 4,
    dv: int | Sequence[int] = DECAYS,
    n_max: int = 5,
    weight_bits: int = 8,
    bias_max: int = 300,
    source_kind: str = "lif",
    firing: float = 0.3,
    vocabulary: int = 30,
) -> Graph:
    """A source of `widths[0]` features, a layer for each other width, and a readout."""
    builder = _Builder(rng, n_max, timesteps, np.atleast_1d(dv), weight_bits, bias_max, vocabulary, firing)
    last = builder.source(widths[0], source_kind)
    for number, width in enumerate(widths[1:]):
        last = builder.layer(f"layer{number}", last, width)
    return builder.graph(last)


def compare_all(graph: Graph, engine: NetxEngine, batch: TokenBatch) -> Comparison:
    """Every value of every node and the logits, lava-dl's network against the reference."""
    names = [node.name for node in graph]
    return compare(graph, ReferenceEngine(graph).run(batch, names), engine.run(batch, names))


def compare_changed(
    graph: Graph, batch: TokenBatch, folder: Path, change: Callable[[Layer], Layer] = lambda layer: layer
) -> Comparison:
    """The same for a network file in which every layer was changed."""
    chain = make_chain(graph)
    path = folder / "changed.net"
    write_network(replace(chain, layers=tuple(map(change, chain.layers))), path)
    engine = NetxEngine(graph, path)
    try:
        return compare_all(graph, engine, batch)
    finally:
        engine.close()
