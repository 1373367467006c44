"""split-wide-layers: rows of `W x` do not know of each other."""

from __future__ import annotations

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
    outline,
    proven,
    some_batch,
    spoil,
    trials,
    unindented,
    with_after,
)

import converters.passes.split_wide_layers as module
from converters.graph import LIF, Add, Concat, Graph, GraphError, Relay, Synapses
from converters.graph_text import graph_text
from converters.passes.split_wide_layers import SplitWideLayers
from spikebert.commands import CheckFailed

FIVE = mlp([[5], [6], [7], [-8], [30]], [1, 2, -4, 20, 5], np.array([5, 15, 4, 2, 60]))


def split(graph: Graph, most: int) -> Graph:
    return proven(SplitWideLayers(most), graph).graph


def test_a_layer_becomes_parts_and_a_concat() -> None:
    after = split(FIVE, 2)
    assert outline(after) == unindented(
        """
        graph T=4 n_max=3 nodes=11
        source = source()  D=1  kind=sign  threshold=0  dv=0  table[2x1]=-1..1
        up.part0 = synapses(source)  D=2  weight_bits=8  weight[2x1]=5..6  bias[2]=1..2
        up.part1 = synapses(source)  D=2  weight_bits=8  weight[2x1]=-8..7  bias[2]=-4..20
        up.part2 = synapses(source)  D=1  weight_bits=8  weight[1x1]=30..30  bias[1]=5..5
        up.lif.part0 = lif(up.part0)  D=2  threshold[2]=5..15  dv=2048
        up.lif.part1 = lif(up.part1)  D=2  threshold[2]=2..4  dv=2048
        up.lif.part2 = lif(up.part2)  D=1  threshold[1]=60..60  dv=2048
        up.lif = concat(up.lif.part0, up.lif.part1, up.lif.part2)  D=5
        down = synapses(up.lif)  D=2  weight_bits=8  weight[2x5]=1..10  bias[2]=3..4
        down.lif = lif(down)  D=2  threshold=2  dv=2048
        readout = readout(down.lif)  D=2  scale=1.0  weight[2x2]=0..1  bias[2]=0..1
    """.replace("threshold=2  dv=2048", "threshold=2  dv=0")
    )
    assert after["up.part1"].weight.tolist() == [[7], [-8]] and after["up.lif.part1"].threshold.tolist() == [4, 2]


@pytest.mark.parametrize(
    ("most", "widths"),
    [(5, None), (6, None), (8192, None), (4, [3, 2]), (3, [3, 2]), (2, [2, 2, 1]), (1, [1, 1, 1, 1, 1])],
)
def test_parts_differ_by_one_at_most(most: int, widths: list[int] | None) -> None:
    after = split(FIVE, most)
    if widths is None:
        assert after is FIVE
        return
    assert [after.features[node.name] for node in after if node.name.startswith("up.part")] == widths


def test_a_number_stays_the_threshold_of_all_parts() -> None:
    after = split(mlp([[5], [6], [7]], [0, 0, 0], 9), 2)
    assert (after["up.lif.part0"].threshold, after["up.lif.part1"].threshold) == (9, 9)


def test_every_neuron_of_a_layer_is_split_with_it() -> None:
    graph = with_after(FIVE, "up.lif", LIF("twin", ("up",), 12, 0), Add("both", ("up.lif", "twin")))
    graph = changed(graph, {"down": {"inputs": ("both",)}})
    after = split(graph, 3)
    assert after["twin"].inputs == ("twin.part0", "twin.part1")
    assert after["twin.part1"].inputs == ("up.part1",) and after["twin.part1"].threshold == 12
    assert_same_network(graph, proven(SplitWideLayers(3), graph), some_batch(graph, seed=9))


def test_a_layer_whose_current_another_kind_of_node_reads_stays() -> None:
    excited = changed(FIVE, {"up": {"weight": np.ones((5, 1), int), "bias": [0] * 5}})
    relayed = with_after(excited, "up.lif", Relay("relay", ("up",)))
    rewrite = SplitWideLayers(2).rewrite(relayed)
    assert rewrite.graph is relayed and rewrite.summary == "no layer has more than 2 neurons"


def test_a_part_of_an_attention_may_be_a_concat() -> None:
    graph = attention_graph()
    after = split(graph, 1)
    assert isinstance(after["q"], Concat) and after["attention"].inputs == ("q", "k", "v")
    assert_same_network(graph, proven(SplitWideLayers(1), graph), some_batch(graph, seed=3))


def test_a_layer_that_nobody_reads_is_split_too() -> None:
    graph = with_after(FIVE, "source", Synapses("unread", ("source",), [[1], [2], [3]], [0, 0, 0]))
    assert "unread.part1" in {node.name for node in split(graph, 2)}


def test_names_that_are_taken() -> None:
    graph = with_after(
        FIVE, "source", Synapses("up.part0", ("source",), [[1]], [0]), LIF("up.lif.part1", ("up.part0",), 0)
    )
    after = split(graph, 3)
    assert after["up.lif"].inputs == ("up.lif.part0", "up.lif.part1_2")
    assert after["up.lif.part0"].inputs == ("up.part0_2",)


def test_twice_is_once() -> None:
    once = split(FIVE, 2)
    assert split(once, 2) is once
    narrow = split(once, 1)
    assert {narrow.features[node.name] for node in narrow if isinstance(node, Synapses)} == {1}


@pytest.mark.parametrize("most", [0, -3])
def test_a_limit_that_no_layer_keeps_is_refused(most: int) -> None:
    with pytest.raises(GraphError, match=rf"most_features is {most}, a layer has 1 or more"):
        SplitWideLayers(most).rewrite(FIVE)


@settings(deadline=None, max_examples=20)
@given(trial=trials(), most=st.integers(2, 9))
def test_random_graphs_stay_the_same_networks(trial: Trial, most: int) -> None:
    each = SplitWideLayers(most)
    passed = proven(each, trial.graph, trial.golden)
    assert_same_network(trial.graph, passed, trial.other)
    assert graph_text(proven(each, passed.graph, trial.golden).graph) == graph_text(passed.graph)
    readers = {name: [node for node in passed.graph if name in node.inputs] for name in passed.graph.features}
    for node in passed.graph:
        if isinstance(node, Synapses) and all(isinstance(reader, LIF) for reader in readers[node.name]):
            assert passed.graph.features[node.name] <= most


# Broken on purpose

MUTANTS = {
    "rows swapped": (spoil(weight=lambda weight: weight[::-1])("up.part1"), "up.lif"),
    "biases swapped": (spoil(bias=lambda bias: bias[::-1])("up.part1"), "up.lif"),
    "thresholds of another part": (spoil(threshold=np.array([5, 9]))("up.lif.part1"), "up.lif"),
    "decay lost": (spoil(dv=0)("up.lif.part0"), "up.lif"),
    "parts in another order": (spoil(inputs=("up.lif.part2", "up.lif.part0", "up.lif.part1"))("up.lif"), "up.lif"),
    "one part twice": (spoil(inputs=("up.part0",))("up.lif.part1"), "up.lif"),
}


@pytest.mark.parametrize(("change", "node"), MUTANTS.values(), ids=MUTANTS)
def test_a_broken_split_is_stopped(change, node: str) -> None:
    batch = some_batch(FIVE)
    proven(SplitWideLayers(2), FIVE, batch)
    assert caught_at(Broken(SplitWideLayers(2), change), FIVE, batch) == node


def test_a_split_that_deals_rows_out_is_stopped(monkeypatch) -> None:
    """Rows 0, 3 and 1, 4 and 2 instead of 0, 1 and 2, 3 and 4."""
    monkeypatch.setattr(module.np, "array_split", lambda rows, parts: [rows[part::parts] for part in range(parts)])
    assert caught_at(SplitWideLayers(2), FIVE, some_batch(FIVE)) == "up.lif"


def test_a_split_that_loses_a_row_makes_no_graph(monkeypatch) -> None:
    honest = np.array_split
    monkeypatch.setattr(module.np, "array_split", lambda rows, parts: honest(rows[:-1], parts))
    with pytest.raises(CheckFailed, match=r"pass 'split-.*': node '.*': (4 thresholds|weight has 5 columns)"):
        proven(SplitWideLayers(2), FIVE)
