"""A linear layer of integers held in floats, exact, and in int8 where the processor multiplies that natively.

An integer layer has weights of at most 8 bits and inputs that are small sums of spikes, so both fit int8; the
accumulators of its rows are proven to stay within 65535, which int32 and float32 hold exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spikebert.packing import BUCKET

INT8_MAX = 127


def integer_linear(x: Tensor, weight: Tensor, bias: Tensor, input_max: int) -> Tensor:
    """`x W^T + b`: x [rows, in] of 0 .. input_max, weight [out, in] within +-127, bias [out] -> [rows, out].

    All hold integers in floats. Gradients are those of a linear layer; under mixed precision they are multiplied
    in its type, the result never is.
    """
    gradients = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else None
    with torch.autocast(x.device.type, enabled=False):  # bf16 would round the accumulators
        # of a single input torch (2.14) leaves the product unwritten: whatever the memory held
        if not multiplies_int8(x.device) or input_max > INT8_MAX or weight.shape[1] == 1:
            return F.linear(x, weight, bias)
        return _Int8Product.apply(x, weight, gradients) + bias


def multiplies_int8(device: torch.device) -> bool:
    """Whether int8 products are fast and exact here. Without VNNI a processor may saturate sums of two at 16 bits."""
    return device.type == "cpu" and torch.cpu._is_vnni_supported()


class _Int8Product(torch.autograd.Function):
    """x [rows, in], weight [out, in] -> x W^T [rows, out]. Rows are padded to buckets: see `linear_in_buckets`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, gradients: torch.dtype | None) -> Tensor:
        rows = x.shape[0]
        small = F.pad(x.to(torch.int8), (0, 0, 0, -rows % BUCKET))
        product = torch._int_mm(small, weight.to(torch.int8).t())
        ctx.save_for_backward(small, weight)
        ctx.rows, ctx.type = rows, gradients or weight.dtype
        return product[:rows].to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        small, weight = ctx.saved_tensors
        padded = F.pad(grad.to(ctx.type), (0, 0, 0, small.shape[0] - ctx.rows))
        grad_x = (padded @ weight.to(ctx.type))[: ctx.rows]
        grad_weight = padded.t() @ small.to(ctx.type)
        return grad_x.to(weight.dtype), grad_weight.to(weight.dtype), None
