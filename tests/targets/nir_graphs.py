"""Random graphs in which each token goes its own way: what the target `nir` is for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from random_graphs import _Builder

from converters.graph import Graph

HIDDEN = 6


def random_chain(
    rng: np.random.Generator,
    timesteps: int,
    dv: Sequence[int],
    layers: int = 3,
    weight_bits: int = 6,
    neurons: str = "stock",
) -> Graph:
    """Layers one after another, of random widths."""
    builder = _make_builder(rng, timesteps, dv, weight_bits, neurons)
    x = builder.source(HIDDEN, str(rng.choice(["lif", "sign"])))
    for index in range(layers):
        x = builder.layer(f"layers.{index}", x, int(rng.integers(1, 2 * HIDDEN)))
    return builder.graph(x)


def random_paths(
    rng: np.random.Generator,
    timesteps: int,
    dv: Sequence[int],
    nodes: int = 8,
    weight_bits: int = 4,
    neurons: str = "stock",
) -> Graph:
    """All that NIR has something for, wired at random: layers, adds (a node may stand in one twice), slices, concats,
    valid lanes, relays. The readout reads the last nodes side by side."""
    builder = _make_builder(rng, timesteps, dv, weight_bits, neurons)
    spiking = [builder.source(HIDDEN, str(rng.choice(["lif", "sign"])))]
    for index in range(nodes):
        name, producer = f"n{index}", str(rng.choice(spiking))
        kind = str(rng.choice(["layer", "layer", "add", "slice", "concat", "valid_lane", "relay"]))
        width = builder.width(producer)
        if kind == "layer":
            spiking.append(builder.layer(name, producer, int(rng.integers(1, 2 * HIDDEN))))
        elif kind == "add":
            alike = [other for other in spiking if builder.width(other) == width]
            spiking.append(builder.add(name, tuple(str(x) for x in rng.choice(alike, size=rng.integers(2, 5)))))
        elif kind == "slice":
            start = int(rng.integers(width))
            spiking.append(builder.slice(name, producer, start, int(rng.integers(start + 1, width + 1))))
        elif kind == "concat":
            spiking.append(builder.concat(name, (producer, str(rng.choice(spiking)))))
        elif kind == "valid_lane":
            spiking.append(builder.valid_lane(name, int(rng.integers(1, 4))))
        else:
            spiking.append(builder.relayed(name, producer, int(rng.integers(1, HIDDEN))))
    return builder.graph(builder.concat("all", tuple(spiking[-3:])))


def _make_builder(
    rng: np.random.Generator, timesteps: int, dv: Sequence[int], weight_bits: int, neurons: str
) -> _Builder:
    """Small weights: currents are dense, so that they meet thresholds, and no membrane may saturate."""
    return _Builder(
        rng, n_max=4, timesteps=timesteps, decays=np.asarray(dv), weight_bits=weight_bits,
        bias_max=2**weight_bits, vocabulary=20, firing=0.3, neurons=neurons,
    )  # fmt: skip
