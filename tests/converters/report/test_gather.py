"""What a report says, beside numbers found by hand or in another way."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from random_graphs import random_batch, random_graph
from small_reports import observations, small_report

from converters.execution import TokenBatch
from converters.graph import LIF, Add, Graph, Readout, Source, Synapses
from converters.report.contents import Interval, NodeReport, Report, Rounding
from converters.report.gather import gather
from sim.reference import ReferenceEngine

# Two tokens. The source's current is 0, 9 or 5, threshold 4: feature 0 fires never, 1 for id 1 alone, 2 always.
TABLE = np.array([[0, 0, 5], [0, 9, 5]])
WEIGHT = np.array([[-2, 3, 1], [1, 1, 1], [0, 0, 0], [0, 0, 2]])
GRAPH = Graph(
    timesteps=2,
    n_max=2,
    nodes=(
        Source("encoder", TABLE, None, "lif", threshold=4, dv=4095),
        Synapses("up", ("encoder",), WEIGHT, np.array([0, -4, 3, 0]), weight_bits=3),
        LIF("up.lif", ("up",), np.array([2, 0, 2, 1]), dv=4095),
        Add("sum", ("up.lif", "up.lif")),
        Readout("readout", ("sum",), np.array([[1, -1, 127, 0]]), np.array([7])),
    ),
)
BATCH = TokenBatch(np.array([[0, 0], [0, 1]]), np.array([[1, 0], [1, 1]]))  # ids 0; 0, 1


@pytest.fixture(scope="module")
def report() -> Report:
    return gather(GRAPH, observations(GRAPH, BATCH), name="tiny", labels=["one"])


def node(report: Report, name: str) -> NodeReport:
    return next(node for node in report.nodes if node.name == name)


def test_nodes_stand_as_in_the_graph(report: Report) -> None:
    assert [(each.name, each.op, each.inputs, each.features, each.spiking) for each in report.nodes] == [
        ("encoder", "source", (), 3, True),
        ("up", "synapses", ("encoder",), 4, False),
        ("up.lif", "lif", ("up",), 4, True),
        ("sum", "add", ("up.lif", "up.lif"), 4, True),
        ("readout", "readout", ("sum",), 1, False),
    ]
    assert (report.timesteps, report.n_max, report.samples, report.tokens) == (2, 2, 2, 3)


def test_ranges_are_proven_for_any_text_and_observed_on_the_inputs(report: Report) -> None:
    # proven for the source: feature 0 never, 1 sometimes, 2 always. So up is 1 .. 4, -3 .. -2, 3, 2; readout's inputs
    # are 0 or 2, 0, 2, 2
    up = node(report, "up").values
    assert (up.proven, up.observed) == (Interval(-3, 4), Interval(-3, 4))
    assert (up.bits, up.of_limit) == (4, 4 / 65535)
    readout = node(report, "readout").values
    assert readout.proven == Interval(2 * 127 + 7, 2 + 2 * 127 + 7)
    assert node(report, "sum").values.proven == Interval(0, 2)
    assert report.logits.proven == Interval(2 * 261, 4 * 263)
    assert report.logits.observed == Interval(2 * 261, 2 * 261 + 2 * 263), "one token; the other text has both ids"


def test_silent_and_always_firing_are_proven_and_observed_apart(report: Report) -> None:
    encoder, up = node(report, "encoder").neurons, node(report, "up.lif").neurons
    assert encoder is not None and up is not None
    assert (encoder.count, encoder.threshold) == (3, Interval(4, 4))
    assert (encoder.silent_proven, encoder.always_proven) == (1, 1)
    assert (encoder.silent_observed, encoder.always_observed) == (1, 1)
    assert encoder.rate == (0 + 1 + 3) / 9
    assert up.threshold == Interval(0, 2)
    assert (up.silent_proven, up.always_proven, up.silent_observed, up.always_observed) == (1, 2, 1, 2)
    only_id_0 = gather(GRAPH, observations(GRAPH, BATCH[0:1]), name="", labels=())
    seen = node(only_id_0, "encoder").neurons
    assert seen is not None and (seen.silent_proven, seen.silent_observed) == (1, 2), "observed proves nothing"
    assert [each.neurons is None for each in report.nodes] == [False, True, False, True, True]


def test_a_membrane_has_its_proven_range(report: Report) -> None:
    membrane = node(report, "up.lif").membrane
    assert membrane is not None and not membrane.may_saturate
    assert membrane.proven.high == 4 * 128, "it fires at once, so nothing is left of a step before"
    assert node(report, "up").membrane is None


def test_weights_are_counted_one_by_one(report: Report) -> None:
    for name, array in (("encoder", TABLE), ("up", WEIGHT), ("readout", np.array([[1, -1, 127, 0]]))):
        weights = node(report, name).weights
        assert weights is not None and weights.shape == array.shape
        counted = {weights.first + place: count for place, count in enumerate(weights.counts) if count}
        assert counted == Counter(array.ravel().tolist())
        assert weights.zeros == (array == 0).sum()
    up, readout = node(report, "up").weights, node(report, "readout").weights
    assert up is not None and readout is not None
    assert (up.bits, up.bytes, up.bias) == (3, 4 * 2, Interval(-4, 3)), "two weights to a byte, rows by themselves"
    assert (readout.bits, readout.bytes, readout.bias) == (8, 4, Interval(7, 7))


def test_the_extremes_of_a_byte_are_counted() -> None:
    table = np.array([[-128, 127, -128, 0]])
    graph = Graph(1, 1, (Source("s", table), Readout("r", ("s",), np.ones((1, 4), int), np.zeros(1, int))))
    weights = node(small_report(graph), "s").weights
    assert weights is not None and weights.first == -128 and len(weights.counts) == 256
    assert (weights.counts[0], weights.counts[128], weights.counts[255]) == (2, 1, 1)


@pytest.mark.parametrize("seed", range(4))
def test_observed_lies_within_proven(seed: int) -> None:
    report = small_report(random_graph(np.random.default_rng(seed), blocks=2))
    for each in report.nodes:
        values = each.values
        assert values.proven.low <= values.observed.low <= values.observed.high <= values.proven.high
        if each.neurons is not None:
            assert each.neurons.silent_proven <= each.neurons.silent_observed <= each.neurons.count
            assert each.neurons.always_proven <= each.neurons.always_observed <= each.neurons.count
    assert report.logits.proven.low <= report.logits.observed.low
    assert report.logits.observed.high <= report.logits.proven.high


def test_rates_are_those_of_the_reference() -> None:
    graph = random_graph(np.random.default_rng(5), blocks=1)
    batch = random_batch(np.random.default_rng(6), graph, 3)
    report = gather(graph, observations(graph, batch), name="", labels=())
    values = ReferenceEngine(graph).run(batch, graph.spiking).values
    for each in report.nodes:
        if each.neurons is not None:
            sites = graph.timesteps * int(batch.mask.sum()) * graph.features[each.name]
            assert each.neurons.rate == int(values[each.name].sum()) / sites


def test_what_only_others_know_is_taken_over_or_none() -> None:
    bare = small_report()
    assert all(each.latency_steps is None for each in bare.nodes)
    assert all(each.weights is None or each.weights.rounding is None for each in bare.nodes)
    assert [stage.splits for stage in bare.accuracy] == [{"validation": None, "test": None}] * 5
    rounding = Rounding(scale=96.0, values=4, clipped=1, shrunk=2)
    told = small_report(latency_steps={"source": 0, "readout": 9}, roundings={"source": rounding})
    assert (told.nodes[0].latency_steps, told.nodes[-1].latency_steps, told.nodes[1].latency_steps) == (0, 9, None)
    assert told.nodes[0].weights is not None and told.nodes[0].weights.rounding == rounding
    assert rounding.cut_fraction == 0.75
