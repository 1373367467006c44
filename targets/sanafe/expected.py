"""Every count that a simulation must come to, from the spikes, the patterns of synapses and the cores alone.

Nothing of SANA-FE is used, nor of what builds its network: these counts are what its run is held against.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np

from converters.graph import Coincidence, Product, Readout, Synapses
from targets.loihi2.mapping.network import Connection
from targets.sanafe.layout import Layout
from targets.sanafe.spikes import Messages


@dataclass(frozen=True, eq=False)
class Counts:
    """Of each step, int64 [steps].

    updated neurons that were looked at and updated: all of them, at every step
    fired   neurons that sent
    events  messages at synapses, one for each synapse that is reached
    packets messages from core to core, or within one: a neuron sends one to each core that reads it
    hops    from tile to tile, that all packets took
    """

    updated: np.ndarray
    fired: np.ndarray
    events: np.ndarray
    packets: np.ndarray
    hops: np.ndarray

    def totals(self) -> dict[str, int]:
        return {each: int(getattr(self, each).sum()) for each in COUNTS}


COUNTS = tuple(field.name for field in fields(Counts))


@dataclass(frozen=True, eq=False)
class Reached:
    """Of a connection.

    events int64 [source neurons]: synapses that a message of each reaches
    cores  bool [source neurons, cores]: where these are
    """

    connection: Connection
    events: np.ndarray
    cores: np.ndarray


def reached(layout: Layout, one: Connection) -> Reached:
    """What the messages of a connection reach."""
    source = layout.network[one.source]
    owner = layout.core_of(one.target)  # [tokens, keys, features]
    events = np.zeros((source.tokens, source.keys, source.features), dtype=np.int64)
    cores = np.zeros((*events.shape, layout.cores), dtype=bool)
    for token, key, place in _places(one, owner.shape[0], owner.shape[1], source.keys):
        events[place] += one.pattern.sum(axis=0)
        for core in np.unique(owner[token, key]):
            cores[place][:, core] |= one.pattern[owner[token, key] == core].any(axis=0)
    return Reached(one, events.reshape(-1), cores.reshape(-1, layout.cores))


def _places(one: Connection, tokens: int, keys: int, source_keys: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """(token, key) of the target, and (token, key) of the source that it reads; network.py has the rule."""
    for token in range(tokens):
        for key in range(keys):
            if one.reads == "token":
                yield token, key, (token, 0)
            elif one.reads == "key":
                yield token, key, (key, 0)
            elif one.reads == "pair":
                yield token, key, (token, key)
            else:
                for each in range(source_keys):
                    yield token, key, (token, each)


def hops_between(layout: Layout) -> np.ndarray:
    """int64 [cores, cores]: tiles from one core to another, along rows and then along columns of the mesh."""
    places = np.array([layout.machine.place(core) for core in range(layout.cores)])
    return np.abs(places[:, None] - places[None]).sum(axis=2)


def expected_counts(layout: Layout, messages: Messages) -> tuple[Counts, dict[str, np.ndarray]]:
    """What all steps must come to, and connection -> events of each source neuron over all steps, int64 [neurons]."""
    steps = next(iter(messages.values())).shape[0]
    distance = hops_between(layout)
    fired, events, packets, hops = (np.zeros(steps, dtype=np.int64) for _ in range(4))
    by_connection: dict[str, np.ndarray] = {}
    for population in layout.network.on_chip:
        sent = messages[population.name].reshape(steps, -1).astype(np.int64)
        own = layout.core_of(population.name).reshape(-1)
        cores = np.zeros((population.size, layout.cores), dtype=bool)
        for one in layout.network.out_of[population.name]:
            what = reached(layout, one)
            cores |= what.cores
            events += sent @ what.events
            by_connection[one.name] = sent.sum(axis=0) * what.events
        fired += sent.sum(axis=1)
        packets += sent @ cores.sum(axis=1)
        hops += sent @ (cores * distance[own]).sum(axis=1)
    updated = np.full(steps, layout.network.neurons, dtype=np.int64)
    return Counts(updated, fired, events, packets, hops), by_connection


def events_by_node(layout: Layout, by_connection: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Node of the graph -> events at its synapses, without those of valid lanes: what `sim.activity` counts as its
    synaptic operations. Of a coincidence and of a product these are the events that reach it.

    by_connection as `expected_counts` gives it
    """
    layers = {node.name for node in layout.graph if isinstance(node, (Synapses, Readout))}
    pairs = {node.name for node in layout.graph if isinstance(node, (Coincidence, Product))}
    events: dict[str, int] = {}
    for one in layout.connections:
        layer, target = one.name.partition("#")[0], layout.network[one.target].node
        node = layer if layer in layers else target if target in pairs else None
        if node is not None:
            own = int(by_connection[one.name].sum()) - lane_events(layout, one, by_connection)
            events[node] = events.get(node, 0) + own
    return events


def lane_events(layout: Layout, one: Connection, by_connection: Mapping[str, np.ndarray]) -> int:
    """Events of a connection that valid lanes cause."""
    source = layout.network[one.source]
    own = source.features - source.lanes
    return int(by_connection[one.name].reshape(-1, source.features)[:, own:].sum())


@dataclass(frozen=True)
class Difference:
    """The first step at which a simulation came to another count."""

    step: int
    count: str
    expected: int
    got: int

    def __str__(self) -> str:
        return f"step {self.step}: {self.count}: expected {self.expected:,}, SANA-FE has {self.got:,}"


def first_difference(expected: Counts, got: Counts) -> Difference | None:
    """Where two runs differ; None where every count of every step is the same."""
    found = []
    for name in COUNTS:
        wanted, had = getattr(expected, name), getattr(got, name)
        if wanted.shape != had.shape:
            raise ValueError(f"{len(wanted)} steps are compared with {len(had)}")
        if not np.array_equal(wanted, had):
            step = int(np.flatnonzero(wanted != had)[0])
            found.append(Difference(step, name, int(wanted[step]), int(had[step])))
    return min(found, key=lambda each: each.step, default=None)
