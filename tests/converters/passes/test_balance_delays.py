"""balance-delays: each node waits for its slowest input. The schedules by hand, on random graphs, and spoiled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from pass_helpers import Broken, Trial, attention_graph, caught_at, latency_tables, proven, trials
from random_graphs import random_batch, random_graph, random_machine_dag

from converters.graph import LIF, Add, Attention, Graph, Readout, Source, Synapses
from converters.passes.balance_delays import BalanceDelays, balance_delays
from converters.passes.lay_out_bias_lanes import LayOutBiasLanes
from converters.passes.rewrite import Rewrite
from converters.schedule import LatencyTable, Reset, schedule_table

TABLE = LatencyTable()


def test_a_block_is_seven_steps_deep() -> None:
    schedule = balance_delays(random_graph(np.random.default_rng(0), blocks=1, timesteps=4), TABLE)
    expected = {"source": 0, "q.synapses": 1, "q": 1, "attention": 2, "attention_lif": 2, "out": 3, "add1": 4}
    expected |= {"fc1": 5, "fc2": 6, "add2": 7}
    for name, steps in expected.items():
        assert schedule.latency_steps[name if name == "source" else f"block0.{name}"] == steps
    assert schedule.latency_steps["readout"] == schedule.depth_steps == 8
    assert schedule.delay_steps["block0.add1"] == (3, 0)
    assert schedule.delay_steps["block0.add2"] == (2, 0)
    assert schedule.resets["block0.q"] == Reset(interval_steps=4, offset_steps=2)
    assert schedule.resets["block0.fc2"] == Reset(interval_steps=4, offset_steps=3)


def test_the_schedule_as_text_and_the_graph_as_it_was() -> None:
    graph = attention_graph(timesteps=4)
    rewrite = BalanceDelays(LatencyTable(attention=3)).rewrite(graph)
    assert rewrite.graph is graph and rewrite.summary == "6 steps deep, 1 inputs wait"
    assert rewrite.schedule is not None
    assert schedule_table(rewrite.schedule) == (
        "T=4 depth=6 steps\n"
        "node                         latency delays of its inputs   reset\n"
        "source                             0\n"
        "q.current                          1 0\n"
        "q                                  1 0                      every 4 at 2\n"
        "k.current                          1 0\n"
        "k                                  1 0                      every 4 at 2\n"
        "v.current                          1 0\n"
        "v                                  1 0                      every 4 at 2\n"
        "attention                          4 0, 0, 0\n"
        "attended                           4 0                      every 4 at 1\n"
        "sum                                5 4, 0\n"
        "readout                            6 0\n"
    )


@pytest.mark.parametrize("timesteps, drain", [(1, 8), (3, 9), (4, 8), (16, 16)])
def test_a_drain_is_whole_samples(timesteps: int, drain: int) -> None:
    schedule = balance_delays(random_graph(np.random.default_rng(0), blocks=1, timesteps=timesteps), TABLE)
    assert schedule.drain_steps == drain
    assert all(reset.interval_steps == timesteps for reset in schedule.resets.values())


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
    schedule = balance_delays(Graph(4, 2, nodes), TABLE)
    assert schedule.delay_steps["a"] == (2, 1, 0)
    assert schedule.delay_steps["sum"] == (4, 0, 4)


def test_each_kind_of_node_has_its_own_latency() -> None:
    graph = random_machine_dag(np.random.default_rng(3), nodes=40)
    table = LatencyTable(synapses=2, attention=3, add=5, coincidence=7, product=11)
    steps = {"synapses": 2, "readout": 2, "attention": 3, "add": 5, "coincidence": 7, "product": 11}
    assert {node.op for node in graph} >= set(steps)
    assert all(table.of(node) == steps.get(node.op, 0) for node in graph)


def test_lanes_are_never_ahead_and_nothing_waits_for_them() -> None:
    """A layout of lanes adds no step, but that of an add is put beside it late."""
    graph = random_graph(np.random.default_rng(0), blocks=2, bias_max=300)
    after = LayOutBiasLanes().rewrite(graph).graph
    before, laid = balance_delays(graph, TABLE), balance_delays(after, TABLE)
    assert all(laid.latency_steps[node.name] == before.latency_steps[node.name] for node in graph)


@settings(deadline=None, max_examples=60)
@given(trial=trials(), table=latency_tables())
def test_all_inputs_of_a_node_arrive_together_and_one_does_not_wait(trial: Trial, table: LatencyTable) -> None:
    schedule = balance_delays(trial.graph, table)
    for node in trial.graph:
        delays = schedule.delay_steps[node.name]
        arrivals = [schedule.latency_steps[name] + wait for name, wait in zip(node.inputs, delays)]
        assert all(arrival + table.of(node) == schedule.latency_steps[node.name] for arrival in arrivals)
        assert not delays or min(delays) == 0


@settings(deadline=None, max_examples=25)
@given(trial=trials(), table=latency_tables())
def test_random_graphs_run_by_their_schedule(trial: Trial, table: LatencyTable) -> None:
    passed = proven(BalanceDelays(table), trial.graph, trial.golden)
    assert passed.graph is trial.graph
    values = len(trial.golden) * trial.golden.ids.shape[1] * trial.graph.timesteps * sum(trial.graph.features.values())
    assert passed.records[0].values_compared == values + len(trial.golden) * trial.graph.features["readout"]


# Broken on purpose


def shifted(field: str, node: str, by: int = 1, slot: int | None = None):
    """That entry of the schedule is `by` too large."""

    def change(rewrite: Rewrite) -> Rewrite:
        assert rewrite.schedule is not None
        entries = dict(getattr(rewrite.schedule, field))
        old = entries[node]
        if slot is not None:
            entries[node] = tuple(delay + by * (place == slot) for place, delay in enumerate(old))
        elif isinstance(old, Reset):
            entries[node] = Reset(old.interval_steps, old.offset_steps + by)
        else:
            entries[node] = old + by
        return replace(rewrite, schedule=replace(rewrite.schedule, **{field: entries}))

    return change


def other_interval(rewrite: Rewrite) -> Rewrite:
    assert rewrite.schedule is not None
    reset = {"block0.q": Reset(8, rewrite.schedule.resets["block0.q"].offset_steps)}
    return replace(rewrite, schedule=replace(rewrite.schedule, resets=rewrite.schedule.resets | reset))


def other_machine(rewrite: Rewrite) -> Rewrite:
    """An add that takes two steps, under a schedule for one."""
    assert rewrite.schedule is not None
    return replace(rewrite, schedule=replace(rewrite.schedule, latencies=LatencyTable(add=2)))


GRAPH = random_graph(np.random.default_rng(5), blocks=1, timesteps=4, dv=410)
BATCH = random_batch(np.random.default_rng(6), GRAPH, 8)
MUTANTS = {
    "a residual a step late": (shifted("delay_steps", "block0.add1", slot=0), "block0.add1"),
    "a residual a step early": (shifted("delay_steps", "block0.add2", -1, slot=0), "block0.add2"),
    "q a step late": (shifted("delay_steps", "block0.attention", slot=0), "block0.attention"),
    "k a step late": (shifted("delay_steps", "block0.attention", slot=1), "block0.attention"),
    "v a step late": (shifted("delay_steps", "block0.attention", slot=2), "block0.attention"),
    "a layer that waits": (shifted("delay_steps", "block0.fc1.synapses", slot=0), "block0.fc1.synapses"),
    "a reset a step late": (shifted("resets", "block0.q"), "block0.q"),
    "a reset a step early": (shifted("resets", "block0.fc2", -1), "block0.fc2"),
    "every second reset": (other_interval, "block0.q"),
    "read a step late": (shifted("latency_steps", "block0.add1"), "block0.add1"),
    "read a step early": (shifted("latency_steps", "block0.attention", -1), "block0.attention"),
    "the host a step late": (shifted("latency_steps", "source"), "block0.q.synapses"),
    "another machine": (other_machine, "block0.add1"),
}


@pytest.mark.parametrize(("change", "node"), MUTANTS.values(), ids=MUTANTS)
def test_a_broken_schedule_is_stopped(change, node: str) -> None:
    proven(BalanceDelays(), GRAPH, BATCH)
    assert caught_at(Broken(BalanceDelays(), change), GRAPH, BATCH) == node
