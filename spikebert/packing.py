"""Real tokens side by side, without padding: `[T, B, N, D]` <-> `[T, R, D]`, R the real tokens of a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BUCKET = 512  # rows


class Packing:
    """Where the real tokens of a batch stand. mask: [B, N] of 0 and 1."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask.bool()
        self.index = self.mask.flatten().nonzero().squeeze(1)  # [R]
        self.lengths = self.mask.sum(1)  # [B]
        self.places = (self.mask.cumsum(1) - 1).flatten()[self.index]  # [R]: how many real tokens stand before

    def pack(self, x: Tensor) -> Tensor:
        """[..., B, N, D] -> [..., R, D]"""
        return x.flatten(-3, -2).index_select(-2, self.index)

    def unpack(self, x: Tensor) -> Tensor:
        """[..., R, D] -> [..., B, N, D], zeros at padding"""
        batch, tokens = self.mask.shape
        full = x.new_zeros(*x.shape[:-2], batch * tokens, x.shape[-1])
        return full.index_copy(-2, self.index, x).unflatten(-2, (batch, tokens))

    def sum_per_text(self, x: Tensor) -> Tensor:
        """[R, C] -> [B, C]"""
        text_of_token = self.index // self.mask.shape[1]
        return x.new_zeros(self.mask.shape[0], x.shape[-1]).index_add(0, text_of_token, x)


def linear_in_buckets(linear: nn.Linear, x: Tensor) -> Tensor:
    """`linear(x)` for x [rows, in], in the type of x under mixed precision too.

    The number of real tokens differs from batch to batch, and oneDNN compiles and keeps a kernel for each
    number of rows it meets in bf16: hours of training would fill the memory with them. So rows are rounded
    up to a multiple of `BUCKET` there. Rows do not mix in a linear layer: the result is the same.
    """
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return linear(x).to(x.dtype)
    rows = x.shape[0]
    padded = F.pad(x.to(torch.get_autocast_dtype("cpu")), (0, 0, 0, -rows % BUCKET))
    return linear(padded)[:rows].to(x.dtype)
