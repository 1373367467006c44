"""The spiking neuron: Loihi's leaky integrate-and-fire on top of SpikingJelly's `BaseNode`.

SpikingJelly gives the loop over time, the membrane as a memory and the surrogate
gradients. Two things differ from its own LIF, because the chip differs: the threshold is strict (`>`),
and the membrane decays before the input is added, in integer mode rounding toward zero.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from spikebert import fused_lif, triton_lif
from spikebert.commands import UserError
from spikebert.lif_rule import LEVELS_MAX, LIFRule
from spikebert.spikingjelly_alone import spikingjelly_alone

with spikingjelly_alone():
    from spikingjelly.activation_based import surrogate
    from spikingjelly.activation_based.neuron import BaseNode

SHIFT = 7  # bits: membrane units per accumulator unit, 2^7; the graph's own constant (tests compare them)
DECAY_ONE = 4096
MEMBRANE_MAX = float(2**23 - 1)
_SURROGATES = {"atan": surrogate.ATan, "sigmoid": surrogate.Sigmoid}
PATHS = ("auto", "plain", "fused", "triton")


class StrictSpike(torch.autograd.Function):
    """1 where x > 0, else 0; backward is the gradient of a SpikingJelly surrogate function at x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: surrogate.SurrogateFunctionBase) -> Tensor:
        ctx.save_for_backward(x)
        ctx.function = function
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.function.backward(grad_output, x, ctx.function.alpha), None


class TruncatedDecay(torch.autograd.Function):
    """`sign(v) * ((abs(v) * (4096 - dv)) >> 12)` on integers held in floats; backward as if not rounded.

    Exact in float32 for dv 0 and 2048, in float64 for every dv (the product stays below 2^35).
    """

    @staticmethod
    def forward(ctx: Any, membrane: Tensor, keep: float) -> Tensor:
        ctx.keep = keep
        return torch.trunc(membrane * keep)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output * ctx.keep, None


class LoihiLIF(BaseNode):
    """Leaky integrate-and-fire over T timesteps: current [T, ...] in, spikes [T, ...] out.

    float mode      v = v * (4096 - decay) / 4096 + a;                                      L = threshold
    integer mode    v = clip(trunc(v * (4096 - decay) / 4096) + a * 2^7, +-(2^23 - 1));     L = threshold * 2^7

    spike "binary"    s = v > L
    spike "graded"    s = at how many of j = 1 .. cap  v > j L
    spike "ternary"   s = (v > L) - (v < -L)
    reset "zero"      v = 0 where s != 0
    reset "subtract"  v = v - s L

    The integer mode computes with integers held exactly in floats: float32 for a decay of 0 or 2048,
    float64 otherwise. The surrogate sees `v / threshold - 1` in both, so gradients have one scale; s is a sum of steps,
    and its gradient the sum of theirs, each at its own level. The reset is detached.

    A threshold is one number, or a tensor [D] of one for each feature, which then learns too.

    path            "plain": step by step in PyTorch, the definition, on any device
                    "fused": all steps in one pass, on the CPU (`fused_lif.py`)
                    "triton": all steps in one launch, on a GPU (`triton_lif.py`)
                    "auto": "triton" on a GPU, "fused" on the CPU, "plain" where those cannot take the current. They
                    take one threshold and a cap of at most 32: other neurons are made step by step
    """

    v: Tensor  # the membrane, a memory of BaseNode
    v_threshold: float | Tensor
    path: str = "auto"

    def __init__(
        self,
        decay: int,
        integer: bool,
        surrogate_name: str = "atan",
        surrogate_alpha: float = 2.0,
        reset: str = "zero",
        spike: str = "binary",
        cap: int = 1,
    ) -> None:
        function = _SURROGATES[surrogate_name](alpha=surrogate_alpha)
        super().__init__(surrogate_function=function, detach_reset=True, step_mode="m")
        self.surrogate_name = surrogate_name
        self.decay = decay
        self.integer = integer
        self.resets_to, self.spike, self.cap = reset, spike, cap  # `reset` is a method of BaseNode
        self.keep = (DECAY_ONE - decay) / DECAY_ONE  # a multiple of 2^-12: exact

    def neuronal_charge(self, current: Tensor) -> None:
        if self.integer:
            charged = TruncatedDecay.apply(self.v, self.keep) + current * 2**SHIFT
            self.v = charged.clamp(-MEMBRANE_MAX, MEMBRANE_MAX)
        else:
            self.v = self.v * self.keep + current  # two roundings: one fused operation would round but once

    def neuronal_fire(self) -> Tensor:
        level = self.level
        fired = self._step(self.v - level)  # exact in integer mode: both are integers below 2^24
        if self.spike == "ternary":
            return fired - self._step(-self.v - level)
        for j in range(2, self.cap + 1):
            above = j * level
            if isinstance(above, float):  # of the membrane's type, or half precision would differ on a GPU
                above = float(torch.as_tensor(above, dtype=self.v.dtype))
            fired = fired + self._step(self.v - above)
        return fired

    def _step(self, above: Tensor) -> Tensor:
        """1 where a membrane is above some level; its surrogate gradient is taken in units of the threshold."""
        if isinstance(self.v_threshold, Tensor):
            above = above / (self.v_threshold.detach() * self.gain).clamp(min=self.gain)
        elif (unit := self.rule().unit) != 1.0:
            above = above / unit
        return StrictSpike.apply(above, self.surrogate_function)

    @property
    def level(self) -> float | Tensor:
        """The threshold in membrane units."""
        return self.v_threshold * self.gain if isinstance(self.v_threshold, Tensor) else self.rule().threshold

    @property
    def is_stock(self) -> bool:
        """Whether it resets to 0 and sends bits."""
        return self.resets_to == "zero" and self.spike == "binary"

    @property
    def gain(self) -> float:
        """Membrane units per unit of the current."""
        return float(2**SHIFT) if self.integer else 1.0

    def rule(self) -> LIFRule:
        """This neuron in numbers, at the one threshold that it has now."""
        gain = self.gain
        threshold = float(self.v_threshold) * gain
        return LIFRule(
            keep=self.keep,
            truncate=self.integer,
            input_gain=gain,
            limit=MEMBRANE_MAX if self.integer else math.inf,
            threshold=threshold,
            unit=max(threshold, gain),  # a threshold of 0 has no scale of its own
            surrogate=self.surrogate_name,
            alpha=self.surrogate_function.alpha,
            subtract=self.resets_to == "subtract",
            cap=self.cap,
            ternary=self.spike == "ternary",
        )

    def neuronal_reset(self, spike: Tensor) -> None:
        fired = spike.detach()
        if self.resets_to == "subtract":
            self.v = self.v - fired * self.level
            return
        if self.spike != "binary":
            fired = (fired != 0).to(fired.dtype)
        # BaseNode's hard reset, detached: v - v * spike, which is exactly 0 where it fired, in one pass
        self.v = torch.addcmul(self.v, self.v, fired, value=-1)

    def multi_step_forward(self, currents: Tensor) -> Tensor:
        # BaseNode indexes x[t], whose backward fills a zero tensor of all T steps for every step; unbind does not.
        return torch.stack([self.single_step_forward(current) for current in currents.unbind(0)])

    def forward(self, current: Tensor, threshold: float | Tensor) -> Tensor:
        """current [T, ..., D] and the threshold, in accumulator units in integer mode -> spikes [T, ..., D].

        Raises ValueError for a path that is not of PATHS, UserError where the path "triton" or "fused" cannot be taken.
        """
        self.reset()  # a membrane starts every text at 0
        exact = not self.integer or self.decay in (0, DECAY_ONE // 2)
        # what membranes are held in: in half precision they would forget a small current
        real = torch.promote_types(current.dtype, torch.float32 if exact else torch.float64)
        if self.path not in PATHS:
            raise ValueError(f"path is '{self.path}', it must be one of {PATHS}")
        if isinstance(threshold, Tensor) and threshold.ndim:
            return self._forward_by_feature(current, threshold, real)
        self._require_path(self.cap <= LEVELS_MAX, f"a cap of at most {LEVELS_MAX}, and this one is {self.cap}", "")
        # of the same type, or half precision would be compared in one way on the CPU and in another on a GPU
        self.v_threshold = float(torch.as_tensor(threshold, dtype=real))
        chooses = self.path == "auto" and self.cap <= LEVELS_MAX
        if self.path == "triton" or (chooses and triton_lif.serves(current)):
            return triton_lif.TritonLIF.apply(current, self.rule(), real)
        wide = current.to(real)
        if self.path == "fused" or (chooses and fused_lif.serves(wide)):
            return fused_lif.FusedLIF.apply(wide, self.rule()).to(current.dtype)
        spikes = super().forward(wide).to(current.dtype)
        self.reset()
        return spikes

    def _forward_by_feature(self, current: Tensor, thresholds: Tensor, real: torch.dtype) -> Tensor:
        """With a threshold for each feature, [D]."""
        self._require_path(
            False, "one threshold, and this layer has one for each feature", ", or quantise with scalar_thresholds"
        )
        self.v_threshold = thresholds.to(real)
        spikes = super().forward(current.to(real)).to(current.dtype)
        self.reset()
        self.v_threshold = 1.0  # a tensor with a history cannot be copied, as modules are
        return spikes

    def _require_path(self, holds: bool, takes: str, remedy: str) -> None:
        """Raises UserError where a path was chosen that not all neurons can take, and this one cannot."""
        if self.path in ("fused", "triton") and not holds:
            raise UserError(f"LoihiLIF.path is '{self.path}', which takes {takes}: set it to 'auto' or 'plain'{remedy}")
