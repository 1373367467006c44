"""Gradient checkpointing: backward computes a layer's activations again instead of keeping them.

A training step keeps what backward needs, of a block some thirty tensors [T, R, D]. A checkpointed block keeps its
input alone and is run a second time in backward. Spikes, gradients and statistics are the same in every bit.
(The checkpoints of a run on disk, `loop.py`, are another thing of that name.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spikebert.spikes import Spikes

Found = TypeVar("Found")
Checkpoint = Callable[..., Any]  # as torch's: a function and its arguments -> what it gives
RECOMPUTE: Checkpoint = partial(checkpoint, use_reentrant=False)
_open: ContextVar[Notes | None] = ContextVar("open_notes", default=None)  # of the checkpointed layer that runs


def checkpointed(
    layer: nn.Module, x: Spikes, checkpoint: Checkpoint = RECOMPUTE, count: Callable[[Spikes], Tensor] | None = None
) -> Spikes:
    """`layer(x)`, where the layer takes spikes and gives spikes; of its activations none is kept.

    The result has forgotten what it came from (`Spikes.without_history`), which would hold them. Where there is nothing
    to keep, in evaluation and without gradients, it is `layer(x)` itself.

    checkpoint  torch's, with options of its own
    count       `operations_to`: then the result knows how many synaptic operations it took, with gradients

    Raises RuntimeError within another checkpointed layer.
    """
    if not (layer.training and torch.is_grad_enabled()):
        return layer(x)
    if _open.get() is not None:
        raise RuntimeError(f"a checkpointed {type(layer).__name__} within a checkpointed layer: checkpoint one of them")
    packing, maximum, maker = x.packing, x.maximum, x.maker  # `run` is kept until backward, and must not keep x
    signed, cap, before, notes = x.signed, x.cap, x.forgotten_operations, Notes()
    kind: list[tuple[int, nn.Module | None, bool, int]] = []

    def run(values: Tensor) -> tuple[Tensor, Tensor | None]:
        with notes.open():
            result = layer(Spikes(values, packing, maximum, maker, signed=signed, cap=cap))
        kind.append((result.maximum, result.maker, result.signed, result.cap))
        return result.values, count(result) if count else None

    values, operations = checkpoint(run, x.values)
    own_maximum, own_maker, own_signed, own_cap = kind[0]
    result = Spikes(values, packing, own_maximum, own_maker, signed=own_signed, cap=own_cap)
    if operations is not None:
        result.forgotten_operations = operations if before is None else before + operations
    return result


class Notes:
    """What a layer found out in its first run, in order: in a second run it reads that instead."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self.complete = False
        self.unread: Iterator[Any] = iter(())

    @contextmanager
    def open(self) -> Iterator[None]:
        """Around each run of the layer: the first one writes the notes, all others read them from the beginning."""
        self.unread = iter(self.found)
        token = _open.set(self)
        try:
            yield
        finally:
            self.complete = True
            _open.reset(token)


def is_second_run() -> bool:
    """Whether a layer is just being computed again. What its first run changed must then stay as it is."""
    notes = _open.get()
    return notes is not None and notes.complete


def found_once(find: Callable[[], Found]) -> Found:
    """`find()`; in a second run what it gave in the first. A layer's calls come in the same order in both."""
    notes = _open.get()
    if notes is not None and notes.complete:
        return next(notes.unread)
    found = find()
    if notes is not None:
        notes.found.append(found)
    return found
