"""Grouping: which processes of a plan run together as one. Needs no Lava.

An operating system process costs the runtime about 0.4 ms a step, whatever it does, and a block of a transformer is
made of twenty. So what belongs together is put together: a *group* is some neurons and the connections that lead to
them. Between groups spikes travel through Lava's channels; the currents inside stay inside.

Any choice is free of deadlocks: a connection sends what it summed one step before, so at each step a group can first
send all its spikes and then wait for those of others.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import networkx as nx
from networkx.utils import UnionFind

from targets.lava.plan import (
    AdderSpec,
    AttentionSpec,
    FanSpec,
    NeuronSpec,
    NormSpec,
    Plan,
    ProductSpec,
    RouteSpec,
    SourceSpec,
    Spec,
    SynapsesSpec,
)

Connection = (SynapsesSpec, RouteSpec, FanSpec, AttentionSpec, NormSpec)  # send one step late
Neuron = (NeuronSpec, AdderSpec, ProductSpec)  # answer in the same step

Grouping = Literal["process", "layer", "core"]
PORTS_MAX = 64  # of a group, in each direction: Lava wants the ports of a ProcessModel declared


@dataclass(frozen=True, eq=False)
class Group:
    """Processes of a plan that run as one.

    specs   in the order of the plan
    inputs  processes outside whose spikes the group receives
    outputs processes inside that send to others, or to a recorder
    """

    name: str
    specs: tuple[Spec, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def group(plan: Plan, how: Grouping, recorded: Collection[str] = (), cores: int = 1) -> tuple[Group, ...]:
    """All processes of a plan, the source apart, in groups; each group after those whose spikes it receives.

    how      "process": each on its own, as the plan has it
             "layer": a neuron with the connections that lead to it; layers that read the same are one, and an add is
             part of the layer before it. A block of a transformer is five.
             "core": so many groups as there are cores, each with about the same number of weights
    recorded processes that a recorder listens to
    cores    for "core"
    """
    parts: list[list[Spec]]
    if how == "process":
        parts = [[spec] for spec in plan.specs if not isinstance(spec, SourceSpec)]
    elif how == "layer":
        parts = _ordered(plan, _layers(plan))
    elif how == "core":
        parts = _balanced(plan, _ordered(plan, _units(plan)), cores)
    else:
        raise ValueError(f"grouping is 'process', 'layer' or 'core', not '{how}'")
    groups = [_make_group(plan, part, recorded) for part in parts]
    return tuple(small for each in groups for small in _with_few_ports(plan, each, recorded))


def _with_few_ports(plan: Plan, wide: Group, recorded: Collection[str]) -> Sequence[Group]:
    """The group, or its processes one by one where it has more ports than a group may have."""
    if max(len(wide.inputs), len(wide.outputs)) <= PORTS_MAX:
        return [wide]
    return [_make_group(plan, [spec], recorded) for spec in wide.specs]


def _make_group(plan: Plan, specs: Sequence[Spec], recorded: Collection[str]) -> Group:
    own = {spec.name for spec in specs}
    inputs = tuple(dict.fromkeys(name for spec in specs for name in spec.inputs if name not in own))
    read = {name for spec in plan.specs if spec.name not in own for name in spec.inputs}
    outputs = tuple(spec.name for spec in specs if spec.name in read or spec.name in recorded)
    neurons = [spec.name for spec in specs if isinstance(spec, Neuron)] or [specs[0].name]
    name = neurons[0] if len(neurons) == 1 else f"{neurons[0]}..{neurons[-1]}"
    return Group(name, tuple(specs), inputs, outputs)


def _units(plan: Plan) -> UnionFind:
    """Each connection with what reads it, so that no current leaves."""
    sets = UnionFind(spec.name for spec in plan.specs)
    connections = {spec.name for spec in plan.specs if isinstance(spec, Connection)}
    for spec in plan.specs:
        sets.union(spec.name, *connections.intersection(spec.inputs))
    return sets


def _layers(plan: Plan) -> UnionFind:
    sets = _units(plan)
    same_inputs: dict[tuple[str, ...], str] = {}
    for unit in _ordered(plan, sets):
        inputs = _make_group(plan, unit, ()).inputs
        sets.union(unit[0].name, same_inputs.setdefault(inputs, unit[0].name))
    place = {spec.name: number for number, spec in enumerate(plan.specs)}
    source = plan.specs[0].name
    for unit in _ordered(plan, sets):
        if any(isinstance(spec, AdderSpec) for spec in unit):
            last = max(_make_group(plan, unit, ()).inputs, key=place.__getitem__)
            if last != source:
                sets.union(unit[0].name, last)
    return sets


def _ordered(plan: Plan, sets: UnionFind) -> list[list[Spec]]:
    """The parts of a partition, each after those that it reads; parts that read each other become one."""
    parts: dict[str, list[Spec]] = {}
    for spec in plan.specs:
        if not isinstance(spec, SourceSpec):
            parts.setdefault(sets[spec.name], []).append(spec)
    graph = nx.DiGraph()
    graph.add_nodes_from(parts)
    for spec in plan.specs:
        graph.add_edges_from((sets[name], sets[spec.name]) for name in spec.inputs if sets[name] in parts)
    graph.remove_edges_from(list(nx.selfloop_edges(graph)))
    whole = nx.condensation(graph)
    first = {root: number for number, root in enumerate(parts)}
    members = {number: sorted(whole.nodes[number]["members"], key=first.__getitem__) for number in whole}
    order = nx.lexicographical_topological_sort(whole, key=lambda number: first[members[number][0]])
    place = {spec.name: number for number, spec in enumerate(plan.specs)}
    return [
        sorted((spec for root in members[number] for spec in parts[root]), key=lambda spec: place[spec.name])
        for number in order
    ]


def _balanced(plan: Plan, units: Sequence[Sequence[Spec]], cores: int) -> list[list[Spec]]:
    """Units one after another, cut where the weights so far pass each share."""
    costs = [sum(_weights(spec, plan.tokens) for spec in unit) for unit in units]
    total, done = sum(costs), 0
    parts: dict[int, list[Spec]] = {}
    for unit, cost in zip(units, costs):
        share = min(cores - 1, int((done + cost / 2) * cores / total)) if total else 0
        parts.setdefault(share, []).extend(unit)
        done += cost
    return [parts[share] for share in sorted(parts)]


def _weights(spec: Spec, tokens: int) -> int:
    """Products a token takes, about."""
    if isinstance(spec, SynapsesSpec):
        return spec.weight.size
    return 2 * tokens * spec.channels if isinstance(spec, AttentionSpec) else spec.channels
