"""What NIR cannot express, rule by rule: just legal, just illegal, and as the documentation tells it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from machine_graphs import machine_graph
from neuron_cases import with_options
from norm_cases import norm_graph
from random_graphs import random_dag, random_graph, random_machine_dag
from readout_cases import with_membrane

from converters.graph import LIF, MEMBRANE_MAX, Attention, Graph, Readout, Source, Synapses
from targets import legality
from targets.legality import Limit, Violation
from targets.nir import limits
from targets.nir.limits import LIMITS
from targets.nir.rules import RULES

DOCS = Path(__file__).parents[2] / "docs" / "nir.md"


def chain(*, weights: int = 1, biases: int = 0, timesteps: int = 4, dv: int = 2048, name: str = "neuron") -> Graph:
    """One neuron of threshold 60000, whose current is always `100 * weights + biases`."""
    nodes = (
        Source("source", [[1] * weights], kind="sign"),
        Synapses("current", ("source",), [[100] * weights], [biases]),
        LIF(name, ("current",), 60_000, dv),
        Readout("readout", (name,), [[1]], [0]),
    )
    return Graph(timesteps, 3, nodes)


def attended(heads: int = 2, tokens: int = 3) -> Graph:
    nodes = (
        Source("source", [[1, 1], [-1, 1]]),
        Synapses("current", ("source",), np.eye(2, dtype=int), [0, 0]),
        LIF("neuron", ("current",), 0, 0),
        Attention("attention", ("neuron",) * 3, heads),
        LIF("after", ("attention",), 0, 0),
        Readout("readout", ("after",), [[1, 1]], [0]),
    )
    return Graph(1, tokens, nodes)


# rule -> a graph that just keeps to it, one that just does not, the nodes refused and the value
CASES: dict[str, tuple[Graph, Graph, dict[str, int]]] = {
    "no-product": (chain(), attended(tokens=1), {"attention": 3}),
    "no-norm": (chain(), norm_graph(), {"up.norm": 1, "down.norm": 1}),
    "sum-readout": (chain(), with_membrane(chain(), 0), {"readout": 1}),
    "stock-neuron": (chain(), with_options(chain(), reset="subtract"), {"neuron": 1}),
    "one-token": (attended(tokens=1), attended(tokens=2), {"attention": 2}),
    "exact-decay": (chain(timesteps=8), chain(timesteps=9), {"neuron": 8}),
    "no-saturation": (
        chain(weights=655, biases=5, dv=0, timesteps=1),
        chain(weights=10, biases=64_535, dv=0, timesteps=2),
        {"neuron": (60_000 + 65_535) * 128},
    ),
    "float32-exact": (
        chain(weights=164, biases=16, timesteps=8),
        chain(weights=164, biases=17, timesteps=8),
        {"neuron": 16_778_174},
    ),
}


def refused(rule_name: str, graph: Graph) -> list[Violation]:
    (rule,) = [rule for rule in RULES if rule.name == rule_name]
    return list(rule(graph))


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_at_its_limit(rule: str) -> None:
    legal, illegal, values = CASES[rule]
    assert refused(rule, legal) == []
    violations = refused(rule, illegal)
    assert {violation.node: violation.value for violation in violations} == values
    assert all(violation.rule == rule and violation.value > violation.limit for violation in violations)


def test_two_names_that_pytorch_takes_for_one() -> None:
    nodes = (
        Source("source", [[1]], kind="sign"),
        Synapses("up.down", ("source",), [[1]], [0]),
        LIF("up_down", ("up.down",), 0, 0),
        Readout("readout", ("up_down",), [[1]], [0]),
    )
    violations = refused("distinct-name", Graph(1, 1, nodes))
    assert [(violation.node, violation.value) for violation in violations] == [("up.down", 2), ("up_down", 2)]
    assert refused("distinct-name", chain(name="current.lif")) == []


def test_all_rules_are_tested_at_their_limits() -> None:
    assert [*CASES, "distinct-name"] == [rule.name for rule in RULES]


@pytest.mark.parametrize("dv", [1, 410, 1000, 3000, 4095])
def test_any_decay_is_exact_for_a_single_timestep(dv: int) -> None:
    assert legality.check(RULES, chain(dv=dv, timesteps=1)) == []
    assert refused("exact-decay", chain(dv=dv, timesteps=2)) != []


def test_a_membrane_that_just_does_not_saturate() -> None:
    """Membranes end at 2^23 - 1: 65535 accumulator units and 127 parts of 128."""
    reach = 65_535 * 128
    assert reach <= MEMBRANE_MAX < reach + 128
    assert refused("no-saturation", chain(weights=655, biases=35, dv=0, timesteps=1)) == []


def test_a_membrane_may_not_saturate_below_either() -> None:
    (violation,) = refused("no-saturation", chain(weights=10, biases=-64_535, dv=0, timesteps=2))
    assert violation.value == 2 * 63_535 * 128


def test_every_violation_is_named_at_once() -> None:
    graph = random_graph(np.random.default_rng(0), blocks=2, dv=410)
    violations = legality.check(RULES, graph)
    found = {(violation.rule, violation.node) for violation in violations}
    for block in range(2):
        assert {("no-product", f"block{block}.attention"), ("one-token", f"block{block}.attention")} <= found
        assert ("exact-decay", f"block{block}.fc1") in found
    decays = {node.name for node in graph if isinstance(node, LIF)}
    assert {node for rule, node in found if rule == "exact-decay"} == decays


def test_the_nodes_of_an_expanded_attention_are_refused() -> None:
    found = {(violation.rule, violation.node) for violation in legality.check(RULES, machine_graph())}
    assert {(rule, node) for rule in ("no-product", "one-token") for node in ("match", "product")} <= found


@pytest.mark.parametrize("make", [random_graph, random_dag, random_machine_dag])
def test_rules_take_any_legal_graph(make: Callable[..., Graph]) -> None:
    for seed in range(5):
        for violation in legality.check(RULES, make(np.random.default_rng(seed))):
            assert violation.value > violation.limit and violation.remedy and violation.source


# The table of limits


def test_every_limit_of_the_module_is_in_the_table_once() -> None:
    assert {value for value in vars(limits).values() if isinstance(value, Limit)} == set(LIMITS)
    assert [rule.limit for rule in RULES] == list(LIMITS)


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.name)
def test_the_documentation_tells_every_limit_and_its_source(limit: Limit) -> None:
    (rule,) = [rule for rule in RULES if rule.limit == limit]
    row = f"| `{rule.name}` | {limit.value} {limit.unit} | {limit.source} |"
    assert row in DOCS.read_text(encoding="utf-8").splitlines()


def test_the_installed_nir_multiplies_no_signals() -> None:
    """Every node that a NIR file may hold takes one value; none has a second input to multiply it with."""
    nir = pytest.importorskip("nir")
    from nir import ir

    known = {name for name in ir.__all__ if isinstance(getattr(ir, name), type) and name != "NIRNode"}
    assert known == {
        *("Input", "Output", "NIRGraph", "Affine", "Linear", "Scale", "Conv1d", "Conv2d", "AvgPool2d", "SumPool2d"),
        *("Flatten", "Delay", "Threshold", "I", "IF", "LI", "LIF", "CubaLI", "CubaLIF"),
    }
    assert list(nir.Linear(weight=np.eye(2)).input_type) == ["input"]


def test_the_installed_nirtorch_makes_one_name_of_two() -> None:
    pytest.importorskip("nirtorch")
    from nirtorch.utils import sanitize_name

    from targets.nir.rules import plain_name

    assert sanitize_name("a.b_c.d") == plain_name("a.b_c.d") == "a_b_c_d"
