"""The LIF rule over all T steps in one launch on a GPU, forward and backward, compiled by Triton.

As `fused_lif.py` does on the CPU: forward reads the current once and writes spikes, backward keeps nothing but the
current, in the type it came in, and computes the membranes again in registers. (Where T is above 16, it also keeps the
membranes of a few steps, one in 9 to 16.) `LoihiLIF` is the definition; the spikes are equal to its own in every bit,
for all currents that are finite.
"""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spikebert.commands import UserError
from spikebert.lif_rule import LIFRule

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LOAD = 16  # bytes: the widest a thread reads at once
REGISTERS = 32  # of a thread, for the membranes of a chunk that backward holds: an eighth of all it can have


def serves(current: Tensor) -> bool:
    """Whether to use Triton for this current. On a GPU without it not, which is said once."""
    return current.device.type == "cuda" and current.dtype in DTYPES and _triton_is_there()


@functools.cache
def _triton_is_there() -> bool:
    if (why_not := _missing()) is None:
        return True
    warnings.warn(f"{why_not}: spiking layers run step by step on the GPU, which is slower", stacklevel=2)
    return False


def _missing() -> str | None:
    """Why there is no Triton that could compile the kernels, or None."""
    try:
        import triton.language
    except ImportError:
        return "Triton is not installed"
    if not hasattr(triton.language, "tuple"):
        return f"Triton {triton.__version__} is too old, 3.3 (PyTorch 2.7) or later is needed"
    return None


class TritonLIF(torch.autograd.Function):
    """current [T, ...] of a type of `DTYPES` on a GPU -> spikes [T, ...] of the same type.

    real  the type in which membranes are held: float32 or float64

    Raises UserError for a current it cannot take. Triton's interpreter takes one on the CPU too, for tests.
    """

    @staticmethod
    def forward(ctx: Any, current: Tensor, rule: LIFRule, real: torch.dtype) -> Tensor:
        _check(current)
        current = _rows(current)
        chunks = _chunks(current.shape[0])
        starts = current.new_empty(chunks if chunks > 1 else 0, *current.shape[1:], dtype=real)
        spikes = torch.empty_like(current, memory_format=torch.contiguous_format)
        _launch("forward", current, (spikes, starts), _numbers(rule)[:4], real, **_kinds(rule))
        ctx.save_for_backward(current, starts)
        ctx.rule, ctx.real = rule, real
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_spikes: Tensor) -> tuple[Tensor, None, None]:
        current, starts = ctx.saved_tensors
        rule: LIFRule = ctx.rule
        grad_current = torch.empty_like(current, memory_format=torch.contiguous_format)
        _launch(
            "backward", current, (grad_spikes.contiguous(), grad_current, starts), _numbers(rule), ctx.real,
            **_kinds(rule), SIGMOID=rule.surrogate == "sigmoid",
            GRAD=_in_triton(torch.float64 if current.dtype == torch.float64 else torch.float32),
        )  # fmt: skip
        return grad_current, None, None


def _check(current: Tensor) -> None:
    why_not = _missing()
    if why_not is None and current.dtype not in DTYPES:
        why_not = f"the current is {current.dtype}, Triton's kernels take {', '.join(map(str, DTYPES))}"
    if why_not is None and current.device.type != "cuda" and not _interpreted():
        why_not = f"the current is on the device '{current.device}', and Triton compiles for GPUs"
    if why_not is not None:
        raise UserError(f"LoihiLIF.path is 'triton', but {why_not}. Mend that, or set the path to 'auto'")


def _interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1 when they were imported)."""
    import triton

    from spikebert import triton_lif_kernels

    return not isinstance(triton_lif_kernels.forward, triton.JITFunction)


def _rows(current: Tensor) -> Tensor:
    """The current itself if each step of it is contiguous, else a copy.

    Steps may lie anywhere: an encoder gives one current, which is there once, at every step.
    """
    return current if current[:1].is_contiguous() else current.contiguous()


def _numbers(rule: LIFRule) -> tuple[float, ...]:
    """keep, input_gain, limit, threshold, unit, peak, steepness, as the kernels take them."""
    if rule.surrogate == "sigmoid":
        peak, steepness = rule.alpha, rule.alpha
    else:
        peak, steepness = rule.alpha / 2, math.pi / 2 * rule.alpha
    return rule.keep, rule.input_gain, rule.limit, rule.threshold, rule.unit, peak, steepness


def _kinds(rule: LIFRule) -> dict[str, bool | int]:
    return {"TRUNCATE": rule.truncate, "SUBTRACT": rule.subtract, "CAP": rule.cap, "TERNARY": rule.ternary}


def _in_triton(dtype: torch.dtype) -> Any:
    import triton.language

    return getattr(triton.language, str(dtype).removeprefix("torch."))


def _chunks(timesteps: int) -> int:
    from spikebert import triton_lif_kernels as kernels

    return -(-timesteps // kernels.STEPS_MAX)


def block_size(steps: int, dtype: torch.dtype, real: torch.dtype, threads: int) -> int:
    """Neurons of a program. A thread takes as many as it can read at once, fewer where the membranes of a chunk of
    `steps` would need too many registers."""
    most = REGISTERS * 4 // (real.itemsize * steps)
    a_thread = max(1, min(LOAD // dtype.itemsize, most))
    return threads * 2 ** (a_thread.bit_length() - 1)


def _launch(
    name: str, current: Tensor, others: tuple[Tensor, ...], numbers: tuple[float, ...], real: torch.dtype, **kinds: Any
) -> None:
    """Run a kernel on the current [T, ...] and the others. `kinds`: constants that the caller knows."""
    if current.numel() == 0:
        return
    from spikebert import triton_lif_kernels as kernels

    timesteps, neurons = current.shape[0], current[0].numel()
    chunks = _chunks(timesteps)
    steps = -(-timesteps // chunks)
    block = block_size(steps, current.dtype, real, kernels.THREADS)
    kinds |= {"TIMESTEPS": timesteps, "CHUNKS": chunks, "STEPS": steps, "BLOCK": block}
    kinds["REAL"] = _in_triton(real)
    grid = (-(-neurons // block),)
    with torch.cuda.device_of(current):  # Triton launches on the current GPU, which need not be the tensor's
        getattr(kernels, name)[grid](current, *others, neurons, current.stride(0), *numbers, **kinds, **kernels.OPTIONS)
