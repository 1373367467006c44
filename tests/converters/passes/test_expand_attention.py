"""expand-attention: `(q k^T) v` of coincidences, sums, relays and products."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, reject, settings
from pass_helpers import (
    Broken,
    Trial,
    assert_same_network,
    attention_graph,
    caught_at,
    changed,
    mlp,
    moved,
    outline,
    proven,
    run_reference,
    some_batch,
    spoil,
    trials,
    unindented,
    with_after,
)
from random_graphs import random_dag, random_graph

from converters.execution import TokenBatch
from converters.graph import LIF, Attention, Graph, GraphError, Readout, Relay, Slice, Synapses
from converters.graph_text import graph_text
from converters.passes.expand_attention import ExpandAttention
from converters.passes.lay_out_bias_lanes import LayOutBiasLanes
from converters.passes.merge_query_key_value import MergeQueryKeyValue
from spikebert.commands import CheckFailed

EXPAND = ExpandAttention()


def expanded(graph: Graph) -> Graph:
    return proven(EXPAND, graph).graph


def test_an_attention_becomes_stock_neurons_and_synapses() -> None:
    graph = attention_graph(n_max=3, heads=2)
    after = expanded(graph)
    assert unindented("\n".join(outline(after).splitlines()[7:14])) == unindented("""
        v = lif(v.current)  D=2  threshold=1  dv=4095
        attention.match = coincidence(q, k)  D=6
        attention.scores = synapses(attention.match)  D=6  weight_bits=2  weight[6x6]=0..1  bias[6]=0..0
        attention.relay = relay(attention.scores)  D=6
        attention.product = product(attention.relay, v)  D=6  heads=2
        attention = synapses(attention.product)  D=2  weight_bits=2  weight[2x6]=0..1  bias[2]=0..0
        attended = lif(attention)  D=2  threshold=0  dv=4095
    """)
    assert np.array_equal(after["attention.scores"].weight, np.eye(6))  # of heads of one feature
    assert after["attention"].weight.tolist() == [[1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]]
    unlike = {node.name for node in graph if after[node.name] is not node}
    assert unlike == {"attention"}


def test_equal_features_are_coincidences_of_either_kind() -> None:
    """q and k with their opposites beside them; a padded token has neither."""
    graph = changed(attention_graph(n_max=3, heads=2), {"attention": {"similarity": "xnor"}})
    after = expanded(graph)
    lines = outline(after).splitlines()
    first = lines.index(next(line for line in lines if line.startswith("attention.q_opposite")))
    assert unindented("\n".join(lines[first : first + 8])) == unindented("""
        attention.q_opposite = synapses(q)  D=2  weight_bits=2  weight[2x2]=-1..0  bias[2]=1..1
        attention.q_opposite.lif = lif(attention.q_opposite)  D=2  threshold=0  dv=4095
        attention.q_both = concat(q, attention.q_opposite.lif)  D=4
        attention.k_opposite = synapses(k)  D=2  weight_bits=2  weight[2x2]=-1..0  bias[2]=1..1
        attention.k_opposite.lif = lif(attention.k_opposite)  D=2  threshold=0  dv=4095
        attention.k_both = concat(k, attention.k_opposite.lif)  D=4
        attention.match = coincidence(attention.q_both, attention.k_both)  D=12
        attention.scores = synapses(attention.match)  D=6  weight_bits=2  weight[6x12]=0..1  bias[6]=0..0
    """)
    assert after["attention.scores"].weight[0].tolist() == [1, 0, 1, 0, *[0] * 8]  # key 0, head 0: feature 0, both ways
    batch = TokenBatch([[3, 2, 1], [1, 2, 3], [0, 1, 2]], [[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    done = run_reference(after, batch).values
    real = batch.mask[None, :, :, None] == 1
    assert np.array_equal(done["attention.q_opposite.lif"], real * (1 - done["q"]))


def test_with_the_valid_lane_laid_out_the_opposites_read_it() -> None:
    graph = changed(attention_graph(n_max=3, heads=2), {"attention": {"similarity": "xnor"}})
    laid = proven(LayOutBiasLanes(), graph).graph
    assert laid["attention"].inputs[3] == "attention.lane"
    after = expanded(laid)
    assert after["attention.q_with_lane"].inputs == ("q.features", "attention.lane")
    assert after["attention.q_opposite"].weight.tolist() == [[-1, 0, 1], [0, -1, 1]]
    assert not any(node.bias.any() for node in after if isinstance(node, (Synapses, Readout)))


def test_a_position_bias_is_refused_with_what_to_do() -> None:
    graph = changed(attention_graph(), {"attention": {"bias": np.ones((1, 2, 2), int)}})
    with pytest.raises(GraphError, match=r"node 'attention': .* position bias .*: train with attention_position none"):
        EXPAND.rewrite(graph)


def test_a_score_is_the_sum_over_the_features_of_its_head() -> None:
    after = expanded(random_graph(np.random.default_rng(0), blocks=1, hidden=4, heads=2, n_max=2))
    assert after["block0.attention.scores"].weight.tolist() == [
        [1, 1, 0, 0, 0, 0, 0, 0],  # key 0, head 0
        [0, 0, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 0, 0],  # key 1, head 0
        [0, 0, 0, 0, 0, 0, 1, 1],
    ]


def test_no_attention_leaves_the_graph_itself_and_twice_is_once() -> None:
    graph = mlp([[6]], [0])
    assert EXPAND.rewrite(graph).graph is graph
    once = expanded(attention_graph())
    assert EXPAND.rewrite(once).graph is once


def test_the_weights_are_counted_and_the_limit_is_kept() -> None:
    """`n_max^2 D H + n_max D^2`, of each attention: 3 * 3 * 2 * 2 + 3 * 2 * 2."""
    graph = attention_graph(n_max=3, heads=2)
    after = expanded(graph)
    assert sum(after[name].weight.size for name in ("attention.scores", "attention")) == 48
    assert ExpandAttention(most_weights=48).rewrite(graph).graph is not graph
    equal = changed(graph, {"attention": {"similarity": "xnor"}})
    after = expanded(equal)
    parts = ("attention.scores", "attention", "attention.q_opposite", "attention.k_opposite")
    weights = sum(after[name].weight.size for name in parts)
    assert ExpandAttention(most_weights=weights).rewrite(equal).graph is not equal
    with pytest.raises(GraphError, match=f"would need {weights} weights"):
        ExpandAttention(most_weights=weights - 1).rewrite(equal)
    with pytest.raises(
        GraphError, match=r"1 attentions of stock neurons would need 48 weights, the limit is 47: use f"
    ):
        ExpandAttention(most_weights=47).rewrite(graph)


def test_a_graph_of_many_tokens_is_refused_before_memory_is_taken() -> None:
    graph = attention_graph(n_max=20_000)
    with pytest.raises(CheckFailed, match=r"pass 'expand-attention': .* 800,080,000 weights, the limit is 134,217,728"):
        proven(EXPAND, graph, TokenBatch([[1]], [[1]]))


ONE_TOKEN = attention_graph(n_max=1)
SHARED = changed(attention_graph(n_max=3), {"attention": {"inputs": ("q", "q", "q")}})
TWO = changed(
    with_after(
        attention_graph(n_max=3), "attended", Attention("second", ("attended", "k", "attended"), 2),
        LIF("second.lif", ("second",), 1, 2048),
    ),
    {"sum": {"inputs": ("second.lif", "attended")}},
)  # fmt: skip
RELAYED = with_after(attention_graph(), "attention", Relay("relayed", ("attention",)), Slice("s", ("relayed",), 0, 1))


@pytest.mark.parametrize("graph", [ONE_TOKEN, SHARED, TWO, RELAYED], ids=["one token", "q k v alike", "two", "relayed"])
def test_special_shapes(graph: Graph) -> None:
    passed = proven(EXPAND, graph)
    assert not any(isinstance(node, Attention) for node in passed.graph)
    assert_same_network(graph, passed, some_batch(graph, seed=3))


def test_shorter_batches_than_n_max() -> None:
    graph = attention_graph(n_max=5)
    for tokens in (1, 2, 4):
        assert_same_network(graph, proven(EXPAND, graph), TokenBatch([[3] * tokens], [[1] * tokens]))


def test_q_k_and_v_may_be_slices() -> None:
    graph = proven(MergeQueryKeyValue(), attention_graph()).graph
    assert_same_network(graph, proven(EXPAND, graph), some_batch(graph, seed=3))


def test_names_that_are_taken() -> None:
    more = Synapses("attention.scores", ("source",), [[1, 1]], [0]), LIF("attention.match", ("attention.scores",), 0)
    after = expanded(with_after(attention_graph(), "source", *more))
    assert after["attention.relay"].inputs == ("attention.scores_2",)
    assert after["attention.scores_2"].inputs == ("attention.match_2",)


@settings(deadline=None, max_examples=25)
@given(trial=trials(attention="unbiased"))
def test_random_graphs_stay_the_same_networks(trial: Trial) -> None:
    try:
        passed = proven(EXPAND, trial.graph, trial.golden)
    except CheckFailed as refusal:  # what is proven of scores for equal features is twice what they reach
        assert "an accumulator may reach" in str(refusal)
        assert any(isinstance(node, Attention) and node.similarity == "xnor" for node in trial.graph)
        reject()
    assert not any(isinstance(node, Attention) for node in passed.graph)
    assert_same_network(trial.graph, passed, trial.other)
    assert EXPAND.rewrite(passed.graph).graph is passed.graph


@pytest.mark.parametrize(
    "change",
    [
        spoil(bias=[0, 1])("attention.q_opposite"),
        spoil(threshold=1)("attention.k_opposite.lif"),
        spoil(inputs=("q", "q"))("attention.q_both"),
        spoil(weight=lambda weight: weight * (np.arange(12) % 4 < 2))("attention.scores"),
    ],
    ids=["an opposite too few", "opposites that never fire", "no opposites", "opposites not counted"],
)
def test_broken_opposites_are_stopped(change) -> None:
    graph = changed(GRAPH, {"attention": {"similarity": "xnor"}})
    assert caught_at(Broken(EXPAND, change), graph, BATCH) == "attention"


@settings(deadline=None, max_examples=15)
@given(trial=trials(random_dag, "plain"))
def test_bounds_and_ranges_grow_by_nothing(trial: Trial) -> None:
    """What is proven of the attention is proven of the layer in its place."""
    after = EXPAND.rewrite(trial.graph).graph
    assert all(after.value_max[node.name] == trial.graph.value_max[node.name] for node in trial.graph)
    assert graph_text(EXPAND.rewrite(after).graph) == graph_text(after)


# Broken on purpose

GRAPH = attention_graph(n_max=3, heads=2)
BATCH = TokenBatch([[3, 2, 1], [1, 2, 3], [0, 1, 2]], [[1, 1, 1], [1, 1, 1], [1, 1, 0]])  # every pair of tokens
MUTANTS = {
    "a score of another feature": spoil(weight=moved)("attention.scores"),
    "a key that is never matched": spoil(weight=lambda weight: weight * (np.arange(6) < 4))("attention.scores"),
    "a weight of the sums moved": spoil(weight=moved)("attention"),
    "a key that is not summed": spoil(weight=lambda weight: weight * (np.arange(6) < 4))("attention"),
    "q and k swapped": spoil(inputs=("k", "q"))("attention.match"),
    "k instead of v": spoil(inputs=("attention.relay", "k"))("attention.product"),
    "a bias": spoil(bias=[0, 1])("attention"),
}


@pytest.mark.parametrize("change", MUTANTS.values(), ids=MUTANTS)
def test_a_broken_attention_is_stopped(change) -> None:
    """On the first value that is wrong: parts of the attention are new, so that is its own, under its old name."""
    proven(EXPAND, GRAPH, BATCH)
    assert caught_at(Broken(EXPAND, change), GRAPH, BATCH) == "attention"


def test_heads_that_are_mixed_up_are_stopped() -> None:
    """Features dealt out to heads (0, 2 and 1, 3) instead of cut into them (0, 1 and 2, 3)."""
    graph = random_graph(np.random.default_rng(0), blocks=1, hidden=4, heads=2, n_max=2)
    dealt = Broken(EXPAND, spoil(weight=lambda weight: weight[:, [0, 2, 1, 3, 4, 6, 5, 7]])("block0.attention.scores"))
    assert caught_at(dealt, graph, some_batch(graph, samples=8)) == "block0.attention"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil(heads=1)("attention.product"), "node 'attention.product': its scores have 6 features"),
        (spoil(weight=lambda weight: weight[:, :-1])("attention"), "node 'attention': weight has 5 columns"),
        (spoil(weight=lambda weight: -weight)("attention.scores"), "node 'attention.relay': the current .* may be neg"),
        (spoil(inputs=("attention.relay", "sum"))("attention.product"), "node 'attention.product': input 'sum' is not"),
    ],
)
def test_parts_that_do_not_fit_make_no_graph(change, message: str) -> None:
    with pytest.raises(CheckFailed, match=f"pass 'expand-attention': {message}"):
        proven(Broken(EXPAND, change), GRAPH)
