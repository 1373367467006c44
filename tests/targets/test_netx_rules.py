"""Which graphs a network file of lava-dl can hold: every rule, kept and broken. None of it may need Lava."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from netx_chains import random_chain
from random_graphs import random_dag, random_graph, random_machine_dag
from unheard import Unheard

from converters.graph import (
    LIF,
    Add,
    Attention,
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
from converters.passes.expand_attention import ExpandAttention
from converters.passes.lay_out_bias_lanes import LayOutBiasLanes
from converters.passes.remove_unread_nodes import RemoveUnreadNodes
from converters.passes.split_wide_layers import SplitWideLayers
from targets.lava import limits as lava_limits
from targets.legality import IllegalGraphError, Limit, Rule
from targets.netx import limits
from targets.netx.chain import make_chain
from targets.netx.legal import check, lower_legal
from targets.netx.limits import LIMITS
from targets.netx.rules import LAID_OUT_RULES, RULES

ALL_RULES = (*RULES, *LAID_OUT_RULES)
DOCS = Path(__file__).parents[2] / "docs" / "netx.md"
EYE, ZERO = np.eye(2, dtype=np.int8), np.zeros(2, dtype=np.int32)


def layers(depth: int, threshold: int | np.ndarray = 0) -> list[Node]:
    """A source x and `depth` layers s0, s1, ..."""
    nodes: list[Node] = [Source("x", np.ones((3, 2), dtype=np.int8))]
    for index in range(depth):
        before = "x" if index == 0 else f"s{index - 1}"
        nodes += [Synapses(f"a{index}", (before,), EYE, ZERO), LIF(f"s{index}", (f"a{index}",), threshold)]
    return nodes


def graph_of(*nodes: Node) -> Graph:
    return Graph(4, 2, nodes)


def ended(nodes: Iterable[Node], weight: np.ndarray = EYE, bias: np.ndarray = ZERO) -> Graph:
    """The nodes, and a readout of the last."""
    nodes = tuple(nodes)
    return graph_of(*nodes, Readout("y", (nodes[-1].name,), weight, bias))


def found(graph: Graph) -> list[tuple[str, str, int, int]]:
    return [(each.node, each.rule, each.value, each.limit) for each in check(graph)]


@pytest.mark.parametrize("depth", [0, 1, 5])
@pytest.mark.parametrize("bias", [0, 3])
def test_a_chain_of_any_depth_is_legal(depth: int, bias: int) -> None:
    assert found(ended(layers(depth), bias=ZERO + bias)) == []


@pytest.mark.parametrize("seed", range(5))
def test_random_chains_are_legal(seed: int) -> None:
    graph = random_chain(np.random.default_rng(seed))
    assert found(graph) == found(LayOutBiasLanes().rewrite(graph).graph) == []


def test_attention_and_all_that_it_may_be_made_of_is_refused() -> None:
    graph = ended([*layers(1), Attention("attention", ("s0", "s0", "s0"), 1), LIF("s1", ("attention",), 0)])
    assert found(graph) == [("attention", "no-attention", 1, 0)]
    rules = {(node, rule) for node, rule, _, _ in found(ExpandAttention().rewrite(graph).graph)}
    parts = ("attention.match", "attention.relay", "attention.product")
    assert {(part, "no-attention") for part in parts} <= rules


def test_a_residual_is_refused_with_the_branch_that_leads_to_it() -> None:
    assert found(ended([*layers(1), Add("sum", ("x", "s0"))])) == [
        ("sum", "no-residual", 1, 0),
        ("x", "one-reader", 2, 1),
    ]


def test_slices_and_concats_are_refused_on_the_chip_and_taken_on_the_host() -> None:
    part, both = Slice("part", ("s0",), 0, 1), Concat("both", ("part", "part"))
    assert found(ended([*layers(1), part, both])) == [("part", "no-concat", 1, 0), ("both", "no-concat", 1, 0)]
    source, first, last = layers(1)
    sent = (source, ValidLane("m", 1), Slice("some", ("x",), 0, 1), Concat("sent", ("some", "m")))
    assert found(ended([*sent, replace(first, inputs=("sent",)), last])) == []


def test_a_layer_that_was_split_is_refused() -> None:
    graph = SplitWideLayers(4).rewrite(random_chain(np.random.default_rng(0))).graph
    assert {rule for _, rule, _, _ in found(graph)} == {"no-concat", "one-reader"}


def test_a_source_of_graded_spikes_is_refused() -> None:
    graph = ended(layers(1))
    source = replace(graph.source, kind="lif", spike="graded", cap=3)
    graded = Graph(graph.timesteps, graph.n_max, (source, *graph.nodes[1:]))
    assert found(graded) == [(source.name, "stock-neuron", 1, 0)]


def test_two_neurons_on_one_current_are_refused() -> None:
    graph = ended([*layers(1), LIF("other", ("a0",), 5), Add("sum", ("s0", "other"))])
    assert ("a0", "one-reader", 2, 1) in found(graph)


def test_a_dead_end_is_refused_until_the_pass_takes_it_out() -> None:
    graph = graph_of(*layers(2), Readout("y", ("s0",), EYE, ZERO))
    assert found(graph) == [("s0", "one-reader", 2, 1), ("s1", "no-dead-end", 1, 0)]
    assert found(RemoveUnreadNodes().rewrite(graph).graph) == []


def test_a_threshold_that_no_lane_passes_is_refused_where_a_bias_follows() -> None:
    assert found(ended(layers(2, 65535))) == []
    assert found(ended(layers(2, 65534), bias=ZERO + 1)) == []
    expected = [(name, "lane-threshold", 65535, 65534) for name in ("s0", "s1")]
    assert found(ended(layers(2, 65535), bias=ZERO + 1)) == expected


def test_differing_thresholds_are_refused() -> None:
    assert found(ended(layers(1, np.array([7, 7])))) == []
    assert found(ended(layers(1, np.array([7, 8])))) == [("s0", "scalar-threshold", 2, 1)]


def test_a_current_beyond_what_lava_holds_is_refused_even_where_a_graph_would_allow_it(monkeypatch) -> None:
    monkeypatch.setattr("converters.graph.ACCUMULATOR_MAX", 2**20)
    graph = ended(layers(1), bias=np.array([0, 65536]))
    assert found(graph) == [("y", "bounded-current", 2 * 65537, 131071)]


def test_a_layer_of_zeros_is_refused() -> None:
    assert found(ended(layers(1), 0 * EYE)) == [("y", "no-empty-layer", 1, 0)]
    assert found(ended(layers(1), 0 * EYE, ZERO + 1)) == []  # weights from the lanes are in the file, too


@pytest.mark.parametrize(
    ("weight", "lost"),
    [
        ([[-64, 0], [-64, -3]], 2),
        ([[-64, 1], [-64, -3]], 0),
        ([[-65, 0], [-64, -3]], 0),
        ([[-128, -1], [-1, -127]], 1),
        ([[-128, 1], [-1, -127]], 0),
        ([[-1, 0], [0, -1]], 2),
    ],
)
def test_weights_that_would_change_are_counted(weight: list[list[int]], lost: int) -> None:
    violations = found(ended(layers(1), np.array(weight)))
    assert violations == ([("y", "held-weights", lost, 0)] if lost else [])


def test_violations_of_different_rules_are_named_at_once() -> None:
    nodes = layers(2, np.array([1, 65535]))
    nodes += [Attention("attention", ("s0", "s1", "s1"), 1), LIF("s2", ("attention",), 0), Add("sum", ("s0", "s2"))]
    violations = check(ended([*nodes, Slice("part", ("sum",), 0, 1)], np.array([[-4], [-4]]), ZERO - 1))
    assert [(each.node, each.rule) for each in violations] == [
        ("attention", "no-attention"),
        ("sum", "no-residual"),
        ("part", "no-concat"),
        ("s0", "one-reader"),
        ("s0", "lane-threshold"),
        ("s1", "lane-threshold"),
        ("s0", "scalar-threshold"),
        ("s1", "scalar-threshold"),
        ("y", "held-weights"),
    ]
    assert all(each.unit and each.source and each.remedy for each in violations)
    with pytest.raises(IllegalGraphError) as raised:
        lower_legal(ended([*nodes, Slice("part", ("sum",), 0, 1)], np.array([[-4], [-4]]), ZERO - 1))
    assert raised.value.violations == tuple(violations)


@pytest.mark.parametrize("seed", range(30))
def test_a_graph_is_a_chain_or_a_rule_says_why_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for graph in (random_dag(rng, nodes=2), random_dag(rng), random_machine_dag(rng, nodes=1), random_graph(rng)):
        if check(graph):
            continue
        chain = make_chain(graph)
        done = {name for layer in chain.layers for name in (layer.synapses, layer.neuron)}
        assert {node.name for node in graph if not isinstance(node, Source)} == done - {None}


def test_of_some_random_graphs_there_are_both() -> None:
    graphs = [random_dag(np.random.default_rng(seed), nodes=2) for seed in range(30)]
    assert {bool(check(graph)) for graph in graphs} == {True, False}


# The rules themselves


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
def test_a_rule_explains_itself(rule: Rule) -> None:
    assert rule.explanation.endswith(".") and rule.remedy


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
def test_a_rule_passes_over_nodes_it_does_not_know(rule: Rule) -> None:
    """The node is smuggled in after the Graph was checked. That nobody reads it is true of any node."""
    honest = ended(layers(1))
    graph = object.__new__(Graph)
    nodes = (*honest.nodes[:-1], Unheard("new", ("s0",)), replace(honest.readout, inputs=("new",)))
    vars(graph).update(timesteps=4, n_max=2, nodes=nodes)
    assert list(rule(graph)) == []


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
def test_a_rule_takes_nodes_of_every_kind(rule: Rule) -> None:
    """What it says of them is not asked here."""
    nodes = (
        *layers(1), ValidLane("lane", 2), Slice("part", ("s0",), 1, 2), Concat("both", ("part", "part", "lane")),
        Coincidence("met", ("s0", "s0")), Synapses("scores.a", ("met",), np.ones((2, 4), int), ZERO),
        Relay("scores", ("scores.a",)), Product("brought", ("scores", "s0"), 1), Add("sum", ("s0", "s0")),
        Attention("seen", ("s0", "s0", "s0"), 1), Readout("y", ("both",), np.ones((2, 4), int), ZERO),
    )  # fmt: skip
    assert {violation.rule for violation in rule(graph_of(*nodes))} <= {rule.name}


# The table of limits


def test_every_limit_of_the_module_is_in_the_table_once() -> None:
    assert {value for value in vars(limits).values() if isinstance(value, Limit)} == set(LIMITS)
    assert len({limit.name for limit in LIMITS}) == len(LIMITS)
    of_lava = {lava_limits.THRESHOLDS, lava_limits.CURRENT}
    assert {rule.limit for rule in ALL_RULES} == {*LIMITS, *of_lava}


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.name)
def test_the_documentation_tells_every_rule_and_its_source(rule: Rule) -> None:
    limit = rule.limit
    row = f"| `{rule.name}` | {limit.value} {limit.unit} | {limit.source} |"
    assert row in DOCS.read_text(encoding="utf-8").splitlines()


def test_rules_need_neither_lava_nor_torch_nor_h5py() -> None:
    script = f"""
import sys
sys.path[:] = {sys.path!r}
for name in ("lava", "torch", "h5py"):
    sys.modules[name] = None
import numpy as np
from netx_chains import random_chain
import targets.netx.target
from targets.netx.legal import check, lower_legal

graph = random_chain(np.random.default_rng(0))
assert check(graph) == [] and len(lower_legal(graph).layers) == 3
"""
    subprocess.run([sys.executable, "-c", script], check=True)
