"""In which type integers held in floats are multiplied: the fastest of this machine that gives them exactly.

Integers of the graph are small. A type that holds both factors, and a sum that holds every partial sum, lose nothing,
so a training step with integers may use the multipliers that were made for rounded numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["int8", "bf16", "tf32", "float32"]

INT8_MAX = 127
BF16_MAX = 2**8  # 8 significant bits
TF32_MAX = 2**11  # 11 significant bits
FLOAT32_MAX = 2**24  # 24 significant bits


@dataclass(frozen=True)
class Capabilities:
    """What a device multiplies fast, all with exact sums.

    int8  int8 factors, int32 sums
    bf16  bf16 factors, float32 sums and results. (What most call a bf16 product rounds its result to bf16.)
    tf32  float32 factors rounded to TF32, float32 sums and results
    """

    int8: bool = False
    bf16: bool = False
    tf32: bool = False


def capabilities(device: torch.device, batched: bool = False) -> Capabilities:
    """What PyTorch offers on a device, for one matrix or for a batch of them (there is no int8 product of a batch).

    On the CPU: int8 with VNNI; without, a processor may saturate sums of two products at 16 bits. A bf16 product with
    float32 results is not offered there; its float32 product with a `fp32_precision` of "bf16" is no faster than
    without, where the processor has no AMX.
    On CUDA: from Ampere on. `torch.mm` and `torch.bmm` give float32 of bf16 since torch 2.8 (`out_dtype`). cuBLAS may
    add parts of a sum in the type of the result (split-K, `allow_bf16_reduced_precision_reduction`): that is float32
    then, so the switch does not matter.
    """
    if device.type == "cpu":
        return Capabilities(int8=not batched and torch.cpu._is_vnni_supported())
    if device.type != "cuda" or torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return Capabilities()
    return Capabilities(bf16="dtype" in torch.ops.aten.bmm.overloads(), tf32=True)


def exact_product(input_max: int, weight_max: int, sum_max: int, can: Capabilities) -> Kind:
    """The fastest type that gives a product of integer matrices exactly.

    input_max, weight_max  the largest |factor| on either side
    sum_max                a bound of every partial sum, in any order. For factors x in 0 .. input_max it is
                           max(sum of positive w, sum of negative w) * input_max over the rows of weights: a partial
                           sum lies between all negative and all positive products. `rounding.py` keeps it to 65535.

    Why it is exact. A float of p significant bits holds every integer up to 2^p: both factors must be within
    2^8 (bf16) or 2^11 (TF32), or they would be rounded before the product. (float16 holds 2^11 too, but its sums end at
    65504; it is not used.) Multipliers make the product of two such factors in full, 16 or 22 bits. Sums are float32:
    partial sums within 2^24 are integers it holds, so no addition rounds, and their order does not matter. int8 holds
    +-127, its sums are int32, and the result is turned to float32, where again 2^24 counts.

    Raises ValueError where sums may pass 2^24: not even float32 holds them.
    """
    if sum_max > FLOAT32_MAX:
        raise ValueError(
            f"sums may reach {sum_max}, float32 holds integers up to {FLOAT32_MAX}: make the layer smaller"
        )
    largest = max(input_max, weight_max)
    if can.int8 and largest <= INT8_MAX:
        return "int8"
    if can.bf16 and largest <= BF16_MAX:
        return "bf16"
    if can.tf32 and largest <= TF32_MAX:
        return "tf32"
    return "float32"


def exact_matmul(a: Tensor, b: Tensor, kind: Kind, gradients: torch.dtype | None = None) -> Tensor:
    """a [n, k] and b [k, m], or batches of them [batch, ...] -> a b, exact, in the type of a (float32 or float64).

    kind       what `exact_product` gave for them, "int8" apart: that is `integer_linear`'s
    gradients  the type in which their gradients are multiplied, else that of a
    """
    return _ExactMatmul.apply(a, b, kind, gradients or a.dtype)


class _ExactMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, kind: Kind, gradients: torch.dtype) -> Tensor:
        ctx.type, ctx.gradients = a.dtype, gradients
        if kind == "bf16":
            a, b = a.bfloat16(), b.bfloat16()
            product = bf16_matmul(a, b).to(ctx.type)
        else:
            with float32_products(a.device, tf32=kind == "tf32"):
                product = a @ b
        ctx.save_for_backward(a, b)
        return product

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        a, b = (x.to(ctx.gradients) for x in ctx.saved_tensors)
        grad = grad.to(ctx.gradients)
        grad_a, grad_b = grad @ b.transpose(-1, -2), a.transpose(-1, -2) @ grad
        return grad_a.to(ctx.type), grad_b.to(ctx.type), None, None


def bf16_matmul(a: Tensor, b: Tensor) -> Tensor:
    """bf16 [n, k] and [k, m], or batches of them -> float32, not rounded to bf16 on the way. CUDA."""
    return (torch.bmm if a.dim() == 3 else torch.mm)(a, b, out_dtype=torch.float32)


@contextmanager
def float32_products(device: torch.device, tf32: bool) -> Iterator[None]:
    """Within it float32 products of a device round their factors to TF32 (CUDA), or not at all; then all is as before.

    Whether they do is a switch of the whole process (`torch.set_float32_matmul_precision`), which a user may have set
    either way: for products that are proven it may be on, for others it must be off.
    """
    wanted = "tf32" if tf32 else "ieee"
    backend = torch.backends.cuda.matmul if device.type == "cuda" else torch.backends.mkldnn.matmul
    if not hasattr(backend, "fp32_precision"):  # torch before 2.9 has one switch for all
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    before = backend.fp32_precision  # "none" where nobody chose: as "ieee"
    if before == wanted or (before == "none" and not tf32):
        yield
        return
    inherited = before == torch.backends.fp32_precision  # of the switch above this one; "none" inherits again
    backend.fp32_precision = wanted
    try:
        yield
    finally:
        backend.fp32_precision = "none" if inherited else before
