"""Our neuron beside that of lava-dl's slayer, which trains networks for netx.

The two rules differ in where they fire: ours strictly above the threshold, slayer's leaky integrator at it. With a
threshold that is one unit of the membrane higher they agree in every bit. What else differs is shown below: slayer does
not cut a membrane, it does not clear one of threshold 0, and its own correction is lost in float32 from a threshold of
2048 on.

Units. slayer's numbers are Loihi's divided by 64 (`w_scale`; membranes by 64 again, `s_scale`), and Loihi's are twice
ours: an accumulator unit is 1/32 for slayer, and a unit of the membrane, of which we have 128 in one, 1/4096.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("lava.lib.dl.slayer")

import torch
from lava.lib.dl.slayer.neuron import cuba
from lava.lib.dl.slayer.neuron.dynamics import leaky_integrator
from lava.lib.dl.slayer.utils.int_utils import right_shift_to_zero

from converters.encoder import count_saturations, decay, lif
from converters.graph import MEMBRANE_MAX, SHIFT

DECAYS = (0, 410, 2048, 4095)
THRESHOLDS = (0, 1, 100, 2047, 2048, 20_000)
STATE = 4096  # slayer's s_scale: units of the membrane in 1
ACCUMULATOR = 32  # accumulator units in 1


def draw_currents(threshold: int, dv: int, timesteps: int = 8, neurons: int = 3000) -> np.ndarray:
    """Currents int64 [T, neurons] around a threshold that cut no membrane; some meet the threshold exactly."""
    rng = np.random.default_rng(threshold)
    current = rng.integers(-2 * threshold - 40, 2 * threshold + 40, (timesteps, neurons)).clip(-65535, 65535)
    current[0, ::3] = threshold
    saturated = [count_saturations(column[:, None], threshold, dv, SHIFT) > 0 for column in current.T]
    return current[:, ~np.array(saturated)]


def slayer_membranes(current: np.ndarray, level: float, dv: int) -> np.ndarray:
    """Of slayer's integrator: charged membranes, in their units, that fire at `level` of these units; [T, neurons]."""
    x = torch.tensor(current.T[None] / ACCUMULATOR, dtype=torch.float32)  # [samples, neurons, T]
    v = leaky_integrator.dynamics(x, torch.tensor([dv]), torch.zeros(1), STATE, level / STATE)
    return v[0].T.numpy() * STATE


def slayer_spikes(current: np.ndarray, threshold: int, dv: int, correction: float | None = None) -> np.ndarray:
    """Spikes of slayer's CUBA neuron; `correction`, in units of the membrane, in the place of its own of 0.01."""
    neuron = cuba.Neuron(threshold / ACCUMULATOR, current_decay=1.0, voltage_decay=dv / 4096)
    assert (neuron.cx_current_decay, neuron.cx_voltage_decay, neuron.v_th_mant) == (4096, dv, 2 * threshold)
    if correction is not None:
        neuron.threshold_eps = correction / STATE
    return neuron(torch.tensor(current.T[None] / ACCUMULATOR, dtype=torch.float32))[0].T.numpy().astype(int)


@pytest.mark.parametrize("dv", DECAYS)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_one_unit_of_the_membrane_more_makes_the_rules_agree(threshold: int, dv: int) -> None:
    current = draw_currents(threshold, dv)
    ours = lif(current, threshold, dv, SHIFT)
    level = (threshold << SHIFT) + 1
    assert np.array_equal(slayer_membranes(current, level, dv) >= level, ours)
    assert np.array_equal(slayer_spikes(current, threshold, dv, correction=1), ours)
    assert 0.02 < ours.mean() < 0.98


@pytest.mark.parametrize("dv", DECAYS)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_without_it_they_do_not(threshold: int, dv: int) -> None:
    current = draw_currents(threshold, dv)
    ours, theirs = lif(current, threshold, dv, SHIFT), slayer_spikes(current, threshold, dv, correction=0)
    assert not np.array_equal(theirs, ours)
    first = np.flatnonzero((theirs != ours)[0])
    assert np.array_equal(first, np.flatnonzero(current[0] == threshold))  # in the first step, exactly where it is met
    assert theirs[0, first].all() and not ours[0, first].any()


@pytest.mark.parametrize(("dv", "agree"), [(0, True), (410, False)])
def test_one_unit_too_much_is_noticed(dv: int, agree: bool) -> None:
    """A decayed membrane may lie one unit above the threshold, so 2 is not as good as 1; where nothing decays it is."""
    current = draw_currents(1, dv, neurons=20_000)
    assert np.array_equal(slayer_spikes(current, 1, dv, correction=2), lif(current, 1, dv, SHIFT)) == agree


@pytest.mark.parametrize("dv", DECAYS)
def test_decay_rounds_toward_zero_in_both(dv: int) -> None:
    membrane = np.random.default_rng(0).integers(-MEMBRANE_MAX, MEMBRANE_MAX + 1, 100_000)
    theirs = right_shift_to_zero(torch.from_numpy(membrane) * (4096 - dv), 12).numpy()
    assert (membrane < 0).any() and np.array_equal(decay(membrane, dv), theirs)


@pytest.mark.parametrize(("threshold", "lost"), [(0, False), (2047, False), (2048, True), (65535, True)])
def test_slayers_own_correction_is_lost_from_a_threshold_of_2048_on(threshold: int, lost: bool) -> None:
    """It adds 0.01 of a unit, and float32 has no such number near 2^18: 128 * 2048. vThMant is 4096 there."""
    current = np.full((1, 1), threshold)
    assert lif(current, threshold, 0, SHIFT).item() == 0
    assert slayer_spikes(current, threshold, 0).item() == int(lost)


def test_a_membrane_is_cut_in_ours_and_not_in_slayers() -> None:
    """Twice the most negative current, then what would bring the cut membrane, and it alone, above the threshold."""
    current = np.array([[-65535], [-65535], [65535], [10]])
    assert count_saturations(current, 5, 0, SHIFT) == 1
    level = (5 << SHIFT) + 1
    charged = slayer_membranes(current, level, 0).ravel().tolist()
    assert charged == [-8388480, -16776960, -8388480, -8387200]
    assert lif(current, 5, 0, SHIFT).ravel().tolist() == [0, 0, 0, 1]


def test_a_threshold_of_0_without_correction_never_clears_a_membrane() -> None:
    """To slayer's integrator a threshold of 0 or below means that there is none."""
    current = np.array([[3], [3]])
    assert slayer_membranes(current, 0, 0).ravel().tolist() == [3 * 128, 6 * 128]
    assert slayer_membranes(current, 1, 0).ravel().tolist() == [3 * 128, 3 * 128]
