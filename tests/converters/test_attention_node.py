"""Attention with a similarity or a bias of its own: bounds, checks, text and what is on disk."""

from __future__ import annotations

import json
from dataclasses import replace

import fastjsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from json_schema import json_schema
from pass_helpers import attention_graph, changed, with_after

from converters.graph import (
    ACCUMULATOR_MAX,
    Attention,
    Graph,
    GraphError,
    Relay,
    ValidLane,
    attention_bounds,
)
from converters.graph_text import graph_text
from converters.model_card import sizes
from converters.ranges import prove_ranges
from converters.serialise import PlainGraph, SerialiseError, graph_to_plain, plain_to_graph
from sim.reference import attention

INPUTS = ("q", "k", "v")


def graph_with(similarity: str = "and", bias: object = None, n_max: int = 2) -> Graph:
    return changed(attention_graph(n_max=n_max), {"attention": {"similarity": similarity, "bias": bias}})


@settings(deadline=None)
@given(data=st.data(), similarity=st.sampled_from(["and", "xnor"]), heads=st.sampled_from([1, 2]))
def test_bounds_hold_for_every_text_and_are_met(data: st.DataObject, similarity: str, heads: int) -> None:
    """Every v, and scores at either end: with all features alike a score is d, with all different it is 0."""
    numbers = data.draw(st.lists(st.integers(-9, 9), min_size=heads * 9, max_size=heads * 9))
    node = Attention("a", INPUTS, heads, similarity, np.reshape(numbers, (heads, 3, 3)))
    bounds = attention_bounds(node, 2, 3)
    largest = np.zeros(heads, int)
    for pattern in range(2**6):  # which keys are like the queries, and which values fire
        bits = (pattern >> np.arange(6)) & 1
        like, fires = bits[:3], bits[3:]
        q = np.ones((1, 1, 3, 2 * heads), int)
        k, v = (np.tile(x[None, None, :, None], (1, 1, 1, 2 * heads)) for x in (like, fires))
        a = np.abs(attention(node, q, k, v, np.ones((1, 1, 3), int)))
        largest = np.maximum(largest, a.reshape(-1, heads, 2).max(axis=(0, 2)))
    assert np.array_equal(largest, bounds)


def test_an_accumulator_that_may_pass_its_limit_is_refused() -> None:
    most = ACCUMULATOR_MAX // 2 - 2  # two keys, a score of 2
    assert graph_with(bias=np.full((1, 2, 2), most)).value_max["attention"] == 2 * (most + 2)
    with pytest.raises(GraphError, match="node 'attention': an accumulator may reach 65536, the limit is 65535"):
        graph_with(bias=np.full((1, 2, 2), most + 1))
    with pytest.raises(GraphError, match="node 'attention': an accumulator may reach 65536"):
        graph_with(bias=np.full((1, 2, 2), -(2**15)))
    assert graph_with("xnor").value_max == graph_with().value_max


def test_a_bias_is_for_as_many_tokens_as_the_graph() -> None:
    with pytest.raises(GraphError, match="node 'attention': bias is for 3 tokens, n_max is 2"):
        graph_with(bias=np.ones((1, 3, 3), int))


def test_a_relay_takes_no_attention_that_may_be_negative() -> None:
    relay = Relay("relayed", ("attention",))
    with_after(graph_with(bias=np.zeros((1, 2, 2), int)), "attention", relay)
    with pytest.raises(GraphError, match="node 'relayed': the current 'attention' may be negative"):
        with_after(graph_with(bias=[[[0, 0], [0, -1]]]), "attention", relay)


def test_a_fourth_input_is_a_lane() -> None:
    graph = with_after(graph_with("xnor"), "source", ValidLane("m", 1), ValidLane("wide", 2))
    changed(graph, {"attention": {"inputs": (*INPUTS, "m")}})
    for name, message in (("wide", "'wide' has 2 of 0 .. 1"), ("v.current", "takes spikes")):
        with pytest.raises(GraphError, match=message):
            changed(graph, {"attention": {"inputs": (*INPUTS, name)}})


def test_ranges_know_which_features_can_be_equal() -> None:
    """k is silent and q fires always at feature 0; of the other nothing is known."""
    graph = graph_with("xnor", n_max=3)
    layers = {
        "q.current": {"weight": [[0, 0], [1, 2]], "bias": [2, 0]},
        "k.current": {"weight": [[0, 0], [-3, 3]]},
    }
    ranges = prove_ranges(changed(graph, layers))
    assert ranges["attention"].high.tolist() == [3, 3]
    biased = changed(graph, {"attention": {"bias": np.full((1, 3, 3), -1)}, **layers})
    assert prove_ranges(biased)["attention"].high.tolist() == [0, 0]
    assert prove_ranges(biased)["attention"].low.tolist() == [-3, -3]


def test_the_text_of_a_graph_tells_both() -> None:
    def line(graph: Graph) -> str:
        return graph_text(graph).split("attention = ")[1].splitlines()[0]

    assert line(graph_with()) == "attention(q, k, v)  D=2  heads=1"
    both = line(graph_with("xnor", [[[1, 2], [3, -4]]]))
    assert both.startswith("attention(q, k, v)  D=2  heads=1  similarity=xnor  bias[1x2x2]=-4..3#")
    assert graph_text(graph_with(bias=[[[1, 2], [3, 4]]])) != graph_text(graph_with(bias=[[[1, 2], [4, 3]]]))


def test_sizes_tell_both_where_they_are_used() -> None:
    told = sizes(graph_with("xnor", np.ones((1, 2, 2), int)))
    assert (told["attentions by equal features"], told["position biases of attentions"]) == (1, 4)
    assert told.keys() - sizes(graph_with()).keys() == {"attentions by equal features", "position biases of attentions"}


# On disk


def test_the_schema_is_as_old_as_the_graph_allows() -> None:
    assert graph_to_plain(graph_with()).structure["schema"] == 2
    assert graph_to_plain(graph_with("xnor")).structure["schema"] == 4
    assert graph_to_plain(graph_with(bias=np.zeros((1, 2, 2), int))).structure["schema"] == 4


def test_a_plain_attention_is_written_as_before() -> None:
    plain = graph_to_plain(graph_with())
    entry = next(node for node in plain.structure["nodes"] if node["name"] == "attention")
    assert entry == {"name": "attention", "op": "attention", "inputs": ["q", "k", "v"], "features": 2, "heads": 1}
    assert "attention.bias" not in plain.weights


BIAS = np.array([[[0, 1], [-2, 3]]])


def written(**fields: object) -> PlainGraph:
    """A graph with both, and with some fields of its attention changed in the JSON."""
    plain = graph_to_plain(graph_with("xnor", BIAS))
    structure = json.loads(json.dumps(plain.structure))
    next(node for node in structure["nodes"] if node["name"] == "attention").update(fields)
    return replace(plain, structure=structure)


def test_both_come_back() -> None:
    node = plain_to_graph(written())["attention"]
    assert isinstance(node, Attention) and node.similarity == "xnor"
    assert node.bias is not None and node.bias.dtype == np.int32 and np.array_equal(node.bias, BIAS)


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        (written(similarity="nand"), "similarity 'nand'"),
        (written(similarity=1), "field 'similarity' has the wrong type"),
        (written(bias_maps=2), "bias_maps 2, its bias has 1"),
        (written(bias_maps=0), "tensors that no node uses: attention.bias"),
        (written(bias_maps=True), "field 'bias_maps' has the wrong type"),
        (written(more=1), "unknown more"),
    ],
)
def test_what_is_damaged_is_refused(plain: PlainGraph, message: str) -> None:
    with pytest.raises((SerialiseError, GraphError), match=message):
        plain_to_graph(plain)


def test_an_older_schema_has_no_such_fields() -> None:
    plain = written()
    valid = json_schema()
    valid(plain.structure)
    for structure in (plain.structure | {"schema": 3}, graph_to_plain(graph_with()).structure | {"schema": 4}):
        with pytest.raises(fastjsonschema.JsonSchemaException):
            valid(structure)
    with pytest.raises(SerialiseError, match="unknown similarity, bias_maps"):
        plain_to_graph(replace(plain, structure=plain.structure | {"schema": 3}))
    missing = graph_to_plain(graph_with())
    with pytest.raises(SerialiseError, match="missing similarity, bias_maps"):
        plain_to_graph(replace(missing, structure=missing.structure | {"schema": 4}))
