"""The words of `spikebert-run`."""

import numpy as np
import pytest

from sim.report import probabilities, wilson_interval


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (811, 872, 0.9112, 0.9452)],
)
def test_the_wilson_interval_has_its_published_values(correct, total, low, high):
    assert [round(bound, 4) for bound in wilson_interval(correct, total)] == [low, high]


def test_probabilities_add_up_and_do_not_overflow():
    chances = probabilities(np.array([[1e6, 0.0, -1e6], [0.0, 0.0, 0.0]]))
    assert chances[0].tolist() == [1.0, 0.0, 0.0]
    assert chances[1].sum() == pytest.approx(1.0)  # the only floats of the project
