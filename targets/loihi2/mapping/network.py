"""A lowered graph as a mapper sees it: populations of neurons, and connections between them.

Everything is known by its shape, never neuron by neuron: attention made of stock neurons has `n_max^2 D` of them twice.
A graph whose attention is still one node is taken as `--pass expand-attention` would make it, at any size: it is
expanded and lowered for a single token, since every token is lowered alike, and then taken for as many as there are.

A neuron of a population stands at (token n, key m, feature f); most populations have one key. What a connection reads
is told by `reads`, for the neuron at (n, m, f) of its target:

"token"  source neurons (n, 0, i)
"key"    source neurons (m, 0, i)
"pair"   source neurons (n, m, i)
"row"    source neurons (n, every m, i)

and by a pattern, bool [features of the target, features of the source]: which i a feature f reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Literal

import networkx as nx
import numpy as np

from converters.graph import Attention, Coincidence, Graph, Product, Synapses
from converters.passes.expand_attention import ExpandAttention
from spikebert.commands import CheckFailed
from targets import legality
from targets.lava.lowering import lay_out, lower_laid_out
from targets.lava.plan import (
    AdderSpec,
    FanSpec,
    NeuronSpec,
    Plan,
    ProductSpec,
    RouteSpec,
    SourceSpec,
    Spec,
    SynapsesSpec,
)
from targets.legality import IllegalGraphError
from targets.loihi2 import rules
from targets.loihi2.chip_plan import for_chip, with_probes

Reads = Literal["token", "key", "pair", "row"]
ONE_BIT_WEIGHT = 2  # bits of a weight that is 0 or 1, or -1 or 1: one is its sign
KINDS: Mapping[type, str] = {SourceSpec: "host", NeuronSpec: "lif", AdderSpec: "sum", ProductSpec: "product"}
READOUT_BITS = 8  # of its weights: a graph gives none


@dataclass(frozen=True)
class Population:
    """Neurons of one kind: `tokens * keys * features`.

    keyed       whether there is a neuron for each pair of tokens; only then has it more than one key
    kind        "lif", "sum" (GradedVec) or "product" (ProdNeuron); "host" is no population of the chip, but the host
                that sends what it encoded
    lanes       its last features that are valid lanes: they send at each step of a real token
    node        the node of the graph that they are, or whose value they send on; "" for what only a chip has
    delay_steps the longest delay of what leads to them
    """

    name: str
    tokens: int
    keys: int
    features: int
    keyed: bool = False
    kind: str = "lif"
    lanes: int = 0
    node: str = ""
    delay_steps: int = 0

    @property
    def host(self) -> bool:
        return self.kind == "host"

    @property
    def size(self) -> int:
        return self.tokens * self.keys * self.features


@dataclass(frozen=True, eq=False)
class Connection:
    """Synapses from one population into another.

    pattern     bool [features of the target, features of the source], see the module
    shared      whether a token's weights are those of every other token: a 1x1 Conv, stored once on a core
    weight_bits of a stored weight
    delay_steps beyond the one step that every connection takes
    """

    name: str
    source: str
    target: str
    reads: Reads
    pattern: np.ndarray
    shared: bool
    weight_bits: int
    delay_steps: int = 0

    def __post_init__(self) -> None:
        self.pattern.flags.writeable = False

    @cached_property
    def digest(self) -> bytes:
        """Of the pattern: connections of the same pattern have the same."""
        return sha256(repr(self.pattern.shape).encode() + np.packbits(self.pattern).tobytes()).digest()


@dataclass(frozen=True, eq=False)
class ChipNetwork:
    """What is to be placed. Populations stand after those that they read; the host is the first.

    timesteps   T
    depth_steps by which the last neuron lags behind the host
    """

    tokens: int
    timesteps: int
    depth_steps: int
    populations: tuple[Population, ...]
    connections: tuple[Connection, ...]

    def __getitem__(self, name: str) -> Population:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Population]:
        return {each.name: each for each in self.populations}

    @cached_property
    def into(self) -> dict[str, list[Connection]]:
        """Population -> the connections that lead to it."""
        return {each.name: [one for one in self.connections if one.target == each.name] for each in self.populations}

    @cached_property
    def out_of(self) -> dict[str, list[Connection]]:
        """Population -> the connections that lead away from it."""
        return {each.name: [one for one in self.connections if one.source == each.name] for each in self.populations}

    @property
    def on_chip(self) -> tuple[Population, ...]:
        return tuple(each for each in self.populations if not each.host)

    @property
    def attentions(self) -> int:
        """How many there are."""
        return sum(each.kind == "product" for each in self.populations)

    @property
    def neurons(self) -> int:
        """Of the chip."""
        return sum(each.size for each in self.on_chip)

    def synapses(self, connection: Connection) -> int:
        """How many there are, each token's counted, shared or not."""
        target, source = self[connection.target], self[connection.source]
        times = source.keys if connection.reads == "row" else 1
        return target.tokens * target.keys * times * int(np.count_nonzero(connection.pattern))

    def with_tokens(self, tokens: int, keys: int | None = None) -> ChipNetwork:
        """The same network for another n_max. Every token is alike; there are as many keys as tokens, or `keys`."""
        keys = tokens if keys is None else keys
        populations = tuple(replace(each, tokens=tokens, keys=keys if each.keyed else 1) for each in self.populations)
        return replace(self, tokens=tokens, populations=populations)

    def with_weight_bits(self, bits: int) -> ChipNetwork:
        """The same network with weights of at most `bits`."""
        narrow = tuple(replace(one, weight_bits=min(bits, one.weight_bits)) for one in self.connections)
        return replace(self, connections=narrow)

    def without_attention(self) -> ChipNetwork:
        """The network without the neurons that attention is made of: something else computes its currents."""
        gone = {each.name for each in self.populations if each.keyed}
        return replace(
            self,
            populations=tuple(each for each in self.populations if each.name not in gone),
            connections=tuple(one for one in self.connections if not {one.source, one.target} & gone),
        )


def chip_network(graph: Graph) -> ChipNetwork:
    """What stands on a chip when it runs `graph`: all neurons of the plan for the chip, with entry and relays, and the
    probe that sends the readout's currents to the host.

    Raises IllegalGraphError where the target `loihi2` refuses the graph for anything but its attention, and CheckFailed
    where what leads to or from an attention of stock neurons has no pattern that is known here.
    """
    tokens = graph.n_max
    violations = legality.check([each for each in rules.RULES if each is not rules.no_attention_process], graph)
    if any(isinstance(node, Attention) and node.bias is not None for node in graph):
        raise IllegalGraphError("loihi2", violations)  # among them this one: there is nothing to lower
    if any(isinstance(node, Attention) for node in graph):
        graph = ExpandAttention().rewrite(_for_one_token(graph)).graph
    laid = lay_out(graph)
    violations += legality.check(rules.LAID_OUT_RULES, laid.graph)
    if violations:
        raise IllegalGraphError("loihi2", violations)
    plan = for_chip(lower_laid_out(laid, rules.LATENCIES))
    plan, _ = with_probes(plan, [segment.process for segment in plan.homes[graph.output]])
    bits = {node.name: max(node.weight_bits, ONE_BIT_WEIGHT) for node in laid.graph if isinstance(node, Synapses)}
    return _Reader(plan, bits, {node.name for node in graph}).network().with_tokens(tokens)


def _for_one_token(graph: Graph) -> Graph:
    """The graph with an n_max of 1. Raises CheckFailed where it has some attention of stock neurons already."""
    for node in graph:
        if isinstance(node, (Coincidence, Product)):
            raise CheckFailed(f"node '{node.name}': the graph has attentions of both kinds. Export it with "
                              "--pass expand-attention")  # fmt: skip
    source = graph.source
    first = replace(
        source,
        position=None if source.position is None else source.position[:1],
        code=None if source.code is None else source.code[:, :1],
    )
    return Graph(graph.timesteps, 1, tuple(first if node is source else node for node in graph))


class _Reader:
    """Reads a plan for the chip as populations and connections."""

    def __init__(self, plan: Plan, weight_bits: Mapping[str, int], nodes: set[str]) -> None:
        self.plan, self.weight_bits, self.nodes = plan, weight_bits, nodes
        self.shapes = dict(self._find_keyed())
        for name, (keys, features) in self.shapes.items():
            if plan[name].channels != keys * features:
                raise CheckFailed(
                    f"process '{name}': it carries more than a value for each pair of tokens, so it is none that "
                    "expand-attention makes. Map the graph as it was before"
                )
        self.connections: list[Connection] = []

    def network(self) -> ChipNetwork:
        for spec in self.plan.specs:
            if type(spec) in KINDS:
                for name in spec.inputs:
                    self._connect(self.plan[name], spec.name)
        populations: dict[str, Population] = {}
        for spec in self.plan.specs:
            if type(spec) in KINDS:
                populations[spec.name] = self._population(spec, populations)
        schedule = self.plan.schedule
        depth = max(schedule.latency_steps.values())
        return ChipNetwork(
            self.plan.tokens, schedule.timesteps, depth, tuple(populations.values()), tuple(self.connections)
        )

    def _population(self, spec: Spec, before: Mapping[str, Population]) -> Population:
        keys, features = self.shapes.get(spec.name, (1, spec.channels))
        into = [one for one in self.connections if one.target == spec.name]
        # the entry sends what the host does
        lanes = self.plan.lanes.get(f"{spec.name}#entry" if isinstance(spec, SourceSpec) else spec.name, 0)
        if into and all(_reads_lanes(one, before[one.source]) for one in into):
            lanes = features
        node = spec.name.removesuffix("#entry")
        return Population(
            spec.name,
            self.plan.tokens,
            keys,
            features,
            keyed=spec.name in self.shapes,
            kind=KINDS[type(spec)],
            lanes=lanes,
            node=node if node in self.nodes else "",
            delay_steps=max((one.delay_steps for one in into), default=0),
        )

    def _find_keyed(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Process -> (keys, features), of those whose neurons stand at a key as well as at a token."""
        readers = {name: spec for spec in self.plan.specs for name in spec.inputs}
        for spec in self.plan.specs:
            if isinstance(spec, FanSpec):
                yield readers[spec.name].name, (spec.keys, spec.width)
                if spec.kind == "score":
                    yield spec.inputs[0], (spec.keys, spec.heads)

    def _connect(self, spec: Spec, target: str) -> None:
        """The synapses that are the process `spec`."""
        if isinstance(spec, FanSpec):
            self._connect_fan(spec, target)
        elif isinstance(spec, RouteSpec):
            self._join(spec.name, spec.inputs[0], target, "token", spec.weight != 0, delay=spec.delay_steps)
        elif isinstance(spec, SynapsesSpec):
            bits = self.weight_bits.get(spec.name.partition("#")[0], READOUT_BITS)
            reads, pattern = self._factor(spec, target)
            self._join(spec.name, spec.inputs[0], target, reads, pattern, shared=True, bits=bits)
        else:
            raise CheckFailed(f"process '{spec.name}': a {type(spec).__name__} leads to no neuron of a chip")

    def _join(
        self,
        name: str,
        source: str,
        target: str,
        reads: Reads,
        pattern: np.ndarray,
        shared: bool = False,
        bits: int = ONE_BIT_WEIGHT,
        delay: int = 0,
    ) -> None:
        self.connections.append(Connection(name, source, target, reads, pattern, shared, bits, delay))

    def _factor(self, spec: SynapsesSpec, target: str) -> tuple[Reads, np.ndarray]:
        """What a layer reads. Layers of an attention are one small pattern, the same for every key."""
        used = spec.weight != 0
        keys, features = self.shapes.get(spec.inputs[0], (1, used.shape[1]))
        keys_out, features_out = self.shapes.get(target, (1, used.shape[0]))
        if spec.inputs[0] not in self.shapes and target not in self.shapes:
            return "token", used
        parts = used.reshape(keys_out, features_out, keys, features).swapaxes(1, 2)  # [keys out, keys, f out, f]
        pattern = np.ascontiguousarray(parts[0, 0])
        if target in self.shapes and keys == keys_out:
            same = np.eye(keys, dtype=bool)[:, :, None, None] & pattern
            if np.array_equal(parts, same):
                return "pair", pattern
        elif target not in self.shapes and np.array_equal(parts, np.broadcast_to(pattern, parts.shape)):
            return "row", pattern
        raise CheckFailed(
            f"synapses '{spec.name}': weights differ from key to key, so they are none that expand-attention makes. "
            "Map the graph as it was before"
        )

    def _connect_fan(self, spec: FanSpec, target: str) -> None:
        if spec.kind == "score":
            if (spec.first, spec.start, spec.count) != (0, 0, spec.keys * spec.heads):
                raise CheckFailed(f"'{spec.name}': the scores of a product come from several processes")
            heads = _heads(spec.heads, spec.width).T
            self._join(spec.name, spec.inputs[0], target, "pair", heads, delay=spec.delay_steps)
            return
        reads: Reads = "token" if spec.kind == "query" else "key"
        pattern = _place(spec.width, spec.input_channels, spec.first, spec.start, spec.count)
        self._join(spec.name, spec.inputs[0], target, reads, pattern, delay=spec.delay_steps)


def _reads_lanes(one: Connection, source: Population) -> bool:
    """Whether a connection reads nothing but valid lanes."""
    return not one.pattern[:, : source.features - source.lanes].any()


def _heads(heads: int, width: int) -> np.ndarray:
    """bool [heads, width]: which features are a head's."""
    return np.repeat(np.eye(heads, dtype=bool), width // heads, axis=1)


def _place(rows: int, columns: int, row: int, column: int, count: int) -> np.ndarray:
    """bool [rows, columns]: rows from `row` on read columns from `column` on, one by one."""
    pattern = np.zeros((rows, columns), dtype=bool)
    pattern[row + np.arange(count), column + np.arange(count)] = True
    return pattern


def population_graph(network: ChipNetwork) -> nx.DiGraph:
    """Populations and which reads which, for `networkx`: nodes have `neurons`, edges `synapses`."""
    graph = nx.DiGraph()
    for each in network.populations:
        graph.add_node(each.name, neurons=each.size)
    for one in network.connections:
        before = graph.edges[one.source, one.target]["synapses"] if graph.has_edge(one.source, one.target) else 0
        graph.add_edge(one.source, one.target, synapses=before + network.synapses(one))
    return graph


def order_of(network: ChipNetwork) -> Sequence[str]:
    """Populations of the chip, each after those that it reads."""
    place = {each.name: index for index, each in enumerate(network.populations)}
    names = nx.lexicographical_topological_sort(population_graph(network), key=place.__getitem__)
    return [name for name in names if not network[name].host]
