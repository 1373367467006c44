"""A graph survives being taken apart, and what is no graph is refused."""

import copy
import json

import fastjsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from json_schema import json_schema
from machine_graphs import machine_graph
from norm_cases import norm_graph
from random_graphs import MACHINE_KINDS, random_dag, random_graph, random_machine_dag

from converters.graph import LIF, Graph, GraphError, Readout, Source, Synapses
from converters.serialise import PlainGraph, SerialiseError, graph_to_plain, plain_to_graph


def with_vector_thresholds(graph: Graph) -> Graph:
    nodes = [
        LIF(node.name, node.inputs, np.arange(graph.features[node.name]), node.dv) if isinstance(node, LIF) else node
        for node in graph
    ]
    return Graph(graph.timesteps, graph.n_max, tuple(nodes))


def assert_same(one: PlainGraph, other: PlainGraph) -> None:
    assert one.structure == other.structure
    for these, those in ((one.weights, other.weights), (one.encoder, other.encoder)):
        assert set(these) == set(those)
        for name in these:
            assert these[name].dtype == those[name].dtype
            assert np.array_equal(these[name], those[name])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("change", [lambda graph: graph, with_vector_thresholds])
@pytest.mark.parametrize("norms", [0.0, 0.5])
@pytest.mark.parametrize("make", [random_graph, random_dag, random_machine_dag])
@pytest.mark.parametrize(("attention", "neurons"), [("plain", "stock"), ("any", "stock"), ("plain", "any")])
def test_round_trip(make, norms, change, seed, attention, neurons):
    graph = change(make(np.random.default_rng(seed), norms=norms, attention=attention, neurons=neurons))
    plain = graph_to_plain(graph)
    through_json = PlainGraph(json.loads(json.dumps(plain.structure)), plain.weights, plain.encoder)
    json_schema()(through_json.structure)
    assert_same(graph_to_plain(plain_to_graph(through_json)), plain)


def one_layer(weight: np.ndarray, bits: int) -> Graph:
    """The smallest graph with these weights, int8 [out, in]."""
    rows, columns = weight.shape
    nodes = (
        Source("source", np.ones((2, columns), np.int8)),
        Synapses("layer", ("source",), weight, np.zeros(rows, np.int32), bits),
        LIF("layer.lif", ("layer",), 3),
        Readout("readout", ("layer.lif",), np.full((2, rows), -128, np.int8), np.zeros(2, np.int32)),
    )
    return Graph(1, 1, nodes)


@st.composite
def layers(draw, most_bits=8):
    """Graphs of one layer of random shape, weights of 2 .. `most_bits` bits."""
    bits = draw(st.integers(2, most_bits))
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    limit = 2 ** (bits - 1) - 1
    numbers = draw(st.lists(st.integers(-limit, limit), min_size=rows * columns, max_size=rows * columns))
    return one_layer(np.array(numbers, np.int8).reshape(rows, columns), bits)


def as_schema_1(plain: PlainGraph, graph: Graph) -> PlainGraph:
    """The same graph as schema 1 has it: every weight has a byte."""
    weights = {f"{node.name}.weight": node.weight for node in graph if isinstance(node, Synapses)}
    return PlainGraph(plain.structure | {"schema": 1}, plain.weights | weights, plain.encoder)


@given(layers())
def test_weights_of_any_width_and_shape_come_back(graph):
    plain = graph_to_plain(graph)
    layer = graph["layer"]
    rows, columns = layer.weight.shape
    stored = plain.weights["layer.weight"]
    if layer.weight_bits <= 4:
        assert stored.dtype == np.uint8 and stored.shape == (rows, (columns + 1) // 2)
    else:
        assert stored.dtype == np.int8 and stored.shape == (rows, columns)
    assert plain.weights["readout.weight"].dtype == np.int8  # a readout has no width of its own
    again = plain_to_graph(plain)
    assert np.array_equal(again["layer"].weight, layer.weight)
    assert again["layer"].weight.dtype == np.int8
    json_schema()(plain.structure)


@given(layers())
def test_schema_1_is_read(graph):
    old = as_schema_1(graph_to_plain(graph), graph)
    assert old.weights["layer.weight"].dtype == np.int8
    assert_same(graph_to_plain(plain_to_graph(old)), graph_to_plain(graph))
    json_schema()(old.structure)


@given(layers(most_bits=4))
def test_the_schema_decides_how_weights_are_read(graph):
    plain = graph_to_plain(graph)
    old = as_schema_1(plain, graph)
    with pytest.raises(SerialiseError, match=r"tensor 'layer\.weight' is uint8, not int8"):
        plain_to_graph(PlainGraph(old.structure, plain.weights, plain.encoder))
    with pytest.raises(SerialiseError, match=r"tensor 'layer\.weight' is int8, not uint8: weights of at most 4 bits"):
        plain_to_graph(PlainGraph(plain.structure, old.weights, plain.encoder))


PACKED = graph_to_plain(one_layer(np.array([[1, -2, 7], [0, 3, -7]], np.int8), 4))


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ([[0xE1, 0x07]], "layer"),  # a row too few
        ([[0xE1], [0x30]], r"tensor 'layer\.weight': has shape \(2, 1\), rows of 3 weights take 2 bytes"),
        ([[0xE1, 0x07, 0], [0x30, 0x09, 0]], r"tensor 'layer\.weight': has shape \(2, 3\)"),
        ([0xE1, 0x07, 0x30, 0x09], r"tensor 'layer\.weight': has shape \(4,\)"),
        ([[0xE1, 0x07], [0x30, 0x08]], r"tensor 'layer\.weight': the weight in row 1, column 2 is -8"),
        ([[0xE1, 0x07], [0x30, 0x19]], r"tensor 'layer\.weight': the last half of row 1 belongs to no weight"),
    ],
)
def test_damaged_packed_weights_are_refused_by_name(stored, message):
    plain_to_graph(PACKED)
    weights = PACKED.weights | {"layer.weight": np.array(stored, np.uint8)}
    with pytest.raises((SerialiseError, GraphError), match=message):
        plain_to_graph(PlainGraph(PACKED.structure, weights, PACKED.encoder))


@pytest.mark.parametrize(("bits", "reach"), [(2, 2), (3, 4)])
def test_a_packed_weight_beyond_its_own_width_is_refused(bits, reach):
    structure = copy.deepcopy(PACKED.structure)
    structure["nodes"][1]["weight_bits"] = bits
    weights = PACKED.weights | {"layer.weight": np.array([[reach, 0], [0, 0]], np.uint8)}
    with pytest.raises(GraphError, match=rf"node 'layer': \|weight\| reaches {reach}"):
        plain_to_graph(PlainGraph(structure, weights, PACKED.encoder))


@pytest.mark.parametrize("inputs", [[], ["nobody"], ["source", "source"]])
def test_packed_weights_without_one_known_input_are_refused(inputs):
    structure = copy.deepcopy(PACKED.structure)
    structure["nodes"][1]["inputs"] = inputs
    with pytest.raises(SerialiseError, match="node 'layer': synapses have one input"):
        plain_to_graph(PlainGraph(structure, PACKED.weights, PACKED.encoder))


@pytest.mark.parametrize("make", [random_graph, random_dag, random_machine_dag])
def test_the_json_schema_takes_what_is_written(make):
    validate = json_schema()
    for seed in range(5):
        graph = make(np.random.default_rng(seed), norms=0.5 * (seed % 2))
        validate(graph_to_plain(graph).structure)
        validate(graph_to_plain(with_vector_thresholds(graph)).structure)


def set_field(field, value):
    return lambda s: s["nodes"][2].__setitem__(field, value)


BROKEN = {
    "unknown field": set_field("colour", "red"),
    "missing field": lambda s: s["nodes"][2].pop("dv"),
    "missing top field": lambda s: s.pop("T"),
    "unknown top field": lambda s: s.__setitem__("comment", "x"),
    "unknown op": set_field("op", "softmax"),
    "a list for an op": set_field("op", ["lif"]),
    "float for an integer": set_field("dv", 0.5),
    "true for an integer": set_field("dv", True),
    "text for an integer": set_field("threshold", "5"),
    "number for a name": set_field("inputs", [3]),
    "dv beyond its range": set_field("dv", 4096),
    "a threshold beyond its range": set_field("threshold", 65536),
    "another shift": set_field("shift", 6),
    "nodes is an object": lambda s: s.__setitem__("nodes", {}),
    "a node is a number": lambda s: s["nodes"].__setitem__(2, 7),
    "schema is text": lambda s: s.__setitem__("schema", "1"),
    "schema zero": lambda s: s.__setitem__("schema", 0),
    "a newer schema": lambda s: s.__setitem__("schema", 8),
    "T beyond 32 bits": lambda s: s.__setitem__("T", 2**31),
    "n_max beyond 64 bits": lambda s: s.__setitem__("n_max", 10**400),
    "scale beyond a double": lambda s: s["nodes"][-1].__setitem__("scale", 10**400),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_structure_is_refused_by_reader_and_schema(name):
    plain = graph_to_plain(random_graph(np.random.default_rng(0), blocks=1))
    structure = copy.deepcopy(plain.structure)
    assert structure["nodes"][2]["op"] == "lif"
    BROKEN[name](structure)
    with pytest.raises((SerialiseError, GraphError)):
        plain_to_graph(PlainGraph(structure, plain.weights, plain.encoder))
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        json_schema()(structure)


def test_one_bit_is_of_the_schema_that_has_it():
    plain = graph_to_plain(random_graph(np.random.default_rng(0), blocks=1, weight_bits=1))
    assert plain.structure["schema"] == 6
    for schema in range(1, 6):
        structure = copy.deepcopy(plain.structure) | {"schema": schema}
        for node in structure["nodes"]:  # those of schema 5 on are left away where they say nothing
            for field in {"source": ["reset"], "lif": ["reset", "spike", "cap"], "readout": ["kind", "dv"]}.get(
                node["op"], []
            ):
                if schema < 5:
                    del node[field]
            if schema < 4 and node["op"] == "attention":
                del node["similarity"], node["bias_maps"]
        with pytest.raises(SerialiseError, match="weights of 1 bit exist since schema 6"):
            plain_to_graph(PlainGraph(structure, plain.weights, plain.encoder))
        with pytest.raises(fastjsonschema.JsonSchemaValueException, match="weight_bits"):
            json_schema()(structure)


def test_a_newer_schema_is_named():
    plain = graph_to_plain(random_graph(np.random.default_rng(0), blocks=1))
    with pytest.raises(SerialiseError, match="schema 8 is newer than 7"):
        plain_to_graph(PlainGraph(plain.structure | {"schema": 8}, plain.weights, plain.encoder))


def coded_graph(rng):
    return random_graph(rng, blocks=1, code_features=3)


def graph_of_soft_neurons(rng):
    return random_graph(rng, neurons="soft")


@pytest.mark.parametrize(
    ("make", "schema"),
    [(random_graph, 2), (random_dag, 2), (random_machine_dag, 3), (coded_graph, 4), (graph_of_soft_neurons, 5)],
)
def test_the_oldest_schema_that_can_say_it_is_written(make, schema):
    for seed in range(3):
        assert graph_to_plain(make(np.random.default_rng(seed))).structure["schema"] == schema


def test_spike_coded_positions_come_back():
    graph = coded_graph(np.random.default_rng(0))
    plain = graph_to_plain(graph)
    json_schema()(plain.structure)
    assert np.array_equal(plain_to_graph(plain).source.code, graph.source.code)
    assert plain.encoder["code"].dtype == np.uint8
    wide = plain.encoder | {"code": plain.encoder["code"].astype(np.int64)}
    with pytest.raises(SerialiseError, match="tensor 'code' is int64, not uint8"):
        plain_to_graph(PlainGraph(plain.structure, plain.weights, wide))
    less = {name: array for name, array in plain.encoder.items() if name != "code"}
    with pytest.raises(GraphError, match="weight has 19 columns, the input has 16 features"):
        plain_to_graph(PlainGraph(plain.structure, plain.weights, less))


def test_schema_3_of_an_ordinary_graph_is_read():
    plain = graph_to_plain(random_graph(np.random.default_rng(0), blocks=1, weight_bits=4))
    newer = PlainGraph(plain.structure | {"schema": 3}, plain.weights, plain.encoder)
    assert_same(graph_to_plain(plain_to_graph(newer)), plain)


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("op", MACHINE_KINDS)
def test_an_older_schema_has_no_nodes_that_only_passes_make(op, schema):
    plain = graph_to_plain(machine_graph())
    nodes = [node for node in plain.structure["nodes"] if node["op"] not in MACHINE_KINDS or node["op"] == op]
    structure = plain.structure | {"schema": schema, "nodes": nodes}
    place = [node["op"] for node in nodes].index(op)
    message = rf"graph\.json, nodes\[{place}\]: op '{op}' exists since schema 3"
    with pytest.raises(SerialiseError, match=message):
        plain_to_graph(PlainGraph(structure, plain.weights, plain.encoder))


def change(name, field, value):
    """Changes a node of `machine_graph`; a field whose value is None is left out."""

    def apply(structure):
        node = next(node for node in structure["nodes"] if node["name"] == name)
        if value is None:
            del node[field]
        else:
            node[field] = value

    return apply


BROKEN_NORM = {
    "a norm of batches": change("up.norm", "kind", "batch"),
    "a norm without a kind": change("up.norm", "kind", None),
    "a norm without eps": change("up.norm", "eps", None),
    "a norm of no eps": change("up.norm", "eps", 0),
    "a norm of too much eps": change("up.norm", "eps", 2**60 + 1),
    "a norm of half an eps": change("up.norm", "eps", 0.5),
    "a norm of nothing": change("up.norm", "inputs", []),
    "a norm of three": change("up.norm", "inputs", ["up", "source", "source"]),
    "a norm with a threshold": change("up.norm", "threshold", 1),
    "a norm of many features": change("up.norm", "features", 16385),
}


@pytest.mark.parametrize("name", BROKEN_NORM)
def test_broken_norms_are_refused_by_reader_and_schema(name):
    plain = graph_to_plain(norm_graph())
    json_schema()(plain.structure)
    structure = copy.deepcopy(plain.structure)
    BROKEN_NORM[name](structure)
    with pytest.raises((SerialiseError, GraphError)):
        plain_to_graph(PlainGraph(structure, plain.weights, plain.encoder))
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        json_schema()(structure)


BROKEN_MACHINE = {
    "a slice without its start": change("second", "start", None),
    "a slice that starts before all": change("second", "start", -1),
    "a slice that stops at nothing": change("second", "stop", 0),
    "a slice of half a feature": change("second", "stop", 1.5),
    "a slice of two inputs": change("second", "inputs", ["sum", "sum"]),
    "a concat of one input": change("side_by_side", "inputs", ["second"]),
    "a concat with heads": change("side_by_side", "heads", 1),
    "a valid lane without lanes": change("valid", "lanes", None),
    "a valid lane of none": change("valid", "lanes", 0),
    "a valid lane with an input": change("valid", "inputs", ["neuron"]),
    "a coincidence of one input": change("match", "inputs", ["neuron"]),
    "a coincidence with heads": change("match", "heads", 1),
    "a relay of two inputs": change("relay", "inputs", ["scores", "scores"]),
    "a relay with a threshold": change("relay", "threshold", 1),
    "a product without heads": change("product", "heads", None),
    "a product of no heads": change("product", "heads", 0),
    "a product of true heads": change("product", "heads", True),
    "a product of one input": change("product", "inputs", ["relay"]),
}


@pytest.mark.parametrize("name", BROKEN_MACHINE)
def test_broken_nodes_that_only_passes_make_are_refused_by_reader_and_schema(name):
    plain = graph_to_plain(machine_graph())
    json_schema()(plain.structure)
    structure = copy.deepcopy(plain.structure)
    BROKEN_MACHINE[name](structure)
    with pytest.raises((SerialiseError, GraphError)):
        plain_to_graph(PlainGraph(structure, plain.weights, plain.encoder))
    with pytest.raises(fastjsonschema.JsonSchemaValueException):
        json_schema()(structure)


@pytest.mark.parametrize("name", ["second", "side_by_side", "valid", "match", "relay", "product"])
def test_stated_widths_of_what_passes_make_must_agree(name):
    plain = graph_to_plain(machine_graph())
    change(name, "features", 99)(plain.structure)
    with pytest.raises(GraphError, match=f"node '{name}': features 99, the arrays say"):
        plain_to_graph(plain)


def test_tensors_must_be_exactly_those_of_the_nodes():
    plain = graph_to_plain(random_graph(np.random.default_rng(0), blocks=1))
    name = next(iter(plain.weights))
    fewer = {key: value for key, value in plain.weights.items() if key != name}
    with pytest.raises(SerialiseError, match="missing"):
        plain_to_graph(PlainGraph(plain.structure, fewer, plain.encoder))
    with pytest.raises(SerialiseError, match="no node uses: extra"):
        plain_to_graph(PlainGraph(plain.structure, plain.weights | {"extra": np.zeros(1)}, plain.encoder))
    with pytest.raises(SerialiseError, match="not int8"):
        plain_to_graph(PlainGraph(plain.structure, plain.weights | {name: plain.weights[name] * 1.0}, plain.encoder))


@pytest.mark.parametrize(("node", "field"), [(0, "features"), (1, "features"), (-1, "classes")])
def test_stated_widths_must_agree_with_the_arrays(node, field):
    plain = graph_to_plain(random_graph(np.random.default_rng(0), blocks=1))
    plain.structure["nodes"][node][field] += 1
    with pytest.raises(GraphError, match=field):
        plain_to_graph(plain)


def test_the_stated_output_must_be_the_readout():
    plain = graph_to_plain(random_graph(np.random.default_rng(0), blocks=1))
    plain.structure["output"] = "source"
    with pytest.raises(SerialiseError, match="output"):
        plain_to_graph(plain)
