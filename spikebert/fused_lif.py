"""The LIF rule over all T steps in one pass on the CPU, forward and backward, compiled by numba.

Step by step in PyTorch, every operation reads and writes the whole current; here a piece of it is read once and
its membrane stays in the processor's cache. Backward keeps nothing but the current and computes the membranes
again. `LoihiLIF` is the definition; the spikes are equal to its own in every bit.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikebert.lif_rule import LIFRule

PIECE = 2048  # neurons at a time: their membranes of all T steps stay in the cache


def serves(current: Tensor) -> bool:
    """Whether the fused path can take this current. Without numba it cannot, which is said once."""
    return current.device.type == "cpu" and current.dtype in (torch.float32, torch.float64) and _numba_is_there()


@functools.cache
def _numba_is_there() -> bool:
    try:
        import numba  # noqa: F401
    except ImportError:
        warnings.warn("numba is not installed: spiking layers run step by step, several times slower", stacklevel=2)
        return False
    return True


class FusedLIF(torch.autograd.Function):
    """current [T, ...] float32 or float64 on the CPU -> spikes [T, ...] of the same type."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, rule: LIFRule) -> Tensor:
        current = current.detach().contiguous()
        spikes = torch.empty_like(current)
        _kernels().forward(_flat(current), _flat(spikes), *_numbers(rule, current)[:7])
        ctx.save_for_backward(current)
        ctx.rule = rule
        return spikes

    @staticmethod
    def backward(ctx: Any, grad_spikes: Tensor) -> tuple[Tensor, None]:
        (current,) = ctx.saved_tensors
        grad_spikes = grad_spikes.to(current.dtype).contiguous()
        grad_current = torch.empty_like(current)
        _kernels().backward(_flat(current), _flat(grad_spikes), _flat(grad_current), *_numbers(ctx.rule, current))
        return grad_current, None


def _flat(x: Tensor) -> np.ndarray:
    """[T, neurons], the same memory"""
    return x.reshape(x.shape[0], -1).numpy()


def _numbers(rule: LIFRule, current: Tensor) -> tuple:
    """As the kernels take them: of the current's own type, so that nothing is computed in another."""
    real = np.float32 if current.dtype == torch.float32 else np.float64
    above = tuple(real(level * rule.threshold) for level in range(1, rule.cap + 1))
    below = real(-rule.threshold) if rule.ternary else None
    return (
        real(rule.keep), rule.truncate, real(rule.input_gain), real(rule.limit), above, below, rule.subtract,
        real(rule.unit), rule.surrogate == "sigmoid", real(rule.alpha),
    )  # fmt: skip


def _kernels() -> Any:
    """The compiled module, with as many threads as PyTorch uses. Imported late: numba takes a second to load."""
    import numba

    from spikebert import fused_lif_kernels

    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    if torch.get_num_threads() != threads:
        # numba has started its threads, and told OpenMP, which is PyTorch's too, to use all processors. Sums would be
        # shared out in another way from here on, so a run that is resumed would not be the run that went through.
        torch.set_num_threads(threads)
    return fused_lif_kernels
