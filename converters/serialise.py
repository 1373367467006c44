"""A graph as plain data and back: `graph.json`, `weights.safetensors`, `encoder.safetensors`.

The layout is documented in docs/bundle.md and, for machines, in graph.schema.json beside this file. Reading is
strict: a field too many, too few or of the wrong type is refused; the numbers are then checked by `Graph`.

Written is the oldest schema that can say it: 2, or 3 where a graph has one of the nodes that only passes make
(`SINCE`), or 4 where it has a norm, an attention with a similarity other than "and" or with a bias, or spike-coded
positions, or 5 where a neuron resets by subtraction or sends other spikes than bits, or the readout is a membrane.
Schema 1 is read too: there every weight takes a byte, however few bits it has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.graph import (
    LIF,
    Add,
    Attention,
    Coincidence,
    Concat,
    Graph,
    GraphError,
    Node,
    Norm,
    Product,
    Readout,
    Relay,
    Slice,
    Source,
    Synapses,
    ValidLane,
)
from converters.nibbles import NIBBLE_BITS, pack, unpack
from converters.sign_bits import pack_signs, unpack_signs

SCHEMA = 7  # the newest; older ones are read
PACKED_SINCE = (
    2  # the oldest that is written: from this schema on, weights of at most NIBBLE_BITS are stored two to a byte
)

COUNT_MAX = 2**31 - 1  # of T and n_max: readers may hold them in 32 bits

# op -> the fields a node has beside name, op, inputs and features, with their JSON types
NULLABLE_INT = (int, type(None))
FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "source": {"kind": str, "threshold": int, "dv": int, "shift": int},
    "synapses": {"weight_bits": int},
    "norm": {"kind": str, "eps": int},
    "attention": {"heads": int},
    "lif": {"threshold": NULLABLE_INT, "dv": int, "shift": int},
    "add": {},
    "slice": {"start": int, "stop": int},
    "concat": {},
    "valid_lane": {"lanes": int},
    "coincidence": {},
    "relay": {},
    "product": {"heads": int},
    "readout": {"classes": int, "scale": (int, float)},
}
# op -> schemas from which on its nodes have more fields, and these
MORE_FIELDS: dict[str, dict[int, dict[str, type | tuple[type, ...]]]] = {
    "attention": {4: {"similarity": str, "bias_maps": int}},
    "readout": {5: {"kind": str, "dv": int}},
    "lif": {5: {"reset": str, "spike": str, "cap": int}},
    "source": {5: {"reset": str}, 7: {"spike": str, "cap": int}},
}
GRADED_SINCE = 7  # a source that sends graded spikes, and such a v of an attention
CODE_SINCE = 4  # spike-coded positions
SIGNS_SINCE = 6  # weights of 1 bit, which are stored eight to a byte
SINCE = {"slice": 3, "concat": 3, "valid_lane": 3, "coincidence": 3, "relay": 3, "product": 3, "norm": 4}  # others: 1
ARRAYS = ("weight", "bias", "threshold", "gamma", "beta")  # fields of nodes that stand in weights.safetensors
PLAIN_NODES: dict[str, Callable[[str, tuple[str, ...]], Node]] = {  # those that are a name and inputs
    "add": Add,
    "concat": Concat,
    "coincidence": Coincidence,
    "relay": Relay,
}
COMMON: dict[str, type | tuple[type, ...]] = {"name": str, "op": str, "inputs": list, "features": int}
TOP: dict[str, type | tuple[type, ...]] = {"schema": int, "T": int, "n_max": int, "nodes": list, "output": str}
DTYPES = {
    "weight": np.int8, "bias": np.int32, "threshold": np.int32, "gamma": np.int32, "beta": np.int32,
    "table": np.int8, "position": np.int32, "code": np.uint8,
}  # fmt: skip

Arrays = dict[str, np.ndarray]


class SerialiseError(ValueError):
    """Plain data that is no graph. The message says where and what was expected."""


@dataclass(frozen=True, eq=False)
class PlainGraph:
    """The three parts a graph is stored as.

    structure the JSON object of graph.json
    weights   "<node>.weight" int8, or uint8 where some share a byte (`converters.nibbles`, `.sign_bits`);
              "<node>.bias" int32;
              of an attention that has one int32 [maps, n_max, n_max]; "<node>.threshold" int32 where a vector;
              "<node>.gamma", "<node>.beta" int32
    encoder   "table" int8; "position" int32 and "code" uint8 where the source has one
    """

    structure: dict[str, Any]
    weights: Arrays
    encoder: Arrays


def graph_to_plain(graph: Graph) -> PlainGraph:
    """Take a graph apart. Exact: `plain_to_graph` gives the same graph back."""
    schema = schema_of(graph)
    structure = {
        "schema": schema,
        "T": graph.timesteps,
        "n_max": graph.n_max,
        "nodes": [_node_to_json(graph, node, schema) for node in graph],
        "output": graph.output,
    }
    weights: Arrays = {}
    for node in graph:
        for field in ARRAYS:
            if isinstance(array := getattr(node, field, None), np.ndarray):
                weights[f"{node.name}.{field}"] = array
        if isinstance(node, Synapses):
            weights[f"{node.name}.weight"] = stored_weight(node)
    encoder = {"table": graph.source.table}
    for field in ("position", "code"):
        if (array := getattr(graph.source, field)) is not None:
            encoder[field] = array
    return PlainGraph(structure, weights, encoder)


def schema_of(graph: Graph) -> int:
    """The schema a graph is written in."""
    code = CODE_SINCE if graph.source.code is not None else 1
    more = [_fields_since(graph, node) for node in graph]
    signs = [SIGNS_SINCE for node in graph if isinstance(node, Synapses) and node.weight_bits == 1]
    return max([PACKED_SINCE, code, *more, *signs, *(SINCE.get(node.op, 1) for node in graph)])


def _fields_since(graph: Graph, node: Node) -> int:
    """The schema from which on a node can be said: later where a field that came later is not what it is unsaid."""
    if isinstance(node, Source):
        return GRADED_SINCE if node.spike != "binary" else 5 if node.reset != "zero" else 1
    if isinstance(node, Readout):
        return 5 if node.kind != "sum" else 1
    if isinstance(node, (Attention, Product)):
        graded = graph.value_max[node.inputs[2 if isinstance(node, Attention) else 1]] > 1
        return GRADED_SINCE if graded else 4 if isinstance(node, Attention) and node.needs_lane else 1
    return 5 if isinstance(node, LIF) and not node.is_stock else 1


def fields_of(op: str, schema: int) -> dict[str, type | tuple[type, ...]]:
    """The fields of a node beside name, op, inputs and features."""
    fields = dict(FIELDS[op])
    for since, more in MORE_FIELDS.get(op, {}).items():
        fields |= more if schema >= since else {}
    return fields


def plain_to_graph(plain: PlainGraph) -> Graph:
    """Put a graph together. Raises SerialiseError on a wrong layout and GraphError on an illegal graph."""
    structure = plain.structure
    check_schema(structure, "graph.json")
    _check_fields(structure, TOP, "graph.json")
    for field in ("T", "n_max"):
        if structure[field] > COUNT_MAX:
            raise SerialiseError(f"graph.json: field '{field}' is {structure[field]}, the limit is {COUNT_MAX}")
    places = [f"graph.json, nodes[{index}]" for index in range(len(structure["nodes"]))]
    for entry, where in zip(structure["nodes"], places):
        _check_entry(entry, where, structure["schema"])
        if SINCE.get(entry["op"], 1) > structure["schema"]:
            raise SerialiseError(f"{where}: op '{entry['op']}' exists since schema {SINCE[entry['op']]}")
        if entry.get("weight_bits") == 1 and structure["schema"] < SIGNS_SINCE:
            raise SerialiseError(f"{where}: weights of 1 bit exist since schema {SIGNS_SINCE}")
    weights, encoder = dict(plain.weights), dict(plain.encoder)
    if structure["schema"] >= PACKED_SINCE:
        weights |= _unpacked(structure["nodes"], weights)
    nodes = tuple(_node_from_json(entry, where, weights, encoder) for entry, where in zip(structure["nodes"], places))
    if left := [*weights, *encoder]:
        raise SerialiseError(f"tensors that no node uses: {', '.join(sorted(left))}")
    graph = Graph(structure["T"], structure["n_max"], nodes)
    if structure["schema"] < GRADED_SINCE and schema_of(graph) >= GRADED_SINCE:
        raise SerialiseError(
            f"graph.json: a graded v exists since schema {GRADED_SINCE}, this is {structure['schema']}"
        )
    _check_derived(graph, structure)
    return graph


def check_schema(document: object, where: str) -> None:
    """Refuse what a newer version wrote. Raises SerialiseError."""
    if not isinstance(document, dict):
        raise SerialiseError(f"{where}: expected a JSON object, found {type(document).__name__}")
    schema = document.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise SerialiseError(f"{where}: field 'schema' must be an integer, it is {schema!r}")
    if schema > SCHEMA:
        raise SerialiseError(f"{where}: schema {schema} is newer than {SCHEMA}, the newest this version reads. Update")
    if schema < 1:
        raise SerialiseError(f"{where}: schema {schema} does not exist")


def _node_to_json(graph: Graph, node: Node, schema: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": node.name, "op": node.op, "inputs": list(node.inputs)}
    entry["features"] = graph.features[node.name]
    for field in fields_of(node.op, schema):
        entry[field] = _field_to_json(graph, node, field)
    return entry


def _field_to_json(graph: Graph, node: Node, field: str) -> Any:
    if field == "classes":
        return graph.features[node.name]
    if field == "bias_maps":
        return _bias_maps(node)
    value = getattr(node, field)
    return None if isinstance(value, np.ndarray) else value  # a vector of thresholds stands in weights.safetensors


def _bias_maps(node: Node) -> int:
    """How many maps the bias of an attention has; 0 where it has none."""
    return 0 if not isinstance(node, Attention) or node.bias is None else len(node.bias)


def stored_weight(node: Synapses) -> np.ndarray:
    """The weights of a layer as stored: int8 [out, in], or uint8 [out, ceil(in / n)] where n = 2 or 8 share a byte."""
    if node.weight_bits == 1:
        return pack_signs(node.weight)
    return pack(node.weight) if node.weight_bits <= NIBBLE_BITS else node.weight


def _unpacked(entries: list[dict[str, Any]], weights: Arrays) -> Arrays:
    """Those of the weights that share a byte on disk, with a byte each. Raises SerialiseError where damaged."""
    widths = {entry["name"]: entry["features"] for entry in entries}
    found = {}
    for entry in entries:
        tensor = f"{entry['name']}.weight"
        if entry["op"] != "synapses" or entry["weight_bits"] > NIBBLE_BITS or tensor not in weights:
            continue
        columns = [widths[producer] for producer in entry["inputs"] if producer in widths]
        if len(columns) != 1:
            raise SerialiseError(f"graph.json, node '{entry['name']}': synapses have one input, a node of the graph")
        if weights[tensor].dtype != np.uint8:
            raise SerialiseError(
                f"tensor '{tensor}' is {weights[tensor].dtype}, not uint8: "
                f"weights of at most {NIBBLE_BITS} bits are stored two to a byte, those of 1 bit eight"
            )
        try:
            apart = unpack_signs if entry["weight_bits"] == 1 else unpack
            found[tensor] = apart(weights[tensor], columns[0])
        except ValueError as error:
            raise SerialiseError(f"tensor '{tensor}': {error}") from None
    return found


def _check_entry(entry: object, where: str, schema: int) -> None:
    """Raises SerialiseError unless `entry` has exactly the fields of its op, each of the right type."""
    if not isinstance(entry, dict) or not isinstance(entry.get("op"), str) or entry["op"] not in FIELDS:
        raise SerialiseError(f"{where}: expected an object whose 'op' is one of {', '.join(FIELDS)}")
    _check_fields(entry, COMMON | fields_of(entry["op"], schema), where)
    if not all(isinstance(producer, str) for producer in entry["inputs"]):
        raise SerialiseError(f"{where}: 'inputs' must be names")


def _node_from_json(entry: dict[str, Any], where: str, weights: Arrays, encoder: Arrays) -> Node:
    """Build one node; the arrays it uses are taken out of `weights` and `encoder`."""
    name, inputs = entry["name"], tuple(entry["inputs"])

    def take(field: str, arrays: Arrays, tensor: str) -> np.ndarray:
        if tensor not in arrays:
            raise SerialiseError(f"{where}: tensor '{tensor}' is missing")
        array = arrays.pop(tensor)
        if array.dtype != DTYPES[field]:
            raise SerialiseError(f"{where}: tensor '{tensor}' is {array.dtype}, not {np.dtype(DTYPES[field])}")
        return array

    op = entry["op"]
    if op == "source":
        table = take("table", encoder, "table")
        position, code = (take(field, encoder, field) if field in encoder else None for field in ("position", "code"))
        neuron = (entry["threshold"], entry["dv"], entry["shift"])
        options = {field: entry[field] for field in ("reset", "spike", "cap") if field in entry}
        return Source(name, table, position, entry["kind"], *neuron, inputs=inputs, code=code, **options)
    if op == "attention":
        bias = take("bias", weights, f"{name}.bias") if entry.get("bias_maps", 0) else None
        return Attention(name, inputs, entry["heads"], entry.get("similarity", "and"), bias)
    if op == "norm":
        gamma, beta = (take(field, weights, f"{name}.{field}") for field in ("gamma", "beta"))
        return Norm(name, inputs, gamma, beta, entry["eps"], entry["kind"])
    if op in PLAIN_NODES:
        return PLAIN_NODES[op](name, inputs)
    if op == "slice":
        return Slice(name, inputs, entry["start"], entry["stop"])
    if op == "valid_lane":
        return ValidLane(name, entry["lanes"], inputs)
    if op == "product":
        return Product(name, inputs, entry["heads"])
    if op == "lif":
        threshold = entry["threshold"]
        if threshold is None:
            threshold = take("threshold", weights, f"{name}.threshold")
        options = {field: entry[field] for field in ("reset", "spike", "cap") if field in entry}
        return LIF(name, inputs, threshold, entry["dv"], entry["shift"], **options)
    weight, bias = take("weight", weights, f"{name}.weight"), take("bias", weights, f"{name}.bias")
    if op == "synapses":
        return Synapses(name, inputs, weight, bias, entry["weight_bits"])
    if not abs(entry["scale"]) <= sys.float_info.max:
        raise SerialiseError(f"{where}: 'scale' is no finite number")
    return Readout(name, inputs, weight, bias, float(entry["scale"]), entry.get("kind", "sum"), entry.get("dv", 0))


def _check_derived(graph: Graph, structure: dict[str, Any]) -> None:
    """What graph.json states twice for readers must agree with what follows from the arrays."""
    if structure["output"] != graph.output:
        raise SerialiseError(f"graph.json: output is '{structure['output']}', the readout is '{graph.output}'")
    for node, entry in zip(graph, structure["nodes"]):
        for field in {"features", "classes"} & set(entry):
            if entry[field] != graph.features[node.name]:
                raise GraphError(
                    f"node '{node.name}': {field} {entry[field]}, the arrays say {graph.features[node.name]}"
                )
        if entry.get("bias_maps", 0) != _bias_maps(node):
            raise GraphError(f"node '{node.name}': bias_maps {entry['bias_maps']}, its bias has {_bias_maps(node)}")


def _check_fields(entry: dict[str, Any], expected: dict[str, type | tuple[type, ...]], where: str) -> None:
    if missing := [field for field in expected if field not in entry]:
        raise SerialiseError(f"{where}: missing {', '.join(missing)}")
    if unknown := [field for field in entry if field not in expected]:
        raise SerialiseError(f"{where}: unknown {', '.join(map(str, unknown))}")
    for field, kind in expected.items():
        if not _is_a(entry[field], kind):
            raise SerialiseError(f"{where}: field '{field}' has the wrong type: {entry[field]!r}")


def _is_a(value: object, kind: type | tuple[type, ...]) -> bool:
    """isinstance, except that `true` is no integer."""
    return isinstance(value, kind) and not isinstance(value, bool)
