"""Rounding with straight-through gradients: how float weights become the integers of the graph.

A spike has no scale, so a layer's weights and its threshold share one unit. A layer whose float threshold
is 1 and whose integer threshold is `units` (accumulator units) has weights `round(w * units)`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ACCUMULATOR_MAX = 65535  # |a| of every row; the graph's own constant (tests compare them)


BIAS_MAX = ACCUMULATOR_MAX // 2  # leaves the other half to the weights


def straight_through(exact: Tensor, smooth: Tensor) -> Tensor:
    """The value of `exact`, the gradient of `smooth`."""
    return _StraightThrough.apply(exact, smooth)


class _StraightThrough(torch.autograd.Function):
    # Not `smooth + (exact - smooth).detach()`: that sum may round, and integers must stay integers.
    @staticmethod
    def forward(ctx: Any, exact: Tensor, smooth: Tensor) -> Tensor:
        return exact.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor]:
        return None, grad_output


def held_within(x: Tensor, low: float, high: float) -> Tensor:
    """`x.clamp(low, high)`, whose gradient passes at both ends too.

    That of `clamp` itself does not (PyTorch 2.14), and integers often lie at an end: a token of few bits, or a sum that
    is 1. What lies there would never move again.
    """
    return torch.where((x < low) | (x > high), x.detach().clamp(low, high), x)


def round_straight_through(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes unchanged."""
    return straight_through(x.detach().round(), x)


def largest_weight(bits: int) -> int:
    """2^(bits - 1) - 1: symmetric, so a 2-bit weight is -1, 0 or 1. One of 1 bit is -1 or 1."""
    return max(1, 2 ** (bits - 1) - 1)


def nearest_weight(scaled: Tensor, bits: int) -> Tensor:
    """The integer of `bits` bits nearest to each of `scaled`, weights in accumulator units."""
    if bits == 1:
        return torch.where(scaled < 0, -1.0, 1.0).to(scaled.dtype)
    return scaled.round().clamp_(-largest_weight(bits), largest_weight(bits))


def row_reach(weight: Tensor, signed: bool = False) -> Tensor:
    """max(sum of positive w, sum of negative w) of each row, [out, in] -> [out]: the reach of spikes of 1.

    signed  of spikes of -1 too: the sum of |w|
    """
    if signed:
        return torch.linalg.vector_norm(weight, ord=1, dim=1)
    # with p the positive and n the negative sum, magnitude = p + n and total = p - n
    magnitude, total = torch.linalg.vector_norm(weight, ord=1, dim=1), weight.sum(1)
    return (magnitude + total.abs()) / 2


def round_bias(bias: Tensor, units: Tensor) -> Tensor:
    """Integer bias [out] in accumulator units, at most half the accumulator so that weights find room."""
    return held_within(round_straight_through(bias * units), -BIAS_MAX, BIAS_MAX)


def round_weight(
    weight: Tensor, units: Tensor, bits: int, input_max: int, bias: Tensor, signed: bool = False
) -> Tensor:
    """Integer weight [out, in] of `bits` bits whose rows provably stay within the accumulator.

    For inputs 0 .. input_max (`signed`: from -input_max): `reach(row) * input_max + |bias| <= 65535`. A row
    beyond that (rare, and never right after `quantise`, which chooses `units` so) is shrunk toward zero until
    it fits, as accumulator-aware quantisation does (A2Q, Colbert et al. 2023, arXiv 2308.13504). Weights of 1 bit
    cannot be: `spikebert.quantisation.choose_units` refuses rows that are too long.
    """
    return _RoundedWeight.apply(weight, units, bits, input_max, bias.detach(), signed)


class _RoundedWeight(torch.autograd.Function):
    """`round_weight`. Its gradient is that of `clamp(weight * units, -limit, limit)` with the largest integer for a
    limit, and of 1 bit, which has nothing between, that of `weight * units`."""

    # Each pass over the weights costs as much as some tokens do, so there are few of them.
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, units: Tensor, bits: int, input_max: int, bias: Tensor, signed: bool
    ) -> Tensor:
        ctx.save_for_backward(weight, units)
        ctx.bits = bits
        rounded = nearest_weight(weight * units, bits)
        if bits == 1:
            return rounded
        room = (ACCUMULATOR_MAX - bias.abs()) / input_max
        factor = (room / row_reach(rounded, signed).clamp_(min=1)).clamp_(max=1)
        beyond = factor < 1
        if rounded.is_cuda or bool(beyond.any()):  # asking a GPU would hold it up
            return torch.where(beyond[:, None], (rounded * factor[:, None]).trunc_(), rounded)
        return rounded

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        weight, units = ctx.saved_tensors
        if ctx.bits == 1:
            return grad * units, None, None, None, None, None
        within = (weight * units).abs_() <= largest_weight(ctx.bits)
        return within.mul(grad).mul_(units), None, None, None, None, None
