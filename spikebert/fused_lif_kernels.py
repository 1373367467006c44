"""numba's part of `fused_lif.py`. Compiled at the first call, then kept on disk.

`above`, the levels above which a neuron sends 1, 2, .., is a tuple, and `below`, the level below which it sends -1, is
None where there is none. So numba compiles each kind of neuron by itself, and writes the levels out: the loops over
neurons stay plain enough to become vector code.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from spikebert.compiled import compiled
from spikebert.fused_lif import PIECE


@compiled(inline="always")
def _sent(v: float, above: tuple[float, ...], below: float | None, zero: float, one: float) -> float:
    """What a membrane sends."""
    sent = zero
    for level in above:
        sent += one if v > level else zero
    if below is not None:
        sent -= one if v < below else zero
    return sent


@compiled(inline="always")
def _rest(v: float, sent: float, threshold: float, subtract: bool, zero: float) -> float:
    """The membrane after the reset."""
    left = v - sent * threshold if subtract else zero
    return v if sent == zero else left


# No fastmath here: membranes must round as PyTorch rounds them.
@compiled(parallel=True)
def forward(
    current: np.ndarray, spikes: np.ndarray, keep: float, truncate: bool, input_gain: float, limit: float,
    above: tuple[float, ...], below: float | None, subtract: bool,
) -> None:  # fmt: skip
    """current, spikes: [T, neurons]"""
    steps, neurons = current.shape
    zero, one = current.dtype.type(0), current.dtype.type(1)
    for piece in prange((neurons + PIECE - 1) // PIECE):
        start = piece * PIECE
        size = min(PIECE, neurons - start)
        membrane = np.zeros(size, current.dtype)
        for t in range(steps):
            a, s = current[t, start : start + size], spikes[t, start : start + size]
            for i in range(size):
                decayed = membrane[i] * keep
                if truncate:
                    decayed = np.trunc(decayed)
                v = min(max(decayed + a[i] * input_gain, -limit), limit)
                sent = _sent(v, above, below, zero, one)
                s[i] = sent
                membrane[i] = _rest(v, sent, above[0], subtract, zero)


@compiled(inline="always", fastmath={"arcp", "nsz"})
def _slope(
    distance: float, sigmoid: bool, alpha: float, half_alpha: float, half_pi_alpha: float, one: float
) -> float:  # fmt: skip
    """Of the surrogate, so far above a level."""
    if sigmoid:
        share = one / (one + np.exp(-alpha * distance))
        return alpha * share * (one - share)
    x = half_pi_alpha * distance
    return half_alpha / (one + x * x)


# Gradients may round otherwise than PyTorch's; the membranes computed again here are exact in integer mode.
@compiled(parallel=True, fastmath={"arcp", "nsz"})
def backward(
    current: np.ndarray, grad_spikes: np.ndarray, grad_current: np.ndarray, keep: float, truncate: bool,
    input_gain: float, limit: float, above: tuple[float, ...], below: float | None, subtract: bool, unit: float,
    sigmoid: bool, alpha: float,
) -> None:  # fmt: skip
    """current, grad_spikes, grad_current: [T, neurons]"""
    steps, neurons = current.shape
    real = current.dtype.type
    zero, one = real(0), real(1)
    half_alpha, half_pi_alpha = real(0.5) * alpha, real(np.pi / 2) * alpha
    for piece in prange((neurons + PIECE - 1) // PIECE):
        start = piece * PIECE
        size = min(PIECE, neurons - start)
        charged = np.empty((steps, size), current.dtype)  # before clip and reset
        membrane = np.zeros(size, current.dtype)
        for t in range(steps):
            a, row = current[t, start : start + size], charged[t]
            for i in range(size):
                decayed = membrane[i] * keep
                if truncate:
                    decayed = np.trunc(decayed)
                row[i] = decayed + a[i] * input_gain
                v = min(max(row[i], -limit), limit)
                membrane[i] = _rest(v, _sent(v, above, below, zero, one), above[0], subtract, zero)
        grad_membrane = np.zeros(size, current.dtype)
        for t in range(steps - 1, -1, -1):
            row, grad_s = charged[t], grad_spikes[t, start : start + size]
            grad_a = grad_current[t, start : start + size]
            for i in range(size):
                v = min(max(row[i], -limit), limit)
                slope = zero
                for level in above:
                    slope += _slope((v - level) / unit, sigmoid, alpha, half_alpha, half_pi_alpha, one)
                if below is not None:
                    slope += _slope((below - v) / unit, sigmoid, alpha, half_alpha, half_pi_alpha, one)
                kept = subtract or v <= above[0]  # the reset is detached
                if below is not None:
                    kept = subtract or (v <= above[0] and v >= below)
                grad = grad_s[i] * slope / unit + (grad_membrane[i] if kept else zero)
                if row[i] != v:  # was clipped
                    grad = zero
                grad_a[i] = grad * input_gain
                grad_membrane[i] = grad * keep
