"""When a sample stops, worked out by hand, and the same network of fewer timesteps."""

import numpy as np
import pytest
from random_graphs import random_batch, random_graph

from converters.early_exit import MARGIN_MAX, EarlyExit, cut_values, shortened, stops_of
from converters.graph import Graph, Readout, Source
from converters.readout import float_logits, logits_over_time
from sim.reference import ReferenceEngine


def two_classes(timesteps: int = 4, classes: int = 2, scale: float = 0.25) -> Graph:
    source = Source("source", np.ones((3, 2), int), threshold=0)
    return Graph(
        timesteps, 3, (source, Readout("readout", ("source",), np.eye(classes, 2, dtype=int), [0] * classes, scale))
    )


def test_the_lead_is_for_each_token_and_timestep():
    """2 tokens, a margin of 3: after t the best class must lead by 6 t."""
    over_time = np.array([[[5, 0]], [[0, 11]], [[18, 0]], [[0, 0]]])
    graph, tokens = two_classes(), np.array([2])
    assert stops_of(graph, EarlyExit(3), over_time, tokens).tolist() == [3]
    over_time[1, 0, 1] = 12  # met exactly
    assert stops_of(graph, EarlyExit(3), over_time, tokens).tolist() == [2]
    assert stops_of(graph, EarlyExit(3, (1, 3)), over_time, tokens).tolist() == [3]
    assert stops_of(graph, EarlyExit(4), over_time, tokens).tolist() == [4]  # never
    assert stops_of(graph, EarlyExit(0), over_time, tokens).tolist() == [1]
    assert stops_of(graph, EarlyExit(0, (2,)), over_time, tokens).tolist() == [2]


def test_the_second_is_the_largest_but_one():
    early_exit, tokens = EarlyExit(2), np.array([1, 1, 1])
    logits = np.array([[9, 7, -50], [-3, 9, 8], [4, 4, 0]])
    assert early_exit.certain(logits, 1, tokens).tolist() == [True, False, False]
    assert EarlyExit(0).certain(logits, 1, tokens).all()  # two that are equal, too


def test_a_network_of_one_timestep_has_nothing_to_stop_before():
    over_time = np.array([[[9, 0], [0, 0]]])
    assert stops_of(two_classes(1), EarlyExit(0), over_time, np.array([1, 0])).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: EarlyExit(-1), "0 .. 131,072"),
        (lambda: EarlyExit(MARGIN_MAX + 1), "131,073"),
        (lambda: EarlyExit(1, ()), "must be given"),
        (lambda: EarlyExit(1, (2, 1)), "rising"),
        (lambda: EarlyExit(1, (2, 2)), "each once"),
        (lambda: EarlyExit(1, (0,)).checks(two_classes()), "timestep 0: the network has 4"),
        (
            lambda: EarlyExit(1, (1, 4)).checks(two_classes()),
            "timestep 4: the network has 4, so it can be after 1 .. 3",
        ),
        (lambda: EarlyExit(1, (1,)).checks(two_classes(1)), "one timestep cannot stop before it"),
        (lambda: EarlyExit(1).checks(two_classes(classes=1)), "one class"),
        (lambda: EarlyExit.of_logits(two_classes(), -0.5), "0 .. 3.28e"),
        (lambda: EarlyExit.of_logits(two_classes(), float("nan")), "nan logits"),
    ],
)
def test_what_is_no_early_exit_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(("lead", "margin"), [(0, 0), (0.25, 1), (0.2500001, 2), (2, 8), (MARGIN_MAX / 4, MARGIN_MAX)])
def test_a_lead_of_logits_is_rounded_up(lead, margin):
    assert EarlyExit.of_logits(two_classes(), lead).margin == margin


def test_a_margin_is_the_lead_that_a_person_is_told():
    """Logits that meet it exactly are ahead by margin * scale."""
    graph, tokens, t = two_classes(), np.array([3]), 2
    logits = np.array([[7 + 5 * 3 * t, 7]])
    assert EarlyExit(5).certain(logits, t, tokens).all()
    best, second = float_logits(graph, logits, np.array([t]), tokens)[0]
    assert best - second == pytest.approx(5 * graph.readout.scale)


@pytest.mark.parametrize("timesteps", [1, 3, 4])
def test_the_first_timesteps_are_those_of_the_shorter_network(timesteps):
    rng = np.random.default_rng(timesteps)
    graph = random_graph(rng, blocks=1, hidden=8, timesteps=4, code_features=3, attention="any", norms=0.5)
    batch, names = random_batch(rng, graph, 3), tuple(node.name for node in graph)
    whole = ReferenceEngine(graph).run(batch, names)
    short = ReferenceEngine(shortened(graph, timesteps)).run(batch, names)
    for name in names:
        assert np.array_equal(short.values[name], whole.values[name][:timesteps]), name
    over_time = logits_over_time(graph, whole.values[graph.output])
    assert np.array_equal(short.logits, over_time[timesteps - 1])
    assert np.array_equal(whole.logits, over_time[-1])


def test_what_was_not_run_is_0():
    values = np.ones((3, 2, 1, 2), int)
    assert cut_values(values, np.array([1, 3])).sum(axis=(2, 3)).tolist() == [[2, 2], [0, 2], [0, 2]]
