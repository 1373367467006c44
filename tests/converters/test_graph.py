"""Every check of the integer graph refuses what it must, and says which node."""

from dataclasses import replace

import numpy as np
import pytest
from random_graphs import random_graph

from converters.graph import LIF, Add, Attention, Graph, GraphError, Readout, Source, Synapses, accumulator_bounds

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
        (lambda: Synapses("s", ("a",), SQUARE, BIAS, weight_bits=1), "weight_bits"),
        (lambda: Synapses("s", ("a",), SQUARE * 2, BIAS, weight_bits=2), "2 bits"),
        (lambda: Synapses("s", ("a",), SQUARE * -128, BIAS), "8 bits"),
        (lambda: Attention("s", ("q", "k"), 1), "q, k and v"),
        (lambda: Attention("s", ("q", "k", "v"), 0), "heads"),
        (lambda: LIF("s", ("a", "b"), 0), "one input"),
        (lambda: LIF("s", ("a",), -1), "threshold"),
        (lambda: LIF("s", ("a",), 65536), "threshold"),
        (lambda: LIF("s", ("a",), np.array([0, 65536])), "threshold"),
        (lambda: LIF("s", ("a",), 0, dv=4096), "dv"),
        (lambda: LIF("s", ("a",), 0, dv=-1), "dv"),
        (lambda: LIF("s", ("a",), 0, shift=6), "shift"),
        (lambda: Add("s", ("a",)), "two or more"),
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
