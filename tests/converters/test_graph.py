"""Every check of the integer graph refuses what it must, and says which node."""

from dataclasses import replace

import numpy as np
import pytest
from random_graphs import random_graph

from converters.graph import (
    LIF,
    Add,
    Attention,
    Coincidence,
    Concat,
    Graph,
    GraphError,
    Product,
    Readout,
    Relay,
    Slice,
    Source,
    Synapses,
    ValidLane,
    accumulator_bounds,
)

TABLE = np.ones((5, 4), dtype=np.int8)
SQUARE = np.ones((4, 4), dtype=np.int8)
BIAS = np.zeros(4, dtype=np.int32)
SOURCE = Source("source", TABLE, np.zeros((3, 4), dtype=np.int32))
LINEAR = Synapses("linear", ("source",), SQUARE, BIAS)
NEURON = LIF("neuron", ("linear",), 1)
READOUT = Readout("readout", ("neuron",), np.ones((2, 4), dtype=np.int8), np.zeros(2, dtype=np.int32))

READOUT_OF_SUM = replace(READOUT, inputs=("sum",))


def graph_of(*nodes, n_max=3, timesteps=4):
    return Graph(timesteps, n_max, nodes)


def test_a_small_graph_is_legal():
    graph = graph_of(SOURCE, LINEAR, NEURON, READOUT)
    assert graph.output == "readout"
    assert graph.spiking == ("source", "neuron")
    assert graph.features == {"source": 4, "linear": 4, "neuron": 4, "readout": 2}
    assert graph.value_max == {"source": 1, "linear": 4, "neuron": 1, "readout": 4}
    assert list(graph.digraph.edges(data="slots")) == [
        ("source", "linear", (0,)),
        ("linear", "neuron", (0,)),
        ("neuron", "readout", (0,)),
    ]


def test_a_node_may_feed_another_more_than_once():
    graph = graph_of(SOURCE, LINEAR, NEURON, Add("sum", ("neuron", "source", "neuron")), READOUT_OF_SUM)
    assert graph.digraph.edges["neuron", "sum"]["slots"] == (0, 2)
    assert graph.digraph.edges["source", "sum"]["slots"] == (1,)
    assert graph.value_max["sum"] == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Source("s", np.ones((5, 4))), "integers"),
        (lambda: Source("s", np.full((5, 4), 128)), "int8"),
        (lambda: Source("s", np.ones(4, dtype=int)), "2 dimensions"),
        (lambda: Source("s", np.ones((0, 4), dtype=int)), "empty"),
        (lambda: Source("s", TABLE, kind="poisson"), "kind"),
        (lambda: Source("s", TABLE, inputs=("x",)), "no inputs"),
        (lambda: Source("s", TABLE, np.zeros((3, 5), dtype=int)), "features"),
        (lambda: Source("s", TABLE, np.full((3, 4), 65535)), "current"),
        (lambda: Source("s", TABLE, threshold=-1), "threshold"),
        (lambda: Synapses("s", ("a", "b"), SQUARE, BIAS), "one input"),
        (lambda: Synapses("s", ("a",), SQUARE, BIAS[:3]), "rows"),
        (lambda: Synapses("s", ("a",), SQUARE.astype(float), BIAS), "integers"),
        (lambda: Synapses("s", ("a",), SQUARE, BIAS.astype(np.int64) + 2**31), "int32"),
        (lambda: Synapses("s", ("a",), SQUARE, BIAS, weight_bits=9), "weight_bits"),
        (lambda: Synapses("s", ("a",), SQUARE, BIAS, weight_bits=0), "weight_bits"),
        (
            lambda: Synapses("s", ("a",), np.eye(4, dtype=np.int8), BIAS, weight_bits=1),
            "12 weights are 0",
        ),
        (lambda: Synapses("s", ("a",), -SQUARE * 2, BIAS, weight_bits=1), "weight_bits 1 hold 1"),
        (lambda: Synapses("s", ("a",), SQUARE * 2, BIAS, weight_bits=2), "weight_bits 2 hold 1"),
        (lambda: Synapses("s", ("a",), SQUARE * -128, BIAS), "weight_bits 8 hold 127"),
        (lambda: Attention("s", ("q", "k"), 1), "q, k and v"),
        (lambda: Attention("s", ("q", "k", "v"), 0), "heads"),
        (lambda: Attention("s", ("q", "k", "v"), 1, "nand"), "similarity 'nand' is none of"),
        (lambda: Attention("s", ("q", "k", "v", "m"), 1), "a fourth input"),
        (lambda: Attention("s", ("q", "k", "v", "m", "m"), 1, "xnor"), "not 5 inputs"),
        (lambda: Attention("s", ("q", "k", "v"), 2, "and", np.ones((3, 3), int)), "3 dimensions"),
        (lambda: Attention("s", ("q", "k", "v"), 2, "and", np.ones((3, 4, 4), int)), r"\[1 or 2 heads, n_max, n_max\]"),
        (lambda: Attention("s", ("q", "k", "v"), 2, "and", np.ones((2, 4, 3), int)), r"\[1 or 2 heads, n_max, n_max\]"),
        (lambda: Attention("s", ("q", "k", "v"), 2, "and", np.ones((2, 3, 3))), "bias must hold integers"),
        (lambda: LIF("s", ("a", "b"), 0), "one input"),
        (lambda: LIF("s", ("a",), -1), "threshold"),
        (lambda: LIF("s", ("a",), 65536), "threshold"),
        (lambda: LIF("s", ("a",), np.array([0, 65536])), "threshold"),
        (lambda: LIF("s", ("a",), 0, dv=4096), "dv"),
        (lambda: LIF("s", ("a",), 0, dv=-1), "dv"),
        (lambda: LIF("s", ("a",), 0, shift=6), "shift"),
        (lambda: Add("s", ("a",)), "two or more"),
        (lambda: Slice("s", ("a", "b"), 0, 1), "a slice has one input, not 2"),
        (lambda: Slice("s", ("a",), -1, 1), r"features -1 \.\. 0 are none"),
        (lambda: Slice("s", ("a",), 2, 2), r"features 2 \.\. 1 are none"),
        (lambda: Concat("s", ("a",)), "two or more inputs, not 1"),
        (lambda: ValidLane("s", 0), "lanes is 0, it must be 1 or more"),
        (lambda: ValidLane("s", 1, inputs=("a",)), "no inputs"),
        (lambda: Coincidence("s", ("q",)), "q and k, not 1 inputs"),
        (lambda: Coincidence("s", ("q", "k", "v")), "q and k, not 3 inputs"),
        (lambda: Relay("s", ("a", "b")), "a relay has one input, not 2"),
        (lambda: Product("s", ("a",), 1), "scores and v, not 1 inputs"),
        (lambda: Product("s", ("a", "b"), 0), "heads is 0"),
        (lambda: Readout("s", ("a", "b"), SQUARE, BIAS), "one input"),
        (lambda: Readout("s", ("a",), SQUARE, BIAS, scale=0.0), "scale"),
    ],
)
def test_a_node_refuses(make, message):
    with pytest.raises(GraphError, match=message) as error:
        make()
    assert "node 's'" in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: graph_of(), "begins with its source"),
        (lambda: graph_of(LINEAR, READOUT), "begins with its source"),
        (lambda: graph_of(SOURCE, LINEAR, NEURON), "ends with its readout"),
        (lambda: graph_of(SOURCE, LINEAR, NEURON, READOUT, timesteps=0), "timesteps"),
        (lambda: graph_of(SOURCE, LINEAR, NEURON, READOUT, n_max=0), "n_max"),
        (lambda: graph_of(SOURCE, LINEAR, NEURON, READOUT, n_max=4), "3 rows, n_max is 4"),
        (lambda: replace(SOURCE, code=np.full((4, 3, 1), 2)), "code holds 2, spikes are 0 or 1"),
        (lambda: replace(SOURCE, code=np.zeros((4, 3), int)), "code must have 3 dimensions"),
        (
            lambda: graph_of(replace(SOURCE, code=np.zeros((4, 2, 1), int)), LINEAR, NEURON, READOUT),
            r"code is of \(4, 2\) timesteps and tokens, the graph of \(\d, 3\)",
        ),
        (lambda: graph_of(SOURCE, LINEAR, LINEAR, NEURON, READOUT), "used twice"),
        (lambda: graph_of(SOURCE, NEURON, LINEAR, READOUT), "not a node before it"),
        (lambda: graph_of(SOURCE, replace(SOURCE, name="other"), LINEAR, NEURON, READOUT), "one source"),
        (lambda: graph_of(SOURCE, LINEAR, NEURON, READOUT, replace(READOUT, name="other")), "one readout"),
        (lambda: graph_of(SOURCE, replace(LINEAR, name="a b"), NEURON, READOUT), "form"),
        (lambda: graph_of(SOURCE, replace(NEURON, inputs=("source",)), READOUT), "takes a current"),
        (lambda: graph_of(SOURCE, LINEAR, replace(READOUT, inputs=("linear",))), "takes spikes"),
        (lambda: graph_of(SOURCE, LINEAR, Add("sum", ("source", "linear")), NEURON, READOUT), "takes spikes"),
        (lambda: graph_of(SOURCE, LINEAR, replace(NEURON, threshold=np.ones(3, dtype=int)), READOUT), "3 thresholds"),
        (lambda: graph_of(SOURCE, replace(LINEAR, weight=SQUARE[:, :3]), NEURON, READOUT), "3 columns"),
        (
            lambda: graph_of(
                SOURCE,
                replace(LINEAR, weight=SQUARE[:3], bias=BIAS[:3]),
                NEURON,
                Add("sum", ("source", "neuron")),
                READOUT,
            ),
            "different widths",
        ),
        (lambda: graph_of(SOURCE, LINEAR, NEURON, Attention("x", ("neuron",) * 3, 3), READOUT), "do not divide"),
        (
            lambda: graph_of(SOURCE, LINEAR, NEURON, Attention("x", ("neuron", "neuron", "source"), 2), READOUT),
            "outputs of LIF",
        ),
        (lambda: graph_of(SOURCE, replace(LINEAR, bias=BIAS + 65532), NEURON, READOUT), "65536"),
    ],
)
def test_a_graph_refuses(make, message):
    with pytest.raises(GraphError, match=message):
        make()


def test_the_accumulator_limit_is_exact():
    graph_of(SOURCE, replace(LINEAR, bias=BIAS + 65531), NEURON, READOUT)


def test_attention_is_bounded_by_width_and_length():
    graph = graph_of(SOURCE, LINEAR, NEURON, Attention("x", ("neuron",) * 3, 2), LIF("y", ("x",), 0), READOUT)
    assert graph.value_max["x"] == 2 * 3
    long = replace(SOURCE, position=None)
    with pytest.raises(GraphError, match="node 'x'"):
        graph_of(long, LINEAR, NEURON, Attention("x", ("neuron",) * 3, 1), LIF("y", ("x",), 0), READOUT, n_max=20000)


def test_sums_of_sums_that_pass_32_bits_are_refused():
    """Not by a bound that has wrapped to something small: 4^32 is 0 in 64 bits."""
    nodes = [Source("x0", np.ones((2, 1), dtype=np.int8))]
    nodes += [Add(f"x{i + 1}", (f"x{i}",) * 4) for i in range(32)]
    eye = np.zeros((1, 1), dtype=np.int8)
    with pytest.raises(GraphError, match=r"'x16': a value may reach 4294967296, the limit is 2147483647"):
        Graph(1, 1, (*nodes, Readout("y", ("x32",), eye, np.zeros(1, dtype=np.int32))))


def test_accumulator_bounds_take_the_larger_sign():
    weight = np.array([[3, -5, 1], [7, 0, -1]], dtype=np.int8)
    node = Synapses("s", ("a",), weight, np.array([-10, 4], dtype=np.int32))
    assert accumulator_bounds(node, 2).tolist() == [5 * 2 + 10, 7 * 2 + 4]


def test_arrays_are_copied_and_read_only():
    weight = SQUARE.copy()
    node = Synapses("s", ("a",), weight, BIAS)
    weight[0, 0] = 99
    assert node.weight[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        node.weight[0, 0] = 2


def test_graded_spikes_add_up():
    graph = random_graph(np.random.default_rng(0), blocks=2)
    assert graph.value_max["block1.add2"] == 5


# What only passes make. n_max is 3, the source, `linear` and `neuron` have 4 features.
SCORES = Synapses("scores", ("match",), np.ones((6, 12), dtype=np.int8), np.zeros(6, dtype=np.int32))
STOCK_ATTENTION = (
    Coincidence("match", ("neuron", "neuron")),  # 3 * 4 features
    SCORES,  # 3 keys x 2 heads
    Relay("relay", ("scores",)),
    Product("product", ("relay", "neuron"), 2),
)


def graph_with(*nodes, n_max=3):
    """These nodes behind `neuron`; the readout reads `neuron`, so that they may have any width."""
    return graph_of(SOURCE, LINEAR, NEURON, *nodes, READOUT, n_max=n_max)


def test_what_passes_make_has_widths_and_bounds():
    graph = graph_with(
        Add("sum", ("neuron", "source", "neuron")),
        Slice("some", ("sum",), 1, 3),
        ValidLane("lane", 2),
        Concat("wide", ("neuron", "some", "lane")),
        Slice("edge", ("wide",), 3, 5),
        replace(SCORES, name="positive", inputs=("sum",), weight=[[0, 1, 2, 3], [5, 0, 0, 0]], bias=[0, 7]),
        Relay("sent", ("positive",)),
        *STOCK_ATTENTION,
    )
    features = {"some": 2, "lane": 2, "wide": 8, "edge": 2, "sent": 2, "match": 12, "relay": 6, "product": 12}
    assert {name: graph.features[name] for name in features} == features
    bounds = {
        "sum": [3, 3, 3, 3],
        "some": [3, 3],
        "lane": [1, 1],
        "wide": [1, 1, 1, 1, 3, 3, 1, 1],
        "edge": [1, 3],
        "positive": [18, 22],
        "sent": [18, 22],
        "match": [1] * 12,
        "relay": [12] * 6,
        "product": [12] * 12,
    }
    for name, bound in bounds.items():
        assert graph.feature_max[name].tolist() == bound, name
        assert graph.value_max[name] == max(bound)
    assert graph.spiking == (
        "source", "neuron", "sum", "some", "lane", "wide", "edge", "sent", "match", "relay", "product",
    )  # fmt: skip


def test_each_feature_of_a_product_has_the_bound_of_its_score():
    scores = replace(SCORES, inputs=("neuron",), weight=np.eye(6, 4, dtype=np.int8), bias=[0, 1, 2, 3, 4, 5])
    graph = graph_with(scores, Relay("relay", ("scores",)), Product("product", ("relay", "neuron"), 2))
    assert graph.feature_max["relay"].tolist() == [1, 2, 3, 4, 4, 5]
    assert graph.feature_max["product"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 5, 5]


def test_a_row_counts_each_input_at_its_own_bound():
    """Of a concat of spikes and sums of them: 65535 - 4 * 127 is what the bias may be, though a sum reaches 3."""
    nodes = (Add("sum", ("neuron", "source", "neuron")), Concat("wide", ("neuron", "sum")))
    row = np.array([[127, 127, 127, 127, 0, 0, 0, 0]])
    graph_with(*nodes, Synapses("row", ("wide",), row, [65535 - 4 * 127]))
    with pytest.raises(GraphError, match=r"node 'row': an accumulator may reach 65536"):
        graph_with(*nodes, Synapses("row", ("wide",), row, [65536 - 4 * 127]))
    with pytest.raises(GraphError, match=r"node 'row': an accumulator may reach 65536"):
        graph_with(*nodes, Synapses("row", ("wide",), row[:, ::-1], [65536 - 3 * 4 * 127]))


def test_queries_keys_and_values_may_be_cut_and_joined():
    graph_with(
        Concat("both", ("neuron", "neuron")),
        Slice("q", ("both",), 0, 4),
        Slice("inner", ("both",), 1, 7),
        Slice("k", ("inner",), 1, 5),
        Attention("attention", ("q", "k", "neuron"), 2),
        Relay("attended", ("attention",)),
        Coincidence("match", ("q", "k")),
        Product("product", ("match", "k"), 4),  # scores may be any spikes of n_max * heads features
    )


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([Slice("x", ("neuron",), 3, 5)], "node 'x': feature 4 of an input that has 4"),
        ([Slice("x", ("linear",), 0, 1)], r"node 'x': takes spikes, \['linear'\] give currents"),
        ([Concat("x", ("neuron", "linear"))], r"node 'x': takes spikes, \['linear'\] give currents"),
        ([Coincidence("x", ("neuron", "linear"))], r"node 'x': takes spikes, \['linear'\] give currents"),
        ([*STOCK_ATTENTION[:2], Product("x", ("scores", "neuron"), 2)], r"takes spikes, \['scores'\] give currents"),
        ([Relay("x", ("neuron",))], "node 'x': a relay takes a current, 'neuron' gives spikes"),
        ([replace(LINEAR, name="l", bias=[0, 0, -1, 0]), Relay("x", ("l",))], "node 'x': the current 'l' may be neg"),
        ([replace(LINEAR, name="l", weight=-np.eye(4, dtype=int)), Relay("x", ("l",))], "'l' may be negative"),
        ([Slice("q", ("neuron",), 0, 3), Coincidence("x", ("q", "neuron"))], r"different widths: \[3, 4\]"),
        ([Coincidence("x", ("source", "neuron"))], r"'x': q and k must be outputs of LIF nodes, \['source'\] are not"),
        ([ValidLane("lane", 4), Coincidence("x", ("neuron", "lane"))], r"\['lane'\] are not"),
        ([Add("sum", ("neuron", "neuron")), Coincidence("x", ("sum", "neuron"))], r"\['sum'\] are not"),
        ([Coincidence("match", ("neuron", "neuron")), Coincidence("x", ("match", "match"))], r"'match'\] are not"),
        (
            [Concat("part", ("neuron", "source")), Slice("q", ("part",), 4, 8), Coincidence("x", ("neuron", "q"))],
            r"\['q'\] are not",
        ),
        ([Slice("q", ("source",), 0, 4), Attention("x", ("q", "neuron", "neuron"), 2)], r"\['q'\] are not"),
        ([*STOCK_ATTENTION[:3], Product("x", ("relay", "relay"), 2)], r"\['relay'\] are not"),
        ([*STOCK_ATTENTION[:3], Product("x", ("relay", "neuron"), 3)], "4 features do not divide into 3 heads"),
        (
            [*STOCK_ATTENTION[:3], Product("x", ("relay", "neuron"), 4)],
            r"node 'x': its scores have 6 features, not n_max \* heads = 12",
        ),
    ],
)
def test_what_passes_make_is_refused_where_it_is_not_legal(nodes, message):
    with pytest.raises(GraphError, match=message):
        graph_with(*nodes)
