"""A graph survives being taken apart, and what is no graph is refused."""

import copy
import json
from importlib import resources

import fastjsonschema
import numpy as np
import pytest
from random_graphs import random_dag, random_graph

from converters.graph import LIF, Graph, GraphError
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
@pytest.mark.parametrize("make", [random_graph, random_dag])
def test_round_trip(make, change, seed):
    graph = change(make(np.random.default_rng(seed)))
    plain = graph_to_plain(graph)
    through_json = PlainGraph(json.loads(json.dumps(plain.structure)), plain.weights, plain.encoder)
    assert_same(graph_to_plain(plain_to_graph(through_json)), plain)


@pytest.mark.parametrize("make", [random_graph, random_dag])
def test_the_json_schema_takes_what_is_written(make):
    validate = json_schema()
    for seed in range(5):
        graph = make(np.random.default_rng(seed))
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


def test_a_newer_schema_is_named():
    plain = graph_to_plain(random_graph(np.random.default_rng(0), blocks=1))
    with pytest.raises(SerialiseError, match="schema 2 is newer than 1"):
        plain_to_graph(PlainGraph(plain.structure | {"schema": 2}, plain.weights, plain.encoder))


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


def json_schema():
    text = (resources.files("converters") / "graph.schema.json").read_text(encoding="utf-8")
    return fastjsonschema.compile(json.loads(text))
