"""The two kinds of readout: by hand, on disk, in the interpreter that was written from the documents, and refused."""

import copy
from dataclasses import replace

import fastjsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from independent_interpreter import interpret
from json_schema import json_schema
from random_graphs import DECAYS, random_batch, random_graph
from readout_cases import with_membrane
from small_bundles import small_bundle

from converters.early_exit import EarlyExit
from converters.execution import TokenBatch
from converters.graph import INTEGRATED_MAX, Graph, GraphError, Readout, Source
from converters.graph_text import graph_text
from converters.ranges import logit_range, prove_ranges
from converters.readout import float_logits, integrate, logits_of, logits_over_time, unit_of
from converters.serialise import PlainGraph, SerialiseError, graph_to_plain, plain_to_graph
from sim.reference import ReferenceEngine

SUM = Readout("readout", ("x",), np.eye(2, dtype=int), [0, 0])
HALVES = replace(SUM, kind="membrane", dv=2048)


def test_worked_out_by_hand():
    """Currents 3, -1 and 0: a sum is 3, 2, 2; a membrane that halves 384, 192 - 128 = 64, 32; its decay is to zero."""
    currents = np.array([[3], [-1], [0]])
    assert integrate(SUM, currents, 0)[:, 0].tolist() == [3, 2, 2]
    assert integrate(HALVES, currents, 0)[:, 0].tolist() == [384, 64, 32]
    assert integrate(HALVES, -currents, 0)[:, 0].tolist() == [-384, -64, -32]
    assert integrate(HALVES, np.array([[0]]), np.array([-3])).tolist() == [[-1]]
    assert integrate(replace(SUM, kind="membrane", dv=4095), currents, 0)[:, 0].tolist() == [384, -128, 0]


def test_a_membrane_that_keeps_all_is_the_sum():
    currents = np.random.default_rng(0).integers(-1000, 1000, (5, 3, 2))
    keeps = replace(SUM, kind="membrane", dv=0)
    assert np.array_equal(integrate(keeps, currents, 0), 128 * integrate(SUM, currents, 0))
    assert unit_of(keeps, 5) == 128 * unit_of(SUM, 5) == 640


@pytest.mark.parametrize("node", [SUM, HALVES, replace(HALVES, dv=410)])
def test_integration_goes_on_where_it_was(node):
    currents = np.random.default_rng(1).integers(-1000, 1000, (6, 3, 2))
    whole = integrate(node, currents, 0)
    assert np.array_equal(integrate(node, currents[2:], whole[1]), whole[2:])


def test_float_logits_are_means():
    """A current that is the same at every token and timestep is what a person is told, times the scale."""
    for node in (replace(SUM, scale=0.5), replace(HALVES, scale=0.5)):
        graph = Graph(4, 3, (Source("x", np.ones((2, 2), int)), node))
        for timesteps in (1, 4):
            logits = integrate(node, np.full((timesteps, 2), 7 * 3), 0)[-1]  # three tokens of 7
            assert float_logits(graph, logits, timesteps, tokens=3) == pytest.approx([3.5, 3.5], rel=0.02)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), timesteps=st.sampled_from([1, 4, 8, 16]), dv=st.sampled_from(DECAYS))
def test_the_reference_integrates(seed, timesteps, dv):
    """In Python's integers, one timestep after another."""
    rng = np.random.default_rng(seed)
    graph = with_membrane(random_graph(rng, blocks=1, hidden=8, timesteps=timesteps), dv)
    batch = random_batch(rng, graph, 3)
    run = ReferenceEngine(graph).run(batch, (graph.output,))
    current = run.values[graph.output]
    for sample, which in np.ndindex(run.logits.shape):
        v = 0
        for t in range(timesteps):
            kept = abs(v) * (4096 - dv) // 4096
            v = (kept if v >= 0 else -kept) + 128 * int(current[t, sample, :, which].sum())
        assert v == run.logits[sample, which]
    assert np.array_equal(run.logits, logits_of(graph, current))
    plain = ReferenceEngine(replace(graph, nodes=(*graph.nodes[:-1], replace(graph.readout, kind="sum", dv=0))))
    assert np.array_equal(plain.run(batch, (graph.output,)).values[graph.output], current)


@pytest.mark.parametrize("dv", DECAYS)
@pytest.mark.parametrize("timesteps", [1, 4, 8])
def test_logits_lie_within_what_is_proven(dv, timesteps):
    """And a readout of nothing but biases reaches that: one token of -5 a step, or n_max of 7."""
    rng = np.random.default_rng(dv)
    graph = with_membrane(random_graph(rng, blocks=1, timesteps=timesteps), dv)
    logits, proven = (
        ReferenceEngine(graph).run(random_batch(rng, graph, 6)).logits,
        logit_range(graph, prove_ranges(graph)),
    )
    assert (proven.low <= logits).all() and (logits <= proven.high).all()
    biases = replace(graph.readout, weight=graph.readout.weight * 0, bias=[-5, 0, 7])
    constant = replace(graph, nodes=(*graph.nodes[:-1], biases))
    proven = logit_range(constant, prove_ranges(constant))
    batch = TokenBatch(np.zeros((2, graph.n_max), int), [[1] + [0] * (graph.n_max - 1), [1] * graph.n_max])
    one, all_tokens = ReferenceEngine(constant).run(batch).logits
    assert proven.low.tolist() == [all_tokens[0], 0, one[2]]
    assert proven.high.tolist() == [one[0], 0, all_tokens[2]]


@pytest.mark.parametrize("dv", DECAYS)
def test_written_and_read_again_it_is_the_same(dv, tmp_path):
    graph = with_membrane(random_graph(np.random.default_rng(dv), blocks=1), dv)
    plain = graph_to_plain(graph)
    assert plain.structure["schema"] == 5
    json_schema()(plain.structure)
    again = plain_to_graph(plain).readout
    assert (again.kind, again.dv) == ("membrane", dv)
    bundle = small_bundle(tmp_path / "bundle", graph)
    batch = random_batch(np.random.default_rng(1), graph, 3)
    logits, values = interpret(bundle.folder, batch.ids, batch.mask)
    run = ReferenceEngine(bundle.graph).run(batch, tuple(values))
    assert np.array_equal(logits, run.logits)
    assert all(np.array_equal(values[name], run.values[name]) for name in values)
    assert f"kind=membrane  dv={dv}" in graph_text(graph)


def test_a_sum_is_written_as_it_was():
    graph = random_graph(np.random.default_rng(0), blocks=1)
    assert "kind" not in graph_to_plain(graph).structure["nodes"][-1]
    assert "kind" not in graph_text(graph).splitlines()[-1]


BROKEN = {
    "another kind": {"kind": "mean"},
    "no kind": {"kind": None},
    "no dv": {"dv": None},
    "dv beyond its range": {"dv": 4096},
    "a sum that decays": {"kind": "sum"},
    "text for dv": {"dv": "2048"},
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_readouts_are_refused_by_reader_and_schema(name):
    plain = graph_to_plain(with_membrane(random_graph(np.random.default_rng(0), blocks=1), 2048))
    structure = copy.deepcopy(plain.structure)
    for field, value in BROKEN[name].items():
        structure["nodes"][-1].pop(field) if value is None else structure["nodes"][-1].__setitem__(field, value)
    with pytest.raises((SerialiseError, GraphError)):
        plain_to_graph(PlainGraph(structure, plain.weights, plain.encoder))
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        json_schema()(structure)


def test_an_older_schema_has_no_kinds():
    plain = graph_to_plain(with_membrane(random_graph(np.random.default_rng(0), blocks=1), 2048))
    of_neurons = ("reset", "spike", "cap")  # that came with the same schema
    nodes = [{key: value for key, value in node.items() if key not in of_neurons} for node in plain.structure["nodes"]]
    older = plain.structure | {"schema": 4, "nodes": nodes}
    with pytest.raises(SerialiseError, match="unknown kind, dv"):
        plain_to_graph(PlainGraph(older, plain.weights, plain.encoder))
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        json_schema()(older)


def test_sums_that_might_not_fit_are_refused():
    source = Source("x", np.ones((2, 2), int))
    Graph(INTEGRATED_MAX, 1, (source, HALVES))
    Graph(INTEGRATED_MAX + 1, 1, (source, SUM))
    with pytest.raises(GraphError, match=r"T \* n_max is 134217729"):
        Graph(INTEGRATED_MAX + 1, 1, (source, HALVES))
    reach = 65535 * INTEGRATED_MAX * 128
    assert reach * 4096 < 2**63  # what decay multiplies


def test_a_margin_is_of_what_the_membrane_holds():
    """A lead of 5 in the current at every token and timestep is one of 5 at every timestep, whatever leaks away."""
    graph, tokens = Graph(4, 3, (Source("x", np.ones((2, 2), int)), HALVES)), np.array([3])
    over_time = integrate(HALVES, np.full((4, 1, 2), 3) * [7, 2], 0)
    for t in range(1, 5):
        unit = unit_of(HALVES, t)
        assert EarlyExit(5).certain(over_time[t - 1], unit, tokens).all()
        assert not EarlyExit(6).certain(over_time[t - 1], unit, tokens).any()
    assert logits_over_time(graph, np.full((4, 1, 3, 2), [7, 2])).tolist() == over_time.tolist()
