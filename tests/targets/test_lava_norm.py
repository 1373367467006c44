"""Norms on Lava: the process, the plan, every way to run them, and what is noticed where the plan is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("lava.magma")

from hypothesis import given, settings
from norm_cases import BATCH, Case, cases, norm_graph
from random_graphs import random_batch, random_graph

from converters.execution import TokenBatch
from converters.graph import LIF, Graph, Norm, Readout, Source, Synapses, ValidLane
from converters.passes.lay_out_bias_lanes import LayOutBiasLanes
from converters.schedule import LatencyTable
from sim.reference import ReferenceEngine
from targets import legality
from targets.lava.engine import FAST_MODELS, STOCK_MODELS, LavaEngine, LavaInlineEngine
from targets.lava.grouping import group
from targets.lava.lowering import lower
from targets.lava.parts import normed
from targets.lava.plan import NormSpec, Plan, RouteSpec
from targets.lava.records import LavaMismatchError
from targets.lava.target import describe
from targets.legality import IllegalGraphError
from targets.loihi2.mapping.network import chip_network
from targets.loihi2.target import Loihi2Target
from targets.netx.legal import check as check_netx
from targets.nir.rules import RULES as NIR_RULES


def names_of(graph: Graph) -> list[str]:
    return [node.name for node in graph]


def assert_equal(graph: Graph, batch: TokenBatch, engine) -> None:
    expected, actual = ReferenceEngine(graph).run(batch, names_of(graph)), engine.run(batch, names_of(graph))
    engine.close()
    assert np.array_equal(actual.logits, expected.logits)
    for name, values in expected.values.items():
        assert np.array_equal(actual.values[name], values), name


@settings(deadline=None)
@given(cases())
def test_the_process_obeys_the_equations(case: Case) -> None:
    """Currents are doubled; a padded token is silent, one that is real and has no current gives beta."""
    width = len(case.gamma)
    spec = NormSpec("n", ("a", "x"), width, 1, 0, 1, case.kind, case.eps, case.gamma.astype(np.int32), case.beta)
    current = np.concatenate([2 * case.a, np.zeros((2, width))]).astype(np.int32)
    lane = np.array([1] * len(case.a) + [1, 0], np.int32)
    out = normed(spec, current, lane)
    assert np.array_equal(out[: len(case.a)], 2 * case.expected())
    assert np.array_equal(out[-2], 2 * case.beta) and not out[-1].any()
    assert np.array_equal(normed(spec, current, None)[: len(case.a)], 2 * case.expected(m=0))


def test_the_plan_of_a_norm() -> None:
    plan = lower(norm_graph())
    up, down = plan["up.norm"], plan["down.norm"]
    assert isinstance(up, NormSpec) and up.inputs == ("up", "up.norm#1") and up.parts == 1
    assert isinstance(plan["up.norm#1"], RouteSpec) and plan["up.norm#1"].delay_steps == 0  # its own step is the wait
    assert isinstance(down, NormSpec) and plan["down.norm#1"].delay_steps == 2  # synapses, norm and synapses, less one
    assert plan["up.lif"].inputs == ("up.norm",) and {"up.norm", "down.norm"} <= plan.doubled
    assert plan.schedule.latency_steps["up.lif"] == 2
    [entry] = [each for each in describe(plan)["processes"] if each["name"] == "up.norm"]
    assert entry["process"] == "TokenNorm"


def test_a_layer_with_its_norm_is_one_group() -> None:
    plan = lower(norm_graph())
    groups = {spec.name: each for each in group(plan, "layer") for spec in each.specs}
    assert groups["up"] is groups["up.norm"] is groups["up.lif"]
    for how in ("process", "layer", "core"):
        assert {spec.name for each in group(plan, how, cores=2) for spec in each.specs} > {"up.norm", "down.norm"}


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("timesteps", [1, 2, 8])
@pytest.mark.parametrize("biased", [True, False])
def test_inline_equals_the_reference(kind: str, timesteps: int, biased: bool) -> None:
    graph = norm_graph(kind, timesteps, biased=biased)
    assert_equal(graph, BATCH, LavaInlineEngine(graph))


@pytest.mark.parametrize("models", [FAST_MODELS, STOCK_MODELS], ids=["fast", "stock"])
def test_inline_with_each_process_on_its_own(models) -> None:
    graph = norm_graph()
    assert_equal(graph, BATCH, LavaInlineEngine(graph, models))


@pytest.mark.parametrize("grouping", ["process", "core"])
def test_inline_in_other_groups(grouping) -> None:
    graph = norm_graph()
    assert_equal(graph, BATCH, LavaInlineEngine(graph, grouping=grouping))


@pytest.mark.parametrize("attention", ["process", "stock"])
def test_blocks_of_a_transformer_with_norms(attention) -> None:
    """Residuals carry lanes past layers whose neurons, behind norms, carry none."""
    rng = np.random.default_rng(2)
    graph = random_graph(rng, blocks=2, hidden=8, n_max=3, norms=1.0)
    assert sum(isinstance(node, Norm) for node in graph) == 12
    batch = random_batch(rng, graph, 4)
    assert_equal(graph, batch, LavaInlineEngine(graph, attention=attention))
    laid = LayOutBiasLanes().rewrite(graph).graph
    assert_equal(laid, batch, LavaInlineEngine(laid, attention=attention))


def test_the_runtime_equals_the_reference() -> None:
    graph = norm_graph()
    assert_equal(graph, BATCH, LavaEngine(graph))


def test_the_runtime_with_processes_one_by_one() -> None:
    graph = norm_graph("rms", biased=False)
    assert_equal(graph, BATCH, LavaEngine(graph, grouping="process"))


def test_a_current_that_waits_for_its_lane() -> None:
    """A lane that is there later than the current: of spikes that took two layers more."""
    graph = norm_graph()
    always = np.full((1, 5), 1)
    nodes = [
        *graph.nodes[:1],
        ValidLane("lane", 5),
        Synapses("late", ("lane",), always, [0]),
        LIF("late.lif", ("late",), 0),
        Synapses("later", ("late.lif",), [[3]], [0]),
        LIF("later.lif", ("later",), 0),
        *graph.nodes[1:],
    ]
    place = next(place for place, node in enumerate(nodes) if node.name == "up.norm")
    nodes[place] = replace(nodes[place], inputs=("up", "later.lif"))
    laid = Graph(graph.timesteps, graph.n_max, tuple(nodes))
    assert lower(laid)["up.norm#0"].delay_steps == 0  # the current waits a step
    for models in (None, FAST_MODELS):
        assert_equal(laid, BATCH, LavaInlineEngine(laid, models))


def broken(plan: Plan, **fields) -> Plan:
    """The plan whose first norm has other fields."""
    specs = tuple(replace(spec, **fields) if spec.name == "up.norm" else spec for spec in plan.specs)
    return replace(plan, specs=specs)


@pytest.mark.parametrize(
    "fields",
    [{"lane_channel": None}, {"eps": 2**50}, {"kind": "rms"}, {"gamma": np.full(10, 99 * 256, np.int32)}],
    ids=lambda fields: next(iter(fields)),
)
def test_a_wrong_norm_is_noticed(fields: dict) -> None:
    """Negative controls."""
    graph = norm_graph()
    with pytest.raises((AssertionError, LavaMismatchError)):
        assert_equal(graph, BATCH, LavaInlineEngine(graph, plan=broken(lower(graph), **fields)))


def test_a_lane_that_waits_too_short_is_noticed() -> None:
    graph = norm_graph()
    plan = lower(graph)
    specs = tuple(replace(spec, delay_steps=1) if spec.name == "down.norm#1" else spec for spec in plan.specs)
    with pytest.raises((AssertionError, LavaMismatchError)):
        assert_equal(graph, BATCH, LavaInlineEngine(graph, plan=replace(plan, specs=specs)))


def test_a_wrong_latency_is_noticed() -> None:
    graph = norm_graph()
    with pytest.raises((AssertionError, LavaMismatchError)):
        assert_equal(graph, BATCH, LavaInlineEngine(graph, plan=lower(graph, LatencyTable(norm=0))))


def test_what_has_no_norm_refuses_it_by_name_and_says_what_to_do() -> None:
    graph = norm_graph()
    found = {
        "no-norm-process": [*Loihi2Target().check(graph)],
        "no-norm": [*check_netx(graph), *legality.check(NIR_RULES, graph)],
    }
    for rule, violations in found.items():
        own = [violation for violation in violations if violation.rule == rule]
        assert {violation.node for violation in own} == {"up.norm", "down.norm"}
        assert all('norm "batch"' in violation.remedy and '"none"' in violation.remedy for violation in own)
    assert len([each for each in found["no-norm"] if each.rule == "no-norm"]) == 4
    with pytest.raises(IllegalGraphError, match="no-norm-process"):
        chip_network(graph)


def test_a_network_without_a_norm_passes_those_rules() -> None:
    nodes = [node for node in norm_graph() if not isinstance(node, Norm)]
    nodes = [
        replace(node, inputs=(node.inputs[0].removesuffix(".norm"),)) if isinstance(node, LIF) else node
        for node in nodes
    ]
    graph = Graph(2, 4, tuple(nodes))
    assert isinstance(graph.readout, Readout) and isinstance(graph.source, Source)
    assert not [violation for violation in Loihi2Target().check(graph) if "norm" in violation.rule]
