"""Random graphs through all passes, in their order and in any other, on every engine here."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_helpers import (
    INTERPRETERS,
    Trial,
    assert_same_network,
    latency_tables,
    renamed,
    run_reference,
    some_batch,
    trials,
)
from random_graphs import random_graph

from converters.execution import TokenBatch
from converters.graph import LIF, Attention, Graph, Readout, Synapses
from converters.passes.balance_delays import BalanceDelays, balance_delays
from converters.passes.catalogue import PASS_NAMES
from converters.passes.expand_attention import ExpandAttention
from converters.passes.lay_out_bias_lanes import LayOutBiasLanes
from converters.passes.merge_query_key_value import MergeQueryKeyValue
from converters.passes.prove_ranges import ProveRanges
from converters.passes.remove_dead_neurons import RemoveDeadNeurons
from converters.passes.remove_unreachable_tokens import RemoveUnreachableTokens
from converters.passes.remove_unread_nodes import RemoveUnreadNodes
from converters.passes.rewrite import Pass
from converters.passes.run import PassedGraph, run_passes
from converters.passes.split_wide_layers import SplitWideLayers
from converters.schedule import LatencyTable
from sim.clocked import run_clocked
from sim.fast.engine import FastEngine
from sim.verify import compare


def used(*batches: TokenBatch) -> np.ndarray:
    return np.unique(np.concatenate([batch.ids[batch.mask == 1] for batch in batches]))


def all_passes(reachable: np.ndarray, most: int = 5, scalar: bool = False, table: LatencyTable | None = None):
    passes: list[Pass] = [
        ProveRanges(), RemoveUnreadNodes(), RemoveUnreachableTokens(reachable), RemoveDeadNeurons(),
        MergeQueryKeyValue(scalar), ExpandAttention(), LayOutBiasLanes(), SplitWideLayers(most),
        BalanceDelays(table or LatencyTable()),
    ]  # fmt: skip
    return passes


def test_these_are_all_passes_in_their_order() -> None:
    assert tuple(each.name for each in all_passes(np.array([0]))) == PASS_NAMES


def assert_every_value_the_same(passed: PassedGraph, batch: TokenBatch) -> None:
    """Of the graph after its passes: the fast engine, and machine time, against the reference."""
    graph, batch = passed.graph, renamed(batch, passed.token_ids)
    expected = run_reference(graph, batch)
    with closing(FastEngine(graph)) as engine:
        assert compare(graph, expected, engine.run(batch, list(graph.features))).mismatches == 0
    assert compare(graph, expected, run_clocked(graph, balance_delays(graph, LatencyTable()), batch)).mismatches == 0


@settings(deadline=None, max_examples=20)
@given(trial=trials(attention="unbiased"), most=st.integers(3, 9), scalar=st.booleans(), table=latency_tables())
def test_all_passes_in_their_order(trial: Trial, most: int, scalar: bool, table: LatencyTable) -> None:
    passes = all_passes(used(trial.golden, trial.other), most, scalar, table)
    passed = run_passes(trial.graph, passes, trial.golden, INTERPRETERS)
    assert [record.name for record in passed.records] == list(PASS_NAMES)
    assert_same_network(trial.graph, passed, trial.other)
    assert_every_value_the_same(passed, trial.other)
    assert not any(isinstance(node, Attention) for node in passed.graph)
    assert not any(node.bias.any() for node in passed.graph if isinstance(node, (Synapses, Readout)))
    layers = {node.name for node in passed.graph if isinstance(node, Synapses)}
    split = [node.name for node in passed.graph if isinstance(node, LIF) and node.inputs[0] in layers]
    assert all(passed.graph.features[name] <= most for name in split), "with lanes"


@settings(deadline=None, max_examples=30)
@given(trial=trials(attention="unbiased"), most=st.integers(3, 9), scalar=st.booleans(), data=st.data())
def test_some_passes_in_any_order(trial: Trial, most: int, scalar: bool, data: st.DataObject) -> None:
    """All orders are legal; a pass may find less to do after another."""
    order = data.draw(st.permutations(all_passes(used(trial.golden, trial.other), most, scalar)))
    passes = order[: data.draw(st.integers(2, len(order)))]
    passed = run_passes(trial.graph, passes, trial.golden, INTERPRETERS)
    assert_same_network(trial.graph, passed, trial.other)


@pytest.fixture(scope="module")
def block() -> Graph:
    return random_graph(np.random.default_rng(4), blocks=2, hidden=8, heads=2, n_max=4, dv=410, bias_max=200)


def test_padding_changes_nothing_after_all_passes(block: Graph) -> None:
    """The same texts in batches as wide as they are, and wider."""
    batch = some_batch(block, samples=3)
    passed = run_passes(block, all_passes(np.arange(40)), batch, INTERPRETERS)
    short = TokenBatch(batch.ids[:, :2], np.ones((3, 2)))
    wide = TokenBatch(batch.ids, np.tile([1, 1, 0, 0], (3, 1)))
    assert np.array_equal(run_reference(passed.graph, short).logits, run_reference(passed.graph, wide).logits)


def test_what_all_passes_did_is_told_in_a_line_each(block: Graph) -> None:
    passed = run_passes(block, all_passes(np.arange(2, 40)), TokenBatch([[2, 3]], [[1, 1]]), INTERPRETERS)
    told = {record.name: record.summary for record in passed.records}
    assert told["remove-unreachable-tokens"] == "2 of 40 tokens removed"
    assert told["merge-query-key-value"] == "2 times q, k and v made one layer"
    assert told["expand-attention"] == "2 attentions made of stock neurons"
    assert all("\n" not in line and line for line in told.values())
