"""A leaky integrate-and-fire neuron in numbers, as every backend takes it."""

from __future__ import annotations

from dataclasses import dataclass

LEVELS_MAX = 32  # that the compiled backends write out; neurons of more are made step by step


@dataclass(frozen=True)
class LIFRule:
    """One step, in membrane units and in this order:

        v = clip(decay(v) + input_gain * a, -limit, limit)
        s = how many of the levels are below v, less 1 where `ternary` and -v is above the threshold
        v = rest where s is not 0

    keep         decay(v) = v * keep, the share of the membrane that stays
    truncate     decay(v) is rounded toward zero (integer mode)
    input_gain   membrane units per unit of the current a
    limit        inf in float mode
    threshold    strict
    cap          the largest s: the levels are 1 .. cap thresholds
    ternary      s may be -1
    unit         the surrogate gradient is the sum over the levels of that at (v - level) / unit
    surrogate    "atan" or "sigmoid", of steepness alpha; the reset is detached
    subtract     rest is v - s * threshold, else 0
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
    cap: int = 1
    ternary: bool = False
