"""What the integer neuron becomes in NIR, and when that is the same neuron.

The rule of `converters.graph.LIF` is `v = decay(v) + a`, `s = v > threshold`, `v = 0 where s`, in integers: membranes
are multiples of 1/128 accumulator unit, `decay` rounds toward zero, and membranes saturate. NIR's LIF is a differential
equation in real numbers. One step of forward Euler, `dt` long, makes of it

    tau dv/dt = (v_leak - v) + r I      ->      v = (1 - dt / tau) v + (dt / tau) r I

With `dt / tau = dv / 4096`, `r = 1` and `v_leak = 0` that is the rule without rounding, its membrane scaled by
`dv / 4096`, which the threshold is too. So it is the same neuron where the rule does not round (and not saturate):

- `dv = 0` keeps all: NIR's IF, `v = v + I`.
- `(4096 - dv) / 4096 = odd / 2^k`: after n decays a membrane is a multiple of `2^(-k n)`. Between two resets there are
  at most T - 1, and 7 bits of fraction are kept: exact for `k (T - 1) <= 7`. dv = 2048 is exact up to T = 8.
- Nothing that is remembered ever matters (`forgets`), as at T = 1: `tau = dt`, then `v = I`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converters.graph import DECAY_BITS, LIF, SHIFT, Graph
from converters.ranges import Range

ALL = 2**DECAY_BITS  # a dv of this much would forget everything
ROUNDINGS = 8  # more than one step of a consumer rounds, in the relative precision of its floats


@dataclass(frozen=True)
class Membrane:
    """The membrane of one layer of neurons in NIR.

    dv            0 .. 4096: the part that is lost at each step is dv / 4096; 0 for an IF, 4096 forgets all
    fraction_bits membranes of the rule are multiples of 2^-fraction_bits accumulator units, if it never rounds
    """

    dv: int
    fraction_bits: int

    @property
    def gain(self) -> float:
        """What NIR's membrane is in units of the rule's: r is 1, so a current is taken in by this factor."""
        return self.dv / ALL if self.dv else 1.0

    @property
    def tau(self) -> float:
        """The time constant in steps; infinite for an IF."""
        return ALL / self.dv if self.dv else np.inf

    @property
    def half_step(self) -> float:
        """Half the distance between two membranes, in NIR's units."""
        return self.gain * 2.0 ** -(self.fraction_bits + 1)

    def threshold(self, level: int | np.ndarray) -> np.ndarray:
        """NIR's threshold, float64, for one of the rule in accumulator units.

        It lies halfway between the highest membrane that is silent and the lowest that fires. So whether a consumer
        compares with `>`, as NIR says, or with `>=`, it makes the same of it.
        """
        return np.asarray(level, np.float64) * self.gain + self.half_step

    def float32_steps(self, current: float, membrane: float, timesteps: int) -> int:
        """How many half steps float32 must tell apart, for |currents| and |membranes| in accumulator units.

        Where `dv / 4096` is a power of two every sum and product is exact. Elsewhere each step of a consumer rounds,
        and all errors of T steps together must stay below half a step.
        """
        rounded = 1 if self.dv & (self.dv - 1) == 0 else ROUNDINGS * timesteps
        return int(np.ceil((current + self.gain * membrane) / self.half_step)) * rounded


def membrane_of(graph: Graph, node: LIF, current: Range) -> Membrane:
    """How NIR tells the membrane of a LIF whose current is proven to lie within `current`.

    The same neuron only if `fraction_bits` is at most 7 and it never saturates: see `rules.py`.
    """
    steps = graph.timesteps - 1  # decays between two resets
    kept = ALL - node.dv
    exponent = DECAY_BITS - ((kept & -kept).bit_length() - 1)  # kept / 4096 is odd / 2^exponent
    if steps and exponent * steps <= SHIFT:
        return Membrane(node.dv, exponent * steps)
    if node.dv and (steps == 0 or forgets(node, int(current.low.min()))):
        return Membrane(ALL, 0)
    return Membrane(node.dv, exponent * steps)


def forgets(node: LIF, lowest: int) -> bool:
    """Whether a LIF fires exactly when `a > threshold`, whatever came before, if no current is below `lowest`.

    What it remembers is a whole number d of 1/128 accumulator units, and `128 a + d > 128 threshold` says the same as
    `a > threshold` for every d in -127 .. 0. A membrane that did not fire is at most `128 threshold`, and at least
    `128 lowest - 127`: after one decay it must be in that interval again.
    """
    kept, highest = ALL - node.dv, int(np.max(node.threshold)) << SHIFT
    deepest = (max(-lowest, 0) << SHIFT) + 2**SHIFT - 1
    return (highest * kept) >> DECAY_BITS == 0 and (deepest * kept) >> DECAY_BITS < 2**SHIFT
