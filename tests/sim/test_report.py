"""The words of `spikebert-run`."""

import numpy as np
import pytest

from converters.execution import Activity, NodeActivity
from sim.report import PARTS_MAX, _parts, probabilities, wilson_interval


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


def test_a_block_is_one_line_of_the_table_of_parts():
    neuron, layer = NodeActivity(spikes=8, sites=80), NodeActivity(synaptic_operations=6000)
    names = ("encoder", "blocks.0.query", "blocks.0.query.lif", "blocks.1.query", "blocks.1.query.lif", "readout")
    counts = (neuron, layer, neuron, layer, neuron, layer)
    lines = _parts(Activity.of(4, dict(zip(names, counts))), samples=2)
    assert [line.split() for line in lines[1:]] == [
        ["encoder", "0.1000", "4", "0"],
        ["blocks.0", "0.1000", "4", "3,000"],
        ["blocks.1", "0.1000", "4", "3,000"],
        ["readout", "0", "3,000"],
    ]


def test_cut_membranes_are_told_where_there_are_any():
    counts = {"encoder": NodeActivity(8, 80), "blocks.0.up.lif": NodeActivity(8, 80, saturations=4321)}
    lines = _parts(Activity.of(4, counts), samples=2)
    assert [line.split()[-1] for line in lines] == ["cut", "0", "4,321"]
    counts["blocks.0.up.lif"] = NodeActivity(8, 80)
    assert "cut" not in _parts(Activity.of(4, counts), samples=2)[0]


def test_a_network_of_very_many_parts_is_not_printed_whole():
    names = [f"n{i}" for i in range(PARTS_MAX + 1)]
    (line,) = _parts(Activity.of(4, dict.fromkeys(names, NodeActivity())), samples=1)
    assert "--json" in line
