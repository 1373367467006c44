"""What `test_triton_lif.py` asks of a process in which Triton interprets its kernels: a case, run on both paths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from spikebert import triton_lif_kernels
from spikebert.neurons import LoihiLIF


@dataclass(frozen=True)
class Case:
    """current [T, ...]; `layout`: how it lies in memory; `wrong`: which function of the kernels is made a wrong one."""

    current: np.ndarray
    threshold: float = 1.0
    decay: int = 2048
    integer: bool = False
    dtype: str = "float32"
    surrogate: str = "atan"
    alpha: float = 2.0
    layout: str = "contiguous"
    wrong: str = ""
    reset: str = "zero"
    spike: str = "binary"
    cap: int = 1


class Result(NamedTuple):
    """Spikes and the gradient of the current, both in float64, and the type that the spikes had."""

    spikes: np.ndarray
    gradient: np.ndarray
    dtype: str


def both(case: Case, device: str) -> tuple[Result, Result]:
    """Of the plain path and of Triton."""
    torch.set_num_threads(1)
    with _replaced(case.wrong):
        return _run(case, "plain", device), _run(case, "triton", device)


def _run(case: Case, path: str, device: str) -> Result:
    lif = LoihiLIF(case.decay, case.integer, case.surrogate, case.alpha, case.reset, case.spike, case.cap)
    lif.path = path
    leaf = torch.from_numpy(case.current).to(device, getattr(torch, case.dtype))
    if case.layout == "expanded":
        leaf = leaf[:1]
    leaf.requires_grad_()
    if case.layout == "contiguous":
        current = leaf
    elif case.layout == "expanded":
        current = leaf.expand(case.current.shape)
    elif case.layout == "permuted":
        current = leaf.mT.contiguous().mT
    else:
        assert case.layout == "sliced"
        current = torch.stack((leaf, leaf), -1)[..., 0]
    spikes = lif(current, case.threshold)
    weights = np.random.default_rng(1).standard_normal(case.current.shape)
    (spikes * torch.from_numpy(weights).to(spikes)).sum().backward()
    assert leaf.grad is not None
    gradient = leaf.grad.double().cpu().numpy()
    return Result(spikes.detach().double().cpu().numpy(), gradient, str(spikes.dtype).removeprefix("torch."))


@triton.jit
def fires(v, threshold):
    return v >= threshold


@triton.jit
def charge(membrane, a, keep, input_gain, TRUNCATE: tl.constexpr, REAL: tl.constexpr):
    """As one fused multiply-add: a float32 product is exact in float64."""
    return (membrane.to(tl.float64) * keep.to(tl.float64) + a.to(tl.float64)).to(REAL)


@triton.jit
def clip(v, limit):
    return v


@triton.jit
def rest(v, sent, threshold, SUBTRACT: tl.constexpr, REAL: tl.constexpr):
    return tl.where(sent != 0, 0.0, v)


@triton.jit
def sends(v, threshold, CAP: tl.constexpr, TERNARY: tl.constexpr, REAL: tl.constexpr):
    return tl.where(v > threshold, 1.0, 0.0).to(REAL)


@contextmanager
def _replaced(name: str) -> Iterator[None]:
    if not name:
        yield
        return
    right = getattr(triton_lif_kernels, name)
    setattr(triton_lif_kernels, name, globals()[name])
    try:
        yield
    finally:
        setattr(triton_lif_kernels, name, right)


def round_to_bfloat16(cast_impl):
    """Of float32 Triton's interpreter cuts off what bfloat16 cannot hold. On a GPU it rounds (cvt.rn.bf16.f32)."""

    def cast(self, source, dtype):
        if (source.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
            return cast_impl(self, source, dtype)
        rounded = torch.from_numpy(np.array(source.data)).to(torch.bfloat16)
        return TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)

    return cast


InterpreterBuilder.cast_impl = round_to_bfloat16(InterpreterBuilder.cast_impl)
