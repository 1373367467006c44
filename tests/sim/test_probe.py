"""Nodes chosen by name, and what they did in a few numbers."""

import numpy as np
import pytest
from random_graphs import random_graph

from sim.probe import choose_nodes, summarise
from spikebert.commands import UserError


@pytest.fixture(scope="module")
def graph():
    return random_graph(np.random.default_rng(0), blocks=2)


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (["block0.q"], ["block0.q"]),
        (["block1.add2", "source"], ["source", "block1.add2"]),  # graph order
        (["block?.q"], ["block0.q", "block1.q"]),
        (["block0.[qk]", "block0.q"], ["block0.q", "block0.k"]),  # each once
        (["block1.fc1*"], ["block1.fc1.synapses", "block1.fc1"]),
        ([], []),
    ],
)
def test_nodes_are_chosen_by_name_or_pattern(graph, patterns, chosen):
    assert choose_nodes(graph, patterns) == tuple(chosen)


def test_a_star_is_any_part_of_a_name(graph):
    assert choose_nodes(graph, ["*"]) == tuple(graph.features)
    assert choose_nodes(graph, ["block0.*"]) == tuple(name for name in graph.features if name.startswith("block0."))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("blok0.q", r"no node is called 'blok0\.q'\. Did you mean block0\.q "),
        ("block0.quary.*", "Did you mean .*block0"),
        ("query", r"There are 34 nodes: source, block0\.q\.synapses, block0\.q, \.\.\.; graph\.json lists all"),
    ],
)
def test_an_unknown_node_is_refused_with_names_that_are_like_it(graph, pattern, message):
    assert len(graph.features) == 34
    with pytest.raises(UserError, match=message):
        choose_nodes(graph, ["source", pattern])


def test_a_summary_leaves_padding_out():
    values = np.zeros((2, 2, 3, 2), np.int64)  # T, B, N, D
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    values[0, 0, 0] = -3, 5
    values[1, 1, 0, 1] = 2
    values[:, 0, 2] = 99  # padding
    summary = summarise(values, mask)
    assert summary.to_json() == {
        "features": 2,
        "silent_features": 0,
        "low": -3,
        "high": 5,
        "sum": 4,
        "mean": 4 / 12,
        "rate": 3 / 12,
        "nonzero": 3,
        "nonzero_by_timestep": [2, 1],
    }


def test_summaries_of_parts_add_up():
    rng = np.random.default_rng(0)
    values = rng.integers(-9, 3, (4, 6, 5, 7)) * (rng.random((4, 6, 5, 7)) < 0.1)
    mask = np.arange(5) < rng.integers(1, 6, 6)[:, None]
    whole = summarise(values, mask)
    parts = summarise(values[:, :2], mask[:2]) + summarise(values[:, 2:], mask[2:])
    assert parts.to_json() == whole.to_json()
    assert whole.nonzero.sum() > 0


def test_a_sample_without_tokens_has_no_range():
    nothing = summarise(np.ones((2, 1, 3, 2), np.uint8), np.zeros((1, 3), int))
    assert (nothing.low, nothing.high, nothing.rate, nothing.mean, nothing.silent) == (None, None, None, None, 2)
    some = summarise(np.ones((2, 1, 3, 2), np.uint8), np.ones((1, 3), int))
    assert (nothing + some).to_json() == some.to_json()
