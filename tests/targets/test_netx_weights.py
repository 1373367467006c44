"""What becomes of weights between a file and a sum: our account of it against lava-dl and Lava themselves."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("lava.lib.dl.netx")

from lava.lib.dl.netx.utils import optimize_weight_bits
from lava.utils.weightutils import clip_weights, determine_sign_mode, truncate_weights

from targets.netx.weights import held_weights


def lava_holds(weight: np.ndarray) -> np.ndarray:
    """The weights that netx hands to Lava's Dense, as that makes use of them."""
    with np.errstate(divide="ignore"):
        shifted, bits, exponent, _ = optimize_weight_bits(weight.astype(int).copy())
    mode = determine_sign_mode(shifted)
    return truncate_weights(clip_weights(shifted, mode, num_bits=8), mode, bits) >> -exponent


@pytest.mark.parametrize("least", [*range(-256, 1, 2)])
def test_every_pair_of_extremes(least: int) -> None:
    for most in range(-256, 255, 2):
        weight = np.array([[least, most]])
        if weight.any():
            assert np.array_equal(held_weights(weight), lava_holds(weight)), weight


@pytest.mark.parametrize("seed", range(50))
def test_random_matrices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low, high = sorted(rng.integers(-128, 128, 2))
    weight = 2 * rng.integers(low, high + 1, (5, 4)) * rng.integers(0, 2, (5, 4))
    weight[0, 0] = weight[0, 0] or 2
    assert np.array_equal(held_weights(weight), lava_holds(weight))


def test_weights_change_only_where_none_is_positive_and_the_lowest_is_a_power_of_two() -> None:
    for least in range(-256, 1, 2):
        for most in range(least, 255, 2):
            weight = np.array([[least, most]])
            if weight.any():
                power = least < 0 and -least & (-least - 1) == 0
                changed = not np.array_equal(held_weights(weight), weight)
                assert changed == (most <= 0 and power), weight


def test_netx_cannot_load_zeros_alone() -> None:
    with np.errstate(divide="ignore"), pytest.raises(OverflowError):
        optimize_weight_bits(np.zeros((2, 2), int))
