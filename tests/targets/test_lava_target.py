"""Legality rules and the schedule in a bundle; none of it may need Lava."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from random_graphs import random_dag, random_graph

from converters.execution import EngineOptions
from converters.graph import LIF, Add, Graph, Node, Readout, Source, Synapses
from targets.lava.target import LavaTarget, ScheduleError, lower_legal, require_schedule
from targets.legality import IllegalGraphError, Violation

EYE, ZERO = np.eye(2, dtype=np.int8), np.zeros(2, dtype=np.int32)


def chain(depth: int, threshold: int | np.ndarray = 0) -> list[Node]:
    """A source x and `depth` layers s0, s1, ..."""
    nodes: list[Node] = [Source("x", np.ones((3, 2), dtype=np.int8))]
    for index in range(depth):
        before = "x" if index == 0 else f"s{index - 1}"
        nodes += [Synapses(f"a{index}", (before,), EYE, ZERO), LIF(f"s{index}", (f"a{index}",), threshold)]
    return nodes


def with_residual(depth: int) -> Graph:
    last = f"s{depth - 1}"
    return Graph(4, 2, (*chain(depth), Add("sum", ("x", last)), Readout("y", ("sum",), EYE, ZERO)))


@pytest.mark.parametrize("seed", range(10))
def test_random_graphs_are_legal(seed: int) -> None:
    assert LavaTarget().check(random_dag(np.random.default_rng(seed))) == []


def test_every_violation_is_named() -> None:
    nodes = (*chain(2, np.array([1, 2])), Readout("y", ("s1",), EYE, ZERO))
    violations = LavaTarget().check(Graph(4, 2, nodes))
    found = [(violation.node, violation.rule, violation.value, violation.limit) for violation in violations]
    assert found == [("s0", "scalar-threshold", 2, 1), ("s1", "scalar-threshold", 2, 1)]
    assert "one threshold for the whole layer" in violations[0].remedy


def test_a_residual_waits_63_steps_at_most() -> None:
    assert LavaTarget().check(with_residual(63)) == []
    (violation,) = LavaTarget().check(with_residual(64))
    assert (violation.rule, violation.value, violation.limit) == ("bounded-delay", 64, 63)


def test_graded_messages_have_24_bits_at_most() -> None:
    def doubled(times: int) -> Graph:
        sums = [Add(f"d{index}", ("x" if index == 0 else f"d{index - 1}",) * 2) for index in range(times)]
        return Graph(4, 2, (*chain(1), *sums, Readout("y", ("s0",), EYE, ZERO)))

    assert LavaTarget().check(doubled(23)) == []
    (violation,) = LavaTarget().check(doubled(24))
    assert (violation.node, violation.rule, violation.value) == ("d23", "bounded-message-bits", 25)


def test_an_illegal_graph_is_refused_with_every_reason(tmp_path: Path) -> None:
    graph = Graph(4, 2, (*chain(2, np.array([1, 2])), Readout("y", ("s1",), EYE, ZERO)))
    with pytest.raises(IllegalGraphError) as raised:
        LavaTarget().emit(graph, tmp_path / "lava")
    assert len(raised.value.violations) == 2 and isinstance(raised.value.violations[0], Violation)
    assert "'s0'" in str(raised.value) and "'s1'" in str(raised.value)
    assert not (tmp_path / "lava").exists()


def test_an_emitted_schedule_says_everything_and_agrees(tmp_path: Path) -> None:
    graph = random_graph(np.random.default_rng(1), blocks=1)
    LavaTarget().emit(graph, tmp_path / "lava")
    stored = json.loads((tmp_path / "lava" / "schedule.json").read_text())
    assert stored["depth_steps"] == 8 and stored["latency_steps"]["block0.add2"] == 7
    processes = {entry["name"]: entry for entry in stored["processes"]}
    assert processes["block0.add1#0"]["process"] == "DelaySparse" and processes["block0.add1#0"]["delay_steps"] == 3
    assert processes["block0.add1#1"]["process"] == "Sparse"
    assert processes["block0.q"]["reset_offset_steps"] == 2
    assert processes["block0.fc1.synapses"]["message_bits"] == 2
    assert all(entry["process"] for entry in stored["processes"])
    require_schedule(lower_legal(graph), tmp_path / "lava")


def test_a_schedule_that_disagrees_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("lava.magma")
    from targets.lava.engine import open_lava, open_lava_inline

    graph = random_graph(np.random.default_rng(1), blocks=1)
    LavaTarget().emit(graph, tmp_path / "lava")
    path = tmp_path / "lava" / "schedule.json"
    stored = json.loads(path.read_text())
    stored["latency_steps"]["block0.q"] = 2
    path.write_text(json.dumps(stored))
    for factory in (open_lava, open_lava_inline):
        with pytest.raises(ScheduleError, match=r"latency_steps\.block0\.q"):
            factory(graph, EngineOptions(bundle=tmp_path))
        factory(graph, EngineOptions(bundle=tmp_path / "elsewhere")).close()


def test_export_needs_no_lava(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path[:] = {sys.path!r}
sys.modules["lava"] = None
import numpy as np
from pathlib import Path
from random_graphs import random_graph
from converters.execution import EngineOptions
from targets.lava.engine import open_lava, open_lava_inline
from targets.lava.target import LavaTarget

graph = random_graph(np.random.default_rng(1), blocks=1)
LavaTarget().emit(graph, Path({str(tmp_path)!r}))
for factory in (open_lava, open_lava_inline):
    try:
        factory(graph, EngineOptions())
    except ImportError:
        continue
    raise AssertionError("an engine opened without Lava")
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (tmp_path / "schedule.json").exists()
