"""The spikes of one sentence, to be looked at: of each neuron node its bits [T, tokens, features]."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converters.bundle import Bundle
from converters.execution import TokenBatch
from converters.graph import NEURONS
from sim.reference import ReferenceEngine

BYTES_MAX = 3_000_000  # of bits on a page; nodes beyond are left out, and named


@dataclass(frozen=True, eq=False)
class Layer:
    """A node of neurons: its spikes bool [T, N, D]."""

    name: str
    spikes: np.ndarray

    def packed(self) -> str:
        """The bits in base64, first those of the first token's first timestep: [N, T, D], eight to a byte."""
        return base64.b64encode(np.packbits(self.spikes.transpose(1, 0, 2), axis=None).tobytes()).decode()


@dataclass(frozen=True, eq=False)
class Raster:
    """tokens as the tokenizer writes them; left_out names nodes that were too many for a page."""

    tokens: Sequence[str]
    layers: Sequence[Layer]
    left_out: Sequence[str]


def raster_of(bundle: Bundle, ids: Sequence[int], bytes_max: int = BYTES_MAX) -> Raster:
    """The spikes of a sentence of these tokens, as the reference computes them."""
    graph = bundle.graph
    names: list[str] = []
    left_out: list[str] = []
    room = bytes_max
    for node in graph:
        if isinstance(node, NEURONS):
            room -= graph.timesteps * len(ids) * graph.features[node.name] // 8
            (names if room >= 0 else left_out).append(node.name)
    batch = TokenBatch(np.array([ids]), np.ones((1, len(ids)), np.int64))
    values = ReferenceEngine(graph).run(batch, names).values
    tokens = [bundle.tokenizer.id_to_token(id) or f"#{id}" for id in ids]
    return Raster(tokens, [Layer(name, values[name][:, 0] != 0) for name in names], left_out)
