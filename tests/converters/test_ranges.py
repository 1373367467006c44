"""Proven ranges: nothing a network does lies outside, and where inputs are free the ends are reached."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_graphs import machine_graph
from random_graphs import RULES, random_batch, random_dag, random_graph, random_machine_dag

from converters.execution import TokenBatch
from converters.graph import (
    ACCUMULATOR_MAX,
    LIF,
    Add,
    Attention,
    Coincidence,
    Graph,
    Product,
    Readout,
    Source,
    Synapses,
    accumulator_bounds,
)
from converters.ranges import bits_for, largest_current, logit_range, prove_ranges, ranges_table, reaching_inputs
from sim.reference import ReferenceEngine


def membranes(current: np.ndarray, node: LIF) -> np.ndarray:
    """The membrane of a LIF when charged, before saturation: written out anew, step by step. current [T, ...]"""
    v, charged = np.zeros(current.shape[1:], np.int64), []
    level = np.asarray(node.threshold, np.int64) << 7
    for a in current:
        v = np.sign(v) * ((np.abs(v) * (4096 - node.dv)) >> 12) + a * 128
        charged.append(v)
        v = np.clip(v, -(2**23 - 1), 2**23 - 1)
        sent = sum((v > j * level).astype(int) for j in range(1, node.cap + 1))
        sent = sent - (v < -level) if node.spike == "ternary" else sent
        v = np.where(sent != 0, v - sent * level if node.reset == "subtract" else 0, v)
    return np.stack(charged)


@settings(deadline=None, max_examples=90)
@given(
    seed=st.integers(0, 10**6),
    timesteps=st.sampled_from([1, 2, 4, 9]),
    dv=st.sampled_from([0, 410, 2048, 4095]),
    kind=st.sampled_from(["lif", "sign"]),
    firing=st.sampled_from([0.02, 0.3, 0.95]),
    make=st.sampled_from([random_graph, random_dag, random_machine_dag]),
    attention=st.sampled_from(["plain", "any"]),
    neurons=st.sampled_from(RULES),
)
def test_nothing_lies_outside(seed, timesteps, dv, kind, firing, make, attention, neurons) -> None:
    rng = np.random.default_rng(seed)
    graph = make(rng, timesteps=timesteps, dv=dv, source_kind=kind, firing=firing, attention=attention, neurons=neurons)
    batch = random_batch(rng, graph, 6)
    done = ReferenceEngine(graph).run(batch, [node.name for node in graph])
    ranges, real = prove_ranges(graph), batch.mask.astype(bool)
    for node in graph:
        own, values = ranges[node.name], done.values[node.name][:, real]  # [T, R, D]
        assert (values >= own.low).all() and (values <= own.high).all(), node.name
        if isinstance(node, LIF):
            charged = membranes(done.values[node.inputs[0]][:, real], node)
            assert (charged >= own.membrane_low).all() and (charged <= own.membrane_high).all(), node.name
    logits = logit_range(graph, ranges)
    assert (done.logits >= logits.low).all() and (done.logits <= logits.high).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_largest_current_is_no_larger_than_the_coarse_bound(seed: int) -> None:
    """Recomputed from the weights alone."""
    graph = random_graph(np.random.default_rng(seed), hidden=12, heads=(1, 2, 3, 4)[seed], n_max=200)
    ranges = prove_ranges(graph)
    coarse = {
        node.name: int(accumulator_bounds(node, graph.value_max[node.inputs[0]]).max())
        for node in graph
        if isinstance(node, (Synapses, Readout))
    }
    coarse |= {node.name: 12 // node.heads * 200 for node in graph if isinstance(node, Attention)}
    assert all(ranges[name].reach <= bound <= ACCUMULATOR_MAX for name, bound in coarse.items())
    name, reach = largest_current(graph, ranges)
    assert reach == ranges[name].reach == max(ranges[each].reach for each in coarse)


def layer(weight, bias, threshold: int = 10, dv: int = 2048, timesteps: int = 4, table=None) -> Graph:
    """A source of which every feature fires for id 1 and none for id 0, one layer, a readout."""
    weight = np.asarray(weight)
    rows, columns = weight.shape
    table = np.stack([np.full(columns, -1), np.full(columns, 1)]) if table is None else np.asarray(table)
    nodes = (
        Source("source", table, kind="sign"), Synapses("a", ("source",), weight, bias),
        LIF("s", ("a",), threshold, dv), Readout("readout", ("s",), np.ones((1, rows), int), [0]),
    )  # fmt: skip
    return Graph(timesteps, 3, nodes)


def test_the_ends_of_a_layer_are_those_of_its_weights() -> None:
    ranges = prove_ranges(layer([[5, -3, 2], [-1, -1, -1]], [10, -20]))
    assert ranges["a"].high.tolist() == [17, -20] and ranges["a"].low.tolist() == [7, -23]
    assert ranges["a"].bits == 6


def test_an_input_that_is_always_silent_adds_nothing() -> None:
    """The coarse bound of a Graph counts it, this one does not."""
    graph = layer([[100, 50]], [0], table=[[-1, -1], [-1, 3]])
    ranges = prove_ranges(graph)
    assert graph.value_max["a"] == 150 and ranges["a"].high.tolist() == [50]
    assert ranges["source"].silent.tolist() == [True, False]
    assert reaching_inputs(graph, ranges, "a").inputs == (1,)


@pytest.mark.parametrize(("threshold", "fires"), [(9, True), (10, False)])
def test_a_neuron_that_just_fires_and_one_that_just_does_not(threshold: int, fires: bool) -> None:
    """5 a step, halved at each: 5, 7.5, 8.75, 9.375 accumulator units; strictly above 9, never above 10."""
    ranges = prove_ranges(layer([[5]], [0], threshold))
    assert ranges["s"].high.tolist() == [int(fires)]
    assert ranges["s"].membrane_high.tolist() == [1200]  # 9.375 * 128


def test_a_neuron_that_always_fires() -> None:
    ranges = prove_ranges(layer([[5]], [11]))
    assert ranges["s"].low.tolist() == [1] and ranges["s"].high.tolist() == [1]


def test_saturation_is_told() -> None:
    full = layer([[127] * 500], [2000], 65535, dv=0, timesteps=4)
    assert prove_ranges(full)["s"].may_saturate
    assert "cut" in ranges_table(full, prove_ranges(full))
    assert not prove_ranges(layer([[127]], [0], 65535, dv=0))["s"].may_saturate


def test_what_would_reach_the_bound_reaches_it() -> None:
    """The reported inputs, made to spike and no others, cause the reported current."""
    rng = np.random.default_rng(0)
    weight, bias = rng.integers(-90, 90, (7, 30)), rng.integers(-500, 500, 7)
    table = np.full((2, 30), -1)
    ranges = prove_ranges(layer(weight, bias))
    reach = reaching_inputs(layer(weight, bias), ranges, "a")
    table[1, list(reach.inputs)] = 1
    graph = layer(weight, bias, table=table)
    done = ReferenceEngine(graph).run(TokenBatch(np.array([[1]]), np.array([[1]])), ["a"])
    assert done.values["a"][0, 0, 0, reach.feature] == reach.bound
    with pytest.raises(ValueError, match="has no weights"):
        reaching_inputs(graph, ranges, "s")


def test_attention_counts_what_can_meet() -> None:
    """Feature 0 of k never spikes, so in head 0 one of two features can meet, and feature 3 of v never spikes."""
    one = np.eye(4, dtype=int)
    q, k, v = one * 9, one * 9 * [0, 1, 1, 1], one * 9 * [1, 1, 1, 0]
    nodes: list = [Source("source", [[1, 1, 1, 1]], kind="sign")]
    for name, weight in (("q", q), ("k", k), ("v", v)):
        nodes += [Synapses(f"{name}.a", ("source",), weight, np.zeros(4, int)), LIF(name, (f"{name}.a",), 5)]
    nodes += [Attention("attention", ("q", "k", "v"), 2), LIF("o", ("attention",), 0)]
    nodes += [Add("add", ("o", "source")), Readout("readout", ("add",), one[:2], [0, 0])]
    ranges = prove_ranges(Graph(2, 5, tuple(nodes)))
    assert ranges["attention"].high.tolist() == [5 * 1, 5 * 1, 5 * 2, 0]
    assert ranges["add"].high.tolist() == [2, 2, 2, 1]


def test_what_passes_make_counts_feature_by_feature() -> None:
    """`neuron` can spike at any feature; 5 of the third score comes from its bias."""
    ranges = prove_ranges(machine_graph())
    assert ranges["valid"].low.tolist() == ranges["valid"].high.tolist() == [1, 1]
    assert ranges["second"].high.tolist() == [3] and ranges["side_by_side"].high.tolist() == [3, 1, 1, 1, 1]
    assert ranges["side_by_side"].low.tolist() == [0, 0, 0, 1, 1]
    assert ranges["match"].high.tolist() == [1] * 6
    for name in ("scores", "relay"):
        assert ranges[name].low.tolist() == [0, 0, 5] and ranges[name].high.tolist() == [2, 2, 7]
    assert ranges["product"].low.tolist() == [0] * 6 and ranges["product"].high.tolist() == [2, 2, 2, 2, 7, 7]
    assert ranges["attended"].high.tolist() == [11, 11]
    assert ranges["readout"].low.tolist() == [0, 101]  # of a valid lane that is 1 at every real token


@pytest.mark.parametrize("silent", ["query", "key"])
def test_what_never_spikes_meets_nothing(silent: str) -> None:
    one, bias = np.eye(2, dtype=int) * 9, np.zeros(2, int)
    nodes: list = [Source("source", [[1, 1]], kind="sign")]
    for name in ("query", "key"):
        weight = one * [0, 1] if name == silent else one
        nodes += [Synapses(f"{name}.a", ("source",), weight, bias), LIF(name, (f"{name}.a",), 5)]
    nodes += [Coincidence("match", ("query", "key")), Product("product", ("match", "key"), 2)]
    graph = Graph(2, 3, (*nodes, Readout("readout", ("product",), np.ones((1, 6), int), [0])))
    ranges = prove_ranges(graph)
    assert ranges["match"].high.tolist() == ranges["product"].high.tolist() == [0, 1] * 3


@pytest.mark.parametrize(
    ("low", "high", "bits"),
    [(0, 0, 1), (0, 1, 1), (0, 255, 8), (0, 256, 9), (-1, 0, 1), (-128, 127, 8), (-129, 0, 9), (-8, 3, 4)],
)  # fmt: skip
def test_bits(low: int, high: int, bits: int) -> None:
    assert bits_for(low, high) == bits
