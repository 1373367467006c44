"""Positions as spikes: neurons that fire in a rhythm of their own, whatever the text says (CPG-PE).

Lv et al. 2024, "Advancing Spiking Neural Networks for Sequential Modeling with Central Pattern Generators"
(arXiv 2405.14362): sinusoidal positions, each cut at a threshold, so that a feature is 0 or 1.
"""

from __future__ import annotations

import numpy as np

LONGEST = 10_000  # the slowest rhythm takes nearly so many times as long as the fastest
THRESHOLD = 0.8  # of a sine between -1 and 1: a neuron fires in a fifth of the time


def position_code(timesteps: int, tokens: int, features: int) -> np.ndarray:
    """uint8 [T, N, P] of 0 and 1.

    Feature 2i is 1 where `sin(s / 10000^(2i / P)) >= 0.8`, feature 2i + 1 where the cosine is, at the moment
    `s = n * T + t`: the tokens come one after another, T moments each.
    """
    moment = np.arange(tokens) * timesteps + np.arange(timesteps)[:, None]  # [T, N]
    feature = np.arange(features)
    phase = moment[..., None] / LONGEST ** ((feature - feature % 2) / features)
    wave = np.where(feature % 2, np.cos(phase), np.sin(phase))
    return (wave >= THRESHOLD).astype(np.uint8)
