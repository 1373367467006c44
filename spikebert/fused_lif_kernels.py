"""numba's part of `fused_lif.py`. Compiled at the first call, then kept on disk."""

from __future__ import annotations

import numpy as np
from numba import prange

from spikebert.compiled import compiled
from spikebert.fused_lif import PIECE


# No fastmath here: membranes must round as PyTorch rounds them.
@compiled(parallel=True)
def forward(
    current: np.ndarray, spikes: np.ndarray, keep: float, truncate: bool, input_gain: float, limit: float,
    threshold: float, subtract: bool,
) -> None:  # fmt: skip
    """current, spikes: [T, neurons]"""
    steps, neurons = current.shape
    zero = current.dtype.type(0)
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
                fires = v > threshold
                s[i] = fires
                membrane[i] = (v - threshold if subtract else zero) if fires else v


# Gradients may round otherwise than PyTorch's; the membranes computed again here are exact in integer mode.
@compiled(parallel=True, fastmath={"arcp", "nsz"})
def backward(
    current: np.ndarray, grad_spikes: np.ndarray, grad_current: np.ndarray, keep: float, truncate: bool,
    input_gain: float, limit: float, threshold: float, subtract: bool, unit: float, sigmoid: bool, alpha: float,
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
                membrane[i] = (v - threshold if subtract else zero) if v > threshold else v
        grad_membrane = np.zeros(size, current.dtype)
        for t in range(steps - 1, -1, -1):
            row, grad_s = charged[t], grad_spikes[t, start : start + size]
            grad_a = grad_current[t, start : start + size]
            for i in range(size):
                v = min(max(row[i], -limit), limit)
                above = (v - threshold) / unit
                if sigmoid:
                    share = one / (one + np.exp(-alpha * above))
                    slope = alpha * share * (one - share)
                else:
                    x = half_pi_alpha * above
                    slope = half_alpha / (one + x * x)
                kept = subtract or v <= threshold  # the reset is detached
                grad = grad_s[i] * slope / unit + (grad_membrane[i] if kept else zero)
                if row[i] != v:  # was clipped
                    grad = zero
                grad_a[i] = grad * input_gain
                grad_membrane[i] = grad * keep
