"""The plan of a graph: weights, lanes, and their limits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_graphs import random_dag, random_graph

from converters.graph import LIF, Graph, Readout, Source, Synapses
from targets.lava.lowering import (
    AdderSpec,
    AttentionSpec,
    NeuronSpec,
    RouteSpec,
    SynapsesSpec,
    lane_weights,
    lanes_for_bias,
    lanes_for_threshold,
    lower,
    message_bits,
    route_matrix,
    split_evenly,
    synapse_matrix,
)

LANE_CURRENT_MAX = 2**17  # a doubled current beyond it wraps on Lava


@given(st.lists(st.integers(-65535, 65535), min_size=1, max_size=8), st.integers(1, 600))
def test_a_split_sums_to_the_whole(totals: list[int], parts: int) -> None:
    split = split_evenly(np.array(totals), parts)
    assert split.shape == (len(totals), parts)
    assert np.array_equal(split.sum(axis=1), totals)
    assert (np.ptp(split, axis=1) <= 1).all()


@given(st.integers(0, 65535))
def test_lane_weights_bring_a_lane_just_above_its_threshold(threshold: int) -> None:
    lanes_in = lanes_for_threshold(threshold)
    weights = lane_weights(2, lanes_in, threshold)
    assert (weights % 2 == 0).all() and weights.min() >= 0 and weights.max() <= 254
    assert (weights.sum(axis=1) > 2 * threshold).all()
    assert (weights.sum(axis=1) <= LANE_CURRENT_MAX).all()


@given(st.lists(st.integers(-65535, 65535), min_size=1, max_size=4))
def test_enough_lanes_make_every_part_of_a_bias_an_8_bit_weight(biases: list[int]) -> None:
    bias = np.array(biases, dtype=np.int32)
    lanes = lanes_for_bias(bias)
    if lanes:
        assert np.abs(2 * split_evenly(bias, lanes)).max() <= 254
    else:
        assert not bias.any()


def test_a_synapse_matrix_by_hand() -> None:
    weight = np.array([[1, -2], [3, 4]], dtype=np.int8)
    matrix = synapse_matrix(weight, np.array([5, -4], dtype=np.int32), np.array([[10, 8]], dtype=np.int32))
    assert np.array_equal(matrix, [[2, -4, 6, 4], [6, 8, -4, -4], [0, 0, 10, 8]])


def test_a_route_takes_lanes_or_leaves_them() -> None:
    assert np.array_equal(route_matrix(1, 2, 1, take_lanes=True), [[1, 0, 0], [0, 1, 0]])
    assert np.array_equal(route_matrix(1, 2, 1, take_lanes=False), [[1, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("largest, bits", [(0, 0), (1, 0), (2, 2), (3, 2), (4, 3), (255, 8), (256, 9)])
def test_message_bits(largest: int, bits: int) -> None:
    assert message_bits(largest) == bits


@pytest.mark.parametrize("seed", range(30))
def test_plans_keep_to_the_limits_of_lava(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = random_dag(rng, nodes=10, bias_max=int(rng.choice([0, 127, 128, 5000])))
    plan = lower(graph)
    channels = {spec.name: spec.channels for spec in plan.specs}
    for spec in plan.specs:
        if isinstance(spec, SynapsesSpec):
            assert (spec.weight % 2 == 0).all() and np.abs(spec.weight).max() <= 254
        if isinstance(spec, (SynapsesSpec, RouteSpec)):
            assert spec.weight.shape[1] == channels[spec.inputs[0]]
        if isinstance(spec, NeuronSpec):
            assert 0 <= spec.vth <= 2**17 - 1 and channels[spec.inputs[0]] == spec.channels
        if isinstance(spec, AttentionSpec):
            assert tuple(channels[name] for name in spec.inputs) == spec.input_channels
        if isinstance(spec, AdderSpec):
            assert {channels[name] for name in spec.inputs} == {spec.channels}


@pytest.mark.parametrize("seed", range(10))
def test_an_add_takes_its_lanes_from_one_branch(seed: int) -> None:
    plan = lower(random_dag(np.random.default_rng(seed), nodes=10))
    for spec in plan.specs:
        if isinstance(spec, AdderSpec) and plan.lanes[spec.name]:
            features = spec.channels - plan.lanes[spec.name]
            assert sum(plan[name].weight[features:].any() for name in spec.inputs) == 1


def test_a_graph_without_biases_carries_no_lanes() -> None:
    assert set(lower(random_graph(np.random.default_rng(0), bias_max=0)).lanes.values()) == {0}


def test_different_thresholds_are_refused() -> None:
    eye, zero = np.eye(2, dtype=np.int8), np.zeros(2, dtype=np.int32)

    def graph(threshold: np.ndarray) -> Graph:
        source = Source("x", np.ones((3, 2), dtype=np.int8))
        nodes = (source, Synapses("a", ("x",), eye, zero), LIF("s", ("a",), threshold), Readout("y", ("s",), eye, zero))
        return Graph(4, 2, nodes)

    assert lower(graph(np.array([3, 3])))["s"].vth == 6
    with pytest.raises(ValueError, match="'s': 2 different thresholds"):
        lower(graph(np.array([3, 4])))
