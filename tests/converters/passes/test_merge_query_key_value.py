"""merge-query-key-value: `[W1; W2; W3] x`."""

from __future__ import annotations

from dataclasses import replace

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
    outline,
    proven,
    some_batch,
    spoil,
    trials,
    unindented,
    with_after,
)
from random_graphs import random_graph

import converters.passes.merge_query_key_value as module
from converters.graph import LIF, Add, Attention, Graph, Readout, Slice, Synapses, ValidLane
from converters.graph_text import graph_text
from converters.passes.merge_query_key_value import MergeQueryKeyValue
from converters.passes.run import run_passes
from spikebert.commands import CheckFailed

MERGED = "attention.query_key_value"


def merged(graph: Graph, **options: bool) -> Graph:
    return proven(MergeQueryKeyValue(**options), graph).graph


def test_three_layers_become_one() -> None:
    graph = attention_graph()
    after = merged(graph)
    assert outline(after) == unindented("""
        graph T=2 n_max=2 nodes=10
        source = source()  D=2  kind=sign  threshold=0  dv=0  table[4x2]=-1..1
        attention.query_key_value = synapses(source)  D=6  weight_bits=3  weight[6x2]=-3..3  bias[6]=0..0
        attention.query_key_value.lif = lif(attention.query_key_value)  D=6  threshold=1  dv=4095
        q = slice(attention.query_key_value.lif)  D=2  from=0
        k = slice(attention.query_key_value.lif)  D=2  from=2
        v = slice(attention.query_key_value.lif)  D=2  from=4
        attention = attention(q, k, v)  D=2  heads=1
        attended = lif(attention)  D=2  threshold=0  dv=4095
        sum = add(source, attended)  D=2
        readout = readout(sum)  D=2  scale=1.0  weight[2x2]=-9..7  bias[2]=0..0
    """)
    parts = [graph[f"{name}.current"] for name in "qkv"]
    assert np.array_equal(after[MERGED].weight, np.concatenate([part.weight for part in parts]))


def test_biases_bits_and_thresholds_go_along() -> None:
    graph = changed(
        attention_graph(),
        {
            "k.current": {"bias": [1, 2], "weight_bits": 7},
            "v.current": {"bias": [0, 3]},
            "k": {"threshold": np.array([4, 5])},
        },
    )
    after = merged(graph)
    assert after[MERGED].bias.tolist() == [0, 0, 1, 2, 0, 3] and after[MERGED].weight_bits == 7
    assert after[f"{MERGED}.lif"].threshold.tolist() == [1, 1, 4, 5, 1, 1]


def test_a_vector_of_one_level_becomes_a_number() -> None:
    vectors = {name: {"threshold": np.array([1, 1])} for name in "qv"}
    for options in ({}, {"scalar_thresholds": True}):
        assert merged(changed(attention_graph(), vectors), **options)[f"{MERGED}.lif"].threshold == 1


def test_scalar_thresholds_leaves_layers_apart_whose_thresholds_differ() -> None:
    for level in (2, np.array([1, 2])):
        graph = changed(attention_graph(), {"k": {"threshold": level}})
        assert merged(graph, scalar_thresholds=True) is graph
        assert merged(graph) is not graph


def spare(name: str = "spare", reads: str = "k.current") -> LIF:
    return LIF(name, (reads,), 0)


NOT_MERGED = {
    "other decay": changed(attention_graph(), {"v": {"dv": 0}}),
    "other input": changed(
        with_after(attention_graph(), "source", Add("twice", ("source", "source"))),
        {"v.current": {"inputs": ("twice",)}},
    ),
    "current read by another": with_after(attention_graph(), "k", spare()),
    "one layer for all": changed(attention_graph(), {"attention": {"inputs": ("q", "q", "q")}}),
    "no attention": Graph(2, 2, (*attention_graph().nodes[:3], Readout("readout", ("q",), [[1, 1]], [0]))),
    "v made by an attention": changed(
        with_after(
            attention_graph(), "attended",
            Attention("second", ("attended", "q", "attended"), 1), spare("last", "second"),
        ),
        {"attention": {"inputs": ("q", "q", "q")}, "sum": {"inputs": ("source", "last")}},
    ),
    "v is a slice": changed(
        with_after(
            attention_graph(), "v", Synapses("wide", ("source",), np.ones((4, 2), int), [0] * 4),
            LIF("wide.lif", ("wide",), 0), Slice("part", ("wide.lif",), 1, 3),
        ),
        {"attention": {"inputs": ("q", "k", "part")}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("graph", NOT_MERGED.values(), ids=NOT_MERGED)
def test_where_it_cannot_be_done_the_graph_itself_stays(graph: Graph) -> None:
    rewrite = MergeQueryKeyValue().rewrite(graph)
    assert rewrite.graph is graph and rewrite.summary == "no q, k and v that could be one layer"


def test_a_layer_that_is_q_and_k_is_there_once() -> None:
    after = merged(changed(attention_graph(), {"attention": {"inputs": ("q", "q", "v")}}))
    assert after.features[MERGED] == 4
    assert after["attention"].inputs == ("q", "q", "v") and "k.current" in {node.name for node in after}


def test_neurons_may_have_other_readers() -> None:
    """Only the currents are gone: spikes are where they were, under their names."""
    graph = changed(attention_graph(), {"sum": {"inputs": ("k", "attended", "k")}})
    assert merged(graph)["sum"].inputs == ("k", "attended", "k")


def test_parts_in_another_order_than_q_k_v() -> None:
    graph = changed(attention_graph(), {"attention": {"inputs": ("v", "q", "k")}})
    assert merged(graph)["attention"].inputs == ("v", "q", "k")


def test_an_attention_that_shares_a_layer_with_another_leaves_it_merged() -> None:
    second = (Attention("second", ("q", "k", "v"), 2), LIF("second.lif", ("second",), 0, 4095))
    graph = changed(with_after(attention_graph(), "attended", *second), {"sum": {"inputs": ("second.lif", "attended")}})
    rewrite = MergeQueryKeyValue().rewrite(graph)
    assert rewrite.summary == "1 times q, k and v made one layer"
    assert_same_network(graph, proven(MergeQueryKeyValue(), graph), some_batch(graph, seed=5))


def test_names_that_are_taken() -> None:
    more = (Synapses(MERGED, ("source",), [[1, 1]], [0]), LIF(f"{MERGED}_2.lif", (MERGED,), 0))
    graph = with_after(attention_graph(), "source", *more)
    names = [node.name for node in merged(graph)]
    assert f"{MERGED}_2" in names and f"{MERGED}_2.lif_2" in names


def test_twice_is_once() -> None:
    once = merged(random_graph(np.random.default_rng(0), dv=2048))
    assert merged(once) is once


@settings(deadline=None, max_examples=25)
@given(trial=trials(), scalar=st.booleans())
def test_random_graphs_stay_the_same_networks(trial: Trial, scalar: bool) -> None:
    each = MergeQueryKeyValue(scalar)
    passed = proven(each, trial.graph, trial.golden)
    assert_same_network(trial.graph, passed, trial.other)
    assert graph_text(proven(each, passed.graph, trial.golden).graph) == graph_text(passed.graph)


def test_a_valid_lane_beside_q_k_and_v_is_no_layer_to_merge() -> None:
    graph = changed(attention_graph(), {"attention": {"similarity": "xnor"}})
    graph = with_after(graph, "source", ValidLane("m", 1))
    merged = proven(MergeQueryKeyValue(), changed(graph, {"attention": {"inputs": ("q", "k", "v", "m")}})).graph
    assert merged["attention"].inputs == ("q", "k", "v", "m") and isinstance(merged["q"], Slice)


# Broken on purpose

DIFFERENT = changed(attention_graph(), {"k": {"threshold": 0}, "v": {"threshold": 2}, "k.current": {"bias": [1, 0]}})
WHOLE = spoil(weight=lambda weight: weight[::-1], bias=lambda bias: bias[::-1])
MUTANTS = {
    "slices swapped": (lambda rewrite: spoil(start=2, stop=4)("q")(spoil(start=0, stop=2)("k")(rewrite)), "q"),
    "slice one too late": (spoil(start=1, stop=3)("q"), "q"),
    "all rows reversed": (WHOLE(MERGED), "q"),
    "thresholds reversed": (spoil(threshold=lambda levels: levels[::-1])(f"{MERGED}.lif"), "q"),
    "one threshold for all": (spoil(threshold=1)(f"{MERGED}.lif"), "k"),
    "biases lost": (spoil(bias=lambda bias: 0 * bias)(MERGED), "k"),
    "a weight moved": (spoil(weight=lambda weight: np.roll(weight, 1, axis=1))(MERGED), "q"),
    "k read as q": (spoil(inputs=("k", "k", "v"))("attention"), "attention"),
}


@pytest.mark.parametrize(("change", "node"), MUTANTS.values(), ids=MUTANTS)
def test_a_broken_merge_is_stopped(change, node: str) -> None:
    batch = some_batch(DIFFERENT)
    proven(MergeQueryKeyValue(), DIFFERENT, batch)
    assert caught_at(Broken(MergeQueryKeyValue(), change), DIFFERENT, batch) == node


class NoQuestionsAsked(MergeQueryKeyValue):
    """Merges whatever q, k and v are made by layers."""

    def _mergeable(self, graph: Graph, attention: Attention, done: set[str]):
        neurons = [graph[name] for name in dict.fromkeys(attention.inputs)]
        return [(graph[neuron.inputs[0]], neuron) for neuron in neurons]


@pytest.mark.parametrize(("reason", "node"), [("other decay", "v"), ("other input", "v")])
def test_a_merge_of_layers_that_are_not_alike_is_stopped(reason: str, node: str) -> None:
    graph = replace(NOT_MERGED[reason], timesteps=4)
    assert caught_at(NoQuestionsAsked(), graph, some_batch(graph, samples=8)) == node


def test_a_merge_of_a_current_that_another_reads_makes_no_graph() -> None:
    graph = NOT_MERGED["current read by another"]
    with pytest.raises(CheckFailed, match=r"pass 'merge-.*': node 'spare': input 'k.current' is not a node before it"):
        proven(NoQuestionsAsked(), graph)


def test_a_layer_without_its_last_row_makes_no_graph(monkeypatch) -> None:
    def short(*arguments):
        instead = honest(*arguments)
        layer, *others = instead["q.current"]
        cut = replace(layer, weight=layer.weight[:-1], bias=layer.bias[:-1])
        return instead | {"q.current": (cut, *others)}

    honest = module._merge
    monkeypatch.setattr(module, "_merge", short)
    graph = attention_graph()
    with pytest.raises(CheckFailed, match=r"pass 'merge-.*': node 'v': feature 5 of an input that has 5"):
        run_passes(graph, [MergeQueryKeyValue()], some_batch(graph), None)
