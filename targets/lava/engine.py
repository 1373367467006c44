"""The engines `lava` and `lava-inline`: the same network, in the real Lava runtime and in this Python process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TypeVar

from converters.execution import EngineOptions
from converters.graph import Graph, GraphError
from spikebert.commands import UserError
from targets.lava.grouping import Grouping
from targets.lava.plan import Plan
from targets.lava.program import Attention, LavaProgram, Network, OpenNetwork, Setup
from targets.lava.start_method import start_method_kept
from targets.lava.stepfile import StepFile
from targets.lava.supervisor import SupervisedProgram
from targets.lava.target import LavaTarget, lower_legal, require_schedule

FAST_MODELS: Mapping[str, str] = {
    "lava.proc.conv.process:Conv": "targets.lava.processes.fast_synapses:FastConvModel",
    "lava.proc.sparse.process:Sparse": "targets.lava.processes.fast_synapses:FastSparseModel",
    "lava.proc.sparse.process:DelaySparse": "targets.lava.processes.fast_synapses:FastDelaySparseModel",
}
STOCK_MODELS: Mapping[str, str] = {}  # Lava's own; slow
START_SECONDS = 300.0
STEP_SECONDS = 30.0  # of each step; a busy machine takes some for the first one of a large network


Made = TypeVar("Made", bound=LavaProgram)


def _import_inline_network() -> OpenNetwork:
    with start_method_kept():
        from targets.lava.inline import InlineNetwork
    return InlineNetwork


class LavaInlineEngine(LavaProgram):
    """Lava's ProcessModels, called in order in this process: fast to start, and exceptions come through."""

    def __init__(
        self,
        graph: Graph,
        models: Mapping[str, str] | None = None,
        plan: Plan | None = None,
        attention: Attention = "process",
        grouping: Grouping = "layer",
    ) -> None:
        super().__init__(graph, _import_inline_network(), models, plan, attention, grouping)


class LavaEngine(LavaProgram):
    """The real Lava runtime, one operating system process for each group, in a supervised child.

    start_seconds, step_seconds are deadlines: for starting the network, and for each step of a run.
    When one passes, or a ProcessModel raises, `LavaRuntimeError` says why and nothing is left running.
    """

    def __init__(
        self,
        graph: Graph,
        models: Mapping[str, str] | None = None,
        plan: Plan | None = None,
        attention: Attention = "process",
        grouping: Grouping = "layer",
        cores: int = 1,
        start_seconds: float = START_SECONDS,
        step_seconds: float = STEP_SECONDS,
    ) -> None:
        # found, not imported: an import of Lava changes this process (see start_method.py)
        if find_spec("lava.magma") is None:
            raise ImportError("the engine 'lava' needs Lava: install lava-nc 0.10")

        def open_network(setup: Setup, feed: StepFile, records: StepFile) -> Network:
            return SupervisedProgram(
                setup.plan, setup.groups, setup.layout, feed, records, setup.models, start_seconds, step_seconds
            )

        super().__init__(graph, open_network, models, plan, attention, grouping, cores)


def open_lava(graph: Graph, options: EngineOptions) -> LavaEngine:
    """The engine `lava`. Raises ImportError without Lava, IllegalGraphError, ScheduleError, and UserError where
    attention of stock neurons would be too large."""
    return _open(LavaEngine, graph, options)


def open_lava_inline(graph: Graph, options: EngineOptions) -> LavaInlineEngine:
    """The engine `lava-inline`. Raises as `open_lava` does."""
    return _open(LavaInlineEngine, graph, options)


def _open(make: Callable[..., Made], graph: Graph, options: EngineOptions) -> Made:
    if options.bundle is not None:
        require_schedule(lower_legal(graph), options.bundle / LavaTarget.name)
    try:
        return make(graph, STOCK_MODELS if options.stock_models else None, attention=options.attention)
    except GraphError as error:
        raise UserError(f"attention of stock neurons: {error}") from error
