"""Kills processes of the Lava runtime at random, and tells what became of each run.

    python -m benchmarks.lava_kills --runs 50 --seed 0

In each run a network starts and classifies a batch, while at a random moment a random member of its session gets a
random signal. The run must end with the right answer or with an error, in time; nothing may be left of it; and the next
run, with the same engine, must give the right answer.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.networks import full_batch
from benchmarks.timing import table
from converters.bundle import read_bundle
from converters.execution import TokenBatch
from converters.graph import Graph
from sim.reference import ReferenceEngine
from spikebert.commands import note
from targets.lava.engine import LavaEngine
from targets.lava.keeper import session_members
from targets.lava.supervisor import LavaRuntimeError

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGSTOP)
START_SECONDS = 20.0
STEP_SECONDS = 2.0
ERROR_SECONDS = 5.0  # in which an error must come, after the fault, or after the deadline where a process is stopped


@dataclass(frozen=True)
class Row:
    """What became of one run.

    killed        who got which signal, "" where the run was over before
    after_seconds from the begin of the run to the signal
    error         first line of the error that came, "" where the run gave its answer
    until_seconds from the signal to the error, with everything cleaned up
    deadline_seconds after which a process that stands still is noticed, 0 for one that died
    answer_right  whether the answer, if any, was right
    next_right    whether the next run of the same engine gave the right answer
    leftovers     what was left behind
    """

    killed: str
    after_seconds: float
    error: str
    until_seconds: float
    deadline_seconds: float
    answer_right: bool
    next_right: bool
    leftovers: str

    @property
    def is_right(self) -> bool:
        in_time = self.until_seconds <= self.deadline_seconds + ERROR_SECONDS
        return in_time and self.answer_right and self.next_right and not self.leftovers


class _Killer(threading.Thread):
    """Sends a random signal to a random process of this process's network, some time after its start."""

    def __init__(self, rng: np.random.Generator, after_seconds: float) -> None:
        super().__init__(daemon=True)
        self.rng, self.after_seconds = rng, after_seconds
        self.run_is_over = threading.Event()
        self.killed, self.moment, self.number = "", 0.0, 0

    def run(self) -> None:
        begun = time.monotonic()
        while (keeper := _keeper()) is None and not self.run_is_over.is_set():
            time.sleep(0.005)
        if keeper is None or self.run_is_over.wait(max(0.0, begun + self.after_seconds - time.monotonic())):
            return
        members = session_members(keeper)
        if not members:
            return
        pid, number = int(self.rng.choice(members)), int(self.rng.choice(SIGNALS))
        who = "keeper" if pid == keeper else "runtime" if _parent(pid) == keeper else "actor"
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        self.moment, self.number = time.monotonic(), number
        self.killed = f"{who}, {signal.Signals(number).name}"


def kill_runs(runs: int, seed: int, graph: Graph, batch: TokenBatch) -> Iterator[Row]:
    """So many runs, each with one random kill.

    The same seed draws the same numbers; the moments are shares of the time that a run takes without a kill.
    """
    rng = np.random.default_rng(seed)
    expected = ReferenceEngine(graph).run(batch).logits
    begun = time.monotonic()
    _whole_run(graph, batch)
    clean_seconds = time.monotonic() - begun
    before = _Belongings.now()
    for _ in range(runs):
        yield _one_run(graph, batch, expected, rng, clean_seconds, before)


def _whole_run(graph: Graph, batch: TokenBatch) -> None:
    engine = LavaEngine(graph)
    engine.run(batch)
    engine.close()


def _one_run(
    graph: Graph,
    batch: TokenBatch,
    expected: np.ndarray,
    rng: np.random.Generator,
    clean_seconds: float,
    before: _Belongings,
) -> Row:
    engine = LavaEngine(graph, start_seconds=START_SECONDS, step_seconds=STEP_SECONDS)
    killer = _Killer(rng, after_seconds=rng.uniform(0, clean_seconds))
    killer.start()
    attempt = _Attempt.of(engine, batch, expected)
    killer.run_is_over.set()
    killer.join()
    if killer.killed and not attempt.error:  # it came with the answer, and the next run is the one to notice
        attempt = _Attempt.of(engine, batch, expected)
    deadline = 0.0
    if attempt.error and killer.number == signal.SIGSTOP:
        deadline = START_SECONDS if "did not start" in attempt.error else STEP_SECONDS
    leftovers = _leftovers(before) if attempt.error else ""
    next_right = np.array_equal(engine.run(batch).logits, expected)
    engine.close()
    return Row(
        killer.killed,
        killer.after_seconds,
        attempt.error,
        attempt.ended - max(attempt.begun, killer.moment) if attempt.error else 0.0,
        deadline,
        attempt.is_right and (not attempt.error or bool(killer.killed)),
        next_right,
        leftovers or _leftovers(before),
    )


@dataclass(frozen=True)
class _Attempt:
    """A run, right or failed: its error's first line, "" for none, and when it began and ended (time.monotonic)."""

    is_right: bool
    error: str
    begun: float
    ended: float

    @classmethod
    def of(cls, engine: LavaEngine, batch: TokenBatch, expected: np.ndarray) -> _Attempt:
        begun, is_right, error = time.monotonic(), True, ""
        try:
            is_right = np.array_equal(engine.run(batch).logits, expected)
        except LavaRuntimeError as raised:
            error = str(raised).splitlines()[0]
        return cls(is_right, error, begun, time.monotonic())


def _keeper() -> int | None:
    """The keeper below this process, if there is one."""
    for path in Path("/proc/self/task").glob("*/children"):
        for pid in map(int, path.read_text().split()):
            try:
                if os.getsid(pid) == pid:
                    return pid
            except ProcessLookupError:
                continue
    return None


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


@dataclass(frozen=True)
class _Belongings:
    """How many descriptors this process has, and the names in /dev/shm."""

    descriptors: int
    shared_memory: frozenset[str]

    @classmethod
    def now(cls) -> _Belongings:
        return cls(len(os.listdir("/proc/self/fd")), frozenset(os.listdir("/dev/shm")))


def _leftovers(before: _Belongings) -> str:
    """Processes, zombies, files in /dev/shm and descriptors that a network of this process has left."""
    mark = re.compile(rf"targets\.lava\.keeper .*main\([\d, ]+, {os.getpid()}\)")
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.search(path.read_text(errors="replace")):  # of the keeper, and so of all its forks
                found.append(f"process {path.parent.name}")
        except (FileNotFoundError, ProcessLookupError):
            continue
    found += [f"zombie {pid}" for pid in [_keeper()] if pid is not None]
    now = _Belongings.now()
    found += [f"/dev/shm/{name}" for name in sorted(now.shared_memory - before.shared_memory)]
    if now.descriptors > before.descriptors:
        found.append(f"{now.descriptors - before.descriptors} descriptors")
    return ", ".join(found)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 where a run was not right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", type=Path, default=Path("recipes/research/reviews_long.zip"))
    parser.add_argument("--samples", type=int, default=64, help="in the batch of each run")
    arguments = parser.parse_args(argv)
    graph = read_bundle(arguments.bundle).graph
    batch = full_batch(graph, arguments.samples, seed=arguments.seed)
    rows = []
    for row in kill_runs(arguments.runs, arguments.seed, graph, batch):
        rows.append(row)
        note(f"{len(rows)} of {arguments.runs}: {'as it should be' if row.is_right else row}")
    header = ["killed", "after s", "until error s", "deadline s", "next run", "left behind", "error"]
    cells = [
        [
            row.killed or "nobody: it was over",
            f"{row.after_seconds:.2f}",
            f"{row.until_seconds:.2f}" if row.error else "-",
            f"{row.deadline_seconds:g}",
            "right" if row.next_right else "WRONG",
            row.leftovers or "nothing",
            row.error[:90] or ("none, right answer" if row.answer_right else "none, WRONG ANSWER"),
        ]
        for row in rows
    ]
    print(table(header, cells))
    wrong = sum(not row.is_right for row in rows)
    print(f"\n{len(rows)} runs, {sum(bool(row.error) for row in rows)} errors, {wrong} not as they should be")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
