"""Integer graph -> `nir.NIRGraph`: the network that one token goes through.

| graph | NIR |
| --- | --- |
| source | the Input: its spikes are made on the host, as for every target |
| valid lane | the last feature of the Input, 1 for a real token, spread to all lanes by a Linear |
| synapses, readout | Affine, or Linear where there is no bias; the bias is constant, since only real tokens are fed |
| lif | IF for `dv = 0`, else LIF (`membranes.py`) |
| add | none: several edges lead into what reads it, and NIR's consumers add them up |
| relay | none: an edge |
| slice, concat | Linear of zeros and ones |

Values travel along edges as they are in the graph: spikes are 0 and 1, their sums and perhaps the source's graded,
currents in accumulator units.
"""

from __future__ import annotations

from collections import Counter

import networkx as nx
import nir
import numpy as np

from converters.graph import LIF, Add, Concat, Graph, Node, Readout, Relay, Slice, Source, Synapses, ValidLane
from converters.ranges import prove_ranges
from targets.nir.membranes import membrane_of
from targets.nir.rules import plain_name

DT = 1e-4  # seconds, the length of a step: what snnTorch takes for granted
CONVENTIONS = {
    "time": "One step of the network is dt seconds; forward Euler with this dt is exact: "
    "v = v + dt / tau * (I - v) for a LIF, v = v + I for an IF; then spike where v > v_threshold, then v = v_reset. "
    "There is no delay between nodes. All membranes are 0 before each sample, which lasts timesteps steps.",
    "tokens": "The network of one token: tokens are a batch, and only real tokens are fed, no padding.",
    "input": "Spikes of the source at each step, made from token ids on the host: 0 or 1, or larger integers where "
    "they are graded; where the graph has a valid lane, 1 as the last feature.",
    "output": "The current of the readout at each step, integers. Their sum over steps and tokens is the logits; the "
    "class is the lowest index among the largest.",
    "units": "Weights and currents are integers, in accumulator units. A LIF takes in dt / tau of its current, since r "
    "is 1, and its threshold is scaled alike. A threshold lies halfway between the highest membrane that is silent and "
    "the lowest that fires.",
}


def build(graph: Graph) -> nir.NIRGraph:
    """The NIR graph of a legal graph (`rules.py`). Nodes that the readout does not depend on are left out.

    Arrays are float32 and hold integers, but for thresholds and time constants. Raises ValueError for a node of a kind
    that NIR does not have.
    """
    network = _Network(graph)
    for node in graph:
        if node.name in network.read:
            network.add(node)
    return network.finish()


class _Network:
    """Nodes and edges so far.

    parts     graph node -> the NIR nodes whose sum is its value, each with how often it counts
    multiples NIR node and how often it counts -> the NIR node of that multiple
    """

    def __init__(self, graph: Graph) -> None:
        self.graph, self.ranges = graph, prove_ranges(graph)
        self.read = nx.ancestors(graph.digraph, graph.output) | {graph.output}
        self.has_lane = any(isinstance(graph[name], ValidLane) for name in self.read)
        self.taken = {plain_name(node.name) for node in graph}
        self.nodes: dict[str, nir.NIRNode] = {}
        self.edges: list[tuple[str, str]] = []
        self.parts: dict[str, Counter[str]] = {}
        self.multiples: dict[tuple[str, int], str] = {}
        width = graph.features[graph.source.name] + self.has_lane
        self.input = self._append(self._free("input"), nir.Input(input_type={"input": np.array([width])}))

    def add(self, node: Node) -> None:
        """What stands for a node, and the edges that lead into it."""
        if isinstance(node, Add):
            self.parts[node.name] = sum((self.parts[name] for name in node.inputs), Counter())
        elif isinstance(node, Relay):
            self.parts[node.name] = self.parts[node.inputs[0]]
        elif isinstance(node, Concat):
            self.parts[node.name] = Counter(self._concat(node))
        elif isinstance(node, Source) and not self.has_lane:
            self.parts[node.name] = Counter([self.input])
        else:
            sources = Counter([self.input]) if not node.inputs else self.parts[node.inputs[0]]
            self.parts[node.name] = Counter([self._append(node.name, self._made(node), sources)])

    def finish(self) -> nir.NIRGraph:
        classes, readout = self.graph.features[self.graph.output], self.parts[self.graph.output]
        self._append(self._free("output"), nir.Output(output_type={"output": np.array([classes])}), readout)
        numbers = {
            "dt": DT,
            "timesteps": self.graph.timesteps,
            "most_tokens": self.graph.n_max,
            "logit_scale": self.graph.readout.scale,
        }
        return nir.NIRGraph(nodes=self.nodes, edges=self.edges, metadata={**numbers, **CONVENTIONS})

    def _made(self, node: Node) -> nir.NIRNode:
        """The NIR node of a node that has one."""
        width = self.graph.features[node.name]
        if isinstance(node, (Synapses, Readout)):
            if node.bias.any():
                return nir.Affine(weight=node.weight.astype(np.float32), bias=node.bias.astype(np.float32))
            return _linear(node.weight)
        if isinstance(node, LIF):
            return self._neuron(node)
        if isinstance(node, Slice):
            return _linear(np.eye(self.graph.features[node.inputs[0]])[node.start : node.stop])
        if isinstance(node, Source):
            return _linear(np.eye(width, width + 1))
        if isinstance(node, ValidLane):
            lane = np.eye(self.graph.features[self.graph.source.name] + 1)[-1:]
            return _linear(np.repeat(lane, width, axis=0))
        raise ValueError(f"node '{node.name}': NIR has no {node.op}")

    def _neuron(self, node: LIF) -> nir.NIRNode:
        membrane = membrane_of(self.graph, node, self.ranges[node.inputs[0]])
        ones = np.ones(self.graph.features[node.name], np.float32)
        threshold = (membrane.threshold(node.threshold) * ones).astype(np.float32)
        if membrane.dv == 0:
            return nir.IF(r=ones, v_threshold=threshold, v_reset=0 * ones)
        tau = (DT * membrane.tau * ones).astype(np.float32)
        return nir.LIF(tau=tau, r=ones, v_leak=0 * ones, v_threshold=threshold, v_reset=0 * ones)

    def _concat(self, node: Concat) -> list[str]:
        """Every input moved to its place among zeros: their sum stands side by side."""
        made, place, width = [], 0, self.graph.features[node.name]
        for index, name in enumerate(node.inputs):
            own = self.graph.features[name]
            part = _linear(np.eye(width)[:, place : place + own])
            made.append(self._append(self._free(f"{node.name}.part{index}"), part, self.parts[name]))
            place += own
        return made

    def _append(self, name: str, node: nir.NIRNode, sources: Counter[str] | None = None) -> str:
        self.nodes[name] = node
        self.edges += [(self._times(source, count), name) for source, count in (sources or {}).items()]
        return name

    def _times(self, name: str, count: int) -> str:
        """A node that counts several times in a sum: NIR has each edge once."""
        if count == 1:
            return name
        if (name, count) not in self.multiples:
            (width,) = self.nodes[name].output_type["output"]
            multiple = _linear(count * np.eye(int(width)))
            self.multiples[name, count] = self._append(self._free(f"{name}.times{count}"), multiple, Counter([name]))
        return self.multiples[name, count]

    def _free(self, wanted: str) -> str:
        """`wanted`, or where that is taken the first of `wanted`_2, `wanted`_3, ... that is free."""
        name, number = wanted, 1
        while plain_name(name) in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(plain_name(name))
        return name


def _linear(weight: np.ndarray) -> nir.Linear:
    return nir.Linear(weight=np.ascontiguousarray(weight, dtype=np.float32))
