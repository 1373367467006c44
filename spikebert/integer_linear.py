"""A linear layer of integers held in floats, exact, in the type that this machine multiplies fastest.

An integer layer has weights of at most 8 bits and inputs that are small sums of spikes, and the accumulators of its
rows are proven to stay within 65535 (`rounding.py`). `exact_product.py` says which types lose nothing of that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spikebert.exact_product import INT8_MAX, Kind, capabilities, exact_matmul, exact_product, float32_products
from spikebert.packing import rows_in_bucket
from spikebert.rounding import ACCUMULATOR_MAX


def integer_linear(x: Tensor, weight: Tensor, bias: Tensor, input_max: int) -> Tensor:
    """`x W^T + b`: x [rows, in] within +-input_max, weight [out, in] within +-127, bias [out] -> [rows, out].

    All hold integers in floats, and no row passes the accumulator (`round_weight`). Gradients are those of a linear
    layer; under mixed precision the fast products have theirs multiplied in its type, the result never is.
    """
    device = x.device.type
    mixed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    kind = _kind(x, weight, input_max)
    with torch.autocast(device, enabled=False):  # it would round the accumulators
        if kind == "int8":
            return _Int8Product.apply(x, weight, mixed or weight.dtype).add_(bias)
        if kind == "bf16":
            return exact_matmul(x, weight.t(), kind, mixed).add_(bias)
        with float32_products(x.device, tf32=kind == "tf32"):
            return F.linear(x, weight, bias)


def _kind(x: Tensor, weight: Tensor, input_max: int) -> Kind:
    can = capabilities(x.device)
    if weight.shape[1] == 1:  # of a single input torch (2.14) leaves the int8 product unwritten: whatever memory held
        can = replace(can, int8=False)
    return exact_product(input_max, INT8_MAX, ACCUMULATOR_MAX, can)


class _Int8Product(torch.autograd.Function):
    """x [rows, in], weight [out, in] -> x W^T [rows, out]. Rows are padded to buckets: see `linear_in_buckets`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, gradients: torch.dtype) -> Tensor:
        small = rows_in_bucket(x, torch.int8)
        product = torch._int_mm(small, weight.to(torch.int8).t())
        ctx.save_for_backward(small, weight)
        ctx.rows, ctx.gradients = x.shape[0], gradients
        return product[: ctx.rows].to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        small, weight = ctx.saved_tensors
        padded = rows_in_bucket(grad, ctx.gradients)
        grad_x = (padded @ weight.to(ctx.gradients))[: ctx.rows]
        grad_weight = padded.t() @ small.to(ctx.gradients)
        return grad_x.to(weight.dtype), grad_weight.to(weight.dtype), None
