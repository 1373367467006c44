"""The node `Norm`: what is legal, what is proven of it, how it is stored, and what passes make of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from norm_cases import BATCH, norm_graph
from pass_helpers import INTERPRETERS, proven, run_reference
from pass_helpers import changed as with_fields

from converters.execution import TokenBatch
from converters.graph import LIF, Graph, GraphError, Norm, Readout, Relay, Source, Synapses, ValidLane
from converters.graph_text import graph_text
from converters.passes.balance_delays import BalanceDelays, balance_delays
from converters.passes.catalogue import PassContext, choose_passes, make_passes
from converters.passes.expand_attention import ExpandAttention
from converters.passes.lay_out_bias_lanes import LayOutBiasLanes
from converters.passes.prove_ranges import ProveRanges
from converters.passes.remove_dead_neurons import RemoveDeadNeurons
from converters.passes.run import run_passes
from converters.passes.split_wide_layers import SplitWideLayers
from converters.ranges import prove_ranges, ranges_table
from converters.schedule import LatencyTable
from converters.serialise import PlainGraph, SerialiseError, graph_to_plain, plain_to_graph
from spikebert.commands import CheckFailed


def changed(**fields) -> Graph:
    """`norm_graph` whose first norm has other fields."""
    graph = norm_graph()
    nodes = [replace(node, **fields) if node.name == "up.norm" else node for node in graph]
    return Graph(graph.timesteps, graph.n_max, tuple(nodes))


ZEROS = np.zeros(10, int)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gamma": ZEROS[:9], "beta": ZEROS[:9]}, "node 'up.norm': gamma has 9 entries, the input has 10 features"),
        ({"beta": ZEROS[:9]}, "gamma has 10 entries, beta has 9"),
        ({"gamma": ZEROS + 0.5}, "gamma must hold integers"),
        ({"gamma": ZEROS + 2**24 + 1}, r"\|gamma\| reaches 16777217, the limit is 16777216"),
        ({"gamma": ZEROS + 2**24}, "node 'up.norm': an accumulator may reach .* use a smaller gamma or beta"),
        ({"beta": ZEROS - 66000}, "node 'up.norm': an accumulator may reach .* use a smaller gamma or beta"),
        ({"eps": 0}, "eps 0 is outside 1"),
        ({"eps": 2**60 + 1}, "eps .* is outside"),
        ({"kind": "batch"}, r"kind 'batch' is none of \('layer', 'rms'\)"),
        ({"inputs": ()}, r"a norm takes a current \(and a lane\), not 0"),
        ({"inputs": ("up", "source", "source")}, "not 3"),
        ({"inputs": ("source",)}, "takes the current of synapses, 'source' is no such"),
        ({"inputs": ("up", "up")}, "its lane 'up' gives a current, not spikes"),
    ],
)
def test_what_is_not_legal_is_named(fields: dict, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        changed(**fields)


def test_a_lane_is_0_or_1() -> None:
    graph = norm_graph()
    nodes = list(graph)
    nodes.insert(-1, replace(nodes[4], name="again"))  # `down` once more ...
    nodes.insert(-1, replace(nodes[5], name="again.norm", inputs=("again", "sum")))  # ... whose lane is a sum of two
    with pytest.raises(GraphError, match="its lane 'sum' may reach 2, a valid lane is 0 or 1"):
        Graph(graph.timesteps, graph.n_max, tuple(nodes))


def test_too_wide_a_norm_is_refused() -> None:
    with pytest.raises(GraphError, match="16385 features, a norm has 16384"):
        Norm("n", ("a",), np.zeros(16385, int), np.zeros(16385, int))


def test_only_neurons_read_a_norm() -> None:
    graph = norm_graph()
    nodes = [Relay("up.lif", ("up.norm",)) if node.name == "up.lif" else node for node in graph]
    with pytest.raises(GraphError, match=r"node 'up\.lif': the current 'up\.norm' may be negative"):
        Graph(graph.timesteps, graph.n_max, tuple(nodes))
    nodes = [replace(node, inputs=("up.norm",)) if node.name == "down" else node for node in graph]
    with pytest.raises(GraphError, match=r"node 'down': takes spikes, \['up\.norm'\] give currents"):
        Graph(graph.timesteps, graph.n_max, tuple(nodes))


def test_ranges_hold_what_happens() -> None:
    graph = norm_graph(timesteps=4)
    ranges, values = prove_ranges(graph), run_reference(graph, BATCH).values
    for node in graph:
        real = values[node.name][:, BATCH.mask == 1]
        assert (real >= ranges[node.name].low).all() and (real <= ranges[node.name].high).all(), node.name
    up = graph["up.norm"]
    assert np.array_equal(ranges["up.norm"].high - ranges["up.norm"].low, 2 * up.scaled_reach)
    assert ranges["up.norm"].reach <= graph.value_max["up.norm"]
    assert "up.norm" in ranges_table(graph, ranges)
    laid = LayOutBiasLanes().rewrite(graph).graph
    assert np.array_equal(prove_ranges(laid)["up.norm"].high, ranges["up.norm"].high)


def test_a_graph_with_norms_is_of_schema_4() -> None:
    graph = norm_graph("rms")
    plain = graph_to_plain(graph)
    assert plain.structure["schema"] == 4
    again = plain_to_graph(plain)
    assert graph_text(again) == graph_text(graph) and "kind=rms  eps=900  gamma[10]=" in graph_text(graph)
    with pytest.raises(SerialiseError, match="op 'norm' exists since schema 4"):
        plain_to_graph(PlainGraph(plain.structure | {"schema": 3}, plain.weights, plain.encoder))
    fewer = {name: array for name, array in plain.weights.items() if name != "up.norm.beta"}
    with pytest.raises(SerialiseError, match=r"tensor 'up\.norm\.beta' is missing"):
        plain_to_graph(PlainGraph(plain.structure, fewer, plain.encoder))


def test_lanes_lead_to_norms_whose_beta_is_not_0() -> None:
    graph = norm_graph()
    laid = proven(LayOutBiasLanes(), graph, BATCH).graph
    assert laid["up.norm"].inputs == ("up", "valid_lane")
    assert laid["down.norm"].inputs == ("down", "valid_lane")  # neurons behind a norm carry no lanes
    silent = norm_graph(biased=False)
    assert LayOutBiasLanes().rewrite(silent).graph is silent
    some = changed(beta=ZEROS)
    laid = proven(LayOutBiasLanes(), some, BATCH).graph
    assert laid["up.norm"].inputs == ("up",) and laid["down.norm"].inputs == ("down", "valid_lane")
    again = LayOutBiasLanes().rewrite(laid)
    assert again.graph is laid and again.summary == "no biases"


def test_a_norm_alone_asks_for_a_lane() -> None:
    silent = [node.name for node in norm_graph() if isinstance(node, (Synapses, Readout))]
    graph = with_fields(norm_graph(), {name: {"bias": 0 * norm_graph()[name].bias} for name in silent})
    laid = proven(LayOutBiasLanes(), graph, BATCH).graph
    assert laid["valid_lane"].lanes == 1 and laid["up.norm"].inputs == ("up", "valid_lane")


def test_a_norm_takes_a_step_and_its_lane_waits() -> None:
    laid = LayOutBiasLanes().rewrite(norm_graph()).graph
    schedule = balance_delays(laid, LatencyTable(norm=3))
    assert schedule.latency_steps["up.norm"] == 1 + 3
    assert schedule.delay_steps["up.norm"] == (0, 1)
    proven(BalanceDelays(LatencyTable(synapses=2, norm=3)), laid, BATCH)


@pytest.mark.parametrize("each", [SplitWideLayers(3), RemoveDeadNeurons(), ExpandAttention(), ProveRanges()])
def test_other_passes_leave_norms_as_they_are(each) -> None:
    """Each feature of a norm depends on all others, so its layer is neither split nor made narrower."""
    graph = norm_graph()
    for laid in (graph, LayOutBiasLanes().rewrite(graph).graph):
        after = proven(each, laid, BATCH).graph
        assert [node.name for node in after] == [node.name for node in laid]
        assert np.array_equal(after["up.norm"].gamma, laid["up.norm"].gamma)


def test_a_limit_below_what_a_norm_may_give_is_told() -> None:
    with pytest.raises(CheckFailed, match=r"'up\.norm': a current may reach .* use a smaller gamma or beta"):
        run_passes(norm_graph(), [ProveRanges(300)], BATCH, INTERPRETERS)


def test_all_passes_by_name() -> None:
    passes = make_passes(choose_passes(["remove-dead-neurons", "merge-query-key-value"]), PassContext(None))
    after = run_passes(norm_graph(), passes, BATCH, INTERPRETERS).graph
    assert any(isinstance(node, Norm) for node in after)


@pytest.mark.parametrize(("kind", "most"), [("layer", 7), ("rms", 107)])
def test_one_feature_is_legal(kind: str, most: int) -> None:
    """D = 1: the distance from the mean is 0, and by "rms" it is one root of the mean square."""
    nodes = (
        Source("source", [[1], [2]], kind="sign"),
        Synapses("a", ("source",), [[30]], [0]),
        Norm("n", ("a",), [100 * 256], [7], 1, kind),
        LIF("s", ("n",), 3),
        Readout("readout", ("s",), [[1], [2]], [0, 0]),
    )
    graph = Graph(1, 4, nodes)
    batch = TokenBatch(BATCH.ids % 2, BATCH.mask)
    assert run_reference(graph, batch).values["n"][0, :, :, 0].tolist() == (most * BATCH.mask).tolist()
    assert graph.value_max["n"] == most


def test_a_valid_lane_node_is_a_lane() -> None:
    graph = norm_graph()
    nodes = [*graph.nodes[:2], ValidLane("lane", 2), *graph.nodes[2:]]
    nodes[3] = replace(nodes[3], inputs=("up", "lane"))
    laid = Graph(graph.timesteps, graph.n_max, tuple(nodes))
    assert np.array_equal(run_reference(laid, BATCH).logits, run_reference(graph, BATCH).logits)
