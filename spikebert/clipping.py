"""What rounding cut off: weights beyond what their bits hold, and rows shrunk to keep to the accumulator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikebert.layers import Encoder, Readout, SpikingLinear
from spikebert.rounding import largest_weight, nearest_weight

ROWS = 1024  # that are looked at together, so that a table of a large vocabulary takes little memory


@dataclass(frozen=True)
class Cut:
    """How many of `values` weights became smaller than their rounding.

    clipped they were beyond the largest integer that the bits hold, and were cut to it
    shrunk  any others: their row could have passed the accumulator (`spikebert.rounding.round_weight`)
    """

    values: int
    clipped: int
    shrunk: int


@torch.no_grad()
def count_cut(weight: Tensor, units: float, integers: Tensor, bits: int) -> Cut:
    """Compare float weights [rows, columns], scaled by `units`, with the integers of `bits` bits they became."""
    clipped = shrunk = 0
    for part, became in zip(weight.split(ROWS), integers.split(ROWS)):
        scaled = part * units
        beyond = scaled.round().abs() > largest_weight(bits)
        clipped += int(beyond.sum())
        shrunk += int(((became != nearest_weight(scaled, bits)) & ~beyond).sum())
    return Cut(weight.numel(), clipped, shrunk)


def scaled_weights(model: nn.Module) -> Iterator[tuple[str, Tensor, float]]:
    """Of every layer of an integer model that has weights: its name, its float weights and its integer units for 1.0.

    The token table [vocabulary, D] of the encoder is one of them, its units are those of the table.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, Encoder):
            yield name, layer.token.weight, float(layer.threshold)
        elif isinstance(layer, SpikingLinear):
            yield name, layer.linear.weight, float(layer.weight_units)
        elif isinstance(layer, Readout):
            yield name, layer.linear.weight, float(layer.steps)
