"""A graph as text: a line for each node, to be read, kept and compared with `diff`."""

from __future__ import annotations

import hashlib

import numpy as np

from converters.graph import LIF, Attention, Graph, Node, Norm, Product, Readout, Slice, Source, Synapses


def graph_text(graph: Graph) -> str:
    """Every node with its inputs, its width, its numbers, and of each array its range and a digest of its contents.

    Two graphs have the same text where they are the same but for two arrays of one digest (8 hexadecimal digits).
    """
    head = f"graph T={graph.timesteps} n_max={graph.n_max} nodes={len(graph.nodes)}"
    return "\n".join([head, *(_line(graph, node) for node in graph)]) + "\n"


def _line(graph: Graph, node: Node) -> str:
    inputs = ", ".join(node.inputs)
    words = [f"{node.name} = {node.op}({inputs})", f"D={graph.features[node.name]}"]
    if isinstance(node, Source):
        words += [f"kind={node.kind}", f"threshold={node.threshold}", f"dv={node.dv}", _array("table", node.table)]
        words += [] if node.position is None else [_array("position", node.position)]
        words += [] if node.code is None else [_array("code", node.code)]
        words += _rule(node)
    elif isinstance(node, (Synapses, Readout)):
        words += [f"weight_bits={node.weight_bits}"] if isinstance(node, Synapses) else [f"scale={node.scale!r}"]
        words += [f"kind={node.kind}", f"dv={node.dv}"] if isinstance(node, Readout) and node.kind != "sum" else []
        words += [_array("weight", node.weight), _array("bias", node.bias)]
    elif isinstance(node, Attention):
        words.append(f"heads={node.heads}")
        words += [] if node.similarity == "and" else [f"similarity={node.similarity}"]
        words += [] if node.bias is None else [_array("bias", node.bias)]
    elif isinstance(node, Norm):
        words += [f"kind={node.kind}", f"eps={node.eps}", _array("gamma", node.gamma), _array("beta", node.beta)]
    elif isinstance(node, Product):
        words.append(f"heads={node.heads}")
    elif isinstance(node, Slice):
        words.append(f"from={node.start}")
    elif isinstance(node, LIF):
        vector = isinstance(node.threshold, np.ndarray)
        words.append(_array("threshold", np.asarray(node.threshold)) if vector else f"threshold={node.threshold}")
        words += [f"dv={node.dv}", *_rule(node)]
    return "  ".join(words)


def _rule(node: Source | LIF) -> list[str]:
    """What is not as with a stock neuron."""
    words = [] if node.reset == "zero" else [f"reset={node.reset}"]
    words += [] if node.spike == "binary" else [f"spike={node.spike}"]
    return words + ([] if node.cap == 1 else [f"cap={node.cap}"])


def _array(name: str, values: np.ndarray) -> str:
    shape = "x".join(map(str, values.shape))
    digest = hashlib.sha256(np.ascontiguousarray(values).astype("<i8").tobytes()).hexdigest()[:8]
    return f"{name}[{shape}]={int(values.min())}..{int(values.max())}#{digest}"
