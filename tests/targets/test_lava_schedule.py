"""Retiming, checked against a hand-made example and against the definition on random graphs."""

from __future__ import annotations

import numpy as np
import pytest
from random_graphs import random_dag, random_graph

from converters.graph import LIF, Add, Attention, Graph, Readout, Source, Synapses
from targets.lava.schedule import LAVA_LATENCIES, LatencyTable, Reset, make_schedule


def test_a_block_is_seven_steps_deep() -> None:
    schedule = make_schedule(random_graph(np.random.default_rng(0), blocks=1, timesteps=4))
    expected = {"source": 0, "q.synapses": 1, "q": 1, "attention": 2, "attention_lif": 2, "out": 3, "add1": 4}
    expected |= {"fc1": 5, "fc2": 6, "add2": 7}
    for name, steps in expected.items():
        assert schedule.latency_steps[name if name == "source" else f"block0.{name}"] == steps
    assert schedule.latency_steps["readout"] == schedule.depth_steps == 8
    assert schedule.delay_steps["block0.add1"] == (3, 0)
    assert schedule.delay_steps["block0.add2"] == (2, 0)
    assert schedule.resets["block0.q"] == Reset(interval_steps=4, offset_steps=2)
    assert schedule.resets["block0.fc2"] == Reset(interval_steps=4, offset_steps=3)


@pytest.mark.parametrize("timesteps, drain", [(1, 8), (3, 9), (4, 8), (16, 16)])
def test_a_drain_is_whole_samples(timesteps: int, drain: int) -> None:
    schedule = make_schedule(random_graph(np.random.default_rng(0), blocks=1, timesteps=timesteps))
    assert schedule.drain_steps == drain
    assert all(reset.interval_steps == timesteps for reset in schedule.resets.values())


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("table", [LAVA_LATENCIES, LatencyTable(synapses=2, attention=4, add=3, lif=1)])
def test_all_inputs_of_a_node_arrive_together(seed: int, table: LatencyTable) -> None:
    graph = random_dag(np.random.default_rng(seed), nodes=12)
    schedule = make_schedule(graph, table)
    for node in graph:
        delays = schedule.delay_steps[node.name]
        arrivals = [schedule.latency_steps[name] + wait for name, wait in zip(node.inputs, delays)]
        assert all(arrival + table.of(node) == schedule.latency_steps[node.name] for arrival in arrivals)
        assert not delays or min(delays) == 0


def test_q_k_and_v_are_timed_to_the_same_arrival() -> None:
    eye, zero = np.eye(2, dtype=np.int8), np.zeros(2, dtype=np.int32)
    nodes = (
        Source("x", np.ones((3, 2), dtype=np.int8)),
        Synapses("qa", ("x",), eye, zero),
        LIF("q", ("qa",), 0),
        Synapses("ka", ("q",), eye, zero),
        LIF("k", ("ka",), 0),
        Synapses("va", ("k",), eye, zero),
        LIF("v", ("va",), 0),
        Attention("a", ("q", "k", "v"), 1),
        LIF("al", ("a",), 0),
        Add("sum", ("x", "al", "x")),
        Readout("y", ("sum",), eye, zero),
    )
    schedule = make_schedule(Graph(4, 2, nodes))
    assert schedule.delay_steps["a"] == (2, 1, 0)
    assert schedule.delay_steps["sum"] == (4, 0, 4)
