"""prove-ranges: it changes nothing, and no graph gets past it whose currents are not proven."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from pass_helpers import Broken, Trial, caught_at, changed, mlp, proven, run_reference, some_batch, spoil, trials

import converters.passes.prove_ranges as module
from converters.graph import Attention, Graph, GraphError, Readout, Synapses
from converters.passes.expand_attention import ExpandAttention
from converters.passes.prove_ranges import ProveRanges
from converters.ranges import largest_current, prove_ranges
from spikebert.commands import CheckFailed

GRAPH = mlp([[100, 27]], [500])  # both spikes and the bias: 627


def test_it_changes_nothing_and_tells_the_largest_current() -> None:
    passed = proven(ProveRanges(), GRAPH)
    assert passed.graph is GRAPH and passed.records[0].values_compared == 0
    assert passed.records[0].summary == "largest current 627 of 65,535, at 'up'"


def test_what_is_not_proven_is_refused_with_what_would_reach_it() -> None:
    with pytest.raises(GraphError, match=r"'up': a current may reach 627, the limit is 600 \(feature 0, when 2 of"):
        ProveRanges(limit=600).rewrite(GRAPH)
    with pytest.raises(CheckFailed, match="pass 'prove-ranges': node 'up': a current may reach"):
        proven(ProveRanges(limit=600), GRAPH)


def test_the_limit_can_be_lowered_and_not_raised() -> None:
    """No option waives the proof."""
    assert ProveRanges(limit=65535).rewrite(GRAPH).graph is GRAPH
    with pytest.raises(GraphError, match="limit is 65536, no graph may have currents above 65535"):
        ProveRanges(limit=65536).rewrite(GRAPH)


def test_every_node_that_may_pass_the_limit_is_named() -> None:
    with pytest.raises(GraphError, match=r"node 'up': .*; node 'down': .*; node 'readout': "):
        ProveRanges(limit=0).rewrite(GRAPH)


def test_membranes_that_may_be_cut_are_told_and_not_refused() -> None:
    graph = changed(mlp([[100]], [40_000], 65535), {"up.lif": {"dv": 0}})
    assert "; 1 membranes may saturate, first 'up.lif'" in ProveRanges().rewrite(graph).summary


@settings(deadline=None, max_examples=25)
@given(trial=trials())
def test_random_graphs_pass_at_their_bound_and_not_below(trial: Trial) -> None:
    top, reach = largest_current(trial.graph, prove_ranges(trial.graph))
    assert proven(ProveRanges(), trial.graph, trial.golden).graph is trial.graph
    assert ProveRanges(limit=reach).rewrite(trial.graph).graph is trial.graph
    if reach:
        with pytest.raises(GraphError, match=f"node '{top}'"):
            ProveRanges(limit=reach - 1).rewrite(trial.graph)


@settings(deadline=None, max_examples=15)
@given(trial=trials(attention="unbiased"))
def test_what_a_pass_makes_is_proven_as_well(trial: Trial) -> None:
    """No value of a network that a pass made lies outside the ranges of that network."""
    graph = ExpandAttention().rewrite(trial.graph).graph
    ranges, done = prove_ranges(graph), run_reference(graph, trial.other)
    for name, values in done.values.items():
        real = values[:, trial.other.mask == 1]
        assert (real >= ranges[name].low).all() and (real <= ranges[name].high).all(), name


# Broken on purpose: each break must be seen by `keeps_its_bound`


def keeps_its_bound(graph: Graph, name: str, reach: int) -> bool:
    """Whether the limit of what really happens is kept, and one below it refused with the node's name."""
    try:
        ProveRanges(limit=reach).rewrite(graph)
    except GraphError:
        return False
    try:
        ProveRanges(limit=reach - 1).rewrite(graph)
    except GraphError as error:
        return f"node '{name}'" in str(error)
    return False


def without_biases(graph: Graph) -> Graph:
    bare = {node.name: {"bias": 0 * node.bias} for node in graph if isinstance(node, (Synapses, Readout))}
    return changed(graph, bare)


def halved(graph: Graph):
    ranges = prove_ranges(graph)
    return ranges | {"up": replace(ranges["up"], high=ranges["up"].high // 2)}


BREAKS = {
    "biases forgotten": lambda graph: prove_ranges(without_biases(graph)),
    "half a range": halved,
    "a range too wide": lambda graph: prove_ranges(changed(graph, {"up": {"bias": [501]}})),
}


@pytest.mark.parametrize("breaks", BREAKS.values(), ids=BREAKS)
def test_a_broken_proof_is_seen(breaks, monkeypatch) -> None:
    reached = int(run_reference(GRAPH, some_batch(GRAPH)).values["up"].max())
    assert reached == 627 and keeps_its_bound(GRAPH, "up", reached)
    monkeypatch.setattr(module, "prove_ranges", breaks)
    assert not keeps_its_bound(GRAPH, "up", reached)


def test_currents_that_are_not_looked_at_are_seen(monkeypatch) -> None:
    monkeypatch.setattr(module, "CURRENTS", (Attention,))
    assert not keeps_its_bound(GRAPH, "up", 627)


def test_a_proof_that_changes_the_graph_is_stopped() -> None:
    broken = Broken(ProveRanges(), spoil(bias=[499])("up"))
    assert caught_at(broken, GRAPH, some_batch(GRAPH)) == "up"
