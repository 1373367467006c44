"""One way of running a network on Lava, measured in a process of its own. Started by lava.py, never by hand.

It runs with the code of the tree in which it is started: today's, or the first version's, which has no `benchmarks`.
So it imports only what both have, and what today's alone has only where it is today's.

    lava_worker.py TASK.json        the fields of `Task`; writes those of `Result` to `result.json` beside it
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

import targets
from converters.execution import TokenBatch
from converters.graph import Graph
from converters.serialise import PlainGraph, plain_to_graph

FIRST, INLINE, PARTS = "first version", "inline", "parts alone"  # others are names of a grouping
RESULT, STARTED = "result.json", "started"


@dataclass(frozen=True)
class Task:
    """What is to be done.

    tree        folder of the code that must run
    way         FIRST, INLINE, PARTS, or a grouping of processes in the real runtime
    cores       for the grouping "core"
    singles     so many sentences are run one by one
    stream_size sentences in each batch of a stream
    hold        after the first sentence write STARTED, and wait with the network at rest until standard input ends;
                measure nothing else
    """

    tree: str
    way: str
    cores: int
    singles: int
    stream_size: int
    hold: bool


@dataclass(frozen=True)
class Took:
    """Seconds, Lava's steps and sentences of some work."""

    seconds: float
    steps: int
    sentences: int


@dataclass
class Result:
    """What was measured, where it was.

    start_seconds      from opening the file of the graph to the logits of the first sentence
    wrong              sentences whose logits were not the expected ones, of all that were run
    whole, single      all sentences as one batch; some one by one, a `Took` for each
    stream             sentences of a stream while the network is full, without its filling and its end
    arithmetic_seconds of `whole`, of which blas_seconds are the matrix products; both for PARTS alone
    """

    start_seconds: float
    wrong: int = 0
    whole: Took | None = None
    single: list[Took] = field(default_factory=list)
    stream: Took | None = None
    arithmetic_seconds: float | None = None
    blas_seconds: float | None = None


class Counted:
    """A network whose steps are counted in `counts`."""

    def __init__(self, network: Any, counts: list[int]) -> None:
        self.network, self._counts = network, counts

    def run(self, steps: int) -> None:
        self._counts[0] += steps
        self.network.run(steps)

    def close(self) -> None:
        self.network.close()


class Subject:
    """A graph in Lava, with the sentences to run and the logits to expect of them."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task, self.counts = task, [0]
        self.networks: list[Any] = []
        self.graph, self.batch, self.expected = read_graph(folder), *read_sentences(folder)
        self.program = open_first(self) if task.way == FIRST else open_today(self)
        self.wrong = 0

    def counted(self, network: Any) -> Counted:
        self.networks.append(network)
        return Counted(network, self.counts)

    def run(self, start: int, stop: int) -> Took:
        """Some of the sentences as one batch, and its end: the network runs empty."""
        run = getattr(self.program, "classify", None) or self.program.run
        steps, begun = self.counts[0], time.perf_counter()
        logits = run(self.batch[start:stop]).logits
        took = Took(time.perf_counter() - begun, self.counts[0] - steps, stop - start)
        self.check(logits, start, stop)
        return took

    def stream(self) -> Took:
        """As many batches as there are, after as many as fill the network, all from one stream."""
        size, sentences = self.task.stream_size, len(self.batch)
        spans = [(start, min(start + size, sentences)) for start in range(0, sentences, size)]
        depth = self.program.plan.schedule.depth_steps
        # a batch is drawn before the one before it has run
        fill = -(-depth // (min(stop - start for start, stop in spans) * self.graph.timesteps)) + 2
        drawn: list[tuple[float, int]] = []
        taken = [span for span, _ in zip(cycle(spans), range(fill + len(spans) + 1))]

        def batches() -> Iterator[TokenBatch]:
            for start, stop in taken:
                drawn.append((time.perf_counter(), self.counts[0]))
                yield self.batch[start:stop]

        for (start, stop), execution in zip(taken, self.program.stream(batches())):
            self.check(execution.logits, start, stop)
        (begun, steps), (ended, steps_then) = drawn[fill], drawn[fill + len(spans)]
        return Took(ended - begun, steps_then - steps, sentences)

    def check(self, logits: np.ndarray, start: int, stop: int) -> None:
        self.wrong += int((logits != self.expected[start:stop]).any(axis=1).sum())


def read_graph(folder: Path) -> Graph:
    """A graph from `graph.json`, `weights.npz` and `encoder.npz`."""
    weights, encoder = (dict(np.load(folder / f"{name}.npz")) for name in ("weights", "encoder"))
    return plain_to_graph(PlainGraph(json.loads((folder / "graph.json").read_text()), weights, encoder))


def read_sentences(folder: Path) -> tuple[TokenBatch, np.ndarray]:
    """The sentences and their logits int64 [sentences, classes], from `sentences.npz`."""
    arrays = np.load(folder / "sentences.npz")
    return TokenBatch(arrays["ids"], arrays["mask"]), arrays["logits"]


def open_first(subject: Subject) -> Any:
    """An engine of the first version in the real runtime: every process of the plan one of the operating system's."""
    from targets.lava import engine
    from targets.lava.supervisor import SupervisedProgram

    make_engine: Callable[..., Any] = vars(engine)["StreamingEngine"]  # today's code has no such class
    make_network: Callable[..., Any] = SupervisedProgram  # and one argument more here

    def open_program(*of_program: Any) -> Counted:
        return subject.counted(make_network(*of_program, engine.START_SECONDS, engine.STEP_SECONDS))

    return make_engine(subject.graph, open_program)


def open_today(subject: Subject) -> Any:
    """A program of today's: what `LavaEngine` and `LavaInlineEngine` are, with their steps counted."""
    from targets.lava.engine import START_SECONDS, STEP_SECONDS
    from targets.lava.program import LavaProgram, Setup
    from targets.lava.start_method import start_method_kept
    from targets.lava.stepfile import StepFile
    from targets.lava.supervisor import SupervisedProgram

    def open_network(setup: Setup, feed: StepFile, records: StepFile) -> Counted:
        if subject.task.way == INLINE:
            with start_method_kept():
                from targets.lava.inline import InlineNetwork
            return subject.counted(InlineNetwork(setup, feed, records))
        if subject.task.way == PARTS:
            from benchmarks.lava_arithmetic import PartsNetwork

            return subject.counted(PartsNetwork(setup, feed, records))
        fields = (setup.plan, setup.groups, setup.layout, feed, records, setup.models)
        return subject.counted(SupervisedProgram(*fields, START_SECONDS, STEP_SECONDS))

    grouping: Any = "layer" if subject.task.way in (INLINE, PARTS) else subject.task.way
    return LavaProgram(subject.graph, open_network, grouping=grouping, cores=subject.task.cores)


def measure(task: Task, folder: Path) -> Result:
    """Everything that the task asks for."""
    begun = time.perf_counter()
    subject = Subject(task, folder)
    with closing(subject.program):
        subject.run(0, 1)
        result = Result(time.perf_counter() - begun)
        if task.hold:
            (folder / STARTED).touch()
            sys.stdin.read()
        else:
            measure_running(subject, result)
    result.wrong = subject.wrong
    return result


def measure_running(subject: Subject, result: Result) -> None:
    """All but the start."""
    task, sentences = subject.task, len(subject.batch)
    if task.way == PARTS:
        measure_arithmetic(subject, result)
        return
    result.whole = subject.run(0, sentences)
    result.single = [subject.run(index, index + 1) for index in range(task.singles)]
    if task.way != FIRST:
        result.stream = subject.stream()


def measure_arithmetic(subject: Subject, result: Result) -> None:
    """The parts alone, without what the host does, and then their matrix products alone."""
    from benchmarks.lava_arithmetic import blas_seconds

    [network], sentences = subject.networks, len(subject.batch)
    network.noting = True
    subject.run(0, sentences)
    network.noting = False
    products = network.products()
    before = network.seconds
    result.whole = subject.run(0, sentences)
    result.arithmetic_seconds = network.seconds - before
    result.blas_seconds = blas_seconds(products)


def main() -> None:
    file = Path(sys.argv[1])
    task = Task(**json.loads(file.read_text()))
    if not Path(targets.__file__).is_relative_to(task.tree):
        raise SystemExit(f"the code of {task.tree} should run, this is {targets.__file__}")
    result = measure(task, file.parent)
    (file.parent / RESULT).write_text(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
