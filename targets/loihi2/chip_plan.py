"""A plan for the chip: what Lava's CPU models do between processes, a chip does only from neuron to neuron.

Three things differ, and each is mended by neurons that send on what they get (`GradedVec`), which take no step of
their own. Values, and the steps between nodes, stay those of the plan.

Entry   spikes of the host end in a neuron of the chip, so everything is one step later
Relays  a connection cannot read another one's current: a relay stands between
Probes  only neurons send to the host: a current that is recorded is computed once more, for a neuron of its own

Plain data, no Lava needed: a plan for the chip runs on Lava's CPU models too, and tests do that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from converters.schedule import Reset, Schedule
from targets.lava.plan import (
    AdderSpec,
    FanSpec,
    NeuronSpec,
    Plan,
    ProductSpec,
    RouteSpec,
    Spec,
    SynapsesSpec,
)

Connection = (SynapsesSpec, RouteSpec, FanSpec)  # what sends a current
Neuron = (NeuronSpec, AdderSpec, ProductSpec)  # what sends spikes
ENTRY_STEPS = 1
GRADED_BITS = 24  # of a message between host and chip: InputVec and OutputVec of Lava's networks/gradedvecnetwork.py


def for_chip(plan: Plan) -> Plan:
    """A plan of Lava's with its entry and its relays. Raises ValueError where a process has no place on the chip."""
    foreign = [spec.name for spec in plan.specs[1:] if not isinstance(spec, (*Connection, *Neuron))]
    if foreign:
        raise ValueError(f"no such process on Loihi 2: {', '.join(foreign)}")
    return _with_relays(_with_entry(plan))


def with_probes(plan: Plan, recorded: Collection[str]) -> tuple[Plan, dict[str, str]]:
    """The plan with a probe for each connection that is recorded, and process -> the neuron that sends its value."""
    specs, senders = list(plan.specs), {}
    read = {name for spec in plan.specs for name in spec.inputs}
    for name in recorded:
        spec = plan[name]
        if isinstance(spec, Connection):
            if name in read:  # the copy is read by nobody else
                spec = replace(spec, name=f"{name}#copy")
                specs.append(spec)
            senders[name] = f"{name}#probe"
            specs.append(AdderSpec(senders[name], (spec.name,), spec.channels))
        else:
            senders[name] = name
    return replace(plan, specs=tuple(specs)), senders


def _with_entry(plan: Plan) -> Plan:
    source = plan.specs[0]
    into = RouteSpec(f"{source.name}#into", (source.name,), np.eye(source.channels, dtype=np.int32), 0, GRADED_BITS)
    entry = AdderSpec(f"{source.name}#entry", (into.name,), source.channels)
    instead = {source.name: entry.name}
    others = [_later(_reading(spec, instead), ENTRY_STEPS) for spec in plan.specs[1:]]
    homes = {
        name: tuple(replace(part, process=instead.get(part.process, part.process)) for part in home)
        for name, home in plan.homes.items()
    }
    lanes = {instead.get(name, name): count for name, count in plan.lanes.items()}
    schedule = _schedule_later(plan.schedule, ENTRY_STEPS)
    return replace(plan, specs=(source, into, entry, *others), homes=homes, lanes=lanes, schedule=schedule)


def _with_relays(plan: Plan) -> Plan:
    connections = {spec.name for spec in plan.specs if isinstance(spec, Connection)}
    relayed = {
        name for spec in plan.specs if isinstance(spec, Connection) for name in spec.inputs if name in connections
    }
    relays = {name: f"{name}#relay" for name in relayed}
    specs: list[Spec] = []
    for spec in plan.specs:
        specs.append(_reading(spec, relays) if isinstance(spec, Connection) else spec)
        if spec.name in relays:
            specs.append(AdderSpec(relays[spec.name], (spec.name,), spec.channels))
    return replace(plan, specs=tuple(specs))


def _reading(spec: Spec, instead: Mapping[str, str]) -> Spec:
    """The spec with other inputs."""
    return replace(spec, inputs=tuple(instead.get(name, name) for name in spec.inputs))


def _later(spec: Spec, steps: int) -> Spec:
    """The spec with its reset that many steps later."""
    if not isinstance(spec, NeuronSpec):
        return spec
    return replace(spec, reset_offset=(spec.reset_offset + steps) % spec.reset_interval)


def _schedule_later(schedule: Schedule, steps: int) -> Schedule:
    return replace(
        schedule,
        latency_steps={name: latency + steps for name, latency in schedule.latency_steps.items()},
        resets={
            name: Reset(reset.interval_steps, (reset.offset_steps + steps) % reset.interval_steps)
            for name, reset in schedule.resets.items()
        },
    )
