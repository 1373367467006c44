"""lay-out-bias-lanes: `W x + b m = [W | b split over K columns] [x; m; ..; m]`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_helpers import (
    Broken,
    Trial,
    assert_same_network,
    attention_graph,
    caught_at,
    changed,
    mlp,
    moved,
    outline,
    proven,
    some_batch,
    spoil,
    trials,
    unindented,
    with_after,
)

import converters.passes.lay_out_bias_lanes as module
from converters.execution import TokenBatch
from converters.graph import LIF, Add, Graph, Readout, Relay, Slice, Source, Synapses, ValidLane
from converters.passes.expand_attention import ExpandAttention
from converters.passes.lay_out_bias_lanes import LayOutBiasLanes, lanes_for_bias, lanes_for_threshold, split_evenly
from converters.passes.rewrite import Rewrite
from converters.passes.run import PassedGraph
from spikebert.commands import CheckFailed

LAY_OUT = LayOutBiasLanes()
MLP = mlp([[6], [9]], [0, 130])
BIASED = changed(
    attention_graph(),
    {"k.current": {"bias": [300, -1]}, "readout": {"bias": [2, -2]}, "v": {"threshold": np.array([1, 0])}},
)
# the sum is read by a layer with a bias and by another sum
SUMS = with_after(
    attention_graph(), "sum",
    Synapses("up", ("sum",), [[1, 2], [3, -1]], [200, -7]), LIF("up.lif", ("up",), 3),
    Add("all", ("sum", "up.lif", "sum")),
    Synapses("last", ("all",), [[1, 2], [3, -1]], [-400, 4]), LIF("last.lif", ("last",), 3, 2048),
)  # fmt: skip
SUMS = changed(SUMS, {"readout": {"inputs": ("last.lif",), "bias": [1, 0]}})


def laid(graph: Graph) -> PassedGraph:
    """What the pass makes, proven, and without a bias."""
    passed = proven(LAY_OUT, graph)
    assert not any(node.bias.any() for node in passed.graph if isinstance(node, (Synapses, Readout)))
    assert_same_network(graph, passed, some_batch(graph, seed=11))
    return passed


def lanes_of(graph: Graph) -> dict[str, int]:
    added = LAY_OUT.rewrite(graph).added
    return {name: count for name, count in added.items() if isinstance(graph[name], LIF)}


def test_biases_become_columns_and_lanes_are_carried_on() -> None:
    """130 needs two lanes at the source. A lane of `up.lif` gets 6 + 5 from them, more than its threshold of 10."""
    passed = laid(MLP)
    after = passed.graph
    assert outline(after) == unindented("""
        graph T=4 n_max=3 nodes=8
        source = source()  D=1  kind=sign  threshold=0  dv=0  table[2x1]=-1..1
        valid_lane = valid_lane()  D=2
        source.with_lanes = concat(source, valid_lane)  D=3
        up = synapses(source.with_lanes)  D=3  weight_bits=8  weight[3x3]=0..65  bias[3]=0..0
        up.lif = lif(up)  D=3  threshold=10  dv=2048
        down = synapses(up.lif)  D=3  weight_bits=8  weight[3x3]=0..4  bias[3]=0..0
        down.lif = lif(down)  D=3  threshold=2  dv=0
        readout = readout(down.lif)  D=2  scale=1.0  weight[2x3]=0..1  bias[2]=0..0
    """)
    assert after["up"].weight.tolist() == [[6, 0, 0], [9, 65, 65], [0, 6, 5]]
    assert after["down"].weight.tolist() == [[1, 2, 3], [3, 4, 4], [0, 0, 3]]
    assert after["readout"].weight.tolist() == [[1, 0, 0], [0, 1, 1]]
    assert LAY_OUT.rewrite(MLP).added == {"up": 1, "up.lif": 1, "down": 1, "down.lif": 1}
    assert passed.records[0].summary == "biases carried by 2 lane neurons"


def test_values_that_no_layer_makes_have_lanes_beside_them() -> None:
    after = laid(BIASED).graph
    lines = {line.split()[0]: line.split("  D=")[0] for line in outline(after).splitlines()}
    assert lines["source.with_lanes"] == "source.with_lanes = concat(source, valid_lane)"
    assert lines["sum.with_lanes"] == "sum.with_lanes = concat(sum, valid_lane)"
    assert after.features["valid_lane"] == 3 and after.features["k"] == 2  # nobody needs lanes of k


def test_a_sum_takes_the_lanes_that_are_there_first() -> None:
    """Those of the source, though they come to `all` by way of `sum`: `up.lif` is later, and so waits for nothing."""
    after = laid(SUMS).graph
    assert after["sum.with_lanes"].inputs == ("sum", "valid_lane")
    assert after["all.with_lanes"].inputs == ("all", "sum.lanes")
    assert lanes_of(SUMS) == {"last.lif": 1}
    assert (after["sum.lanes"].start, after["sum.lanes"].stop) == (2, 6)
    assert after.features["valid_lane"] == 4  # ceil(400 / 127)


def test_no_biases_leave_the_graph_itself_and_twice_is_once() -> None:
    graph = attention_graph()
    assert LAY_OUT.rewrite(graph).graph is graph
    for biased in (MLP, BIASED, SUMS):
        once = laid(biased).graph
        assert LAY_OUT.rewrite(once).graph is once


@pytest.mark.parametrize(
    ("bias", "lanes"),
    [(0, 0), (1, 1), (-1, 1), (127, 1), (-127, 1), (128, 2), (-128, 2), (254, 2), (255, 3), (32767, 259), (-32767, 259),
     (65535, 517)],
)  # fmt: skip
def test_as_few_lanes_as_weights_of_8_bits_allow(bias: int, lanes: int) -> None:
    assert lanes_for_bias(np.array([0, bias], np.int32)) == lanes
    if lanes:
        parts = split_evenly(np.array([bias, 3]), lanes)
        assert parts.sum(axis=1).tolist() == [bias, 3] and np.abs(parts).max() <= 127
        assert (parts.max(axis=1) - parts.min(axis=1)).max() <= 1
    if 0 < abs(bias) < 40_000:
        graph = changed(MLP, {"up": {"bias": [0, bias]}})
        assert laid(graph).graph.features["valid_lane"] == lanes


@pytest.mark.parametrize("threshold", [0, 126, 127, 253, 254, 65534])
def test_a_lane_neuron_fires_at_every_step_of_a_real_token(threshold: int) -> None:
    lanes = lanes_for_threshold(threshold)
    assert (lanes - 1) * 127 <= threshold < lanes * 127
    graph = changed(MLP, {"up.lif": {"threshold": threshold}, "up": {"bias": [0, 1]}})
    passed = laid(graph)
    assert passed.graph.features["valid_lane"] == lanes
    assert passed.graph["up"].weight[2, 1:].sum() == threshold + 1


def test_a_neuron_that_no_current_passes_carries_no_lane() -> None:
    graph = changed(MLP, {"up.lif": {"threshold": 65535}})
    after = laid(graph).graph
    assert after.features["up.lif"] == 2
    assert after["up.lif.with_lanes"].inputs == ("up.lif", "valid_lane") and after["down"].inputs == (
        "up.lif.with_lanes",
    )
    vector = changed(MLP, {"up.lif": {"threshold": np.array([3, 65535])}})
    assert "up.lif.with_lanes" in {node.name for node in laid(vector).graph}


def test_a_vector_of_thresholds_grows_by_its_highest() -> None:
    after = laid(changed(MLP, {"up.lif": {"threshold": np.array([4, 20])}})).graph
    assert after["up.lif"].threshold.tolist() == [4, 20, 20]
    assert after["up"].weight[2].tolist() == [0, 11, 10]


def twins(threshold: int, bias: int = 5) -> Graph:
    """`up` drives two neurons, and a layer with a bias reads each."""
    more = (
        LIF("twin", ("up",), threshold, 0),
        Synapses("other", ("twin",), [[2, 1], [-1, 3]], [bias, -200]), LIF("other.lif", ("other",), 1),
    )  # fmt: skip
    graph = with_after(with_after(MLP, "up.lif", *more), "down.lif", Add("both", ("down.lif", "other.lif")))
    return changed(graph, {"readout": {"inputs": ("both",)}})


def test_several_neurons_of_one_layer_are_all_wider() -> None:
    for level, wanted in ((40, 41), (3, 11)):
        graph = twins(level)
        after = laid(graph).graph
        assert lanes_of(graph) == {"up.lif": 2, "twin": 2, "down.lif": 1}
        assert after["up"].weight[2:].sum(axis=1).tolist() == [wanted, wanted]  # above the higher of both thresholds
        assert after["twin"].threshold == level


def test_of_several_neurons_one_may_carry_no_lane() -> None:
    graph = twins(65535)
    after = laid(graph).graph
    assert after.features["twin"] == after.features["up.lif"] == 3  # it is as wide as its layer, and silent
    assert after["twin.with_lanes"].inputs == ("twin.features", "valid_lane")


def test_a_layer_that_a_relay_reads_carries_no_lanes() -> None:
    """Who reads the relay would see them."""
    graph = changed(MLP, {"up": {"bias": [1, 130]}})
    graph = with_after(graph, "up.lif", Relay("relay", ("up",)), Slice("slice", ("relay",), 1, 2))
    graph = with_after(
        graph, "slice", Synapses("late", ("relay",), [[1, 2], [0, 1]], [1, 1]), LIF("late.lif", ("late",), 5)
    )
    after = laid(graph).graph
    assert after.features["up"] == after.features["relay"] == 2
    assert after["down"].inputs == ("up.lif.with_lanes",) and after["late"].inputs == ("relay.with_lanes",)


@pytest.mark.parametrize("scoring", [{"similarity": "xnor"}, {"bias": np.ones((1, 2, 2), int)}])
def test_an_attention_that_would_answer_padding_reads_a_lane_of_its_query(scoring: dict) -> None:
    """No layer has a bias here: the one lane is for the attention alone."""
    graph = changed(attention_graph(), {"attention": scoring})
    after = laid(graph).graph
    assert after.features["q"] == 3 and after.features["k"] == after.features["v"] == 2
    assert after["attention"].inputs == ("q.features", "k", "v", "attention.lane")
    assert after["attention.lane"].inputs == ("q.lanes",)
    batch = TokenBatch([[3, 1], [2, 0]], [[1, 1], [1, 0]])
    assert_same_network(graph, proven(LAY_OUT, graph, batch), batch)
    assert LAY_OUT.rewrite(after).graph is after
    assert LAY_OUT.rewrite(attention_graph()).summary == "no biases"


def test_a_lane_that_is_no_lane_is_stopped() -> None:
    """Features of the query in its place, and one that fires at no step."""
    graph = changed(attention_graph(), {"attention": {"similarity": "xnor"}})
    batch = TokenBatch([[3, 1], [2, 0]], [[1, 1], [1, 0]])
    for change in (
        spoil(start=0, stop=1, inputs=("q",))("attention.lane"),
        spoil(start=1, stop=2, inputs=("k",))("attention.lane"),
    ):
        assert caught_at(Broken(LAY_OUT, change), graph, batch) == "attention"


def test_a_layer_without_use_for_lanes_keeps_its_input_and_its_bits() -> None:
    more = (Synapses("plain", ("up.lif",), [[1, 0]], [0], 2), LIF("plain.lif", ("plain",), 0))
    after = laid(with_after(MLP, "up.lif", *more)).graph
    assert after["plain"].inputs == ("up.lif.features",) and after["plain"].weight_bits == 2
    assert (after["down"].inputs, after["down"].weight_bits) == (("up.lif",), 8)
    expanded = laid(proven(ExpandAttention(), BIASED).graph).graph
    assert expanded["attention.scores"].weight_bits == 2


def test_few_bits_become_eight_where_lanes_are_read() -> None:
    graph = changed(MLP, {"up": {"weight": [[1], [-1]], "weight_bits": 2}})
    assert laid(graph).graph["up"].weight_bits == 8


def test_names_that_are_taken() -> None:
    taken = ("valid_lane", "source.with_lanes", "up.lif.lanes", "up.lif.features", "up.lif.with_lanes")
    more = [
        node
        for name in taken
        for node in (Synapses(f"{name}_x", ("source",), [[1]], [2]), LIF(name, (f"{name}_x",), 0))
    ]
    graph = with_after(MLP, "source", *more)
    graph = with_after(graph, "up.lif", Add("sum", ("up.lif", "up.lif")), Slice("slice", ("up.lif",), 0, 1))
    after = laid(changed(graph, {"down": {"inputs": ("sum",)}})).graph
    assert isinstance(after["valid_lane_2"], ValidLane) and after["up"].inputs == ("source.with_lanes_2",)
    assert after["sum"].inputs == ("up.lif.features_2",) * 2
    assert after["sum.with_lanes"].inputs == ("sum", "up.lif.lanes_2")


@settings(deadline=None, max_examples=30)
@given(trial=trials())
def test_random_graphs_stay_the_same_networks(trial: Trial) -> None:
    passed = proven(LAY_OUT, trial.graph, trial.golden)
    assert_same_network(trial.graph, passed, trial.other)
    assert not any(node.bias.any() for node in passed.graph if isinstance(node, (Synapses, Readout)))
    assert LAY_OUT.rewrite(passed.graph).graph is passed.graph


@given(bias=st.integers(-65535, 65535), more=st.integers(0, 5))
def test_a_bias_is_split_into_weights(bias: int, more: int) -> None:
    lanes = lanes_for_bias(np.array([bias])) + more
    if lanes:
        parts = split_evenly(np.array([bias]), lanes)
        assert parts.sum() == bias and np.abs(parts).max() <= 127 and np.ptp(parts) <= 1


# Broken on purpose


def weight_of(place: tuple[int, int], more: int) -> Callable[[np.ndarray], np.ndarray]:
    def of(weight: np.ndarray) -> np.ndarray:
        new = weight.copy()
        new[place] += more
        return new

    return of


MUTANTS = {
    "a lane's weight one off": (MLP, spoil(weight=weight_of((1, 2), 1))("up"), "up"),
    "a weight moved": (MLP, spoil(weight=moved)("up"), "up"),
    "a lane neuron that does not pass": (MLP, spoil(weight=weight_of((2, 2), -1))("up"), "down"),
    "a bias that is there twice": (MLP, spoil(bias=[0, 130, 0])("up"), "up"),
    "lanes before the features": (MLP, spoil(inputs=("valid_lane", "source"))("source.with_lanes"), "up"),
}


@pytest.mark.parametrize(("graph", "change", "node"), MUTANTS.values(), ids=MUTANTS)
def test_a_broken_layout_is_stopped(graph: Graph, change, node: str) -> None:
    batch = some_batch(graph)
    proven(LAY_OUT, graph, batch)
    assert caught_at(Broken(LAY_OUT, change), graph, batch) == node


def test_a_slice_of_features_that_is_one_too_far_is_stopped() -> None:
    graph = changed(with_after(MLP, "up.lif", Add("sum", ("up.lif", "up.lif"))), {"down": {"inputs": ("sum",)}})
    change = spoil(start=1, stop=3)("up.lif.features")
    assert caught_at(Broken(LAY_OUT, change), graph, some_batch(graph)) == "sum"


def one_too_few(honest: Callable[[np.ndarray], int]) -> Callable[[np.ndarray], int]:
    return lambda bias: max(min(1, honest(bias)), honest(bias) - 1)


CODE = {
    "a lane too few": ("lanes_for_bias", one_too_few, "up"),
    "biases without their sign": ("split_evenly", lambda honest: lambda totals, k: honest(np.abs(totals), k), "up"),
    "a remainder lost": ("split_evenly", lambda honest: lambda totals, k: honest(totals // k * k, k), "up"),
}


@pytest.mark.parametrize(("function", "breaks", "node"), CODE.values(), ids=CODE)
def test_a_break_in_the_code_is_stopped(function: str, breaks, node: str, monkeypatch) -> None:
    graph = changed(MLP, {"up": {"bias": [-1, 600]}})
    laid(graph)
    monkeypatch.setattr(module, function, breaks(getattr(module, function)))
    assert caught_at(LAY_OUT, graph, some_batch(graph)) == node


def test_lanes_of_the_threshold_itself_are_stopped(monkeypatch) -> None:
    """A current must be above the threshold; at it, the lane is silent at the first step."""
    honest = module._Layout._level
    monkeypatch.setattr(module._Layout, "_level", lambda self, layer: honest(self, layer) - 1)
    assert caught_at(LAY_OUT, MLP, some_batch(MLP)) == "down"


@dataclass(frozen=True)
class Liar:
    """Says nothing of the neurons that it added."""

    name: str = "lay-out-bias-lanes"

    def rewrite(self, graph: Graph) -> Rewrite:
        return replace(LAY_OUT.rewrite(graph), added={})


def test_neurons_that_were_added_must_be_told() -> None:
    with pytest.raises(CheckFailed, match="pass 'lay-out-bias-lanes': node 'up' has 3 features, it says 2"):
        proven(Liar(), MLP)


def test_a_sign_source_with_positions_has_lanes_too() -> None:
    source = Source("source", MLP.source.table, np.array([[0], [1], [-3]]), kind="sign")
    laid(Graph(4, 3, (source, *MLP.nodes[1:])))
