"""Histograms count every weight once; pictures say in words what they show."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from converters.report.charts import BARS, accuracy_bar, axis_start, bins, histogram, range_bar
from converters.report.contents import Interval, Measured, Weights


def weights_of(array: np.ndarray, bits: int) -> Weights:
    first = int(array.min())
    counts = tuple(int((array == value).sum()) for value in range(first, int(array.max()) + 1))
    return Weights((1, array.size), bits, array.size, first, counts, int((array == 0).sum()), None, None)


@pytest.mark.parametrize("bits", range(2, 9))
def test_bins_are_even_and_hold_every_weight(bits: int) -> None:
    reach = 2 ** (bits - 1) - 1
    array = np.random.default_rng(bits).integers(-reach, reach + 1, 500)
    parts = bins(weights_of(array, bits))
    assert len(parts) <= BARS and len(parts) % 2 == 1
    assert (parts[0].low, parts[-1].high) == (-reach, reach)
    assert all(left.high + 1 == right.low for left, right in pairwise(parts))
    assert [part.count for part in parts] == [int(((array >= p.low) & (array <= p.high)).sum()) for p in parts]
    middle = parts[len(parts) // 2]
    assert middle.low == -middle.high, "0 stands in the middle"


def test_a_weight_of_minus_128_is_shown() -> None:
    parts = bins(weights_of(np.array([-128, 127]), 8))
    assert parts[0].low == -128 and sum(part.count for part in parts) == 2


def test_a_histogram_draws_a_bar_for_each_bin_that_is_not_empty() -> None:
    picture = histogram(weights_of(np.array([-1, -1, -1, 1]), 2))
    (bars,) = re.findall(r'd="([^"]*)" class="bar"', picture)
    assert bars.count("M") == 2
    assert 'aria-label="Histogram from -1 to 1; most, 3, are -1 to -1"' in picture


def test_an_observed_range_stands_at_its_place() -> None:
    picture = range_bar(Interval(-100, 50), Interval(-50, 25))
    assert '<rect x="50" y="3" width="75"' in picture, "150 pixels are -100 .. 50"
    assert "observed -50 to 25 of the proven -100 to 50" in picture
    assert "<svg" in range_bar(Interval(0, 0), Interval(0, 0))


def test_accuracies_stand_on_one_axis() -> None:
    low, high = Measured(8, 10, 0.8, 0.49, 0.94), Measured(10, 10, 1.0, 0.72, 1.0)
    assert axis_start([low, high]) == 0.4 and axis_start([Measured(9, 9, 1.0, 1.0, 1.0)]) == 0.9
    assert 'cx="236"' in accuracy_bar(high, 0.4)
