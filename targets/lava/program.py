"""A program: a graph as a running network of Lava processes, which takes sentence after sentence.

Samples enter back to back, one every T steps, and leave in order. The network is built once; it is built again only
when a node is observed that it does not record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, TypeVar

import numpy as np

from converters.execution import Execution, TokenBatch, check_observed
from converters.graph import Graph
from converters.passes.expand_attention import ExpandAttention
from converters.readout import logits_of
from targets.lava.grouping import Group, Grouping, group
from targets.lava.plan import Plan
from targets.lava.records import BatchRecords, RecordLayout, feed_rows, feed_width, layout_of, make_layout
from targets.lava.stepfile import ITEM_BYTES, StepFile
from targets.lava.target import lower_legal

Item = TypeVar("Item")
Attention = Literal["process", "stock"]
RECORD_BYTES_MAX = 256 << 20  # recorded at a time; a batch that records more is streamed in parts


@dataclass(frozen=True, eq=False)
class Setup:
    """What is to be built.

    groups of the plan; each is one process, or, where `models` are given, is taken apart into stock processes
    models process class path -> ProcessModel class path for stock processes, Lava's own for others; None: groups run as
           one process each
    """

    plan: Plan
    groups: tuple[Group, ...]
    layout: RecordLayout
    models: Mapping[str, str] | None


class Network(Protocol):
    """A built network, somewhere."""

    def run(self, steps: int) -> None:
        """Advance it by `steps`."""
        ...

    def close(self) -> None:
        """Free what it holds. May be called twice."""
        ...


OpenNetwork = Callable[[Setup, StepFile, StepFile], Network]


class _Session:
    """A running network with its memory, and the time_step it has come to."""

    def __init__(self, open_network: OpenNetwork, setup: Setup) -> None:
        self.layout = setup.layout
        self.next_step = 1  # Lava counts from 1
        self._feed, self._records = StepFile.create(feed_width(setup.plan)), StepFile.create(setup.layout.width)
        try:
            self.network = open_network(setup, self._feed, self._records)
        except BaseException:
            self._close_memory()
            raise

    def advance(self, rows: np.ndarray, silent_steps: int) -> Iterator[np.ndarray]:
        """Feed `rows` int32 [steps, feed width], then silence; what is recorded, int32 [steps, layout width], in pieces
        of at most RECORD_BYTES_MAX, or of one step. A piece is gone with the next."""
        steps = len(rows) + silent_steps
        most = max(1, RECORD_BYTES_MAX // (self.layout.width * ITEM_BYTES))
        for start in range(0, steps, most):
            count = min(most, steps - start)
            fed = rows[start : start + count]
            self._feed.begin(self.next_step, count)
            self._records.begin(self.next_step, count)
            self._feed.rows[: len(fed)] = fed
            self.network.run(count)
            self.next_step += count
            yield self._records.rows

    def close(self) -> None:
        self.network.close()
        self._close_memory()

    def _close_memory(self) -> None:
        self._feed.close()
        self._records.close()


class LavaProgram:
    """A graph in Lava, to be opened, used for any number of batches, and closed; also a context manager.

        with LavaEngine(graph) as program:
            program.classify(batch).logits

    There are two kinds, which differ in the network that they open: `LavaEngine` and `LavaInlineEngine` (engine.py).

    graph    must be legal for the target `lava`, else IllegalGraphError; GraphError where its attention is too large
             to be made of stock neurons
    models   None: each group of processes as one (`grouping`). FAST_MODELS or STOCK_MODELS: each process on its own,
             with our faster ProcessModels for stock processes or with Lava's
    plan     a lowering of the graph; made from it where None
    attention "process": attention is a process of ours; "stock": of Lava's neurons and synapses alone, by the pass
             `expand-attention`. The nodes of the graph have the same values either way.
    grouping see `targets.lava.grouping.group`; only where `models` is None
    cores    for the grouping "core"
    """

    counts_activity = False

    def __init__(
        self,
        graph: Graph,
        open_network: OpenNetwork,
        models: Mapping[str, str] | None = None,
        plan: Plan | None = None,
        attention: Attention = "process",
        grouping: Grouping = "layer",
        cores: int = 1,
    ) -> None:
        self.graph = graph
        self._lowered = ExpandAttention().rewrite(graph).graph if attention == "stock" else graph
        self.plan = plan or lower_legal(self._lowered)
        self._open_network, self._models = open_network, None if models is None else dict(models)
        self._grouping, self._cores = grouping if models is None else "process", cores
        self._session: _Session | None = None
        self._closed = self._streaming = False

    def __enter__(self) -> LavaProgram:
        self.open()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def open(self, observe: Collection[str] = ()) -> None:
        """Build the network and start it, recording what `observe` names; the first batch would do it else.

        Raises ValueError for a node that the graph has not, RuntimeError once closed.
        """
        self._require_open()
        check_observed(self.graph, observe)
        self._session_for(make_layout(self._lowered, self.plan, observe))

    def classify(self, batch: TokenBatch, observe: Collection[str] = ()) -> Execution:
        """Run one batch to its end: its logits, and the values of the nodes that `observe` names.

        Takes `T` steps for each sample, and the depth of the network once, for it runs empty afterwards; `stream`
        saves that. Raises as `stream` does.
        """
        [execution] = self.stream([batch], observe)
        return execution

    def run(self, batch: TokenBatch, observe: Collection[str] = ()) -> Execution:
        """`classify`, by the name that `converters.execution.Engine` has for it."""
        return self.classify(batch, observe)

    def stream(self, batches: Iterable[TokenBatch], observe: Collection[str] = ()) -> Iterator[Execution]:
        """Run batches back to back; an Execution for each, in order. Every sample takes T steps, whatever the depth.

        A batch is drawn before the result of the one before is given: what has entered leaves only when more enters,
        or at the end.

        Raises ValueError where a batch does not fit the graph or `observe` names a node that it has not,
        LavaMismatchError where the network is not silent in padding or between streams, and what the network raises.
        RuntimeError while another stream is under way. After any error, and when a stream is left before its end, the
        next one begins with a fresh network.
        """
        self._require_open()
        if self._streaming:
            raise RuntimeError("a stream of this program is under way: take all its results first")
        check_observed(self.graph, observe)
        layout = make_layout(self._lowered, self.plan, observe)
        names = {*observe, self.graph.output}
        self._streaming, finished = True, False
        try:
            done: list[dict[str, np.ndarray]] = []  # of the parts of a batch
            for part, ends_batch in self._run_parts(batches, layout, names):
                done.append(part)
                if ends_batch:
                    values = {name: np.concatenate([each[name] for each in done], axis=1) for name in names}
                    done = []
                    logits = logits_of(self.graph, values[self.graph.output])
                    yield Execution(logits, {name: values[name] for name in observe})
            finished = True
        finally:
            self._streaming = False
            if not finished:
                self._end_session()

    def close(self) -> None:
        """Free processes and shared memory. May be called twice."""
        self._end_session()
        self._closed = True

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("this engine is closed")

    def _parts(self, batches: Iterable[TokenBatch], layout: RecordLayout) -> Iterator[tuple[TokenBatch, bool]]:
        """Batches in pieces whose records fit into RECORD_BYTES_MAX, and whether a piece is the last of its batch."""
        size = max(1, RECORD_BYTES_MAX // (self.graph.timesteps * layout.width * ITEM_BYTES))
        for batch in batches:
            batch.check_fits(self.graph)
            for start in range(0, len(batch), size):
                yield batch[start : start + size], start + size >= len(batch)

    def _run_parts(
        self, batches: Iterable[TokenBatch], layout: RecordLayout, names: Collection[str]
    ) -> Iterator[tuple[dict[str, np.ndarray], bool]]:
        """The values of each part, and whether it is the last of its batch."""
        schedule = self.plan.schedule
        under_way: deque[tuple[BatchRecords, bool]] = deque()
        is_first = True
        for (part, ends_batch), is_last in _with_last(self._parts(batches, layout)):
            session = self._session_for(layout)
            fed, drain = feed_rows(self._lowered, self.plan, part), schedule.drain_steps if is_last else 0
            steps = len(fed) + (drain if is_last else schedule.depth_steps)
            entered = BatchRecords(self._lowered, self.plan, session.layout, names, part, steps, is_first, is_last)
            under_way.append((entered, ends_batch))
            is_first = False
            for records in session.advance(fed, drain):
                for each, _ in under_way:
                    each.take(records)
                while under_way and under_way[0][0].missing_steps == 0:
                    whole, ends = under_way.popleft()
                    yield {name: whole.values(name) for name in names}, ends

    def _session_for(self, layout: RecordLayout) -> _Session:
        """The running session if it records enough, else a new one that records what both did."""
        if self._session is not None and set(layout.names) <= set(self._session.layout.names):
            return self._session
        if self._session is not None:
            layout = layout_of(self.plan, {*layout.names, *self._session.layout.names})
            self._end_session()
        groups = group(self.plan, self._grouping, layout.names, self._cores)
        self._session = _Session(self._open_network, Setup(self.plan, groups, layout, self._models))
        return self._session

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()


def _with_last(items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    """Each item, and whether it is the last: the next one is drawn first. Where that raises, the item is the last, so
    that what has entered leaves before the error does."""
    waiting = iter(items)
    for item in waiting:
        while True:
            try:
                following = next(waiting)
            except StopIteration:
                yield item, True
                return
            except Exception:
                yield item, True
                raise
            yield item, False
            item = following
