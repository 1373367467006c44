"""Linear maps by least squares: how a layer, or the maps of an alignment, are given what they are to compute."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spikebert.distillation import Alignment
from spikebert.teacher_outputs import ask_teacher

RIDGE = 1e-4  # of the mean square of what is fitted from


def with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], 1)


def fit_linear(x: Tensor, y: Tensor) -> Tensor:
    """[in + 1, out], the last row a bias: least squares of y [n, out] from x [n, in], a little damped."""
    x = with_ones(x)
    return solve(x.T @ x, x.T @ y)


def solve(moments: Tensor, products: Tensor) -> Tensor:
    """`fit_linear`, of `x.T @ x` and `x.T @ y`."""
    return torch.linalg.solve(
        moments + RIDGE * moments.diagonal().mean() * torch.eye(len(moments)).to(moments), products
    )


@torch.no_grad()
def set_norm(norm: nn.BatchNorm1d, offset: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Let `norm(x)` in evaluation be `x + offset`, with a mean and a variance [D] of x that it is to expect."""
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    norm.weight.copy_((variance + norm.eps).sqrt())
    norm.bias.copy_(offset + mean)


@torch.no_grad()
def fit_alignment(
    alignment: Alignment, model: nn.Module, teacher: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
) -> None:  # fmt: skip
    """Least squares of the teacher's hidden states from the student's, over the tokens of these batches."""
    sums: list[tuple[Tensor, Tensor] | None] = [None] * len(alignment.maps)
    for ids, mask in batches:
        real = mask.flatten().bool()
        theirs = ask_teacher(teacher, ids, mask, alignment.wanted).states
        assert theirs is not None
        own = model(ids, mask, output_hidden_states=True).hidden_states
        for place, (state, wanted) in enumerate(zip(own, alignment.teacher_state, strict=True)):
            scaled = state.flatten(0, 1)[real].double() / alignment.largest_spike
            x, y = with_ones(scaled), theirs[alignment.wanted.index(wanted)].double()
            moments, products = sums[place] or (0.0, 0.0)
            sums[place] = moments + x.T @ x, products + x.T @ y
    for found, linear in zip(sums, alignment.maps, strict=True):
        assert found is not None and isinstance(linear, nn.Linear)
        weights = solve(*found)
        linear.weight.copy_(weights[:-1].T)
        linear.bias.copy_(weights[-1])
