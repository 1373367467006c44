"""What the counted work of a network would cost in joules. Estimates: counts are exact, prices are others' figures.

A *cost table* is a file (`sim/costs/*.json`, or one of your own) that names the price of some kinds of work, each with
what it stands for and its source, and what is left out. No table is the truth: `docs/energy.md` says what each is for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path

import numpy as np

from converters.execution import Activity
from converters.graph import (
    LIF,
    Add,
    Attention,
    Coincidence,
    Concat,
    Graph,
    Node,
    Product,
    Readout,
    Slice,
    Source,
    Synapses,
    ValidLane,
)
from spikebert.commands import UserError

SHIPPED = ("45nm", "45nm_neurons", "loihi1", "hala_point")
KINDS = ("method", "chip", "bound")


@dataclass(frozen=True)
class Work:
    """What a node did, in totals over all sentences of a run.

    synaptic_operations             synapses and readout: nonzero weights that (graded) spikes reached
    weighted_operations             the same, each as often as its spike counts
    attention_operations            of attention: features at which query and key match (nonzero products in q k^T), and
                                    nonzero (score, v) pairs
    weighted_attention_operations   the same by value
    neuron_updates                  neurons x real tokens x timesteps
    resident_updates                neurons x n_max x timesteps: a chip updates those of padding too
    spikes                          that neurons fired
    messages                        (graded) spikes, each once for every node that reads it or, through a slice, a part
                                    of the features: more than are sent where passes merged or sliced neurons
    normalised_values               of norms: features x real tokens x timesteps, three multiplications each
    host_lookups                    entries of the token table that the host reads
    host_additions                  of token and position, on the host
    """

    synaptic_operations: int = 0
    weighted_operations: int = 0
    attention_operations: int = 0
    weighted_attention_operations: int = 0
    neuron_updates: int = 0
    resident_updates: int = 0
    spikes: int = 0
    messages: int = 0
    normalised_values: int = 0
    host_lookups: int = 0
    host_additions: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, each) + getattr(other, each) for each in WORK))


WORK = tuple(field.name for field in fields(Work))


@dataclass(frozen=True)
class Tokens:
    """Of the sentences that were run: how many they are, their real tokens, and the sum of the squares of these; and
    timesteps that were not run, over all sentences, as they had stopped early."""

    sentences: int = 0
    real: int = 0
    squares: int = 0
    timesteps_spared: int = 0

    def with_sentence(self, tokens: int, timesteps_spared: int = 0) -> Tokens:
        spared = self.timesteps_spared + timesteps_spared
        return Tokens(self.sentences + 1, self.real + tokens, self.squares + tokens**2, spared)


def work_of(graph: Graph, activity: Activity, tokens: Tokens) -> dict[str, Work]:
    """Node name -> its work, in graph order, for the activity of a run over these sentences."""
    readers = _readers(graph)
    return {node.name: _work_of(graph, node, activity, tokens, readers[node.name]) for node in graph}


def _readers(graph: Graph) -> dict[str, int]:
    """How many nodes read each one; what is only wiring passes on to its own readers."""
    readers = {node.name: 0 for node in graph}
    for node in reversed(tuple(graph)):  # in graph order, readers stand behind what they read
        through = readers[node.name] if isinstance(node, (Slice, Concat)) else 1
        for name in node.inputs:
            readers[name] += through
    return readers


def _work_of(graph: Graph, node: Node, activity: Activity, tokens: Tokens, readers: int) -> Work:
    did = activity.per_node[node.name]
    attends = isinstance(node, (Attention, Coincidence, Product))
    # positions in spikes, behind the others, are neither looked up nor neurons
    width = node.table.shape[1] if isinstance(node, Source) else graph.features[node.name]
    fires = did.sites > 0
    host = tokens.real * width if isinstance(node, Source) else 0
    timesteps = graph.timesteps * tokens.sentences - tokens.timesteps_spared
    return Work(
        synaptic_operations=0 if attends else did.synaptic_operations,
        weighted_operations=0 if attends else did.weighted_operations,
        attention_operations=did.synaptic_operations if attends else 0,
        weighted_attention_operations=did.weighted_operations if attends else 0,
        neuron_updates=did.sites // graph.features[node.name] * width,
        resident_updates=timesteps * graph.n_max * width if fires else 0,
        spikes=did.spikes,
        messages=did.messages * readers,
        normalised_values=did.normalised_values,
        host_lookups=host,
        host_additions=host if isinstance(node, Source) and node.position is not None else 0,
    )


def dense_operations(graph: Graph, tokens: Tokens) -> int:
    """Multiplications, each with an addition, of the dense network of the same connections on the same sentences.

    Each weight once for each real token (of the readout once a sentence), and attention's two products of all pairs of
    tokens. There are no timesteps, and padding costs nothing there either. Passes make no other dense network: layers
    that attention was made of count as that attention, and lanes that carry a bias not at all.
    """
    lanes = _lanes(graph)
    origins = _origins(graph, lanes)
    compared = {name for node in graph if isinstance(node, Coincidence) for name in origins[node.name]}
    total = 0
    for node in graph:
        if isinstance(node, (Synapses, Readout)):
            read = origins[node.name]
            of_attention = any(isinstance(graph[name], (Coincidence, Product)) for name in read) or read & compared
            if not of_attention:
                width = node.weight.shape[0] - int(lanes[node.name].sum())
                weights = width * (node.weight.shape[1] - int(lanes[node.inputs[0]].sum()))
                total += weights * (tokens.real if isinstance(node, Synapses) else tokens.sentences)
        elif isinstance(node, Attention):
            total += 2 * tokens.squares * graph.features[node.name]
        elif isinstance(node, Product):
            total += 2 * tokens.squares * graph.features[node.inputs[1]]
    return total


def _origins(graph: Graph, lanes: Mapping[str, np.ndarray]) -> dict[str, set[str]]:
    """Of each node those whose values it reads, through wiring; where it reads lanes alone is left out."""
    origins: dict[str, set[str]] = {}
    for node in graph:
        origins[node.name] = set()
        for name in node.inputs:
            if not lanes[name].all():
                origins[node.name] |= origins[name] if isinstance(graph[name], (Slice, Concat)) else {name}
    return origins


def _lanes(graph: Graph) -> dict[str, np.ndarray]:
    """Of each node, bool [D]: the features that follow from the valid lane alone. They carry a bias (those of the pass
    `lay-out-bias-lanes`, and neurons that have nothing else), which a dense network adds without a multiplication."""
    lanes: dict[str, np.ndarray] = {}
    for node in graph:
        of = [lanes[name] for name in node.inputs]
        if isinstance(node, ValidLane):
            lanes[node.name] = np.ones(node.lanes, bool)
        elif isinstance(node, (Synapses, Readout)):
            reads = node.weight != 0
            lanes[node.name] = ~reads[:, ~of[0]].any(axis=1)
        elif isinstance(node, Slice):
            lanes[node.name] = of[0][node.start : node.stop]
        elif isinstance(node, Concat):
            lanes[node.name] = np.concatenate(of)
        elif isinstance(node, (LIF, Add)):
            lanes[node.name] = np.logical_and.reduce(of)
        else:
            lanes[node.name] = np.zeros(graph.features[node.name], bool)
    return lanes


@dataclass(frozen=True)
class Price:
    """Of one piece of some kind of work, or of an operation of a dense network."""

    picojoules: float
    what: str
    source: str


@dataclass(frozen=True)
class CostTable:
    """Prices of kinds of work.

    kind      "method": arithmetic counted by a rule; "chip": events of one; "bound": a system's power over its rate
    prices    kind of `Work` -> price; what has none is not charged
    dense     of an operation of the dense network by the same method; None where the table has no such thing
    left_out  what is not in it
    """

    name: str
    version: int
    title: str
    kind: str
    prices: Mapping[str, Price]
    dense: Price | None
    left_out: str


def read_cost_table(name: str) -> CostTable:
    """One of SHIPPED by its name, or a file. Raises UserError where it cannot be read or a price has no source."""
    if name in SHIPPED:
        return _parse(name, (resources.files("sim") / "costs" / f"{name}.json").read_text(encoding="utf-8"))
    try:
        return _parse(name, Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cost table {name}: {error.strerror}. Give a file, or one of {', '.join(SHIPPED)}") from None
    except UnicodeDecodeError:
        raise UserError(f"cost table {name}: not UTF-8 text. docs/energy.md shows what such a file holds") from None


def _parse(name: str, text: str) -> CostTable:
    def refuse(reason: str) -> UserError:
        return UserError(f"cost table {name}: {reason}. docs/energy.md shows what such a file holds")

    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise refuse(f"not JSON (line {error.lineno}: {error.msg})") from None
    wanted = [field.name for field in fields(CostTable)]
    if not isinstance(content, dict) or sorted(content) != sorted(wanted):
        raise refuse(f"it must hold {', '.join(wanted)}, and nothing else")
    if not isinstance(content["version"], int) or isinstance(content["version"], bool) or content["version"] < 1:
        raise refuse("'version' must be a whole number, from 1")
    for key in ("name", "title", "left_out"):
        if not isinstance(content[key], str) or not content[key].strip():
            raise refuse(f"'{key}' must be a text")
    if content["kind"] not in KINDS:
        raise refuse(f"'kind' is {content['kind']!r}, it must be one of {', '.join(KINDS)}")
    prices = content["prices"]
    if not isinstance(prices, dict) or not prices:
        raise refuse("'prices' must hold the price of at least one kind of work")
    if unknown := sorted(set(prices) - set(WORK)):
        raise refuse(f"'{unknown[0]}' is no kind of work; there are {', '.join(WORK)}")
    for plain, weighted in (
        ("synaptic_operations", "weighted_operations"),
        ("attention_operations", "weighted_attention_operations"),
        ("neuron_updates", "resident_updates"),
    ):
        if plain in prices and weighted in prices:
            raise refuse(f"'{plain}' and '{weighted}' are the same work counted in two ways: price one of them")
    dense = content["dense"]
    priced = {**prices, **({} if dense is None else {"dense": dense})}
    for key, price in priced.items():
        if not isinstance(price, dict) or sorted(price) != sorted(each.name for each in fields(Price)):
            raise refuse(f"'{key}' must have picojoules, what and source")
        number = price["picojoules"]
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < 1e12:
            raise refuse(f"'{key}' costs {number!r} picojoules: give a number from 0")
        if not all(isinstance(price[each], str) and price[each].strip() for each in ("what", "source")):
            raise refuse(f"'{key}' must say what it stands for and its source")
    return CostTable(
        **{
            **content,
            "prices": {kind: Price(**price) for kind, price in prices.items()},
            "dense": None if dense is None else Price(**dense),
        }
    )


@dataclass(frozen=True)
class Energy:
    """The estimate of a run by one table, in joules over all its sentences.

    per_node node name -> kind of work -> joules; what costs nothing is left out
    dense    of the dense network of the same connections by the same method, where the table has one
    """

    table: CostTable
    per_node: Mapping[str, Mapping[str, float]]
    dense: float | None

    @property
    def total(self) -> float:
        return sum(sum(charges.values()) for charges in self.per_node.values())

    @property
    def by_work(self) -> dict[str, float]:
        """Kind of work -> joules, in the order of the table."""
        nodes = self.per_node.values()
        return {kind: sum(charges.get(kind, 0.0) for charges in nodes) for kind in self.table.prices}

    @property
    def of_dense(self) -> float | None:
        """Share of what the dense network would take, where the table prices it."""
        return self.total / self.dense if self.dense else None

    def to_json(self, sentences: int) -> dict[str, object]:
        return {
            "version": self.table.version,
            "kind": self.table.kind,
            "title": self.table.title,
            "joules": self.total,
            "joules_per_sentence": self.total / sentences,
            "by_work": self.by_work,
            "per_node": {name: sum(charges.values()) for name, charges in self.per_node.items()},
            "dense_joules": self.dense,
            "of_dense": self.of_dense,
            "left_out": self.table.left_out,
        }


def energy_of(work: Mapping[str, Work], table: CostTable, dense: int = 0) -> Energy:
    """The price of this work; dense: `dense_operations` of the same run."""
    per_node = {
        name: {
            kind: getattr(did, kind) * price.picojoules * 1e-12
            for kind, price in table.prices.items()
            if getattr(did, kind)
        }
        for name, did in work.items()
    }
    rival = None if table.dense is None else dense * table.dense.picojoules * 1e-12
    return Energy(table, per_node, rival)


def estimate(graph: Graph, activity: Activity, tokens: Tokens, tables: Sequence[CostTable]) -> list[Energy]:
    """A run by each of these tables."""
    if not tables:
        return []
    work, dense = work_of(graph, activity, tokens), dense_operations(graph, tokens)
    return [energy_of(work, table, dense) for table in tables]
