"""Every mistake that this lowering could make, made on purpose: comparing with the reference must notice each.

A comparison that cannot fail shows nothing. Each control changes one thing in a plan (or in the reference) and runs
it on Lava's ProcessModels in this process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("lava.magma")

from random_graphs import random_batch, random_graph

from converters import encoder
from converters.execution import TokenBatch
from converters.graph import MEMBRANE_MAX, Attention, Graph
from converters.passes.expand_attention import ExpandAttention
from sim import reference
from targets.lava.engine import FAST_MODELS, STOCK_MODELS, LavaInlineEngine
from targets.lava.lowering import lower
from targets.lava.plan import (
    AdderSpec,
    AttentionSpec,
    FanSpec,
    NeuronSpec,
    Plan,
    ProductSpec,
    RouteSpec,
    Spec,
    SynapsesSpec,
)
from targets.lava.records import LavaMismatchError


def example(timesteps: int = 4, dv: int = 410, **options: object) -> tuple[Graph, TokenBatch]:
    rng = np.random.default_rng(42)
    graph = random_graph(rng, blocks=1, hidden=12, n_max=4, timesteps=timesteps, dv=dv, **options)
    return graph, random_batch(rng, graph, 8)


def agrees(graph: Graph, batch: TokenBatch, plan: Plan | None = None, models: dict[str, str] = FAST_MODELS) -> bool:
    """Whether Lava, running `plan`, gives every spike and logit of the reference, and is silent where it must be."""
    expected = reference.ReferenceEngine(graph).run(batch, graph.spiking)
    engine = LavaInlineEngine(graph, models, plan)
    try:
        actual = engine.run(batch, graph.spiking)
    except LavaMismatchError:
        return False
    finally:
        engine.close()
    spikes = all(np.array_equal(actual.values[name], expected.values[name]) for name in graph.spiking)
    return spikes and np.array_equal(actual.logits, expected.logits)


def changed(plan: Plan, change: Callable[[Spec], Spec]) -> Plan:
    return replace(plan, specs=tuple(change(spec) for spec in plan.specs))


def test_without_a_mistake_they_agree() -> None:
    graph, batch = example()
    assert agrees(graph, batch)


def test_the_default_threshold_of_gradedvec_is_noticed() -> None:
    graph, batch = example()
    plan = changed(lower(graph), lambda spec: replace(spec, vth=1) if isinstance(spec, AdderSpec) else spec)
    assert not agrees(graph, batch, plan)


def undoubled(spec: Spec) -> Spec:
    """w in place of 2w, and the threshold to match; attention and the readout double on their own."""
    if isinstance(spec, SynapsesSpec) and spec.name != "readout":
        return replace(spec, weight=spec.weight // 2)
    if isinstance(spec, NeuronSpec) and spec.name != "block0.attention_lif":
        return replace(spec, vth=spec.vth // 2)
    return spec


def test_odd_weights_are_noticed() -> None:
    graph, batch = example(bias_max=0)
    plan = changed(lower(graph), undoubled)
    assert not agrees(graph, batch, plan)


def test_odd_weights_fail_by_rounding_alone() -> None:
    """The control of that control: stock Conv does not round, and decay only forgets, so there they agree."""
    graph, batch = example(bias_max=0, dv=0)
    plan = changed(lower(graph), undoubled)
    assert agrees(graph, batch, plan, dict(STOCK_MODELS))
    assert not agrees(graph, batch, plan)


@pytest.mark.parametrize("wrong", [-1, 1])
@pytest.mark.parametrize("timesteps", [4, 8])
def test_a_reset_one_step_off_is_noticed(timesteps: int, wrong: int) -> None:
    graph, batch = example(timesteps)

    def shift_reset(spec: Spec) -> Spec:
        if isinstance(spec, NeuronSpec) and spec.name == "block0.fc1":
            return replace(spec, reset_offset=(spec.reset_offset + wrong) % spec.reset_interval)
        return spec

    assert not agrees(graph, batch, changed(lower(graph), shift_reset))


def test_no_reset_is_noticed() -> None:
    graph, batch = example()

    def never(spec: Spec) -> Spec:
        return replace(spec, reset_interval=1 << 30, reset_offset=0) if isinstance(spec, NeuronSpec) else spec

    assert not agrees(graph, batch, changed(lower(graph), never))


@pytest.mark.parametrize("wrong", [-1, 1])
@pytest.mark.parametrize("route", ["block0.add1#0", "block0.add2#0"])
def test_a_residual_delay_one_step_off_is_noticed(route: str, wrong: int) -> None:
    graph, batch = example()

    def shift_delay(spec: Spec) -> Spec:
        if isinstance(spec, RouteSpec) and spec.name == route:
            return replace(spec, delay_steps=spec.delay_steps + wrong)
        return spec

    assert not agrees(graph, batch, changed(lower(graph), shift_delay))


@pytest.mark.parametrize("name", ["block0.fc1.synapses", "readout", "block0.add2#0"])
def test_binary_messages_on_a_graded_input_are_noticed(name: str) -> None:
    graph, batch = example()
    plan = lower(graph)
    assert plan[name].message_bits > 0

    def binary(spec: Spec) -> Spec:
        return replace(spec, message_bits=0) if spec.name == name else spec

    assert not agrees(graph, batch, changed(plan, binary))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("block0.attention.product", lambda spec: replace(spec, exp=0)),  # scores stay doubled
        ("block0.attention.product", lambda spec: replace(spec, vth=1)),  # as ProdNeuron's default: a product of 1 goes
        ("block0.attention.relay", lambda spec: replace(spec, vth=2)),  # a score of 1 goes
        ("block0.attention.match", lambda spec: replace(spec, vth=0)),  # fires for one spike
        ("block0.attention.match", lambda spec: replace(spec, dv=0)),  # does not forget it
        ("block0.attention.product#1", lambda spec: replace(spec, delay_steps=spec.delay_steps - 1)),
        ("block0.attention.product#0", lambda spec: replace(spec, message_bits=0)),
        ("block0.attention.match#1", lambda spec: replace(spec, kind="query")),
    ],
)
def test_a_mistake_in_stock_attention_is_noticed(name: str, change: Callable[[Spec], Spec]) -> None:
    graph, batch = example()
    graph = ExpandAttention().rewrite(graph).graph
    plan = lower(graph)
    assert isinstance(plan[name], (ProductSpec, AdderSpec, NeuronSpec, FanSpec))
    assert agrees(graph, batch, plan)
    assert not agrees(graph, batch, changed(plan, lambda spec: change(spec) if spec.name == name else spec))


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: replace(spec, pieces=(*spec.pieces[:-1], replace(spec.pieces[-1], start=0))),
        lambda spec: replace(spec, similarity="and"),
        lambda spec: replace(spec, bias=None),
        lambda spec: replace(spec, bias=spec.bias.swapaxes(1, 2)),  # places of key and query mixed up
        lambda spec: replace(spec, bias=spec.bias[::-1]),  # of the other head
    ],
    ids=["a feature for the lane", "no equal zeros", "no bias", "bias turned", "heads turned"],
)
def test_a_mistake_in_the_scores_of_attention_is_noticed(change: Callable[[Spec], Spec]) -> None:
    graph, batch = example()
    scoring = {"similarity": "xnor", "bias": np.arange(32).reshape(2, 4, 4)}
    nodes = (
        replace(node, **scoring) if isinstance(node, Attention) else
        replace(node, threshold=150) if node.name == "block0.attention_lif" else node
        for node in graph
    )  # fmt: skip
    graph = Graph(graph.timesteps, graph.n_max, tuple(nodes))
    plan = lower(graph)
    assert agrees(graph, batch, plan)
    assert not agrees(
        graph, batch, changed(plan, lambda spec: change(spec) if isinstance(spec, AttentionSpec) else spec)
    )


def test_lanes_that_count_twice_in_an_add_are_noticed() -> None:
    graph, batch = example()
    plan = lower(graph)
    lanes, source = plan.lanes["block0.add1"], plan["block0.add1#0"]
    assert lanes > 0

    def twice(spec: Spec) -> Spec:
        if spec.name != "block0.add1#0":
            return spec
        weight = source.weight.copy()
        weight[-lanes:] *= 2
        return replace(spec, weight=weight)

    assert not agrees(graph, batch, changed(plan, twice))


def test_a_lane_that_is_too_weak_is_noticed() -> None:
    graph, batch = example()

    def weaken(spec: Spec) -> Spec:
        if spec.name != "block0.fc1.synapses":
            return spec
        weight = spec.weight.copy()
        weight[24:] = 0  # the lanes of fc1, which is 2 x 12 wide
        return replace(spec, weight=weight)

    plan = lower(graph)
    assert plan.lanes["block0.fc1"] > 0
    assert not agrees(graph, batch, changed(plan, weaken))


def wrong_lif(shift: int, floor: bool, fires_at: bool) -> Callable[..., np.ndarray]:
    """`converters.encoder.lif` of a stock neuron, with mistakes."""

    def rule(current: np.ndarray, threshold: int, dv: int, _: int, *kind: object) -> np.ndarray:
        assert kind == ("zero", "binary", 1)
        membrane = np.zeros(current.shape[1:], dtype=np.int64)
        level, spikes = int(threshold) << shift, np.empty(current.shape, dtype=np.int64)
        for t, a in enumerate(current):
            decayed = (membrane * (4096 - dv)) >> 12 if floor else encoder.decay(membrane, dv)
            membrane = np.clip(decayed + (a << shift), -MEMBRANE_MAX, MEMBRANE_MAX)
            spikes[t] = membrane >= level if fires_at else membrane > level
            membrane = np.where(spikes[t] == 1, 0, membrane)
        return spikes

    return rule


@pytest.mark.parametrize(
    "mistake, noticed",
    [
        ({"shift": 7, "floor": False, "fires_at": False}, False),  # none, in this writing of the rule
        ({"shift": 6, "floor": False, "fires_at": False}, True),
        ({"shift": 7, "floor": True, "fires_at": False}, True),
        ({"shift": 7, "floor": False, "fires_at": True}, True),
    ],
)
def test_a_wrong_rule_in_the_reference_is_noticed(
    mistake: dict[str, object], noticed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    graph = random_graph(rng, blocks=1, hidden=48, heads=4, n_max=8, timesteps=16, dv=410)
    batch = random_batch(rng, graph, 16)
    monkeypatch.setattr(reference, "lif", wrong_lif(**mistake))
    assert agrees(graph, batch) is not noticed
