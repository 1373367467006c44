"""A leaky integrate-and-fire neuron in numbers, as every backend takes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LIFRule:
    """One step, in membrane units and in this order:

        v = clip(decay(v) + input_gain * a, -limit, limit);     s = v > threshold;     v = rest where s

    keep         decay(v) = v * keep, the share of the membrane that stays
    truncate     decay(v) is rounded toward zero (integer mode)
    input_gain   membrane units per unit of the current a
    limit        inf in float mode
    threshold    strict
    unit         the surrogate gradient is taken at (v - threshold) / unit
    surrogate    "atan" or "sigmoid", of steepness alpha; the reset is detached
    subtract     rest is v - threshold, else 0
    """

    keep: float
    truncate: bool
    input_gain: float
    limit: float
    threshold: float
    unit: float
    surrogate: str
    alpha: float
    subtract: bool = False
