"""Random spikes for an attention on its own, what it gives, and its gradients."""

from __future__ import annotations

import torch

from spikebert.layers import SpikingAttention, SpikingLinear
from spikebert.packing import Packing
from spikebert.spikes import Spikes


def draw_spikes(
    mask: torch.Tensor, features: int, steps: int, rate: float, seed: int = 0, cap: int = 1
) -> tuple[list[torch.Tensor], Packing]:
    """q, k and v as they are packed, [T, R, D] of 0 and 1, v of 0 .. cap, with gradients."""
    generator = torch.Generator().manual_seed(seed)
    packing = Packing(mask)
    shape = (steps, len(packing.index), features)
    q, k, v = ((torch.rand(shape, generator=generator) < rate).float() for _ in range(3))
    if cap > 1:
        v = v * torch.randint(1, cap + 1, shape, generator=generator)
    return [x.requires_grad_() for x in (q, k, v)], packing


def attend(attention: SpikingAttention, values: list[torch.Tensor], packing: Packing, cap: int = 1) -> Spikes:
    neurons = SpikingLinear(1, 1)
    return attention(*(Spikes(x, packing, most, neurons) for x, most in zip(values, (1, 1, cap))))


def gradients(spikes: Spikes, values: list[torch.Tensor]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(spikes.values.shape, generator=generator)
    return list(torch.autograd.grad((spikes.values * weights).sum(), values))


def lengths_to_mask(lengths: list[int]) -> torch.Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
