"""remove-unread-nodes: no value that is left depends on what goes."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given, settings
from pass_helpers import (
    Broken,
    Trial,
    assert_same_network,
    caught_at,
    mlp,
    outline,
    proven,
    some_batch,
    spoil,
    trials,
    unindented,
    with_after,
)

import converters.passes.remove_unread_nodes as module
from converters.graph import LIF, Graph, Readout, Synapses, ValidLane
from converters.graph_text import graph_text
from converters.passes.remove_unread_nodes import RemoveUnreadNodes
from spikebert.commands import CheckFailed

REMOVE = RemoveUnreadNodes()
READ = mlp([[6], [30]], [0, 1])
SPARE = (
    Synapses("spare", ("source",), [[1]], [0]), LIF("spare.lif", ("spare",), 0), ValidLane("lane", 2),
    Synapses("more", ("spare.lif",), [[1]], [0]),
)  # fmt: skip
GRAPH = with_after(READ, "up.lif", *SPARE)


def test_unread_nodes_go_and_with_them_those_that_they_alone_read() -> None:
    passed = proven(REMOVE, GRAPH)
    assert outline(passed.graph) == unindented("""
        graph T=4 n_max=3 nodes=6
        source = source()  D=1  kind=sign  threshold=0  dv=0  table[2x1]=-1..1
        up = synapses(source)  D=2  weight_bits=8  weight[2x1]=6..30  bias[2]=0..1
        up.lif = lif(up)  D=2  threshold=10  dv=2048
        down = synapses(up.lif)  D=2  weight_bits=8  weight[2x2]=1..4  bias[2]=3..4
        down.lif = lif(down)  D=2  threshold=2  dv=0
        readout = readout(down.lif)  D=2  scale=1.0  weight[2x2]=0..1  bias[2]=0..1
    """)
    assert graph_text(passed.graph) == graph_text(READ)
    assert passed.records[0].summary == "4 nodes removed, first 'spare'"


def test_nothing_to_do_leaves_the_graph_itself_and_twice_is_once() -> None:
    assert REMOVE.rewrite(READ).graph is READ
    once = REMOVE.rewrite(GRAPH).graph
    assert REMOVE.rewrite(once).graph is once


def test_the_source_stays_whatever_reads_it() -> None:
    graph = Graph(2, 2, (READ.source, ValidLane("lane", 1), Readout("readout", ("lane",), [[3]], [0])))
    assert REMOVE.rewrite(graph).graph is graph


@settings(deadline=None, max_examples=25)
@given(trial=trials())
def test_random_graphs_stay_the_same_networks(trial: Trial) -> None:
    passed = proven(REMOVE, trial.graph, trial.golden)
    assert_same_network(trial.graph, passed, trial.other)
    read = {name for node in passed.graph for name in node.inputs}
    assert all(node.name in read for node in passed.graph.nodes[1:-1])
    assert REMOVE.rewrite(passed.graph).graph is passed.graph


# Broken on purpose


def test_a_node_that_is_read_and_removed_makes_no_graph(monkeypatch) -> None:
    monkeypatch.setattr(module.nx, "ancestors", lambda graph, node: nx.descendants(graph, "source") - {"up.lif"})
    with pytest.raises(
        CheckFailed, match=r"pass 'remove-unread-nodes': node '.*': input 'up.lif' is not a node before"
    ):
        proven(REMOVE, GRAPH)


@pytest.mark.parametrize(
    ("change", "node"),
    [(spoil(bias=[1, 1])("up"), "up"), (spoil(inputs=("up.lif",))("readout"), "readout")],
    ids=["another bias", "a layer passed over"],
)
def test_a_removal_that_changes_what_is_left_is_stopped(change, node: str) -> None:
    assert caught_at(Broken(REMOVE, change), GRAPH, some_batch(GRAPH)) == node
