"""Several processes train as one: each has some texts of a batch, and the result is that of the whole batch.

Three things mix the texts of a batch: gradients (`DistributedDataParallel` averages them), means in the losses
(`mean_over_processes`) and BatchNorm (`synchronised_norm.py`). With one process nothing here does anything.
Every process must come by these calls in the same order: each waits for the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor

_each_alone: ContextVar[bool] = ContextVar("each_alone", default=False)


@contextmanager
def each_alone() -> Iterator[None]:
    """In here every process counts as the only one. For a batch of too few texts to share out: each runs it whole."""
    token = _each_alone.set(True)
    try:
        yield
    finally:
        _each_alone.reset(token)


def process_count() -> int:
    """How many share their work."""
    return dist.get_world_size() if _distributed() and not _each_alone.get() else 1


def process_index() -> int:
    """0 .. process_count() - 1"""
    return dist.get_rank() if _distributed() and not _each_alone.get() else 0


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def summed(value: Tensor) -> Tensor:
    """The sum of `value` over all processes, the same bits in each; no gradient passes."""
    total = value.detach().clone()
    if process_count() > 1:
        dist.all_reduce(total)
    return total


def gathered(value: Tensor) -> Tensor:
    """[...] of every process, one after the other: [processes, ...]; no gradient passes."""
    if process_count() == 1:
        return value.detach()[None]
    values = [torch.empty_like(value) for _ in range(process_count())]
    dist.all_gather(values, value.detach().contiguous())
    return torch.stack(values)


def mean_over_processes(mean: Tensor, count: int | Tensor) -> Tensor:
    """What this process adds to a mean over all processes, where its own `count` things have the mean `mean`.

    The average of these over the processes is the mean over all things, in value and in gradient, however they are
    dealt out. Where `count` is 0 `mean` must be 0, and still depend on the model: all processes have to go through the
    same backward pass.
    """
    if process_count() == 1:
        return mean
    own = torch.as_tensor(count, dtype=torch.float64, device=mean.device)
    return mean * (own * process_count() / summed(own).clamp(min=1)).to(mean.dtype)
