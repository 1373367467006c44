"""Which integer neurons are neurons of NIR: in exact arithmetic, and in those of Norse."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from converters.encoder import decay, lif
from converters.graph import LIF, SHIFT, Graph, Readout, Source, Synapses
from converters.ranges import Range, prove_ranges
from targets import legality
from targets.nir.membranes import Membrane, forgets, membrane_of
from targets.nir.rules import RULES

EXACT = ((1, 0), (8, 0), (16, 0), (8, 2048), (4, 1024), (4, 3072), (3, 512), (2, 416), (1, 1), (1, 410), (1, 4095))


def neuron(dv: int, threshold: int | np.ndarray = 40, reach: int = 50, timesteps: int = 4) -> Graph:
    """One neuron whose current is 0, `reach` or `-reach`."""
    ones = reach // 125
    row = [125] * ones + [reach % 125]
    nodes = (
        Source("source", [[1] * (ones + 1) + [-1] * (ones + 1), [-1] * (ones + 1) + [1] * (ones + 1)], kind="sign"),
        Synapses("current", ("source",), [[*row, *(-weight for weight in row)]], [0]),
        LIF("neuron", ("current",), threshold, dv),
        Readout("readout", ("neuron",), [[1]], [0]),
    )
    return Graph(timesteps, 1, nodes)


def membrane(graph: Graph) -> Membrane:
    return membrane_of(graph, graph["neuron"], prove_ranges(graph)["current"])


def in_nir(currents: np.ndarray, told: Membrane, threshold: int) -> np.ndarray:
    """NIR's equations, one step of forward Euler for each current [T, K], in fractions: spikes."""
    level = Fraction(float(told.threshold(threshold)))
    loss = Fraction(told.dv, 4096)
    spikes = np.zeros(currents.shape, np.int64)
    for k in range(currents.shape[1]):
        v = Fraction(0)
        for t in range(currents.shape[0]):
            current = int(currents[t, k])
            v = v + loss * (current - v) if told.dv else v + current
            spikes[t, k] = v > level
            v = v * (1 - int(spikes[t, k]))
    return spikes


def random_currents(seed: int, timesteps: int, reach: int, threshold: int, columns: int = 3000) -> np.ndarray:
    """[T, K]; half of them are small, so that membranes meet the threshold and pass it by the least there is."""
    rng = np.random.default_rng(seed)
    currents = rng.integers(-reach, reach + 1, (timesteps, columns))
    near = rng.integers(-4, min(threshold, reach) + 1, (timesteps, columns // 2))
    currents[:, : columns // 2] = near
    return currents


@pytest.mark.parametrize(("timesteps", "dv"), EXACT)
def test_a_neuron_that_never_rounds_is_that_of_nir(timesteps: int, dv: int) -> None:
    told = membrane(neuron(dv, timesteps=timesteps))
    assert told.fraction_bits <= SHIFT
    currents = random_currents(0, timesteps, 50, 20, columns=1000)
    expected = lif(currents, 20, dv, SHIFT)
    assert 0.05 < expected.mean() < 0.6
    assert np.array_equal(in_nir(currents, told, 20), expected)


def charged_last(dv: int, timesteps: int, threshold: int) -> tuple[np.ndarray, np.ndarray]:
    """Membranes of neurons that were silent so far, charged for the last time, so that they come near the threshold.

    By the rule, int64 in membrane units, and unrounded, float64 in the same units (exact: few bits are needed).
    """
    rng = np.random.default_rng(0)
    level = threshold << SHIFT
    ruled, real, silent = np.zeros(200_000, np.int64), np.zeros(200_000), np.ones(200_000, bool)
    for _ in range(timesteps - 1):
        current = rng.integers(-threshold, threshold, 200_000) << SHIFT
        ruled, real = decay(ruled, dv) + current, real * (4096 - dv) / 4096 + current
        silent &= ruled <= level
    ruled, real = decay(ruled, dv), real * (4096 - dv) / 4096
    current = ((level - ruled) >> SHIFT) + rng.integers(0, 2, 200_000) << SHIFT
    return (ruled + current)[silent], (real + current)[silent]


@pytest.mark.parametrize(("timesteps", "dv"), [(9, 2048), (5, 1024), (4, 410), (2, 410), (3, 416)])
def test_no_threshold_makes_one_that_rounds_the_same(timesteps: int, dv: int) -> None:
    """NIR has a membrane that must be silent, and one no higher that must fire."""
    assert membrane(neuron(dv, timesteps=timesteps)).fraction_bits > SHIFT
    ruled, real = charged_last(dv, timesteps, threshold=3000)
    fires = ruled > 3000 << SHIFT
    assert real[fires].min() <= real[~fires].max()


@pytest.mark.parametrize(("timesteps", "dv"), [(8, 2048), (4, 1024), (4, 3072), (2, 416)])
def test_one_that_just_does_not_round_has_such_a_threshold(timesteps: int, dv: int) -> None:
    told = membrane(neuron(dv, timesteps=timesteps))
    ruled, real = charged_last(dv, timesteps, threshold=300)
    assert np.array_equal(ruled, real)
    halfway = told.threshold(300) / told.gain * 2**SHIFT
    assert np.array_equal(real > halfway, ruled > 300 << SHIFT)
    assert np.abs(real - halfway).min() == 0.5 * 2 ** (SHIFT - told.fraction_bits)  # as close as it can come


@pytest.mark.parametrize(
    ("dv", "threshold", "lowest", "holds"),
    [
        (4095, 31, -4095, True),
        (4095, 32, -4095, False),
        (4095, 31, -4096, False),
        (4094, 15, -2047, True),
        (4094, 16, -2047, False),
        (4094, 15, -2048, False),
        (4093, 10, -1364, True),
        (4093, 10, -1365, False),  # -1365 alone would not do, what was left of one before adds to it
        (2048, 0, -1, True),  # half of less than two units is less than one
        (2048, 0, -2, False),
        (2048, 1, 0, False),
        (0, 0, 0, True),
        (0, 0, -1, False),
    ],
)
def test_what_is_remembered_does_not_matter(dv: int, threshold: int, lowest: int, holds: bool) -> None:
    node = LIF("neuron", ("current",), threshold, dv)
    assert forgets(node, lowest) == holds
    rng = np.random.default_rng(0)
    ends = np.array([lowest, threshold, threshold + 1])  # where it matters soonest
    currents = np.where(rng.random((8, 4000)) < 0.8, rng.choice(ends, (8, 4000)), rng.integers(lowest, 60, (8, 4000)))
    assert np.array_equal(lif(currents, threshold, dv, SHIFT), currents > threshold) == holds


def test_forgetting_goes_by_the_highest_threshold_and_the_lowest_current() -> None:
    assert membrane(neuron(4095, threshold=31)) == Membrane(4096, 0)
    assert membrane(neuron(4095, threshold=np.array([32], np.int32))).fraction_bits == 36
    for levels, low, fraction_bits in (([31, 31], [0, -4095], 0), ([31, 32], [0, 0], 36), ([31, 31], [0, -4096], 36)):
        node = LIF("neuron", ("current",), np.array(levels, np.int32), 4095)
        told = membrane_of(neuron(4095), node, Range(np.array(low), np.array([9, 9])))
        assert told.fraction_bits == fraction_bits


def test_a_neuron_is_told_as_it_is_where_that_is_exact() -> None:
    """Also where it could be told as one that forgets."""
    assert membrane(neuron(2048, threshold=0, reach=1, timesteps=8)) == Membrane(2048, 7)
    assert membrane(neuron(2048, threshold=0, reach=1, timesteps=9)) == Membrane(4096, 0)
    assert membrane(neuron(0, threshold=0, reach=1, timesteps=9)) == Membrane(0, 0)
    assert membrane(neuron(0, timesteps=1)) == Membrane(0, 0)


def test_what_float32_must_tell_apart() -> None:
    """A current of 100 and a membrane of 200: halves of 1, of 1/8 and of 1/64, in NIR's units."""
    assert Membrane(0, 0).float32_steps(100, 200, timesteps=4) == 2 * 300
    assert Membrane(2048, 3).float32_steps(100, 200, timesteps=4) == 2 * 8 * 2 * (100 + 200 // 2)
    by_thirds = int(np.ceil(2 * 64 / 0.75 * (100 + 200 * 0.75)))
    assert Membrane(3072, 6).float32_steps(100, 200, timesteps=4) == by_thirds * 8 * 4  # each step rounds


@pytest.mark.parametrize("threshold", [0, 1, 40, 65535])
@pytest.mark.parametrize(("timesteps", "dv"), [(4, 0), (8, 2048), (4, 1024)])
def test_a_threshold_lies_halfway_between_silent_and_firing(threshold: int, timesteps: int, dv: int) -> None:
    told = membrane(neuron(dv, timesteps=timesteps))
    level = told.threshold(threshold)
    assert level == np.float32(level)  # held by float32 without a rounding
    finest = 2.0**-told.fraction_bits
    assert (level / told.gain - threshold) == finest / 2


LARGEST = {(8, 0): 8000, (16, 0): 4000, (4, 3072): 1000, (2, 416): 200, (3, 512): 10_000, (4, 4095): 4095}


@pytest.mark.parametrize(("timesteps", "dv"), [*EXACT, (4, 4095)])
@pytest.mark.parametrize("small", [False, True])
def test_norse_makes_the_same_spikes_of_it(timesteps: int, dv: int, small: bool) -> None:
    """Norse in float32, near the largest currents that the rules let pass and where thresholds are met exactly."""
    pytest.importorskip("norse")
    from nir_consumers import norse_module, run
    from torch import nn

    from targets.nir.network import build

    reach = 40 if small else LARGEST.get((timesteps, dv), 16_000)
    threshold = 31 if (timesteps, dv) == (4, 4095) else reach * 3 // 4
    graph = neuron(dv, threshold, reach, timesteps)
    assert legality.check(RULES, graph) == []
    node = build(graph).nodes["neuron"]

    class Driven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neuron = norse_module(node)

        def forward(self, x, state=None):
            return self.neuron(x, state)

    currents = random_currents(1, timesteps, reach, threshold)
    given = run(Driven(), currents[..., None])["neuron"][..., 0]
    assert np.array_equal(given, lif(currents, threshold, dv, SHIFT))


def test_no_rule_refuses_these_neurons() -> None:
    for timesteps, dv in EXACT:
        assert legality.check(RULES, neuron(dv, timesteps=timesteps)) == []
