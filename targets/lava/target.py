"""The target `lava`: which graphs it takes, and what it adds to a bundle. Needs no Lava."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from converters.graph import LIF, Add, Attention, Graph
from spikebert.commands import UserError
from targets.lava.lowering import NeuronSpec, Plan, RouteSpec, Spec, SynapsesSpec, lower
from targets.lava.schedule import make_schedule
from targets.legality import IllegalGraphError, Violation

SCHEMA = 1
SCHEDULE_FILE = "schedule.json"
DELAY_STEPS_MAX = 63  # lava.proc.sparse.models: DelaySparse refuses more ("Loihi 2 has a maximum of 6 bits")
MESSAGE_BITS_MAX = 24  # lava.proc.graded.models: precision of GradedVec's s_out
PROCESSES = {
    "SourceSpec": "SpikeFeed",
    "SynapsesSpec": "Conv",
    "NeuronSpec": "LIFReset",
    "AttentionSpec": "SpikingAttention",
    "AdderSpec": "GradedVec",
}

Rule = Callable[[Graph], Iterator[Violation]]


def scalar_thresholds(graph: Graph) -> Iterator[Violation]:
    """A stock LIFReset has one threshold: its Var `vth` has shape (1,)."""
    for node in graph:
        if isinstance(node, LIF):
            levels = np.unique(np.asarray(node.threshold)).size
            if levels > 1:
                remedy = "quantise with one threshold for the whole layer, or run on the engine fast or reference"
                yield Violation(node.name, "scalar-threshold", levels, 1, remedy)


def bounded_delays(graph: Graph) -> Iterator[Violation]:
    """An input that is early waits in a DelaySparse, which holds it 63 steps at most."""
    schedule = make_schedule(graph)
    for node in graph:
        if isinstance(node, (Add, Attention)):
            # an attention's own connections add nothing, so the step of the route itself is part of the wait
            free = 1 if isinstance(node, Attention) else 0
            longest = max(schedule.delay_steps[node.name]) - free
            if longest > DELAY_STEPS_MAX:
                remedy = "shorten the longer way into this node, or pass the shorter one through a layer"
                yield Violation(node.name, "bounded-delay", longest, DELAY_STEPS_MAX, remedy)


def bounded_messages(graph: Graph) -> Iterator[Violation]:
    """Graded spikes are messages of 24 bits at most."""
    for node in graph:
        if isinstance(node, Add):
            bits = graph.value_max[node.name].bit_length()
            if bits > MESSAGE_BITS_MAX:
                remedy = "add fewer branches, or put a LIF between the adds"
                yield Violation(node.name, "bounded-message-bits", bits, MESSAGE_BITS_MAX, remedy)


# Not rules here, because a Graph proves them: |a| <= 65535 (a doubled current wraps beyond 2^17), dv 0 .. 4095,
# threshold 0 .. 65535 (vth has 17 bits), 8-bit weights.
RULES: tuple[Rule, ...] = (scalar_thresholds, bounded_delays, bounded_messages)


def check(graph: Graph) -> list[Violation]:
    """Everything in a graph that Lava cannot hold."""
    return [violation for rule in RULES for violation in rule(graph)]


def lower_legal(graph: Graph) -> Plan:
    """The plan of a graph. Raises IllegalGraphError with every violation where it is not legal."""
    violations = check(graph)
    if violations:
        raise IllegalGraphError(LavaTarget.name, violations)
    return lower(graph)


def describe(plan: Plan) -> dict:
    """The content of `schedule.json`."""
    schedule = plan.schedule
    return {
        "schema": SCHEMA,
        "timesteps": schedule.timesteps,
        "tokens": plan.tokens,
        "depth_steps": schedule.depth_steps,
        "drain_steps": schedule.drain_steps,
        "latency_steps": schedule.latency_steps,
        "valid_lanes": plan.lanes,
        "processes": [_describe_process(spec) for spec in plan.specs],
    }


def _describe_process(spec: Spec) -> dict:
    entry: dict = {"name": spec.name, "process": PROCESSES.get(type(spec).__name__), "inputs": list(spec.inputs)}
    entry["channels"] = spec.channels
    if isinstance(spec, RouteSpec):
        entry["process"] = "DelaySparse" if spec.delay_steps else "Sparse"
        entry["delay_steps"] = spec.delay_steps
    if isinstance(spec, (RouteSpec, SynapsesSpec)):
        entry["message_bits"] = spec.message_bits
    if isinstance(spec, NeuronSpec):
        entry["reset_interval_steps"] = spec.reset_interval
        entry["reset_offset_steps"] = spec.reset_offset
        entry["vth"] = spec.vth
        entry["dv"] = spec.dv
    return entry


class ScheduleError(UserError):
    """A bundle's schedule is not the one its graph has."""


def require_schedule(plan: Plan, folder: Path) -> None:
    """Compare `folder/schedule.json`, if there is one, with the plan. Raises ScheduleError at a difference."""
    path = folder / SCHEDULE_FILE
    if not path.exists():
        return
    stored = json.loads(path.read_text(encoding="utf-8"))
    where = _first_difference(stored, json.loads(json.dumps(describe(plan))), "")
    if where is not None:
        raise ScheduleError(f"{path}: differs from the schedule of the graph at {where}; export the bundle again")


def _first_difference(stored: object, computed: object, where: str) -> str | None:
    if isinstance(stored, dict) and isinstance(computed, dict) and stored.keys() == computed.keys():
        pairs = [(stored[key], computed[key], f"{where}.{key}".lstrip(".")) for key in computed]
    elif isinstance(stored, list) and isinstance(computed, list) and len(stored) == len(computed):
        pairs = [(a, b, f"{where}[{index}]") for index, (a, b) in enumerate(zip(stored, computed))]
    else:
        return None if stored == computed else f"'{where or 'the top'}'"
    return next((found for a, b, path in pairs if (found := _first_difference(a, b, path)) is not None), None)


class LavaTarget:
    """What the entry-point group `spikebert.targets` names `lava`."""

    name = "lava"

    def check(self, graph: Graph) -> list[Violation]:
        """Everything in a graph that Lava cannot hold."""
        return check(graph)

    def emit(self, graph: Graph, folder: Path) -> None:
        """Write `schedule.json` into `folder`. Raises IllegalGraphError where the graph is not legal."""
        plan = lower_legal(graph)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(describe(plan), indent=1) + "\n"
        (folder / SCHEDULE_FILE).write_text(text, encoding="utf-8")
