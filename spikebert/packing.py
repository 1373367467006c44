"""Real tokens side by side, without padding: `[T, B, N, D]` <-> `[T, R, D]`, R the real tokens of a batch.

Texts stand in the order of their lengths, longest first. So those of like length are neighbours, and attention, which
alone needs texts of one length, takes a few at a time and pads each little (`Packing.groups`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BUCKETS = 16  # between a number of rows and its double
GROUPS = 4  # of a batch, at most
GROUP_TEXTS = 8  # in a group, at least
GPU_SIDE = 8  # of matrices that a GPU multiplies: another side has no fast kernel there (docs/training.md)


class Packing:
    """Where the real tokens of a batch stand. mask: [B, N] of 0 and 1."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask.bool()
        self.lengths = self.mask.sum(1)  # [B]
        self.order = self.lengths.argsort(descending=True, stable=True)  # [B]: the longest text first
        rank, token = self.mask[self.order].nonzero(as_tuple=True)  # [R] each
        self.index = self.order[rank] * self.mask.shape[1] + token  # [R]: in [B * N]
        self.places = (self.mask.cumsum(1) - 1).flatten()[self.index]  # [R]: how many real tokens stand before
        self._groups: dict[tuple[int, int], tuple[LengthGroup, ...]] = {}  # by the number of heads, and the side

    def pack(self, x: Tensor) -> Tensor:
        """[..., B, N, D] -> [..., R, D]"""
        return x.flatten(-3, -2).index_select(-2, self.index)

    def unpack(self, x: Tensor) -> Tensor:
        """[..., R, D] -> [..., B, N, D], zeros at padding"""
        return _Place.apply(x, self.index, self.mask.numel()).unflatten(-2, self.mask.shape)

    def sum_per_text(self, x: Tensor) -> Tensor:
        """[R, C] -> [B, C]"""
        text_of_token = self.index // self.mask.shape[1]
        return x.new_zeros(self.mask.shape[0], x.shape[-1]).index_add(0, text_of_token, x)

    def groups(self, heads: int, side: int = 1) -> tuple[LengthGroup, ...]:
        """The texts in groups of like length, in packed order, for attention of so many heads. A group is padded to a
        multiple of `side` tokens.

        In a shuffled batch of reviews most places are padding (docs/design.md), and a few groups leave little of it.
        On a GPU all texts are one group: what a launch costs there has not been weighed against padding.
        """
        if (heads, side) not in self._groups:
            parts = max(1, min(GROUPS, len(self.order) // GROUP_TEXTS)) if self.mask.device.type == "cpu" else 1
            self._groups[heads, side] = tuple(self._make_groups(heads, side, parts))
        return self._groups[heads, side]

    def _make_groups(self, heads: int, side: int, parts: int) -> Iterator[LengthGroup]:
        start = 0
        for lengths in self.lengths[self.order].tensor_split(parts):
            tokens, stop = multiple(int(lengths[:1].sum()), side), start + int(lengths.sum())
            text = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)  # [r]
            head = torch.arange(heads, device=lengths.device)
            index = (text[:, None] * heads + head) * tokens + self.places[start:stop, None]  # [r, H]
            yield LengthGroup(heads, len(lengths), tokens, index.flatten())
            start = stop


@dataclass(frozen=True, eq=False)
class LengthGroup:
    """Some neighbours of a packing, padded to the longest of them, or a little further, and divided into heads.

    heads   H
    texts   b
    tokens  n, of the longest text at least
    index   [r * H], r their real tokens: where each head of each token stands in [b * H * n]
    """

    heads: int
    texts: int
    tokens: int
    index: Tensor

    @property
    def rows(self) -> int:
        """r"""
        return len(self.index) // self.heads

    def unpack(self, x: Tensor) -> Tensor:
        """[T, r, D] -> [T * b * H, n, d], zeros at padding. Real tokens stand first, whatever the side of padding."""
        steps, features = x.shape[0], x.shape[-1] // self.heads
        pieces = x.reshape(steps, len(self.index), features)
        full = _Place.apply(pieces, self.index, self.texts * self.heads * self.tokens)
        return full.view(steps * self.texts * self.heads, self.tokens, features)

    def pack(self, x: Tensor, steps: int) -> Tensor:
        """[T * b * H, n, d] and T -> [T, r, D]"""
        features = x.shape[-1]
        full = x.reshape(steps, self.texts * self.heads * self.tokens, features)
        return full.index_select(1, self.index).view(steps, self.rows, self.heads * features)


class _Place(torch.autograd.Function):
    """[..., r, D] -> [..., rows, D]: row i stands at index[i], the others are zeros."""

    # `index_copy` does the same, but keeps x for backward, which has no use for it.
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(index)
        return x.new_zeros(*x.shape[:-2], rows, x.shape[-1]).index_copy_(-2, index, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return grad.index_select(-2, index), None, None


def linear_in_buckets(linear: nn.Linear, x: Tensor) -> Tensor:
    """`linear(x)` for x [rows, in], in the type of x under mixed precision too.

    The number of real tokens differs from batch to batch, and oneDNN compiles and keeps a kernel for each
    number of rows it meets in bf16: hours of training would fill the memory with them. So rows are rounded
    up there (`bucket`). Rows do not mix in a linear layer: the result is the same.
    """
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return linear(x).to(x.dtype)
    return _LinearInBuckets.apply(x, linear.weight, linear.bias, torch.get_autocast_dtype("cpu"))


class _LinearInBuckets(torch.autograd.Function):
    """x [rows, in], weight [out, in], bias [out] or None -> [rows, out] as x has it, multiplied in another type."""

    # Autograd would do the same, but change type and pad, cut and change back, in passes of their own each.
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        padded, weight = rows_in_bucket(x, dtype), weight.to(dtype)
        ctx.save_for_backward(padded, weight)
        product = F.linear(padded, weight, None if bias is None else bias.to(dtype))
        return product[: len(x)].to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias, _ = ctx.needs_input_grad
        padded = rows_in_bucket(grad, weight.dtype)
        return (
            (padded @ weight)[: len(grad)].to(grad.dtype) if for_x else None,
            (padded.t() @ x).to(grad.dtype) if for_weight else None,
            grad.sum(0) if for_bias else None,
            None,
        )


def bucket(rows: int) -> int:
    """The next number of rows that is worth a kernel of its own: a multiple of 16, less than 16 or 1/16 more."""
    return multiple(rows, 1 << max(4, rows.bit_length() - BUCKETS.bit_length()))


def multiple(count: int, of: int) -> int:
    """The least multiple of `of` that is not below `count`."""
    return count + -count % of


def side_on(device: torch.device) -> int:
    """Of matrices that are padded anyway: what a multiple of is multiplied fastest."""
    return GPU_SIDE if device.type == "cuda" else 1


def rows_in_bucket(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x [rows, D] as another type, with rows of zeros up to their `bucket`. It has no gradient."""
    rows, features = x.shape
    padded = torch.empty(bucket(rows), features, dtype=dtype, device=x.device)
    padded[:rows] = x
    padded[rows:] = 0
    return padded
