"""The engines `lava` and `lava-inline`: the same network, in the real Lava runtime and in this Python process.

Samples stream through the network back to back, one every T steps. After a batch the network drains and stands,
silent, until the next; it is built once, and again only when a node is observed that it does not record.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib.util import find_spec
from typing import Protocol

import numpy as np

from converters.execution import EngineOptions, Execution, TokenBatch, check_observed
from converters.graph import Graph
from targets.lava.lowering import Plan
from targets.lava.records import RecordLayout, feed_rows, feed_width, layout_of, make_layout, read_values
from targets.lava.stepfile import ITEM_BYTES, StepFile
from targets.lava.supervisor import SupervisedProgram
from targets.lava.target import LavaTarget, lower_legal, require_schedule

FAST_MODELS: Mapping[str, str] = {
    "lava.proc.conv.process:Conv": "targets.lava.processes.fast_synapses:FastConvModel",
    "lava.proc.sparse.process:Sparse": "targets.lava.processes.fast_synapses:FastSparseModel",
    "lava.proc.sparse.process:DelaySparse": "targets.lava.processes.fast_synapses:FastDelaySparseModel",
}
STOCK_MODELS: Mapping[str, str] = {}  # Lava's own; slow
START_SECONDS = 300.0
STEP_SECONDS = 5.0
RECORD_BYTES_MAX = 256 << 20  # a batch that records more is streamed in parts


class Program(Protocol):
    """A built network."""

    def run(self, steps: int) -> None:
        """Advance it by `steps`."""
        ...

    def close(self) -> None:
        """Free what it holds. May be called twice."""
        ...


OpenProgram = Callable[[Plan, RecordLayout, StepFile, StepFile, Mapping[str, str]], Program]


class _Session:
    """A running program with its memory, and the time_step it has come to."""

    def __init__(self, open_program: OpenProgram, plan: Plan, layout: RecordLayout, models: Mapping[str, str]) -> None:
        self.layout = layout
        self._next_step = 1  # Lava counts from 1
        self._feed, self._records = StepFile.create(feed_width(plan)), StepFile.create(layout.width)
        try:
            self._program = open_program(plan, layout, self._feed, self._records, models)
        except BaseException:
            self._close_memory()
            raise

    def stream(self, rows: np.ndarray, drain_steps: int) -> np.ndarray:
        """Feed `rows` int32 [steps, feed width], then silence; the records int32 [steps + drain, layout width]."""
        steps = len(rows) + drain_steps
        self._feed.begin(self._next_step, steps)
        self._records.begin(self._next_step, steps)
        self._feed.rows[: len(rows)] = rows
        self._program.run(steps)
        self._next_step += steps
        return self._records.rows

    def close(self) -> None:
        self._program.close()
        self._close_memory()

    def _close_memory(self) -> None:
        self._feed.close()
        self._records.close()


class StreamingEngine:
    """Runs a graph on a program of Lava processes.

    graph  must be legal for the target `lava`, else IllegalGraphError
    models ProcessModels for stock processes: FAST_MODELS, or STOCK_MODELS for Lava's own
    plan   a lowering of the graph; made from it where None
    """

    counts_activity = False

    def __init__(
        self,
        graph: Graph,
        open_program: OpenProgram,
        models: Mapping[str, str] = FAST_MODELS,
        plan: Plan | None = None,
    ) -> None:
        self.graph, self.plan = graph, plan or lower_legal(graph)
        self._open_program, self._models = open_program, dict(models)
        self._session: _Session | None = None
        self._closed = False

    def run(self, batch: TokenBatch, observe: Collection[str] = ()) -> Execution:
        """See `converters.execution.Engine`.

        Raises LavaMismatchError where the network is not silent in padding or between samples. After any error
        the next run begins with a fresh network.
        """
        if self._closed:
            raise RuntimeError("this engine is closed")
        batch.check_fits(self.graph)
        check_observed(self.graph, observe)
        layout = make_layout(self.graph, self.plan, observe)
        try:
            parts = [self._run_part(part, observe, layout) for part in self._parts(batch, layout)]
        except BaseException:
            self._end_session()
            raise
        values = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
        logits = values[self.graph.output].sum(axis=(0, 2))
        return Execution(logits, {name: values[name] for name in observe})

    def close(self) -> None:
        """Free processes and shared memory. May be called twice."""
        self._end_session()
        self._closed = True

    def _parts(self, batch: TokenBatch, layout: RecordLayout) -> Iterator[TokenBatch]:
        """The batch in pieces whose records fit into RECORD_BYTES_MAX."""
        sample_bytes = self.graph.timesteps * layout.width * ITEM_BYTES
        size = max(1, RECORD_BYTES_MAX // sample_bytes)
        return (batch[start : start + size] for start in range(0, len(batch), size))

    def _run_part(self, batch: TokenBatch, observe: Collection[str], layout: RecordLayout) -> dict[str, np.ndarray]:
        session = self._session_for(layout)
        rows = feed_rows(self.graph, self.plan, batch)
        records = session.stream(rows, self.plan.schedule.drain_steps)
        return {
            name: read_values(self.graph, self.plan, session.layout, name, records, batch)
            for name in {*observe, self.graph.output}
        }

    def _session_for(self, layout: RecordLayout) -> _Session:
        """The running session if it records enough, else a new one that records what both did."""
        if self._session is not None and set(layout.names) <= set(self._session.layout.names):
            return self._session
        if self._session is not None:
            layout = layout_of(self.plan, {*layout.names, *self._session.layout.names})
            self._end_session()
        self._session = _Session(self._open_program, self.plan, layout, self._models)
        return self._session

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()


def _import_inline_program() -> OpenProgram:
    """Import Lava, and leave this process as it was: on import Lava sets multiprocessing's start method to fork,
    which fails where a method is set already (a DataLoader does that) and would change it where none is."""
    method = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(None, force=True)
    try:
        from targets.lava.inline import InlineProgram
    finally:
        multiprocessing.set_start_method(method, force=True)
    return InlineProgram


class LavaInlineEngine(StreamingEngine):
    """Lava's ProcessModels, called in order in this process: fast to start, and exceptions come through."""

    def __init__(self, graph: Graph, models: Mapping[str, str] = FAST_MODELS, plan: Plan | None = None) -> None:
        super().__init__(graph, _import_inline_program(), models, plan)


class LavaEngine(StreamingEngine):
    """The real Lava runtime, one operating system process for each Lava process, in a supervised child.

    start_seconds, step_seconds are deadlines: for starting the network, and for a run, the latter times its steps.
    When one passes, or a ProcessModel raises, `LavaRuntimeError` says why and nothing is left running.
    """

    def __init__(
        self,
        graph: Graph,
        models: Mapping[str, str] = FAST_MODELS,
        plan: Plan | None = None,
        start_seconds: float = START_SECONDS,
        step_seconds: float = STEP_SECONDS,
    ) -> None:
        # found, not imported: an import of Lava changes this process (see _import_inline_program)
        if find_spec("lava.magma") is None:
            raise ImportError("the engine 'lava' needs Lava: install lava-nc 0.10")

        def open_program(
            plan: Plan, layout: RecordLayout, feed: StepFile, records: StepFile, models: Mapping[str, str]
        ) -> Program:
            return SupervisedProgram(plan, layout, feed, records, models, start_seconds, step_seconds)

        super().__init__(graph, open_program, models, plan)


def open_lava(graph: Graph, options: EngineOptions) -> LavaEngine:
    """The engine `lava`. Raises ImportError without Lava, IllegalGraphError, ScheduleError."""
    engine = LavaEngine(graph)
    _require_bundle_agrees(engine, options)
    return engine


def open_lava_inline(graph: Graph, options: EngineOptions) -> LavaInlineEngine:
    """The engine `lava-inline`. Raises ImportError without Lava, IllegalGraphError, ScheduleError."""
    engine = LavaInlineEngine(graph)
    _require_bundle_agrees(engine, options)
    return engine


def _require_bundle_agrees(engine: StreamingEngine, options: EngineOptions) -> None:
    if options.bundle is not None:
        require_schedule(engine.plan, options.bundle / LavaTarget.name)
