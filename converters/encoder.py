"""What runs on the host whatever the engine: turning token ids into spikes.

The encoder's neuron obeys the same rule as every other, so the rule itself stands here, once, in numpy.
"""

from __future__ import annotations

import numpy as np

from converters.execution import TokenBatch
from converters.graph import DECAY_BITS, MEMBRANE_MAX, Source


def decay(membrane: np.ndarray, dv: int) -> np.ndarray:
    """`sign(v) * ((abs(v) * (4096 - dv)) >> 12)`: toward zero, on int64 of any shape."""
    return np.sign(membrane) * ((np.abs(membrane) * (2**DECAY_BITS - dv)) >> DECAY_BITS)


def fire(membrane: np.ndarray, level: np.ndarray, spike: str, cap: int) -> np.ndarray:
    """What a LIF sends at a charged membrane, int64: `spike` and `cap` as `LIF` has them, level in membrane units."""
    if spike == "ternary":
        return (membrane > level).astype(np.int64) - (membrane < -level)
    fired = np.zeros(membrane.shape, np.int64)
    for j in range(1, cap + 1):
        fired += membrane > j * level
    return fired


def reset_membrane(membrane: np.ndarray, level: np.ndarray, fired: np.ndarray, reset: str) -> np.ndarray:
    """The membrane of a LIF that sent `fired`: `reset` as `LIF` has it."""
    return membrane - fired * level if reset == "subtract" else np.where(fired != 0, 0, membrane)


def lif(
    current: np.ndarray,
    threshold: int | np.ndarray,
    dv: int,
    shift: int,
    reset: str = "zero",
    spike: str = "binary",
    cap: int = 1,
) -> np.ndarray:
    """Spikes int64 [T, ...] of a LIF driven by `current` int64 [T, ...], from a membrane of 0."""
    return _run_lif(current, threshold, dv, shift, reset, spike, cap)[0]


def count_saturations(
    current: np.ndarray,
    threshold: int | np.ndarray,
    dv: int,
    shift: int,
    reset: str = "zero",
    spike: str = "binary",
    cap: int = 1,
) -> int:
    """How often the membranes of that LIF are cut: charges `decay(v) + a * 2^shift` outside +-(2^23 - 1)."""
    return _run_lif(current, threshold, dv, shift, reset, spike, cap)[1]


def _run_lif(
    current: np.ndarray, threshold: int | np.ndarray, dv: int, shift: int, reset: str, spike: str, cap: int
) -> tuple[np.ndarray, int]:
    membrane = np.zeros(current.shape[1:], dtype=np.int64)
    level = np.asarray(threshold, dtype=np.int64) << shift
    spikes = np.empty(current.shape, dtype=np.int64)
    cuts = 0
    for t, a in enumerate(current):
        charged = decay(membrane, dv) + (a << shift)
        membrane = np.clip(charged, -MEMBRANE_MAX, MEMBRANE_MAX)
        cuts += int(np.count_nonzero(membrane != charged))
        spikes[t] = fire(membrane, level, spike, cap)
        membrane = reset_membrane(membrane, level, spikes[t], reset)
    return spikes, cuts


def source_current(node: Source, batch: TokenBatch) -> np.ndarray:
    """`c = m * (table[id] + position)`, int64 [B, N, D], the same at every timestep."""
    current = node.table[batch.ids].astype(np.int64)
    if node.position is not None:
        current += node.position[: batch.ids.shape[1]]
    return batch.mask[:, :, None] * current


def encode(node: Source, batch: TokenBatch, timesteps: int) -> np.ndarray:
    """Spikes int64 [T, B, N, D] of the source, as its docstring defines them."""
    current = source_current(node, batch)
    if node.kind == "sign":
        spikes = np.repeat((batch.mask[:, :, None] * (current >= 0))[None], timesteps, axis=0)
    else:
        rule = node.threshold, node.dv, node.shift, node.reset, node.spike, node.cap
        spikes = lif(np.repeat(current[None], timesteps, axis=0), *rule)
    if node.code is None:
        return spikes
    code = batch.mask[:, :, None] * node.code[:, None, : batch.ids.shape[1]].astype(np.int64)  # [T, B, N, P]
    return np.concatenate([spikes, code], axis=-1)
