"""BatchNorm over the tokens of all processes. (torch's own SyncBatchNorm runs on GPUs alone.)

With one process it is `nn.BatchNorm1d`, to the bit, and always it is so to whoever loads or folds it. With several,
each has another number of tokens, so statistics are put together from counts, means and sums of squared deviations
(Chan, Golub and LeVeque 1979), which keeps small deviations from a large mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikebert.gradient_checkpointing import found_once, is_second_run
from spikebert.processes import gathered, process_count, summed


class SynchronisedBatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d(features)` for x [rows, features]; in training the rows of every process count as one batch."""

    def __init__(self, features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(features, eps, momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Every process needs a row or more. Raises ValueError, as BatchNorm1d does, for one row in one process."""
        if not self.training:
            return super().forward(x)
        # Computed again (`gradient_checkpointing.py`) it neither counts its batch twice nor asks the others twice.
        of_all = found_once(lambda: None if process_count() == 1 else statistics(x))
        if of_all is None:
            return self._alone_again(x) if is_second_run() else super().forward(x)
        count, mean, variance = of_all
        if not is_second_run():
            self._count_in(count, mean, variance)
        mean, variance = mean.to(self.weight.dtype), variance.to(self.weight.dtype)  # x may be in half precision
        return _Normalise.apply(x, self.weight, self.bias, mean, variance, count, self.eps)

    def _alone_again(self, x: Tensor) -> Tensor:
        """What one process's forward pass gave, and autograd is given as many tensors; statistics stay as they are."""
        mean, variance = self.running_mean.clone(), self.running_var.clone()
        return F.batch_norm(x, mean, variance, self.weight, self.bias, True, self.momentum, self.eps)

    @torch.no_grad()
    def _count_in(self, count: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of a batch."""
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        unbiased = variance * (count / (count - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)


@torch.no_grad()
def statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the rows [rows, D] of all processes: their number [], mean, and (biased) variance, float64 [D]."""
    rows = x.shape[0]
    variance, mean = (value.double() for value in torch.var_mean(x, 0, correction=0))
    own = torch.cat([mean.new_tensor([rows]), mean, variance * rows])
    counts, means, squares = gathered(own).split([1, len(mean), len(mean)], dim=1)  # [processes, 1 or D]
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    squares = squares + counts * (means - mean) ** 2
    return total, mean, squares.sum(0) / total


class _Normalise(torch.autograd.Function):
    """`(x - mean) / sqrt(variance + eps) * weight + bias`, mean and variance [D] those of all processes' rows.

    They depend on x too, so with g the gradient of the result and n the rows of all processes
    `dx = weight / s * (g - sum(g) / n - (x - mean) / s^2 * sum(g * (x - mean)) / n)`, s = sqrt(variance + eps).
    Gradients of weight and bias are those of this process's rows, as of every other parameter.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, count: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        centred = x - mean
        own = torch.stack([grad.sum(0), (grad * centred).sum(0)])  # [2, D]
        along, across = summed(own) / count.to(own.dtype)
        inverse = torch.rsqrt(variance + ctx.eps)
        grad_x = (grad - along - centred * (inverse**2 * across)) * (weight * inverse)
        return grad_x, own[1] * inverse, own[0], None, None, None, None
