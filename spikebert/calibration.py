"""Rounding that is made up for: what rounding one weight changes in a current, the weights behind it take back.

A weight of few bits is far from its float, and in a deep network whose neurons fire seldom the errors of a row do not
cancel: spikes of like neurons come together. GPTQ (Frantar et al. 2023, arXiv 2210.17323) rounds a row weight by
weight, and after each moves those not yet rounded, so that the currents of some texts change least. Only the second
moments `E[x x^T]` of a layer's inputs are needed. A bias is one more weight here, of an input that is always 1, and the
last to be rounded: it takes back what the mean current would have lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn

from spikebert.layers import Readout, SpikingLinear
from spikebert.recording import Recording, in_evaluation
from spikebert.rounding import ACCUMULATOR_MAX, BIAS_MAX, nearest_weight, row_reach
from spikebert.spikes import Spikes

DAMPING = 0.01  # of the mean square of an input: more texts than these few have others (the paper's choice)
RESIDUE = 1e-9  # of 1, the square of the input of a bias; keeps what is singular invertible

Layer = SpikingLinear | Readout


def input_moments(x: Tensor) -> Tensor:
    """Spikes [T, R, D] -> float64 [D + 1, D + 1]: the sum of `x x^T` over all timesteps and tokens, each x with a 1
    behind it."""
    rows = x.flatten(0, -2).float()
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
    with torch.autocast(x.device.type, enabled=False):
        return (rows.T @ rows).double()  # integers: below 2^24, as nearly always, exact in float32


def layers_within_reach(recording: Recording, rounded: Collection[Layer]) -> list[Layer]:
    """Those not yet `rounded` that read, in a use of theirs, nothing which one of them had to do with."""
    found: list[Layer] = []
    from_floats: set[str] = set()
    for step in recording.steps:
        reads_floats = not from_floats.isdisjoint(step.inputs)
        layer = step.layer if isinstance(step.layer, SpikingLinear) and step.layer not in rounded else None
        if layer is not None and not reads_floats:
            found.append(layer)
        if layer is not None or reads_floats:
            from_floats.add(step.output)
    if recording.readout not in rounded and recording.readout_input not in from_floats:
        found.append(recording.readout)
    return list(dict.fromkeys(found))


class _AllGiven(Exception):
    """Every layer that was asked about has its inputs: those behind need not be run."""


def add_moments(
    moments: dict[Layer, Tensor], model: nn.Module, ids: Tensor, mask: Tensor, calls: Mapping[Layer, Collection[int]]
) -> None:
    """Add to the moments of some layers those of what they are given as the model runs on a batch, ids and mask [B, N],
    in these of their calls (`Recording.calls`). It runs as far as the last of them."""
    left = sum(map(len, calls.values()))
    called: Counter[Layer] = Counter()
    of_value: dict[Spikes, Tensor] = {}  # query, key and value read the same

    def given(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal left
        assert isinstance(layer, SpikingLinear | Readout)
        called[layer] += 1
        if called[layer] - 1 not in calls[layer]:
            return
        (x,) = (*args, *kwargs.values())
        if x not in of_value:
            of_value[x] = input_moments(x.values)
        moments[layer] = moments[layer] + of_value[x] if layer in moments else of_value[x]
        left -= 1
        if not left:
            raise _AllGiven

    handles = [layer.register_forward_pre_hook(given, with_kwargs=True) for layer in calls]
    try:
        with in_evaluation(model), suppress(_AllGiven):
            model(ids, mask)
    finally:
        for handle in handles:
            handle.remove()


def compensated(
    weight: Tensor, bias: Tensor, units: int, bits: int, moments: Tensor, input_max: int, signed: bool = False
) -> tuple[Tensor, Tensor]:
    """A layer's float weight [out, in] and bias [out], moved to where they become the integers of GPTQ.

    units      accumulator units per float unit
    bits       of a weight
    moments    [in + 1, in + 1], see `input_moments`
    input_max  the largest |input|, `signed`: there are some below 0

    A row whose integers might overflow the accumulator stays as it was.
    """
    integers = torch.cat([weight, bias[:, None]], 1).double() * units
    integers = _gptq(integers, _damped(moments), bits)
    rounded, rounded_bias = integers[:, :-1], integers[:, -1]
    reach = row_reach(rounded, signed) * input_max + rounded_bias.abs()
    fits = (reach <= ACCUMULATOR_MAX) & (rounded_bias.abs() <= BIAS_MAX)
    moved, moved_bias = (rounded / units).to(weight.dtype), (rounded_bias / units).to(bias.dtype)
    return torch.where(fits[:, None], moved, weight), torch.where(fits, moved_bias, bias)


def _damped(moments: Tensor) -> Tensor:
    """Invertible: an input that is never a spike is as if it were one by itself, now and then."""
    squares = moments.diagonal()[:-1] / moments[-1, -1]
    mean = squares.mean().clamp(min=RESIDUE)
    added = torch.where(squares > 0, DAMPING * mean, mean)
    return moments / moments[-1, -1] + torch.diag(torch.cat([added, added.new_tensor([RESIDUE])]))


def _gptq(weight: Tensor, moments: Tensor, bits: int) -> Tensor:
    """Integers [out, in + 1] for a weight in accumulator units; the last column is the bias, which has all the bits.

    Columns are rounded from the input that is most often a spike to the one that is least, the bias last.
    """
    last = weight.shape[1] - 1
    order = torch.cat([moments.diagonal()[:-1].argsort(descending=True), moments.new_tensor([last]).long()])
    inverse = torch.linalg.inv(moments[order][:, order])
    factor = torch.linalg.cholesky((inverse + inverse.T) / 2, upper=True)
    open_weight, rounded = weight[:, order].clone(), torch.empty_like(weight)
    for column in range(last + 1):
        exact = open_weight[:, column]
        whole = exact.round() if column == last else nearest_weight(exact, bits)
        rounded[:, order[column]] = whole
        error = (exact - whole) / factor[column, column]
        open_weight[:, column:] -= error[:, None] * factor[column, column:]
    return rounded
