"""remove-unreachable-tokens: a row that is never read may be absent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pass_helpers import (
    INTERPRETERS,
    Broken,
    Trial,
    assert_same_network,
    caught_at,
    changed,
    mlp,
    outline,
    proven,
    spoil,
    trials,
    unindented,
)

from converters.execution import TokenBatch
from converters.graph import GraphError
from converters.passes.remove_unreachable_tokens import RemoveUnreachableTokens
from converters.passes.rewrite import Rewrite
from converters.passes.run import run_passes
from spikebert.commands import CheckFailed

TABLE = [[-1, 5], [9, -9], [2, -2], [-3, 3], [4, 4]]
GRAPH = changed(mlp([[6, 1], [30, 2]], [0, 1]), {"source": {"table": TABLE, "position": [[0, 0], [-3, -4], [-2, 2]]}})
BATCH = TokenBatch([[0, 2, 4], [4, 2, 1], [2, 0, 3]], [[1, 1, 1], [1, 1, 0], [1, 0, 0]])  # 1 and 3 are padding


def remove(*reachable: int) -> RemoveUnreachableTokens:
    return RemoveUnreachableTokens(np.array(reachable, np.int64))


def test_rows_go_and_ids_close_up() -> None:
    passed = proven(remove(0, 2, 4), GRAPH, BATCH)
    assert outline(passed.graph) == unindented("""
        graph T=4 n_max=3 nodes=6
        source = source()  D=2  kind=sign  threshold=0  dv=0  table[3x2]=-2..5  position[3x2]=-4..2
        up = synapses(source)  D=2  weight_bits=8  weight[2x2]=1..30  bias[2]=0..1
        up.lif = lif(up)  D=2  threshold=10  dv=2048
        down = synapses(up.lif)  D=2  weight_bits=8  weight[2x2]=1..4  bias[2]=3..4
        down.lif = lif(down)  D=2  threshold=2  dv=0
        readout = readout(down.lif)  D=2  scale=1.0  weight[2x2]=0..1  bias[2]=0..1
    """)
    assert passed.graph.source.table.tolist() == [[-1, 5], [2, -2], [4, 4]]
    assert passed.token_ids is not None and passed.token_ids.tolist() == [0, -1, 1, -1, 2]
    assert passed.batch.ids.tolist() == [[0, 1, 2], [2, 1, 0], [1, 0, 0]]  # padding is anything, and 0 is always there
    assert passed.records[0].summary == "2 of 5 tokens removed"
    assert_same_network(GRAPH, passed, TokenBatch([[4, 4, 0]], [[1, 1, 0]]))


def test_nothing_to_do_leaves_the_graph_and_the_ids() -> None:
    passed = proven(remove(0, 1, 2, 3, 4), GRAPH, BATCH)
    assert passed.graph is GRAPH and passed.token_ids is None and passed.batch is BATCH


@pytest.mark.parametrize("reachable", [(), (0, 5), (5,), (0, 1, 2, 3, 4, 5)])
def test_ids_that_do_not_fit_the_table_are_refused(reachable: tuple[int, ...]) -> None:
    with pytest.raises(GraphError, match="node 'source': the tokenizer's ids do not fit a table of 5 rows"):
        remove(*reachable).rewrite(GRAPH)


def test_twice_is_refused_or_nothing_for_ids_are_others_then() -> None:
    """A pass holds the ids of one tokenizer, and there is a new one now."""
    with pytest.raises(CheckFailed, match=r"pass 'remove-unreachable-tokens': node 'source': .* a table of 3 rows"):
        run_passes(GRAPH, [remove(0, 2, 4), remove(0, 2, 4)], BATCH, INTERPRETERS)
    short = TokenBatch([[0, 1]], [[1, 1]])
    assert run_passes(GRAPH, [remove(0, 1), remove(0, 1)], short, INTERPRETERS).graph.source.table.shape[0] == 2


def test_two_removals_are_one_map_of_ids() -> None:
    passed = run_passes(GRAPH, [remove(0, 2, 3, 4), remove(0, 1, 3)], BATCH, INTERPRETERS)  # 0, 2, 4
    assert passed.token_ids is not None and passed.token_ids.tolist() == [0, -1, 1, -1, 2]


@settings(deadline=None, max_examples=25)
@given(trial=trials(), spared=st.floats(0, 1))
def test_random_graphs_stay_the_same_networks(trial: Trial, spared: float) -> None:
    used = np.concatenate([batch.ids[batch.mask == 1] for batch in (trial.golden, trial.other)])
    more = np.flatnonzero(trial.rng.random(len(trial.graph.source.table)) < spared)
    passed = proven(remove(*np.union1d(used, more)), trial.graph, trial.golden)
    assert len(passed.graph.source.table) == len(np.union1d(used, more))
    assert_same_network(trial.graph, passed, trial.other)


# Broken on purpose


def other_ids(change):
    def of(rewrite: Rewrite) -> Rewrite:
        assert rewrite.token_ids is not None
        return replace(rewrite, token_ids=change(rewrite.token_ids))

    return of


MUTANTS = {
    "rows in another order": spoil(table=lambda table: table[::-1])("source"),
    "ids one too high": other_ids(lambda ids: np.where(ids >= 0, (ids + 1) % 3, -1)),
    "the first rows kept": spoil(table=np.array(TABLE)[:3])("source"),
    "positions lost": spoil(position=None)("source"),
    "ids as they were": other_ids(lambda ids: np.array([0, 1, 2, 2, 2])),
}


@pytest.mark.parametrize("change", MUTANTS.values(), ids=MUTANTS)
def test_a_broken_removal_is_stopped(change) -> None:
    proven(remove(0, 2, 4), GRAPH, BATCH)
    assert caught_at(Broken(remove(0, 2, 4), change), GRAPH, BATCH) == "source"


def test_a_token_that_a_text_leads_to_is_missed() -> None:
    with pytest.raises(
        CheckFailed, match=r"'remove-unreachable-tokens' removed token id 2: golden sample 0 has it at tok.* 1"
    ):
        proven(remove(0, 3, 4), GRAPH, BATCH)
