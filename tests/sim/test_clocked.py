"""The reference in machine time against the reference: every value of every node, by any right schedule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from pass_helpers import Trial, attention_graph, latency_tables, run_reference, trials
from random_graphs import random_batch, random_graph

from converters.execution import TokenBatch
from converters.graph import LIF, Graph, Readout, Source, Synapses
from converters.passes.balance_delays import balance_delays
from converters.schedule import LatencyTable, Reset, Schedule
from sim.clocked import run_clocked
from sim.verify import compare


@settings(deadline=None, max_examples=60)
@given(trial=trials(), table=latency_tables())
def test_random_graphs_in_machine_time(trial: Trial, table: LatencyTable) -> None:
    """T of 1, 2, 4 and 8, every kind of node, samples back to back, machines whose nodes take 0 to 4 steps."""
    clocked = run_clocked(trial.graph, balance_delays(trial.graph, table), trial.other)
    comparison = compare(trial.graph, run_reference(trial.graph, trial.other), clocked)
    assert comparison.mismatches == 0, str(comparison.first_mismatch)
    assert set(clocked.values) == set(trial.graph.features)


def chain(dv: int = 0) -> Graph:
    """source -> 3 a step -> a neuron that fires above 5: at every second step of a token of id 1."""
    nodes = (
        Source("source", [[-1], [1]], kind="sign"),
        Synapses("current", ("source",), [[3]], [0]),
        LIF("neuron", ("current",), 5, dv),
        Readout("readout", ("neuron",), [[1], [2]], [0, 1]),
    )
    return Graph(3, 2, nodes)


BATCH = TokenBatch([[1, 1], [1, 0]], [[1, 0], [1, 1]])
# by hand: 3, 6 fires, 3; the second sample begins anew. Biases of the readout follow the mask of the sample there.
SPIKES = [[[[0], [0]], [[0], [0]]], [[[1], [0]], [[1], [0]]], [[[0], [0]], [[0], [0]]]]
LOGITS = [[1, 2 + 3], [1, 2 + 6]]


@pytest.mark.parametrize("synapses", [0, 1, 3, 5])
def test_by_hand(synapses: int) -> None:
    graph = chain()
    done = run_clocked(graph, balance_delays(graph, LatencyTable(synapses)), BATCH)
    assert done.values["neuron"].tolist() == SPIKES
    assert done.logits.tolist() == LOGITS


def spoiled(schedule: Schedule, field: str, **entries: object) -> Schedule:
    return replace(schedule, **{field: getattr(schedule, field) | entries})


@pytest.mark.parametrize(
    ("field", "node", "value"),
    [
        ("resets", "neuron", Reset(3, 0)),  # it is cleared a step late, which is before the second step
        ("resets", "neuron", Reset(6, 2)),  # what is left of a sample meets the next
        ("delay_steps", "current", (1,)),
        ("delay_steps", "neuron", (1,)),
        ("latency_steps", "neuron", 2),
        ("latency_steps", "neuron", 0),
        ("latency_steps", "source", 1),
        ("latency_steps", "readout", 3),
    ],
)
def test_a_wrong_schedule_is_seen(field: str, node: str, value: object) -> None:
    graph = chain()
    right = balance_delays(graph, LatencyTable())
    expected = run_reference(graph, BATCH)
    assert compare(graph, expected, run_clocked(graph, right, BATCH)).mismatches == 0
    wrong = run_clocked(graph, spoiled(right, field, **{node: value}), BATCH)
    assert compare(graph, expected, wrong).mismatches > 0


def test_a_machine_of_other_latencies_is_seen() -> None:
    graph = chain()
    slow = replace(balance_delays(graph, LatencyTable()), latencies=LatencyTable(synapses=2))
    assert compare(graph, run_reference(graph, BATCH), run_clocked(graph, slow, BATCH)).mismatches > 0


def test_all_may_be_later_alike() -> None:
    """Slack is no error: what waits for nobody may wait, if all that follows and its resets wait too."""
    graph = chain()
    schedule = balance_delays(graph, LatencyTable())
    late = {name: steps + (name != "source") for name, steps in schedule.latency_steps.items()}
    slack = replace(
        spoiled(schedule, "delay_steps", current=(1,)), latency_steps=late, resets={"neuron": Reset(3, (1 + 2) % 3)}
    )
    assert compare(graph, run_reference(graph, BATCH), run_clocked(graph, slack, BATCH)).mismatches == 0


@pytest.mark.parametrize("graph", [attention_graph(3), random_graph(np.random.default_rng(2))], ids=["tiny", "random"])
def test_samples_follow_each_other_without_a_trace(graph: Graph) -> None:
    """One sample alone, and the same behind any other."""
    schedule = balance_delays(graph, LatencyTable(2, 3, 1, 1, 1))
    batch = random_batch(np.random.default_rng(1), graph, 5)
    together = run_clocked(graph, schedule, batch).logits
    for i in range(len(batch)):
        assert np.array_equal(run_clocked(graph, schedule, batch[i : i + 1]).logits[0], together[i])


def test_a_batch_that_does_not_fit_is_refused() -> None:
    graph = chain()
    with pytest.raises(ValueError, match="3 tokens, the graph takes 2"):
        run_clocked(graph, balance_delays(graph, LatencyTable()), TokenBatch([[0, 0, 0]], [[1, 1, 1]]))
