"""Soft reset, graded and ternary spikes: the rule itself, and every engine beside the reference."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from neuron_cases import BATCH, DECAYS, KINDS, OTHERS, Kind, drives, naive_neuron, rule_graph

from converters.encoder import lif
from converters.execution import Execution, TokenBatch
from converters.graph import Graph
from converters.passes.balance_delays import balance_delays
from converters.schedule import LatencyTable
from sim.activity import count_activity
from sim.clocked import run_clocked
from sim.fast import kernels
from sim.fast.engine import FastEngine
from sim.record import value_column
from sim.reference import ReferenceEngine
from sim.verify import compare


def reference(graph: Graph, batch: TokenBatch = BATCH) -> Execution:
    return ReferenceEngine(graph).run(batch, [node.name for node in graph])


def run_neuron(currents: list[int], threshold: int, dv: int, kind: Kind) -> list[int]:
    return lif(np.array(currents, np.int64), threshold, dv, 7, *kind).tolist()


@settings(deadline=None, max_examples=300)
@given(drives(), st.sampled_from(KINDS))
@example(([-65535, -65535, 65535, 65535], 65535, 0), ("subtract", "ternary", 1))  # cut below, then above
@example(([10, 20, 30, 31], 10, 4095), ("zero", "graded", 2))  # levels met exactly do not count
def test_a_neuron_obeys_its_equation(drive: tuple[list[int], int, int], kind: Kind) -> None:
    assert run_neuron(*drive, kind) == naive_neuron(*drive, kind)


@pytest.mark.parametrize(
    ("kind", "currents", "expected"),
    [
        (("subtract", "binary", 1), [25, 0, 0, 0], [1, 1, 0, 0]),  # 25, 15, 5; strictly: 10 would not fire
        (("subtract", "binary", 1), [20, 0, 1], [1, 0, 1]),  # what is left is the threshold, met exactly
        (("zero", "graded", 3), [10, 1, 20, 31, 99], [0, 1, 1, 3, 3]),  # 10; 11; 20; 31; 99, at most 3
        (("subtract", "graded", 3), [35, 6, 99, 0], [3, 1, 3, 3]),  # leaves 5, then 1, then 70, 40
        (("zero", "ternary", 1), [-10, -1, 11, -25, 0], [0, -1, 1, -1, 0]),
        (("subtract", "ternary", 1), [-25, 0, 0, 25, 0], [-1, -1, 0, 1, 0]),  # -15, -5; 20 -> 10
    ],
    ids=str,
)
def test_by_hand(kind: Kind, currents: list[int], expected: list[int]) -> None:
    """A threshold of 10, no decay."""
    assert run_neuron(currents, 10, 0, kind) == expected


def test_with_one_level_a_graded_spike_would_be_a_binary_one() -> None:
    currents = np.random.default_rng(0).integers(-50, 60, (8, 1000))
    assert np.array_equal(lif(currents, 10, 410, 7, "zero", "graded", 1), lif(currents, 10, 410, 7))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 99), st.sampled_from(KINDS), st.sampled_from([1, 4, 8, 16]), st.sampled_from(DECAYS),
    st.sampled_from([1, 3]),
)  # fmt: skip
def test_the_fast_engine_equals_the_reference(seed: int, kind: Kind, timesteps: int, dv: int, tokens: int) -> None:
    """Every value, the logits, and the activity that it counts on the way."""
    graph = rule_graph(kind, timesteps, dv, seed=seed)
    batch = TokenBatch(BATCH.ids[:, :tokens], BATCH.mask[:, :tokens])
    expected = reference(graph, batch)
    with closing(FastEngine(graph, 2)) as engine:
        everything, nothing = engine.run(batch, list(expected.values)), engine.run(batch)
    comparison = compare(graph, expected, everything)
    assert comparison.mismatches == 0, str(comparison.first_mismatch)
    assert np.array_equal(nothing.logits, expected.logits)
    assert everything.activity == nothing.activity == count_activity(graph, expected.values, batch)


def test_the_networks_of_these_tests_are_alive() -> None:
    for kind in KINDS:
        values = reference(rule_graph(kind)).values
        for name in ("attended", "out.lif", "up.lif"):
            assert 0.05 < (values[name] != 0).mean() < 0.95, (kind, name)
        out = np.concatenate([values["out.lif"], values["up.lif"]])
        assert out.max() == (kind[2] if kind[2] < 3 else out.max()) and (out.max() > 1) == (kind[1] == "graded")
        assert (out.min() < 0) == (kind[1] == "ternary")


@pytest.mark.parametrize("kind", OTHERS, ids=str)
@pytest.mark.parametrize("change", [{"reset": "other"}, {"threshold": 25}, {"dv": 2048}, {"spike": "other"}], ids=str)
def test_another_rule_is_noticed(kind: Kind, change: dict) -> None:
    """Negative controls: an engine that resets otherwise, or sends otherwise, differs in these networks."""
    graph = rule_graph(kind, timesteps=8)
    if change == {"reset": "other"}:
        change = {"reset": "zero" if kind[0] == "subtract" else "subtract"}
    if change == {"spike": "other"}:
        change = {"spike": "graded", "cap": 3} if kind[1] == "ternary" else {"spike": "ternary", "cap": 1}
    nodes = [replace(node, **change) if node.name == "out.lif" else node for node in graph]
    wrong = Graph(graph.timesteps, graph.n_max, tuple(nodes))
    assert compare(graph, reference(graph), reference(wrong)).mismatches > 0


@pytest.mark.parametrize("kind", [("zero", "graded", 15), ("subtract", "graded", 2), ("zero", "ternary", 1)], ids=str)
def test_kernels_that_were_wrong_would_be_noticed(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative controls: levels met exactly that count, signs that get lost, sums that are not held against each
    other."""
    graph = rule_graph(kind)
    expected = reference(graph)
    right = kernels.graded_lif

    def too_low(currents, level, *others):
        right(currents, level - 128, *others)

    def no_cancel(out):
        pass

    wrong = [("graded_lif", too_low), *([("cancel", no_cancel)] if kind[1] == "ternary" else [])]
    for name, kernel in wrong:
        with monkeypatch.context() as patch:
            patch.setattr(kernels, name, kernel)
            with closing(FastEngine(graph, 1)) as engine:
                done = engine.run(BATCH, list(expected.values))
            counted = count_activity(graph, expected.values, BATCH)
            assert compare(graph, expected, done).mismatches > 0 or done.activity != counted, name


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("timesteps", [1, 4])
def test_samples_back_to_back_leave_no_trace(kind: Kind, timesteps: int) -> None:
    """A soft reset leaves membranes above the threshold: a schedule clears them between samples."""
    graph = rule_graph(kind, timesteps)
    clocked = run_clocked(graph, balance_delays(graph, LatencyTable()), BATCH)
    comparison = compare(graph, reference(graph), clocked)
    assert comparison.mismatches == 0, str(comparison.first_mismatch)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_padding_changes_nothing_and_is_silent(kind: Kind) -> None:
    graph = rule_graph(kind)
    padded = reference(graph)
    for name, values in padded.values.items():
        assert not values[:, BATCH.mask == 0].any(), name
    for sample in range(len(BATCH)):
        tokens = int(BATCH.mask[sample].sum())
        alone = TokenBatch(BATCH.ids[sample : sample + 1, :tokens], BATCH.mask[sample : sample + 1, :tokens])
        assert np.array_equal(reference(graph, alone).logits[0], padded.logits[sample])


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(OTHERS), st.sampled_from(DECAYS), st.sampled_from([30000, 65535]), st.integers(0, 99))
def test_membranes_that_are_cut_are_counted(kind: Kind, dv: int, threshold: int, seed: int) -> None:
    """Biases as large as an accumulator: by Python's integers, and counted by the fast engine."""
    rng = np.random.default_rng(seed)
    graph = rule_graph(kind, timesteps=8, dv=dv)
    large = {
        "out": {"bias": rng.choice([-65000, 65000], 6), "weight": rng.integers(-3, 4, (6, 6))},
        "out.lif": {"threshold": threshold},
    }
    nodes = [replace(node, **large.get(node.name, {})) for node in graph]
    graph = Graph(graph.timesteps, graph.n_max, tuple(nodes))
    expected = reference(graph)
    cuts = 0
    for currents in expected.values["out"].reshape(8, -1).T.tolist():
        cuts += naive_cuts(currents, threshold, dv, kind)
    counted = count_activity(graph, expected.values, BATCH)
    assert counted.per_node["out.lif"].saturations == cuts
    with closing(FastEngine(graph, 1)) as engine:
        assert engine.run(BATCH).activity == counted


def naive_cuts(currents: list[int], threshold: int, dv: int, kind: Kind) -> int:
    """How often a membrane was cut, from what was sent."""
    v, cuts, level = 0, 0, threshold << 7
    for a, s in zip(currents, naive_neuron(currents, threshold, dv, kind)):
        kept = (abs(v) * (4096 - dv)) >> 12
        charged = (kept if v >= 0 else -kept) + (a << 7)
        v = max(-(2**23 - 1), min(2**23 - 1, charged))
        cuts += v != charged
        if s != 0:
            v = v - s * level if kind[0] == "subtract" else 0
    return cuts


def test_records_hold_signs_and_sizes() -> None:
    ternary, graded = rule_graph(("zero", "ternary", 1)), rule_graph(("zero", "graded", 15))
    assert value_column(ternary, "out.lif").dtype == np.int8 and not value_column(ternary, "out.lif").bits
    assert value_column(graded, "out.lif").dtype == np.uint8 and not value_column(graded, "out.lif").bits
    assert value_column(ternary, "q.lif").bits
