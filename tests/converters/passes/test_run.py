"""Running passes: what is compared, where a broken pass is stopped, and what is saved."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from pass_helpers import INTERPRETERS, attention_graph, caught_at, changed, mlp, proven, some_batch

from converters.execution import TokenBatch
from converters.graph import Graph, Node
from converters.graph_text import graph_text
from converters.passes.balance_delays import BalanceDelays
from converters.passes.lay_out_bias_lanes import LayOutBiasLanes
from converters.passes.merge_query_key_value import MergeQueryKeyValue
from converters.passes.prove_ranges import ProveRanges
from converters.passes.remove_dead_neurons import RemoveDeadNeurons
from converters.passes.rewrite import Rewrite
from converters.passes.run import run_passes
from spikebert.commands import CheckFailed, UserError

GRAPH = mlp([[6], [9], [30]], [0, 1, 2])
BATCH = TokenBatch([[1, 0, 1], [0, 1, 1]], [[1, 1, 1], [1, 1, 0]])  # a token of id 1 spikes at every step


@dataclass(frozen=True)
class Changes:
    """A pass that changes one node."""

    change: Callable[[Node], Node]
    name: str = "broken"

    def rewrite(self, graph: Graph) -> Rewrite:
        return Rewrite(Graph(graph.timesteps, graph.n_max, tuple(map(self.change, graph))), "")


def spoiled(name: str, **fields: object) -> Changes:
    return Changes(lambda node: replace(node, **fields) if node.name == name else node)


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
def test_a_broken_pass_is_stopped_at_the_first_value_that_differs(broken: Changes, message: str) -> None:
    caught_at(broken, GRAPH, BATCH)
    with pytest.raises(CheckFailed, match=rf"pass 'broken' changed the network: golden sample 0, {message}"):
        run_passes(GRAPH, [broken], BATCH, INTERPRETERS)


def test_a_pass_that_renames_all_is_held_to_the_readout() -> None:
    def rename(node: Node) -> Node:
        inputs = tuple(name if name == "source" else f"{name}.new" for name in node.inputs)
        return replace(node, name=node.name if node.op in ("source", "readout") else f"{node.name}.new", inputs=inputs)

    passed = proven(Changes(rename), GRAPH)
    assert passed.records[0].values_compared == 8 * (4 * 3 * (1 + 2) + 2)
    wrong = Changes(lambda node: replace(rename(node), threshold=200) if node.name == "down.lif" else rename(node))
    assert caught_at(wrong, GRAPH, some_batch(GRAPH)) == "readout"


def test_the_pass_that_broke_it_is_named_and_none_runs_after_it() -> None:
    ran: list[str] = []

    @dataclass(frozen=True)
    class Seen:
        name: str

        def rewrite(self, graph: Graph) -> Rewrite:
            ran.append(self.name)
            return Rewrite(graph, "")

    passes = [Seen("first"), spoiled("up", bias=[0, 1, 3]), Seen("last")]
    with pytest.raises(CheckFailed, match="pass 'broken' changed"):
        run_passes(GRAPH, passes, some_batch(GRAPH), INTERPRETERS)
    assert ran == ["first"]


def test_a_graph_that_is_not_legal_is_the_fault_of_its_pass() -> None:
    broken = spoiled("down", inputs=("nowhere",))
    with pytest.raises(CheckFailed, match=r"pass 'broken': node 'down': input 'nowhere' is not a node before it"):
        run_passes(GRAPH, [broken], some_batch(GRAPH), INTERPRETERS)


@pytest.mark.parametrize(("timesteps", "n_max"), [(5, 3), (4, 4)])
def test_a_pass_that_changes_time_or_room_is_stopped(timesteps: int, n_max: int) -> None:
    @dataclass(frozen=True)
    class Longer:
        name: str = "longer"

        def rewrite(self, graph: Graph) -> Rewrite:
            return Rewrite(Graph(timesteps, n_max, graph.nodes), "")

    with pytest.raises(CheckFailed, match="pass 'longer' changed the timesteps, or how many tokens the graph takes"):
        run_passes(GRAPH, [Longer()], some_batch(GRAPH), INTERPRETERS)


def test_saved_passes_are_numbered_and_can_be_compared(tmp_path: Path) -> None:
    graph = changed(mlp([[5], [6], [30]], [0, 0, 0]), {"down": {"bias": [0, 0]}, "readout": {"bias": [0, 0]}})
    passes = [ProveRanges(), RemoveDeadNeurons(), LayOutBiasLanes(), BalanceDelays()]
    folder = tmp_path / "new" / "folder"
    passed = run_passes(graph, passes, some_batch(graph), INTERPRETERS, folder)
    stages = ["00-before", "01-prove-ranges", "02-remove-dead-neurons", "03-lay-out-bias-lanes", "04-balance-delays"]
    expected = [f"{stage}.{kind}.txt" for stage in stages for kind in ("graph", "ranges")]
    assert sorted(path.name for path in folder.iterdir()) == [*expected, "04-balance-delays.schedule.txt"]
    texts = [(folder / f"{stage}.graph.txt").read_text() for stage in stages]
    assert texts[0] == texts[1] == graph_text(graph) and texts[2] == texts[3] == texts[4] == graph_text(passed.graph)
    different = [line for line in difflib.ndiff(*(text.splitlines() for text in texts[1:3])) if line.startswith("+ ")]
    assert [line.split()[1] for line in different] == ["up", "up.lif", "down"]
    assert "65535" in (folder / "00-before.ranges.txt").read_text()
    assert (folder / "04-balance-delays.schedule.txt").read_text().startswith("T=4 depth=3 steps\n")


def test_what_a_broken_pass_was_given_is_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed):
        run_passes(
            GRAPH, [MergeQueryKeyValue(), spoiled("up", bias=[1, 1, 1])], some_batch(GRAPH), INTERPRETERS, tmp_path
        )
    assert sorted(path.name for path in tmp_path.glob("*.graph.txt")) == [
        "00-before.graph.txt", "01-merge-query-key-value.graph.txt",
    ]  # fmt: skip


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/folder: no folder can be made there for the passes: "):
        run_passes(GRAPH, [], some_batch(GRAPH), INTERPRETERS, tmp_path / "file" / "folder")


def test_no_passes_change_nothing() -> None:
    graph, batch = attention_graph(), some_batch(attention_graph())
    passed = run_passes(graph, [], batch, INTERPRETERS)
    assert passed.graph is graph and passed.batch is batch and passed.records == ()
