"""A norm over features in integers, as the graph's node `Norm` defines it, with the gradients of the float norm.

    float     y = gamma (a - mean) / sqrt(variance + eps) + beta              over the features of a token
    integer   the same on integer currents a, in fixed point: every step is stated at `converters.graph.Norm`

"rms" leaves the mean out. Two units meet: currents come in units of the layer's weights, and go out in units of the
neurons' threshold.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikebert.config import NORM_FEATURES_MAX
from spikebert.rounding import ACCUMULATOR_MAX, BIAS_MAX, straight_through

# The graph's own constants (tests compare them).
EPS_MAX = 2**60
GAMMA_FRACTION = 8
GAMMA_MAX = 2**24
NORMED_FRACTION = 24
RECIPROCAL_BITS = 54
ROOT_BITS = 31
FRACTION = NORMED_FRACTION + GAMMA_FRACTION  # bits behind the point of gamma times a normalised value
ROWS = 1024  # normalised together: the int64 values between the steps stay small
HEADROOM = 2  # gamma and beta may grow so many times before the accumulator bounds them


def make_norm(kind: str, features: int) -> nn.LayerNorm | nn.RMSNorm:
    """The float norm of kind "layer" or "rms". Raises ValueError for more features than the graph's norm takes."""
    if features > NORM_FEATURES_MAX:
        raise ValueError(f"norm '{kind}' over {features} features: an integer norm takes {NORM_FEATURES_MAX}")
    return nn.LayerNorm(features, eps=1e-5) if kind == "layer" else nn.RMSNorm(features, eps=1e-5)


def normed_max(kind: str, features: int) -> int:
    """The largest |(a - mean) / sqrt(variance + eps)| of the integer norm, in units of 2^-24."""
    spread = features - 1 if kind == "layer" else features
    return math.isqrt(spread << 2 * NORMED_FRACTION) + 4 if spread else 0


def choose_norm_units(norm: nn.LayerNorm | nn.RMSNorm) -> int:
    """Accumulator units behind a norm per float unit, 1 .. 65535: as fine as its bound and `HEADROOM` allow."""
    gamma, beta = (value.detach().abs().double() for value in _parameters(norm))
    largest = gamma * normed_max(_kind(norm), len(gamma)) / 2**NORMED_FRACTION + beta
    roomy = ACCUMULATOR_MAX / (HEADROOM * max(float(largest.max()), 1e-12))
    unclipped = BIAS_MAX / (HEADROOM * max(float(beta.max()), 1e-12))
    return int(min(max(min(roomy, unclipped), 1), ACCUMULATOR_MAX))


class NormIntegers(NamedTuple):
    """gamma int64 [D] in units of 2^-8, beta int64 [D], eps and kind, as the graph's node has them."""

    gamma: Tensor
    beta: Tensor
    eps: int
    kind: str


@torch.no_grad()
def norm_integers(norm: nn.LayerNorm | nn.RMSNorm, units: Tensor, threshold: Tensor) -> NormIntegers:
    """The integers of a float norm behind which no value can pass 65535: gamma and beta beyond that are cut.

    units      accumulator units of 1.0 in the current
    threshold  accumulator units of 1.0 behind the norm
    """
    kind, (gamma, beta) = _kind(norm), _parameters(norm)
    betas = (beta.double() * threshold.double()).round().clamp(-BIAS_MAX, BIAS_MAX).long()
    most = torch.full_like(betas, GAMMA_MAX)
    if (reach := normed_max(kind, len(gamma))) > 0:  # the largest gamma for which (gamma Z + 2^31) >> 32 fits
        room = ACCUMULATOR_MAX - betas.abs()
        most = ((room + 1) * 2**FRACTION - 2 ** (FRACTION - 1) - 1) // reach
    gammas = (gamma.double() * threshold.double() * 2**GAMMA_FRACTION).round()
    cut = torch.maximum(torch.minimum(gammas, most.double()), -most.double()).long()
    eps = round(_eps(norm) * (len(gamma) * float(units)) ** 2)
    return NormIntegers(cut, betas, min(max(eps, 1), EPS_MAX), kind)


def integer_norm(current: Tensor, norm: nn.LayerNorm | nn.RMSNorm, units: Tensor, threshold: Tensor) -> Tensor:
    """current [..., D], integers held in floats -> integers within +-65535, held in floats of the same type.

    Exactly what the graph's norm gives; gradients, of current, gamma and beta, are those of the float norm.
    """
    integers = norm_integers(norm, units, threshold)
    exact = normalised(current.detach(), integers)
    if not torch.is_grad_enabled():
        return exact
    features = current.shape[-1:]
    eps = integers.eps / features[0] ** 2
    with torch.autocast(current.device.type, enabled=False):
        gamma, beta = norm.weight * threshold, getattr(norm, "bias", None)
        if isinstance(norm, nn.LayerNorm):
            smooth = F.layer_norm(current, features, gamma, None if beta is None else beta * threshold, eps)
        else:
            smooth = F.rms_norm(current, features, gamma, eps)
    return straight_through(exact, smooth)


@torch.no_grad()
def normalised(current: Tensor, integers: NormIntegers) -> Tensor:
    """The equations of the graph's `Norm` at real tokens: [..., D] of integers held in floats, and gives such."""
    rows = current.reshape(-1, current.shape[-1])
    out = torch.empty_like(rows)
    for part, made in zip(rows.split(ROWS), out.split(ROWS)):
        made.copy_(_normalised_rows(part.long(), integers))
    return out.view(current.shape)


def _normalised_rows(a: Tensor, integers: NormIntegers) -> Tensor:
    """int64 [rows, D] -> int64 [rows, D]"""
    features = a.shape[-1]
    squares = (a * a).sum(-1, keepdim=True)
    total = a.sum(-1, keepdim=True) if integers.kind == "layer" else torch.zeros_like(squares)
    scaled, doublings = features * squares - total * total + integers.eps, torch.zeros_like(squares)
    for step in (16, 8, 4, 2, 1):  # to 2^60 .. 2^62 - 1
        small = (scaled < 1 << (2 * ROOT_BITS - 2 * step)).long()
        scaled, doublings = scaled << 2 * step * small, doublings + step * small
    root = torch.zeros_like(scaled)
    for bit in reversed(range(ROOT_BITS)):
        longer = root | 1 << bit
        root = torch.where(longer * longer <= scaled, longer, root)
    reciprocal = torch.full_like(root, 2**RECIPROCAL_BITS) // root
    normed = ((features * a - total << doublings) * reciprocal) >> (RECIPROCAL_BITS - NORMED_FRACTION)
    return (integers.gamma * normed + 2 ** (FRACTION - 1) >> FRACTION) + integers.beta


def _kind(norm: nn.LayerNorm | nn.RMSNorm) -> str:
    return "layer" if isinstance(norm, nn.LayerNorm) else "rms"


def _parameters(norm: nn.LayerNorm | nn.RMSNorm) -> tuple[Tensor, Tensor]:
    """gamma [D] and beta [D], which is 0 where the norm has none."""
    beta = getattr(norm, "bias", None)
    return norm.weight, torch.zeros_like(norm.weight) if beta is None else beta


def _eps(norm: nn.LayerNorm | nn.RMSNorm) -> float:
    return torch.finfo(norm.weight.dtype).eps if norm.eps is None else norm.eps
