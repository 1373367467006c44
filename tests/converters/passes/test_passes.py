"""Passes: a tiny graph, the graph expected of it as text, equal outputs; and random graphs through all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import random_batch, random_dag, random_graph

from converters.graph import LIF, Graph, GraphError, Readout, Source, Synapses
from converters.graph_text import graph_text
from converters.passes.prove_ranges import ProveRanges
from converters.passes.remove_dead_neurons import RemoveDeadNeurons
from converters.passes.remove_unread_nodes import RemoveUnreadNodes
from converters.passes.rewrite import Rewrite
from converters.passes.run import PASSES, find_passes, run_passes
from converters.pipeline import run_reference
from sim.fast.engine import FastEngine
from spikebert.commands import CheckFailed, UserError
from targets.lava.target import check


def mlp(weight, bias, threshold: int | np.ndarray = 10) -> Graph:
    """source -> up -> down -> readout, up with these weights."""
    weight = np.asarray(weight)
    rows, columns = weight.shape
    nodes = (
        Source("source", np.array([[-1] * columns, [1] * columns]), kind="sign"),
        Synapses("up", ("source",), weight, bias), LIF("up.lif", ("up",), threshold, 2048),
        Synapses("down", ("up.lif",), np.arange(1, 2 * rows + 1).reshape(2, rows), [3, 4]),
        LIF("down.lif", ("down",), 2),
        Readout("readout", ("down.lif",), np.eye(2, dtype=int), [0, 1]),
    )  # fmt: skip
    return Graph(4, 3, nodes)


def test_dead_neurons_go_with_their_synapses() -> None:
    """5 a step comes to 9.4: never above 10. Rows 0 and 2 of `up` are dead, so columns 0 and 2 of `down` go."""
    graph = mlp([[5], [6], [-7], [30]], [0, 0, 0, 0])
    rewrite = RemoveDeadNeurons().rewrite(graph)
    assert {name: kept.tolist() for name, kept in rewrite.origins.items()} == {"up": [1, 3], "up.lif": [1, 3]}
    assert rewrite.summary == "2 neurons removed"
    assert graph_text(rewrite.graph) == graph_text(
        Graph(
            4, 3, (
                graph.source, Synapses("up", ("source",), [[6], [30]], [0, 0]), LIF("up.lif", ("up",), 10, 2048),
                Synapses("down", ("up.lif",), [[2, 4], [6, 8]], [3, 4]), LIF("down.lif", ("down",), 2),
                Readout("readout", ("down.lif",), np.eye(2, dtype=int), [0, 1]),
            ),
        )
    )  # fmt: skip


def test_thresholds_go_with_their_neurons_and_one_neuron_stays() -> None:
    graph = mlp([[5], [5], [5]], [0, 0, 0], np.array([50, 4, 60]))
    assert RemoveDeadNeurons().rewrite(graph).graph["up.lif"].threshold.tolist() == [4]
    silent = RemoveDeadNeurons().rewrite(mlp([[-1], [-2]], [0, 0])).graph
    assert silent.features["up"] == 1


def test_neurons_bound_to_their_place_stay() -> None:
    """All of them dead, but heads of an attention and a residual need them."""
    graph = random_graph(np.random.default_rng(0), blocks=1)
    nodes = [replace(node, threshold=60000) if isinstance(node, LIF) else node for node in graph]
    dead = Graph(graph.timesteps, graph.n_max, tuple(nodes))
    after = RemoveDeadNeurons().rewrite(dead).graph
    changed = {node.name for node in dead if after.features[node.name] != dead.features[node.name]}
    assert changed == {"block0.fc1.synapses", "block0.fc1"}


def test_nothing_to_do_leaves_the_graph_itself() -> None:
    graph = mlp([[6]], [0])
    assert RemoveDeadNeurons().rewrite(graph).graph is graph
    assert RemoveUnreadNodes().rewrite(graph).graph is graph


def test_unread_nodes_go() -> None:
    graph = mlp([[6]], [0])
    spare = (Synapses("spare", ("source",), [[1]], [0]), LIF("spare.lif", ("spare",), 0))
    more = Graph(4, 3, (*graph.nodes[:-1], *spare, graph.readout))
    rewrite = RemoveUnreadNodes().rewrite(more)
    assert graph_text(rewrite.graph) == graph_text(graph)
    assert "2 nodes removed, first 'spare'" in rewrite.summary


def test_a_range_that_is_not_proven_is_refused_with_what_would_reach_it() -> None:
    graph = mlp([[100, 27]], [500])
    assert "largest current 627 of 65,535" in ProveRanges().rewrite(graph).summary
    with pytest.raises(GraphError, match=r"'up': a current may reach 627, the limit is 600 \(feature 0, when 2 of"):
        ProveRanges(limit=600).rewrite(graph)


ALL = tuple(each.name for each in PASSES)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6), wired=st.booleans(), timesteps=st.sampled_from([1, 2, 4, 8]),
    firing=st.sampled_from([0.003, 0.3]), bits=st.sampled_from([2, 4, 8]),
)  # fmt: skip
def test_random_graphs_stay_the_same_networks(seed, wired, timesteps, firing, bits) -> None:
    """Through every pass, on other inputs than the pipeline's own, and on another engine."""
    rng = np.random.default_rng(seed)
    make = random_dag if wired else random_graph
    graph = make(rng, timesteps=timesteps, firing=firing, weight_bits=bits, bias_max=5)
    after, records = run_passes(graph, PASSES, random_batch(rng, graph, 3), run_reference)
    assert [record.name for record in records] == list(ALL)
    other = random_batch(rng, graph, 5)
    expected = run_reference(graph, other).logits
    assert np.array_equal(run_reference(after, other).logits, expected)
    engine = FastEngine(after)
    assert np.array_equal(engine.run(other).logits, expected)
    engine.close()
    assert len(check(after)) <= len(check(graph)), "a pass makes nothing illegal"


# Broken on purpose: each must be caught by the golden inputs


@dataclass(frozen=True)
class Broken:
    """A pass that changes one node."""

    change: object
    name: str = "broken"

    def rewrite(self, graph: Graph) -> Rewrite:
        nodes = tuple(self.change(node) for node in graph)
        return Rewrite(Graph(graph.timesteps, graph.n_max, nodes), "")


def spoiled(name: str, **changes):
    return Broken(lambda node: replace(node, **changes) if node.name == name else node)


GRAPH = mlp([[6], [9], [30]], [0, 1, 2])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (spoiled("up.lif", threshold=5), r"node 'up.lif', timestep 0, token 0, feature 0: expected 0, got 1"),
        (spoiled("up.lif", dv=0), r"node 'up.lif', timestep \d"),
        (spoiled("up", bias=np.array([0, 1, 3])), r"node 'up', timestep 0, token 0, feature 2: expected 32, got 33"),
        (spoiled("readout", bias=np.array([1, 1])), "node 'readout'"),
        (spoiled("down", weight=np.array([[1, 2, 3], [4, 5, 7]])), "node 'down'"),
    ],
)
def test_a_broken_pass_is_stopped_at_the_first_value_that_differs(broken, message: str) -> None:
    batch = random_batch(np.random.default_rng(1), GRAPH, 3)
    with pytest.raises(CheckFailed, match=rf"pass 'broken' changed the network: golden sample \d, {message}"):
        run_passes(GRAPH, [broken], batch, run_reference)


@dataclass(frozen=True)
class Liar:
    """Removes dead neurons, and says of others that they are left."""

    told: dict
    name: str = "liar"

    def rewrite(self, graph: Graph) -> Rewrite:
        return Rewrite(RemoveDeadNeurons().rewrite(graph).graph, "", self.told)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"up": [0, 1], "up.lif": [0, 1]}, "changed the network: golden sample 0, node 'up', timestep 0"),
        ({}, "node 'up' has 2 features, it says 3"),
    ],
)
def test_a_pass_that_lies_about_features_is_stopped(told: dict, message: str) -> None:
    graph = mlp([[5], [6], [30]], [0, 0, 0])
    batch = random_batch(np.random.default_rng(1), graph, 3)
    with pytest.raises(CheckFailed, match=f"pass 'liar'.* {message}"):
        run_passes(graph, [Liar(told)], batch, run_reference)


def test_saved_passes_are_numbered_and_can_be_compared(tmp_path) -> None:
    graph = mlp([[5], [6], [30]], [0, 0, 0])
    batch = random_batch(np.random.default_rng(1), graph, 3)
    run_passes(graph, PASSES, batch, run_reference, tmp_path / "new" / "folder")
    names = sorted(path.name for path in (tmp_path / "new" / "folder").glob("*.graph.txt"))
    assert names == [
        "00-before.graph.txt", "01-prove-ranges.graph.txt", "02-remove-unread-nodes.graph.txt",
        "03-remove-dead-neurons.graph.txt",
    ]  # fmt: skip
    before, after = ((tmp_path / "new" / "folder" / name).read_text() for name in (names[0], names[-1]))
    different = [line for line in after.splitlines() if line not in before]
    assert [line.split()[0] for line in different] == ["up", "up.lif", "down"]
    assert "65535" in (tmp_path / "new" / "folder" / "00-before.ranges.txt").read_text()


def test_passes_run_in_their_order_and_unknown_ones_are_named() -> None:
    assert [each.name for each in find_passes(["remove-dead-neurons", "prove-ranges"])] == [ALL[0], ALL[2]]
    with pytest.raises(UserError, match=r"there is no pass 'fuse'\. Passes: prove-ranges, "):
        find_passes(["fuse"])
