"""remove-dead-neurons: columns of `W` go whose `x` is 0, and rows that nobody needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from pass_helpers import (
    Broken,
    Trial,
    assert_same_network,
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
from random_graphs import random_graph

import converters.passes.remove_dead_neurons as module
from converters.graph import LIF, Add, Graph, Slice
from converters.graph_text import graph_text
from converters.passes.remove_dead_neurons import RemoveDeadNeurons
from converters.passes.rewrite import Rewrite
from spikebert.commands import CheckFailed

REMOVE = RemoveDeadNeurons()
# 5 a step comes to 9.4: never above 10. Rows 0 and 2 of `up` are dead, so columns 0 and 2 of `down` go.
GRAPH = mlp([[5], [6], [-7], [30]], [0, 0, 0, 0])


def test_dead_neurons_go_with_their_synapses() -> None:
    rewrite = REMOVE.rewrite(GRAPH)
    assert {name: kept.tolist() for name, kept in rewrite.origins.items()} == {"up": [1, 3], "up.lif": [1, 3]}
    assert rewrite.summary == "2 neurons removed"
    assert outline(rewrite.graph) == unindented("""
        graph T=4 n_max=3 nodes=6
        source = source()  D=1  kind=sign  threshold=0  dv=0  table[2x1]=-1..1
        up = synapses(source)  D=2  weight_bits=8  weight[2x1]=6..30  bias[2]=0..0
        up.lif = lif(up)  D=2  threshold=10  dv=2048
        down = synapses(up.lif)  D=2  weight_bits=8  weight[2x2]=2..8  bias[2]=3..4
        down.lif = lif(down)  D=2  threshold=2  dv=0
        readout = readout(down.lif)  D=2  scale=1.0  weight[2x2]=0..1  bias[2]=0..1
    """)
    assert rewrite.graph["down"].weight.tolist() == [[2, 4], [6, 8]]
    assert_same_network(GRAPH, proven(REMOVE, GRAPH), some_batch(GRAPH, seed=3))


def test_thresholds_go_with_their_neurons_and_one_neuron_stays() -> None:
    graph = mlp([[5], [5], [5]], [0, 0, 0], np.array([50, 4, 60]))
    assert proven(REMOVE, graph).graph["up.lif"].threshold.tolist() == [4]
    silent = proven(REMOVE, mlp([[-1], [-2]], [0, 0])).graph
    assert silent.features["up"] == 1


def test_who_falls_silent_because_of_others_goes_in_the_same_run() -> None:
    graph = mlp([[5], [6], [30]], [0, 0, 0])
    graph = changed(graph, {"down": {"weight": [[9, 0, 0], [0, 9, 0]], "bias": [0, 0]}})
    assert proven(REMOVE, graph).graph.features["down"] == 1


def test_neurons_bound_to_their_place_stay() -> None:
    """All of them dead, but heads of an attention and a residual need them."""
    graph = random_graph(np.random.default_rng(0), blocks=1)
    nodes = [replace(node, threshold=60000) if isinstance(node, LIF) else node for node in graph]
    dead = Graph(graph.timesteps, graph.n_max, tuple(nodes))
    after = REMOVE.rewrite(dead).graph
    unlike = {node.name for node in dead if after.features[node.name] != dead.features[node.name]}
    assert unlike == {"block0.fc1.synapses", "block0.fc1"}


@pytest.mark.parametrize(
    "reader",
    [LIF("other", ("up",), 0), Slice("other", ("up.lif",), 0, 2), Add("other", ("up.lif", "up.lif"))],
    ids=["a current read twice", "a slice", "an add"],
)
def test_other_readers_bind_neurons_to_their_place(reader) -> None:
    graph = with_after(GRAPH, "up.lif", reader)
    assert REMOVE.rewrite(graph).graph is graph


def test_nothing_to_do_leaves_the_graph_itself_and_twice_is_once() -> None:
    alive = mlp([[6]], [0])
    assert REMOVE.rewrite(alive).graph is alive
    once = proven(REMOVE, GRAPH).graph
    assert REMOVE.rewrite(once).graph is once


@settings(deadline=None, max_examples=25)
@given(trial=trials())
def test_random_graphs_stay_the_same_networks(trial: Trial) -> None:
    passed = proven(REMOVE, trial.graph, trial.golden)
    assert_same_network(trial.graph, passed, trial.other)
    assert graph_text(REMOVE.rewrite(passed.graph).graph) == graph_text(passed.graph)


# Broken on purpose

UP = "up.lif"
MUTANTS = {
    "columns swapped": (spoil(weight=lambda weight: weight[:, ::-1])("down"), "down"),
    "rows swapped": (spoil(weight=lambda weight: weight[::-1])("up"), "up"),
    "a bias more": (spoil(bias=lambda bias: bias + 1)("up"), "up"),
}


@pytest.mark.parametrize(("change", "node"), MUTANTS.values(), ids=MUTANTS)
def test_a_broken_removal_is_stopped(change, node: str) -> None:
    batch = some_batch(GRAPH)
    proven(REMOVE, GRAPH, batch)
    assert caught_at(Broken(REMOVE, change), GRAPH, batch) == node


def test_a_living_neuron_that_is_removed_is_missed(monkeypatch) -> None:
    """The proof forgets that the membrane keeps what it had, so 6 a step seems to stay below 10."""

    def forgetful(graph: Graph):
        ranges = honest(graph)
        high = ranges[UP].high * (graph["up"].weight[:, 0] > 10)
        return ranges | {UP: replace(ranges[UP], high=high)}

    honest = module.prove_ranges
    monkeypatch.setattr(module, "prove_ranges", forgetful)
    assert REMOVE.rewrite(GRAPH).graph.features[UP] == 1
    assert caught_at(REMOVE, GRAPH, some_batch(GRAPH)) == "down"


def test_columns_that_stay_make_no_graph(monkeypatch) -> None:
    honest: Callable = module._shrink
    monkeypatch.setattr(module, "_shrink", lambda node, alive: node if node.name == "down" else honest(node, alive))
    with pytest.raises(CheckFailed, match=r"pass 'remove-dead-.*': node 'down': weight has 4 columns, the input has 2"):
        proven(REMOVE, GRAPH)


@dataclass(frozen=True)
class Liar:
    """Removes dead neurons, and says of others that they are left."""

    told: dict
    name: str = "liar"

    def rewrite(self, graph: Graph) -> Rewrite:
        return Rewrite(REMOVE.rewrite(graph).graph, "", self.told)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"up": [0, 1], "up.lif": [0, 1]}, "changed the network: golden sample 0, node 'up', timestep 0"),
        ({}, "node 'up' has 2 features, it says 3"),
    ],
)
def test_a_pass_that_lies_about_features_is_stopped(told: dict, message: str) -> None:
    with pytest.raises(CheckFailed, match=f"pass 'liar'.* {message}"):
        proven(Liar(told), mlp([[5], [6], [30]], [0, 0, 0]))
