"""Legality rules and the schedule in a bundle; none of it may need Lava."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from random_graphs import random_dag, random_graph
from unheard import Unheard

from converters.execution import EngineOptions
from converters.graph import (
    LIF,
    Add,
    Coincidence,
    Concat,
    Graph,
    Node,
    Product,
    Readout,
    Relay,
    Slice,
    Source,
    Synapses,
    ValidLane,
)
from converters.passes.split_wide_layers import SplitWideLayers
from targets.lava.rules import LAID_OUT_RULES, RULES
from targets.lava.target import LavaTarget, ScheduleError, lower_legal, require_schedule
from targets.legality import IllegalGraphError, Rule, Violation

ALL_RULES = (*RULES, *LAID_OUT_RULES)
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


def test_a_readout_weight_of_minus_128_is_refused_and_lava_could_not_hold_it() -> None:
    weight = np.array([[-128, -1], [-1, -127]])
    graph = Graph(4, 2, (*chain(1), Readout("y", ("s0",), weight, ZERO)))
    (violation,) = LavaTarget().check(graph)
    assert (violation.node, violation.rule, violation.value) == ("y", "bounded-weight", 256)
    assert LavaTarget().check(Graph(4, 2, (*chain(1), Readout("y", ("s0",), weight + 1, ZERO)))) == []
    pytest.importorskip("lava.magma")
    from targets.lava.processes.fast_synapses import as_hardware_holds

    assert as_hardware_holds(2 * weight).min() == -255


def test_a_current_beyond_what_lava_holds_is_refused_even_where_a_graph_would_allow_it(monkeypatch) -> None:
    monkeypatch.setattr("converters.graph.ACCUMULATOR_MAX", 2**20)
    graph = Graph(4, 2, (*chain(1), Readout("y", ("s0",), EYE, np.array([0, 65536]))))
    (violation,) = LavaTarget().check(graph)
    assert (violation.node, violation.rule, violation.value) == ("y", "bounded-current", 2 * 65537)


def test_violations_of_different_rules_are_named_at_once() -> None:
    nodes = (*chain(65), Add("sum", ("x", "s64")), Readout("y", ("sum",), -128 * EYE, ZERO))
    replaced = tuple(replace(node, threshold=np.array([1, 2])) if node.name == "s3" else node for node in nodes)
    violations = LavaTarget().check(Graph(4, 2, replaced))
    found = [(violation.node, violation.rule, violation.value, violation.limit) for violation in violations]
    assert found == [
        ("s3", "scalar-threshold", 2, 1),
        ("y", "bounded-weight", 256, 255),
        ("sum", "bounded-delay", 65, 63),
    ]
    assert all(violation.unit and violation.source and violation.remedy for violation in violations)
    line = str(violations[2])
    assert line.startswith("node 'sum': bounded-delay: 65 steps, the limit is 63: shorten the longer way")
    assert "PyDelaySparseModelBitAcc" in line


def test_a_relay_that_others_than_a_product_read_is_refused() -> None:
    """They would get what is doubled on Lava."""
    nodes = (
        *chain(1), Synapses("a", ("s0",), EYE, ZERO), Relay("twice", ("a",)), Add("sum", ("twice", "s0")),
        Readout("y", ("sum",), EYE, ZERO),
    )  # fmt: skip
    violations = LavaTarget().check(Graph(4, 2, nodes))
    assert [(each.node, each.rule, each.value, each.limit) for each in violations] == [
        ("twice", "relay-into-product", 1, 0)
    ]


def test_an_attention_in_too_many_parts_is_refused() -> None:
    """16 features in parts of 3 are 6 for each of q, k and v."""
    graph = SplitWideLayers(3).rewrite(random_graph(np.random.default_rng(0), blocks=1)).graph
    violations = LavaTarget().check(graph)
    assert [(each.node, each.rule, each.value, each.limit) for each in violations] == [
        ("block0.attention", "attention-inputs", 18, 12)
    ]


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
def test_a_rule_explains_itself(rule: Rule) -> None:
    assert rule.explanation.endswith(".") and rule.remedy


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
def test_a_rule_takes_nodes_of_every_kind(rule: Rule) -> None:
    nodes = (
        *chain(1),
        ValidLane("lane", 2),
        Slice("part", ("s0",), 1, 2),
        Concat("both", ("part", "part", "lane")),
        Coincidence("met", ("s0", "s0")),
        Synapses("scores.a", ("met",), np.ones((2, 4)).astype(int), ZERO),
        Relay("scores", ("scores.a",)),
        Product("brought", ("scores", "s0"), 1),
        Readout("y", ("both",), np.ones((2, 4)).astype(int), ZERO),
    )
    assert list(rule(Graph(4, 2, nodes))) == []


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("inputs", [("x",), ("x", "s0")])
def test_a_rule_passes_over_nodes_it_does_not_know(rule: Rule, inputs: tuple[str, ...]) -> None:
    """The node is smuggled in after the Graph was checked."""
    honest = with_residual(1)
    graph = object.__new__(Graph)
    nodes = (*honest.nodes[:-1], Unheard("new", inputs), honest.readout)
    vars(graph).update(timesteps=4, n_max=2, nodes=nodes)
    assert list(rule(graph)) == []


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
from targets.lava.rules import LAID_OUT_RULES, RULES
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
