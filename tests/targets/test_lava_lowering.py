"""The plan of a graph: where values stand, processes, and their limits."""

from __future__ import annotations

import numpy as np
import pytest
from random_graphs import random_dag, random_graph

from converters.graph import LIF, Concat, Graph, Readout, Slice, Source, Synapses
from converters.passes.expand_attention import ExpandAttention
from converters.passes.lay_out_bias_lanes import LayOutBiasLanes
from converters.passes.merge_query_key_value import MergeQueryKeyValue
from converters.passes.split_wide_layers import SplitWideLayers
from targets.lava.lowering import attention_inputs, lower, message_bits
from targets.lava.plan import (
    AdderSpec,
    AttentionSpec,
    FanSpec,
    NeuronSpec,
    ProductSpec,
    RouteSpec,
    Segment,
    SynapsesSpec,
    cut,
    fan_entries,
    selection,
)

TWO = (Segment("a", 2, 5), Segment("b", 0, 2))  # a value whose features 0 .. 2 stand in a, 3 and 4 in b


def test_a_value_is_cut_across_processes() -> None:
    assert cut(TWO, 0, 5) == TWO
    assert cut(TWO, 1, 4) == (Segment("a", 3, 5), Segment("b", 0, 1))
    assert cut(TWO, 3, 5) == (Segment("b", 0, 2),)


def test_a_selection_picks_the_features_that_stand_in_a_process() -> None:
    assert np.array_equal(np.nonzero(selection(TWO, "a", 6)), [[0, 1, 2], [2, 3, 4]])
    assert np.array_equal(selection(TWO, "b", 2), [[0, 0], [0, 0], [0, 0], [1, 0], [0, 1]])


def test_weights_are_doubled_and_parts_add_up_to_the_layer() -> None:
    """x is half of a LIF and all of another; each part of the layer reads one process."""
    eye, zero = np.eye(2, dtype=np.int8), np.zeros(2, dtype=np.int32)
    nodes = (
        Source("x", np.ones((3, 2), dtype=np.int8)), Synapses("a", ("x",), eye, zero), LIF("s", ("a",), 0),
        Slice("half", ("s",), 1, 2), Concat("both", ("half", "s")),
        Synapses("b", ("both",), [[1, 2, 3], [4, 5, 6]], zero), LIF("r", ("b",), 1), Readout("y", ("r",), eye, zero),
    )  # fmt: skip
    plan = lower(Graph(4, 2, nodes))
    assert np.array_equal(plan["b"].weight, 2 * np.array([[2, 1 + 3], [5, 4 + 6]]))
    nodes = (*nodes[:4], Concat("both", ("x", "s")), Synapses("b", ("both",), [[1, 2, 3, 4]] * 2, zero), *nodes[6:])
    plan = lower(Graph(4, 2, nodes))
    assert np.array_equal(plan["b"].weight, [[2, 4]] * 2) and np.array_equal(plan["b#1"].weight, [[6, 8]] * 2)
    assert (plan["b"].inputs, plan["b#1"].inputs) == (("both#0",), ("s",))  # x is there before s, so it waits
    assert plan["r"].inputs == ("b", "b#1") and plan["r"].vth == 2


def test_an_add_carries_the_lanes_that_stand_beside_it() -> None:
    rng = np.random.default_rng(3)
    plan = lower(random_graph(rng, blocks=1, hidden=8, bias_max=300))
    adder, routes = plan["block0.add1"], ("block0.add1#0", "block0.add1#1")
    lanes = plan.lanes["block0.add1"]
    assert lanes > 0 and adder.channels == 8 + lanes and adder.inputs == routes  # no process of their own for lanes
    assert np.array_equal(plan[routes[0]].weight, np.eye(8 + lanes)) and plan[routes[0]].delay_steps == 3
    assert np.array_equal(plan[routes[1]].weight[:8], np.eye(8)) and not plan[routes[1]].weight[8:].any()
    assert plan.homes["block0.add1"] == (Segment("block0.add1", 0, 8),)


def test_attention_takes_q_k_and_v_from_where_they_stand() -> None:
    graph = random_graph(np.random.default_rng(3), blocks=1, hidden=8, bias_max=0)
    nodes = [
        LIF(node.name, node.inputs, 5, 2048) if isinstance(node, LIF) and node.name[-1] in "qkv" else node
        for node in graph
    ]
    merged = MergeQueryKeyValue().rewrite(Graph(4, graph.n_max, tuple(nodes))).graph
    spec = lower(merged)["block0.attention"]
    assert isinstance(spec, AttentionSpec) and spec.inputs == ("block0.attention.query_key_value.lif",)
    assert [(piece.slot, piece.source, piece.start, piece.count) for piece in spec.pieces] == [
        (0, 0, 0, 8), (1, 0, 8, 8), (2, 0, 16, 8),
    ]  # fmt: skip
    assert attention_inputs(SplitWideLayers(3).rewrite(graph).graph) == {"block0.attention": 9}


def test_fans_by_hand() -> None:
    """Two tokens, two keys, d = 2 of one head: output (n, m, j)."""
    common = {"name": "f", "inputs": ("p",), "keys": 2, "width": 2, "weight": 1, "delay_steps": 0, "message_bits": 0}
    outputs = np.arange(8)
    query = FanSpec(kind="query", heads=1, first=0, start=1, count=2, input_channels=4, **common)
    out, into = fan_entries(query, 2)
    assert np.array_equal(out, outputs) and np.array_equal(into, [1, 2, 1, 2, 5, 6, 5, 6])
    key = FanSpec(kind="key", heads=1, first=0, start=0, count=2, input_channels=2, **common)
    assert np.array_equal(fan_entries(key, 2)[1], [0, 1, 2, 3, 0, 1, 2, 3])
    score = FanSpec(kind="score", heads=1, first=0, start=0, count=2, input_channels=2, **common)
    assert np.array_equal(fan_entries(score, 2)[1], [0, 0, 1, 1, 2, 2, 3, 3])
    second = FanSpec(kind="key", heads=1, first=1, start=3, count=1, input_channels=4, **common)  # feature 1 only
    assert np.array_equal(fan_entries(second, 2), [[1, 3, 5, 7], [3, 7, 3, 7]])


def test_attention_of_stock_neurons_needs_stock_processes_alone() -> None:
    graph = ExpandAttention().rewrite(random_graph(np.random.default_rng(0), blocks=1, n_max=3)).graph
    plan = lower(graph)
    assert not any(isinstance(spec, AttentionSpec) for spec in plan.specs)
    match, product = plan["block0.attention.match"], plan["block0.attention.product"]
    assert isinstance(match, NeuronSpec) and (match.vth, match.dv, match.channels) == (2, 4095, 3 * 16)
    assert isinstance(product, ProductSpec) and (product.exp, product.vth, product.scores) == (1, 0, 1)
    assert isinstance(plan["block0.attention.relay"], AdderSpec) and plan["block0.attention.relay"].vth == 0
    # scores come three steps after q and k, and so does v
    assert (
        plan["block0.attention.product#1"].delay_steps == plan.schedule.delay_steps["block0.attention.product"][1] == 2
    )


@pytest.mark.parametrize("largest, bits", [(0, 0), (1, 0), (2, 2), (3, 2), (4, 3), (255, 8), (256, 9)])
def test_message_bits(largest: int, bits: int) -> None:
    assert message_bits(largest) == bits


@pytest.mark.parametrize("seed", range(30))
def test_plans_keep_to_the_limits_of_lava(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = random_dag(rng, nodes=10, bias_max=int(rng.choice([0, 127, 128, 5000])))
    if seed % 3 == 0:
        graph = ExpandAttention().rewrite(graph).graph
    plan = lower(graph)
    channels = {spec.name: spec.channels for spec in plan.specs}
    seen: set[str] = set()
    for spec in plan.specs:
        assert seen.issuperset(spec.inputs), "each after its inputs"
        seen.add(spec.name)
        if isinstance(spec, SynapsesSpec):
            assert (spec.weight % 2 == 0).all() and np.abs(spec.weight).max() <= 254
        if isinstance(spec, (SynapsesSpec, RouteSpec)):
            assert spec.weight.shape[1] == channels[spec.inputs[0]]
        if isinstance(spec, (RouteSpec, FanSpec)):
            assert 0 <= spec.delay_steps <= 63
        if isinstance(spec, NeuronSpec):
            assert 0 <= spec.vth <= 2**17 - 1 and {channels[name] for name in spec.inputs} == {spec.channels}
        if isinstance(spec, AttentionSpec):
            assert tuple(channels[name] for name in spec.inputs) == spec.input_channels
        if isinstance(spec, AdderSpec):
            assert {channels[name] for name in spec.inputs} == {spec.channels}


@pytest.mark.parametrize("seed", range(10))
def test_an_add_takes_its_lanes_from_one_branch(seed: int) -> None:
    plan = lower(random_dag(np.random.default_rng(seed), nodes=10))
    for spec in plan.specs:
        if isinstance(spec, AdderSpec) and plan.lanes.get(spec.name):
            features = spec.channels - plan.lanes[spec.name]
            lanes = sum(plan[name].weight[features:].sum(axis=1) for name in spec.inputs)
            assert np.array_equal(lanes, np.ones_like(lanes))


@pytest.mark.parametrize("seed", range(5))
def test_a_graph_with_lanes_laid_out_is_lowered_alike(seed: int) -> None:
    """The pass may be run before, by a person: the processes are the same."""
    graph = random_graph(np.random.default_rng(seed))
    once, twice = lower(graph), lower(LayOutBiasLanes().rewrite(graph).graph)
    assert [spec.name for spec in once.specs] == [spec.name for spec in twice.specs]
    assert [spec.channels for spec in once.specs] == [spec.channels for spec in twice.specs]
    assert once.schedule == twice.schedule


def test_a_graph_without_biases_carries_no_lanes() -> None:
    assert not any(lower(random_graph(np.random.default_rng(0), bias_max=0)).lanes.values())


def test_different_thresholds_are_refused() -> None:
    eye, zero = np.eye(2, dtype=np.int8), np.zeros(2, dtype=np.int32)

    def graph(threshold: np.ndarray) -> Graph:
        source = Source("x", np.ones((3, 2), dtype=np.int8))
        nodes = (source, Synapses("a", ("x",), eye, zero), LIF("s", ("a",), threshold), Readout("y", ("s",), eye, zero))
        return Graph(4, 2, nodes)

    assert lower(graph(np.array([3, 3])))["s"].vth == 6
    with pytest.raises(ValueError, match="'s': 2 different thresholds"):
        lower(graph(np.array([3, 4])))
