"""The target `lava`: which graphs it takes, and what it adds to a bundle. Needs no Lava."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from converters.graph import Graph
from converters.passes.rewrite import Rewrite
from converters.schedule import LatencyTable
from spikebert.commands import UserError
from targets import legality
from targets.lava.lowering import LATENCIES, lay_out, lower_laid_out
from targets.lava.plan import (
    AttentionSpec,
    FanSpec,
    NeuronSpec,
    Plan,
    ProductSpec,
    RouteSpec,
    Spec,
    SynapsesSpec,
)
from targets.lava.rules import LAID_OUT_RULES, RULES
from targets.legality import IllegalGraphError, Rule, Violation

SCHEMA = 2  # 1 had the processes of an older lowering; its times are the same
SCHEDULE_FILE = "schedule.json"
PROCESSES = {
    "SourceSpec": "SpikeFeed",
    "SynapsesSpec": "Conv",
    "NeuronSpec": "LIFReset",
    "AttentionSpec": "SpikingAttention",
    "NormSpec": "TokenNorm",
    "AdderSpec": "GradedVec",
    "ProductSpec": "ProdNeuron",
}


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
    if isinstance(spec, (RouteSpec, FanSpec)):
        entry["process"] = "DelaySparse" if spec.delay_steps else "Sparse"
        entry["delay_steps"] = spec.delay_steps
    if isinstance(spec, AttentionSpec):  # said where it is not q k^T alone
        entry |= {"similarity": spec.similarity} if spec.similarity != "and" else {}
        entry |= {"bias_maps": len(spec.bias)} if spec.bias is not None else {}
    if isinstance(spec, ProductSpec):
        entry["exp"] = spec.exp
    if isinstance(spec, (RouteSpec, FanSpec, SynapsesSpec)):
        entry["message_bits"] = spec.message_bits
    if isinstance(spec, NeuronSpec) and not spec.is_stock:
        entry |= {"process": "RuleNeuron", "reset": spec.reset, "spike": spec.spike, "cap": spec.cap}
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
    stored, computed = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(describe(plan)))
    if isinstance(stored, dict) and stored.get("schema") == 1:
        stored, computed = _times(stored, stored), _times(computed, stored)
    where = _first_difference(stored, computed, "")
    if where is not None:
        raise ScheduleError(f"{path}: differs from the schedule of the graph at {where}; export the bundle again")


def _times(schedule: dict, old: dict) -> dict:
    """Of a schedule what schema 1 says as schema 2 does: when each value exists."""
    times = {field: schedule.get(field) for field in ("timesteps", "tokens", "depth_steps", "drain_steps")}
    known = old.get("latency_steps", {})
    latencies = schedule.get("latency_steps", {})
    return times | {"latency_steps": {name: steps for name, steps in latencies.items() if name in known}}


def _first_difference(stored: object, computed: object, where: str) -> str | None:
    if isinstance(stored, dict) and isinstance(computed, dict) and stored.keys() == computed.keys():
        pairs = [(stored[key], computed[key], f"{where}.{key}".lstrip(".")) for key in computed]
    elif isinstance(stored, list) and isinstance(computed, list) and len(stored) == len(computed):
        pairs = [(a, b, f"{where}[{index}]") for index, (a, b) in enumerate(zip(stored, computed))]
    else:
        return None if stored == computed else f"'{where or 'the top'}'"
    return next((found for a, b, path in pairs if (found := _first_difference(a, b, path)) is not None), None)


class LoweredTarget:
    """What every target does that runs a plan of Lava processes.

    name           of the target, and of its folder in a bundle
    latencies      steps that each kind of node takes on its machine
    rules          of the graph as it is
    laid_out_rules of the one that is lowered, whose biases are laid out on lanes
    """

    name: ClassVar[str]
    latencies: LatencyTable
    rules: ClassVar[tuple[Rule, ...]]
    laid_out_rules: ClassVar[tuple[Rule, ...]]

    def check(self, graph: Graph) -> list[Violation]:
        """Everything in a graph that the target cannot hold."""
        return self._check(graph, lay_out(graph))

    def lower(self, graph: Graph) -> Plan:
        """The plan of a graph. Raises IllegalGraphError with every violation where it is not legal."""
        laid = lay_out(graph)
        violations = self._check(graph, laid)
        if violations:
            raise IllegalGraphError(self.name, violations)
        return lower_laid_out(laid, self.latencies)

    def emit(self, graph: Graph, folder: Path) -> None:
        """Write `schedule.json` into `folder`. Raises IllegalGraphError where the graph is not legal."""
        plan = self.lower(graph)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(describe(plan), indent=1) + "\n"
        (folder / SCHEDULE_FILE).write_text(text, encoding="utf-8")

    def _check(self, graph: Graph, laid: Rewrite) -> list[Violation]:
        return [*legality.check(self.rules, graph), *legality.check(self.laid_out_rules, laid.graph)]


class LavaTarget(LoweredTarget):
    """What the entry-point group `spikebert.targets` names `lava`."""

    name = "lava"
    latencies = LATENCIES
    rules = RULES
    laid_out_rules = LAID_OUT_RULES


def lower_legal(graph: Graph) -> Plan:
    """The plan of a graph on Lava. Raises IllegalGraphError with every violation where it is not legal."""
    return LavaTarget().lower(graph)
