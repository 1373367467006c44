"""Soft reset, graded and ternary spikes in the graph: what is legal, what is proven, what is written."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace

import fastjsonschema
import numpy as np
import pytest
from json_schema import json_schema
from neuron_cases import BATCH, KINDS, OTHERS, Kind, rule_graph
from pass_helpers import INTERPRETERS
from small_bundles import small_bundle

from converters.bundle import read_bundle
from converters.graph import (
    LIF,
    Add,
    Attention,
    Coincidence,
    Concat,
    Graph,
    GraphError,
    Norm,
    Product,
    Readout,
    Relay,
    Slice,
    Source,
    Synapses,
    accumulator_bounds,
)
from converters.graph_text import graph_text
from converters.passes.lay_out_bias_lanes import LayOutBiasLanes
from converters.passes.merge_query_key_value import MergeQueryKeyValue
from converters.passes.run import run_passes
from converters.ranges import prove_ranges
from converters.serialise import PlainGraph, SerialiseError, graph_to_plain, plain_to_graph
from sim.fast.engine import FastEngine
from sim.reference import ReferenceEngine
from sim.verify import compare


def lif(**options: object) -> LIF:
    return LIF("neuron", ("current",), 10, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reset": "half"}, r"node 'neuron': reset 'half' is none of \('zero', 'subtract'\)"),
        ({"spike": "real"}, "spike 'real' is none of"),
        ({"spike": "graded"}, "cap 1 of a graded spike is outside 2 .. 255"),
        ({"spike": "graded", "cap": 256}, "cap 256 of a graded spike is outside 2 .. 255"),
        ({"cap": 3}, "cap 3 of a binary spike, which has 1"),
        ({"spike": "ternary", "cap": 2}, "cap 2 of a ternary spike, which has 1"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        lif(**options)


def test_the_source_has_a_reset_too() -> None:
    with pytest.raises(GraphError, match="reset 'half'"):
        Source("source", [[1]], reset="half")


def test_bounds_grow_by_the_cap_and_by_the_sign() -> None:
    graph = rule_graph(("zero", "graded", 15))
    names = ("source", "v.lif", "attention", "attended", "sum", "again")
    assert [graph.value_max[name] for name in names] == [15, 15, 3 * 3 * 15, 15, 30, 60]
    assert graph.signed == frozenset()
    up = graph["up"]
    assert isinstance(up, Synapses)
    assert np.array_equal(graph.feature_max["up"], accumulator_bounds(up, 30))
    ternary = rule_graph(("zero", "ternary", 1))
    assert ternary.signed == {"attended", "out.lif", "sum", "up.lif", "again"}
    assert ternary.value_max["again"] == 4


def test_an_input_below_zero_brings_the_other_sign() -> None:
    node = Synapses("n", ("x",), [[3, -4, 5]], [10])
    assert accumulator_bounds(node, 2).tolist() == [2 * 8 + 10]
    assert accumulator_bounds(node, 2, signed=True).tolist() == [2 * 12 + 10]
    assert accumulator_bounds(node, 2, np.array([True, False, False])).tolist() == [2 * 8 + 10]
    assert accumulator_bounds(node, 2, np.array([False, True, False])).tolist() == [2 * 12 + 10]


@pytest.mark.parametrize(("spike", "cap"), [("graded", 2), ("ternary", 1)])
def test_an_accumulator_that_only_such_spikes_overflow_is_refused(spike: str, cap: int) -> None:
    """By hand: 300 weights of 127 and 300 of -127 reach 38100 with bits, twice that with more."""
    weight = [[127] * 300 + [-127] * 300]

    def graph(**options: object) -> Graph:
        nodes = (
            Source("source", np.ones((1, 1), int), kind="sign"),
            Synapses("current", ("source",), np.ones((600, 1), int), np.zeros(600, int)),
            LIF("neuron", ("current",), 10, **options),
            Readout("readout", ("neuron",), weight, [0]),
        )
        return Graph(1, 1, nodes)

    assert graph().value_max["readout"] == 38100
    with pytest.raises(GraphError, match="an accumulator may reach 76200"):
        graph(spike=spike, cap=cap)


def with_more(kind: Kind, *more: object) -> Graph:
    graph = rule_graph(kind)
    nodes = (*graph.nodes[:-1], *more, graph.readout)
    return Graph(graph.timesteps, graph.n_max, nodes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("reset", "spike", "cap"), [kind for kind in KINDS if kind[1] != "binary"])
def test_attention_counts_matches_of_bits_alone(reset: str, spike: str, cap: int) -> None:
    kind, message = (reset, spike, cap), r"q and k must be outputs of LIF nodes, \['out\.lif'\] are not: what they send"
    for inputs in (("out.lif", "k.lif", "v.lif"), ("q.lif", "out.lif", "v.lif")):
        with pytest.raises(GraphError, match=message):
            with_more(kind, Attention("more", inputs, 2))
    with pytest.raises(GraphError, match=message):
        with_more(kind, Coincidence("more", ("q.lif", "out.lif")))
    assert with_more((reset, "binary", 1), Attention("more", ("out.lif",) * 3, 2))


def test_what_attention_brings_is_bits_or_graded() -> None:
    value = ("q.lif", "k.lif", "out.lif")
    graded = with_more(("zero", "graded", 15), Attention("more", value, 2))
    assert graded.value_max["more"] == 3 * 3 * 15  # features of a head, tokens, cap
    message = r"v must be outputs of LIF nodes, \['out\.lif'\] are not: what it sends may be below 0"
    with pytest.raises(GraphError, match=message):
        with_more(("zero", "ternary", 1), Attention("more", value, 2))
    with pytest.raises(GraphError, match=r"v must be outputs of LIF nodes, \['sum'\] are not$"):
        with_more(("zero", "graded", 15), Attention("more", ("q.lif", "k.lif", "sum"), 2))


def test_attention_that_only_graded_values_overflow_is_refused() -> None:
    """By hand: heads of 128 features and 30 tokens reach 3840 with bits, 17 times that is 65280, 18 times 69120."""

    def graph(cap: int) -> Graph:
        kind = {"spike": "graded", "cap": cap} if cap > 1 else {}
        ones, zeros = np.ones((128, 1), int), np.zeros(128, int)
        nodes = (
            Source("source", [[1]]),
            *(Synapses(name, ("source",), ones, zeros) for name in "qkv"),
            *(LIF(f"{name}.lif", (name,), 0) for name in "qk"),
            LIF("v.lif", ("v",), 0, **kind),
            Attention("attention", ("q.lif", "k.lif", "v.lif"), 1),
            LIF("attended", ("attention",), 5),
            Readout("readout", ("attended",), np.ones((1, 128), int), [0]),
        )
        return Graph(1, 30, nodes)

    assert (graph(1).value_max["attention"], graph(17).value_max["attention"]) == (3840, 65280)
    with pytest.raises(GraphError, match=r"'attention': an accumulator may reach 69120, .* or a v of a smaller cap"):
        graph(18)


def test_a_source_sends_bits_or_graded_spikes() -> None:
    with pytest.raises(GraphError, match=r"spike 'ternary' is none of \('binary', 'graded'\)"):
        Source("source", [[1]], spike="ternary")
    with pytest.raises(GraphError, match="cap 256 of a graded spike"):
        Source("source", [[1]], spike="graded", cap=256)
    with pytest.raises(GraphError, match=r"spike 'graded' is none of \('binary',\)"):
        Source("source", [[1]], kind="sign", spike="graded", cap=3)


def test_what_may_be_below_zero_is_no_lane_no_score_and_no_relay() -> None:
    ternary, graded = ("zero", "ternary", 1), ("zero", "graded", 2)
    ones = Synapses("ones", ("out.lif",), np.ones((6, 6), int), np.zeros(6, int))
    assert with_more(graded, ones, Relay("sent", ("ones",)))
    with pytest.raises(GraphError, match="the current 'ones' may be negative"):
        with_more(ternary, ones, Relay("sent", ("ones",)))
    assert with_more(graded, Product("product", ("sum", "v.lif"), 2))
    with pytest.raises(GraphError, match="its scores 'sum' may be negative"):
        with_more(ternary, Product("product", ("sum", "v.lif"), 2))
    norm = Norm("norm", ("ones", "out.lif"), np.ones(6, int), np.ones(6, int))
    with pytest.raises(GraphError, match=r"its lane 'out\.lif' may be -1"):
        with_more(ternary, ones, norm)
    with pytest.raises(GraphError, match=r"its lane 'out\.lif' may reach 2"):
        with_more(graded, ones, norm)
    lane = Slice("lane", ("out.lif",), 0, 1)
    with pytest.raises(GraphError, match=r"'lane' has 1 of -1 \.\. 1"):
        with_more(ternary, lane, Attention("more", ("q.lif", "k.lif", "v.lif", "lane"), 2, "xnor"))


def test_signs_are_known_feature_by_feature() -> None:
    graph = with_more(("zero", "ternary", 1), Concat("both", ("q.lif", "out.lif")), Slice("bits", ("both",), 0, 6))
    assert graph.feature_signed["both"].tolist() == [False] * 6 + [True] * 6
    assert not graph.feature_signed["bits"].any() and graph.signed >= {"both"} and "bits" not in graph.signed
    with pytest.raises(GraphError, match="different widths"):  # is said as such
        with_more(("zero", "ternary", 1), Concat("both", ("q.lif", "out.lif")), Add("wrong", ("both", "out.lif")))


# Ranges


def test_a_soft_reset_leaves_more_than_a_hard_one() -> None:
    """A current of 1000 at a threshold of 100, three steps: 1000, 1900, 2800 where 100 go each time."""

    def reach(reset: str, spike: str, cap: int) -> list[int]:
        nodes = (
            Source("source", [[1]], kind="sign"),
            Synapses("current", ("source",), [[100]], [900]),
            LIF("neuron", ("current",), 100, 0, 7, reset, spike, cap),
            Readout("readout", ("neuron",), [[1]], [0]),
        )
        own = prove_ranges(Graph(3, 1, nodes))["neuron"]
        assert own.membrane_high is not None
        return [int(own.low[0]), int(own.high[0]), int(own.membrane_high[0]) // 128]

    assert reach("subtract", "binary", 1) == [1, 1, 2800]
    assert reach("subtract", "graded", 9) == [9, 9, 1200]  # 1000 - 900 stay, then 1100 - 900
    assert reach("zero", "graded", 9) == [9, 9, 1100]  # the bound of what did not fire stays
    assert reach("zero", "binary", 1) == [1, 1, 1100]


# Written and read


@pytest.mark.parametrize("kind", OTHERS, ids=str)
def test_round_trip(kind: Kind) -> None:
    graph = rule_graph(kind)
    plain = graph_to_plain(graph)
    assert plain.structure["schema"] == (7 if kind[1] == "graded" else 5)
    json_schema()(plain.structure)
    structure = json.loads(json.dumps(plain.structure))
    again = plain_to_graph(PlainGraph(structure, dict(plain.weights), dict(plain.encoder)))
    assert graph_text(again) == graph_text(graph)
    node = again["out.lif"]
    assert isinstance(node, LIF) and (node.reset, node.spike, node.cap) == kind
    wanted = kind if kind[1] == "graded" else (kind[0], "binary", 1)
    assert (again.source.reset, again.source.spike, again.source.cap) == wanted


def test_the_text_says_what_is_not_stock() -> None:
    lines = {line.split(" ")[0]: line for line in graph_text(rule_graph(("subtract", "graded", 15))).splitlines()}
    assert lines["out.lif"].endswith("dv=410  reset=subtract  spike=graded  cap=15")
    assert lines["q.lif"].endswith("dv=410  reset=subtract")
    assert lines["source"].endswith("reset=subtract  spike=graded  cap=15")
    assert "reset" not in graph_text(rule_graph(KINDS[0]))


BROKEN = {
    "an unknown reset": ("out.lif", {"reset": "half"}),
    "an unknown spike": ("out.lif", {"spike": "real"}),
    "a cap of 1": ("out.lif", {"cap": 1}),
    "a cap of 256": ("out.lif", {"cap": 256}),
    "a cap that is text": ("out.lif", {"cap": "3"}),
    "a cap of bits": ("q.lif", {"cap": 2}),
    "a source that is ternary": ("source", {"spike": "ternary", "cap": 1}),
    "a source of a cap of 1": ("source", {"cap": 1}),
    "a source of bits with a cap": ("source", {"spike": "binary"}),
    "a source of signs that is graded": ("source", {"kind": "sign"}),
    "a q that is graded": ("q.lif", {"spike": "graded"}),
    "a reset that is a number": ("source", {"reset": 0}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_options_are_refused_by_reader_and_schema(name: str) -> None:
    plain = graph_to_plain(rule_graph(("zero", "graded", 2)))
    structure = json.loads(json.dumps(plain.structure))
    node, change = BROKEN[name]
    next(entry for entry in structure["nodes"] if entry["name"] == node).update(change)
    with pytest.raises((SerialiseError, GraphError)):
        plain_to_graph(PlainGraph(structure, dict(plain.weights), dict(plain.encoder)))
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        json_schema()(structure)


@pytest.mark.parametrize("schema", [2, 4])
def test_older_schemas_have_no_such_fields(schema: int) -> None:
    plain = graph_to_plain(rule_graph(("subtract", "binary", 1)))
    structure = plain.structure | {"schema": schema}
    with pytest.raises(SerialiseError, match="unknown reset"):
        plain_to_graph(PlainGraph(structure, plain.weights, plain.encoder))
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        json_schema()(structure)


@pytest.mark.parametrize("schema", [5, 6])
def test_sources_of_older_schemas_send_bits(schema: int) -> None:
    structure = graph_to_plain(rule_graph(("zero", "graded", 2))).structure | {"schema": schema}
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        json_schema()(structure)
    plain = graph_to_plain(rule_graph(("zero", "graded", 2)))
    with pytest.raises(SerialiseError, match="unknown spike, cap"):
        plain_to_graph(PlainGraph(structure, plain.weights, plain.encoder))


@pytest.mark.parametrize("schema", [5, 6])
def test_a_graded_v_of_an_older_schema_is_refused(schema: int) -> None:
    graph = rule_graph(("zero", "graded", 2))
    source = replace(graph.source, spike="binary", cap=1)
    plain = graph_to_plain(Graph(graph.timesteps, graph.n_max, (source, *graph.nodes[1:])))
    assert plain.structure["schema"] == 7
    structure = json.loads(json.dumps(plain.structure | {"schema": schema}))
    del structure["nodes"][0]["spike"], structure["nodes"][0]["cap"]
    with pytest.raises(SerialiseError, match=f"a graded v exists since schema 7, this is {schema}"):
        plain_to_graph(PlainGraph(structure, plain.weights, plain.encoder))


@pytest.mark.parametrize("kind", [("zero", "graded", 15), ("subtract", "ternary", 1)], ids=str)
def test_a_bundle_keeps_golden_spikes_of_any_size(tmp_path, kind: Kind) -> None:
    bundle = small_bundle(tmp_path / "bundle", rule_graph(kind))
    spikes = read_bundle(bundle.folder).golden.spikes
    assert spikes["out.lif"].dtype == np.int16 and spikes["q.lif"].dtype == np.uint8
    assert all(np.array_equal(spikes[name], bundle.golden.spikes[name]) for name in spikes)
    values = np.concatenate([spikes[name].ravel() for name in ("out.lif", "up.lif")])
    assert values.max() > 1 if kind[1] == "graded" else values.min() == -1


# Passes


def test_a_graded_v_stays_apart_from_q_and_k() -> None:
    merged = run_passes(rule_graph(("zero", "graded", 15)), [MergeQueryKeyValue()], BATCH, INTERPRETERS).graph
    assert isinstance(merged["q.lif"], Slice) and isinstance(merged["k.lif"], Slice)
    assert isinstance(merged["v.lif"], LIF) and merged["v.lif"].cap == 15


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_lanes_are_carried_by_bits_alone(kind: Kind) -> None:
    """A graded neuron would send more than 1 on a lane, a ternary one might send -1; run_passes proves the rest."""
    laid = run_passes(rule_graph(kind), [LayOutBiasLanes()], BATCH, INTERPRETERS).graph
    widened = laid.features["up.lif"] > 6 or laid.features["out.lif"] > 6
    assert widened == (kind[1] == "binary")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_attention_that_needs_a_lane_finds_one_behind_any_neuron(kind: Kind) -> None:
    """Of a second attention it is the lane beside a sum, which itself may be below 0."""
    graph = rule_graph(kind)
    again = [
        replace(graph[f"{name}{end}"], name=f"{name}2{end}", inputs=("again",) if end == "" else (f"{name}2",))
        for name in "qkv"
        for end in ("", ".lif")
    ]
    attention = Attention("second", ("q2.lif", "k2.lif", "v2.lif"), 2, "xnor")
    last = [attention, LIF("second.lif", ("second",), 9), replace(graph.readout, inputs=("second.lif",))]
    graph = Graph(graph.timesteps, graph.n_max, (*graph.nodes[:-1], *again, *last))
    nodes = [replace(node, similarity="xnor") if isinstance(node, Attention) else node for node in graph]
    xnor = Graph(graph.timesteps, graph.n_max, tuple(nodes))
    laid = run_passes(xnor, [LayOutBiasLanes()], BATCH, INTERPRETERS).graph
    attention = laid["attention"]
    assert isinstance(attention, Attention) and attention.lane is not None
    with closing(FastEngine(laid, 1)) as engine:
        names = [node.name for node in laid]
        assert compare(laid, ReferenceEngine(laid).run(BATCH, names), engine.run(BATCH, names)).mismatches == 0


def test_query_key_and_value_that_reset_otherwise_stay_apart() -> None:
    graph = rule_graph(("subtract", "binary", 1))
    merged = MergeQueryKeyValue().rewrite(graph).graph
    lifs = [node for node in merged if isinstance(node, LIF)]
    assert len(lifs) == 4 and all(node.reset == "subtract" for node in lifs)
    nodes = [LIF("q.lif", ("q",), 90, 410) if node.name == "q.lif" else node for node in graph]
    apart = Graph(graph.timesteps, graph.n_max, tuple(nodes))
    assert MergeQueryKeyValue().rewrite(apart).graph is apart
