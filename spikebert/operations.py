"""Synaptic operations while a model trains: what a spike costs on a chip, with gradients, so that less can be learnt.

A spike reaches every weight of the layers that read it. Counted are linear layers and the readout, as the engines count
them (`NodeActivity.synaptic_operations`), but that weights which are rounded to 0 count here and cost nothing there.
Attention is left out: of `reviews_long`'s validation sentences, 18 tokens each, it makes 0.2 % of the operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spikebert.layers import Readout, SpikingLinear
from spikebert.rounding import held_within
from spikebert.spikes import Spikes, made_by


def operations_to(end: Spikes) -> Tensor:
    """float32 []: synaptic operations of all linear layers that `end` came from, in total over tokens and timesteps.

    A graded spike is one operation, whatever it counts. The gradient is that of each spike: as many operations as it
    causes; none for a sum of bits above 1, for a spike less changes nothing there. `events` has that of graded ones.
    """
    reached: dict[Spikes, int] = {}
    total = torch.zeros((), device=end.values.device)
    for x in made_by(end):
        if x.forgotten_operations is not None:
            total = total + x.forgotten_operations
        if isinstance(x.maker, SpikingLinear):
            for given in x.inputs:  # none where they are forgotten
                reached[given] = reached.get(given, 0) + x.maker.linear.out_features
    for given, outputs in reached.items():
        total = total + outputs * events(given)
    return total


def readout_operations(readout: Readout, x: Spikes) -> Tensor:
    """float32 []: those of the readout, given x."""
    return readout.linear.out_features * events(x)


def events(x: Spikes) -> Tensor:
    """float32 [], float64 of such spikes: how many of the values are not 0.

    The gradient of a graded spike x, or of a sum in which one is, is 1 / x: that of its logarithm, which draws small
    ones to 0 and large ones little. Without one most of them would stay, whatever a budget says.
    """
    values = x.values.abs() if x.signed else x.values
    if x.cap > 1:
        values = values / values.detach().clamp(min=1)
    elif x.maximum > 1:
        values = held_within(values, 0, 1)
    return values.sum(dtype=torch.promote_types(values.dtype, torch.float32))


def forget(x: Spikes, counts: bool) -> Spikes:
    """`x.without_history()`; where `counts`, it remembers how many operations its history was."""
    short = x.without_history()
    if counts:
        short.forgotten_operations = operations_to(x)
    return short
