"""Soft reset, graded and ternary spikes on Lava: every way to run them, what is noticed where the plan is wrong, and
the targets that have no such neurons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("lava.magma")

from hypothesis import given, settings
from hypothesis import strategies as st
from neuron_cases import BATCH, KINDS, OTHERS, Kind, drives, naive_neuron, scalar_rule_graph

from converters.graph import LIF, Graph
from sim.reference import ReferenceEngine
from targets import legality
from targets.lava.engine import FAST_MODELS, STOCK_MODELS, LavaEngine, LavaInlineEngine
from targets.lava.lowering import lower
from targets.lava.parts import Membrane
from targets.lava.plan import NeuronSpec, Plan, RouteSpec
from targets.lava.records import LavaMismatchError
from targets.lava.target import LavaTarget, describe
from targets.legality import IllegalGraphError
from targets.loihi2.mapping.network import chip_network
from targets.loihi2.target import Loihi2Target
from targets.netx.legal import check as check_netx
from targets.nir.rules import RULES as NIR_RULES
from targets.sanafe.target import SanafeTarget

FEW = (("subtract", "binary", 1), ("zero", "graded", 2), ("subtract", "ternary", 1))  # where a network starts slowly


def assert_equal(graph: Graph, engine) -> None:
    names = [node.name for node in graph]
    expected, actual = ReferenceEngine(graph).run(BATCH, names), engine.run(BATCH, names)
    engine.close()
    assert np.array_equal(actual.logits, expected.logits)
    for name, values in expected.values.items():
        assert np.array_equal(actual.values[name], values), name


@settings(deadline=None, max_examples=200)
@given(drives(), st.sampled_from(KINDS))
def test_the_process_obeys_the_equation(drive: tuple[list[int], int, int], kind: Kind) -> None:
    """Currents and thresholds are doubled; at time_step T + 1 a new sample begins, at a membrane of 0."""
    currents, threshold, dv = drive
    steps = len(currents)
    spec = NeuronSpec("n", ("a",), 1, 2 * threshold, dv, steps, 1, *kind)
    neuron = Membrane(spec, 1)
    rows = [np.array([[2 * a]], np.int32) for a in (*currents, *currents)]
    sent = [int(neuron.answer([row], step)[0, 0]) for step, row in enumerate(rows, start=1)]
    assert sent == 2 * naive_neuron(currents, threshold, dv, kind)


def test_the_plan_names_the_process_and_its_messages() -> None:
    for kind in KINDS:
        plan = lower(scalar_rule_graph(kind))
        entries = {each["name"]: each for each in describe(plan)["processes"]}
        stock = kind == KINDS[0]
        assert entries["out.lif"]["process"] == ("LIFReset" if stock else "RuleNeuron")
        assert entries["q.lif"]["process"] == ("LIFReset" if kind[0] == "zero" else "RuleNeuron")
        assert ("reset" in entries["out.lif"]) != stock
        bits = {"binary": 0, "graded": kind[2].bit_length(), "ternary": 2}[kind[1]]  # one and a sign
        into_sum = [spec for spec in plan.specs if isinstance(spec, RouteSpec) and spec.inputs == ("out.lif",)]
        assert into_sum and {spec.message_bits for spec in into_sum} == {bits}
        assert all(spec.message_bits == bits for spec in plan.specs if spec.name == "out")


@pytest.mark.parametrize(
    ("kind", "timesteps"),
    [*((kind, 4) for kind in FEW), (("zero", "graded", 15), 4), (("subtract", "graded", 15), 1)],
    ids=str,
)
def test_inline_equals_the_reference(kind: Kind, timesteps: int) -> None:
    graph = scalar_rule_graph(kind, timesteps=timesteps)
    assert LavaTarget().check(graph) == []
    assert_equal(graph, LavaInlineEngine(graph))


@pytest.mark.parametrize(
    ("kind", "models"), [(("subtract", "graded", 15), FAST_MODELS), (("zero", "ternary", 1), STOCK_MODELS)], ids=str
)
def test_inline_with_each_process_on_its_own(kind: Kind, models) -> None:
    graph = scalar_rule_graph(kind)
    assert_equal(graph, LavaInlineEngine(graph, models))


def test_inline_with_attention_of_stock_neurons() -> None:
    graph = scalar_rule_graph(("subtract", "ternary", 1))
    assert_equal(graph, LavaInlineEngine(graph, attention="stock"))


def test_the_runtime_equals_the_reference() -> None:
    graph = scalar_rule_graph(("subtract", "graded", 15))
    assert_equal(graph, LavaEngine(graph))


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS, ids=str)
def test_every_process_on_its_own(kind: Kind) -> None:
    graph = scalar_rule_graph(kind)
    assert_equal(graph, LavaEngine(graph, grouping="process"))
    for models in (FAST_MODELS, STOCK_MODELS):
        assert_equal(graph, LavaInlineEngine(graph, models))


# Negative controls


def broken(plan: Plan, name: str, **fields: object) -> Plan:
    """The plan in which a process, and what it leads into, has other fields."""
    specs = tuple(replace(spec, **fields) if spec.name == name else spec for spec in plan.specs)
    return replace(plan, specs=specs)


@pytest.mark.parametrize("kind", FEW[1:], ids=str)
@pytest.mark.parametrize("what", ["stock", "reset", "spike", "cleared a step late"])
def test_a_wrong_neuron_is_noticed(kind: Kind, what: str) -> None:
    """Negative controls."""
    graph = scalar_rule_graph(kind, timesteps=8, dv=0)
    plan = lower(graph)
    right = plan["up.lif"]
    assert isinstance(right, NeuronSpec)
    fields = {
        "stock": {"reset": "zero", "spike": "binary", "cap": 1},
        "reset": {"reset": "zero" if kind[0] == "subtract" else "subtract"},
        "spike": {"spike": "ternary", "cap": 1} if kind[1] != "ternary" else {"spike": "binary"},
        "cleared a step late": {"reset_offset": right.reset_offset + 1},
    }[what]
    with pytest.raises((AssertionError, LavaMismatchError)):
        assert_equal(graph, LavaInlineEngine(graph, plan=broken(plan, "up.lif", **fields)))


@pytest.mark.parametrize("kind", FEW[1:], ids=str)
def test_messages_without_a_payload_are_noticed(kind: Kind) -> None:
    """Signs and sizes get lost where a synapse takes its input for bits."""
    graph = scalar_rule_graph(kind, timesteps=8)
    plan = lower(graph)
    [route, *_] = [spec for spec in plan.specs if isinstance(spec, RouteSpec) and spec.inputs == ("out.lif",)]
    assert route.message_bits > 0
    with pytest.raises((AssertionError, LavaMismatchError)):
        assert_equal(graph, LavaInlineEngine(graph, plan=broken(plan, route.name, message_bits=0)))


# Targets that have no such neurons


@pytest.mark.parametrize("kind", OTHERS, ids=str)
def test_what_has_no_such_neuron_refuses_it_by_name_and_says_what_to_do(kind: Kind) -> None:
    graph = scalar_rule_graph(kind)
    others = {node.name for node in graph if isinstance(node, LIF) and not node.is_stock}
    host = {graph.source.name} if kind[1] == "graded" else set()  # the first layer of netx takes bits
    targets = (Loihi2Target().check(graph), SanafeTarget().check(graph), legality.check(NIR_RULES, graph))
    for violations, expected in (*((each, others) for each in targets), (check_netx(graph), others | host)):
        own = [violation for violation in violations if violation.rule == "stock-neuron"]
        assert {violation.node for violation in own} == expected
        assert all(
            "reset zero, spike binary" in violation.remedy and "value_cap 1" in violation.remedy for violation in own
        )
    with pytest.raises(IllegalGraphError, match="stock-neuron"):
        chip_network(graph)


def test_stock_neurons_pass_those_rules() -> None:
    graph = scalar_rule_graph(KINDS[0])
    for violations in (Loihi2Target().check(graph), check_netx(graph), legality.check(NIR_RULES, graph)):
        assert "stock-neuron" not in {violation.rule for violation in violations}


def test_a_source_with_a_soft_reset_is_the_hosts_and_legal_everywhere() -> None:
    graph = scalar_rule_graph(KINDS[0])
    source = replace(graph.source, reset="subtract")
    soft = Graph(graph.timesteps, graph.n_max, (source, *graph.nodes[1:]))
    assert str(Loihi2Target().check(soft)) == str(Loihi2Target().check(graph))
    assert_equal(soft, LavaInlineEngine(soft))
