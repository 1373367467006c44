"""Who runs the shards: this process, several local ones, or a Dask cluster. Results come in the order of the shards.

A worker that dies takes nothing with it: its shards are given to others. Only a few shards are under way at a time,
so a file of any size needs no more memory than a small one.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from queue import Empty, SimpleQueue
from threading import Lock, Thread, current_thread, main_thread
from typing import Protocol

from converters.bundle import Bundle
from sim.shards import Job, Shard, ShardResult, ShardRunner
from spikebert.commands import CheckFailed, UserError, missing_extra

AHEAD = 3  # shards a worker has: one whose result it gives next, one that its engine has begun, one that waits
GRACE_SECONDS = 0.02  # the parent has to send a shard for a result, before a worker's engine empties its pipeline
END_SECONDS = 10.0  # a worker has to close its engine
ATTEMPTS = 3  # a shard that so many workers died of is given up


class Workers(Protocol):
    """Runs shards somewhere, until it is closed.

    several  whether shards run side by side
    """

    several: bool

    def results(self, shards: Iterable[Shard]) -> Generator[ShardResult, None, None]:
        """The result of each shard, in order. Raises what a shard raised. Close it where not all are wanted."""
        ...

    def close(self) -> None: ...


class ThisProcess:
    """One shard after the other, here; an engine that streams is kept busy from one to the next."""

    several = False

    def __init__(self, job: Job, bundle: Bundle | None = None) -> None:
        self.runner = ShardRunner(job, bundle)

    def results(self, shards: Iterable[Shard]) -> Generator[ShardResult, None, None]:
        return self.runner.results(shards)

    def close(self) -> None:
        self.runner.close()


class LocalWorkers:
    """`count` processes of this machine, each with its own engine on `threads` processors."""

    several = True

    def __init__(self, job: Job, count: int, threads: int = 1) -> None:
        self.job = replace(job, threads=threads)
        self.workers = [_Worker(self.job) for _ in range(count)]

    def results(self, shards: Iterable[Shard]) -> Generator[ShardResult, None, None]:
        waiting, done = iter(shards), {}
        order: deque[int] = deque()  # numbers of the shards whose results were not given yet
        window = AHEAD * len(self.workers)
        number = 0
        while True:
            while len(order) < window and (shard := next(waiting, None)) is not None:
                min(self.workers, key=lambda worker: len(worker.tasks)).give(_Task(number, shard))
                order.append(number)
                number += 1
            if not order:
                return
            while order[0] not in done:
                done.update(self._collect())
            yield done.pop(order.popleft())

    def _collect(self) -> dict[int, ShardResult]:
        """Wait until a worker has a result, or has died; the shards of a dead one go to a new one in its place."""
        results = {}
        ready = wait([worker.connection for worker in self.workers if worker.tasks])
        for place, worker in enumerate(self.workers):
            if worker.connection not in ready:
                continue
            try:
                answer = worker.connection.recv()
            except (EOFError, OSError):
                self.workers[place] = self._replace(worker)
                continue
            if isinstance(answer, BaseException):
                raise answer
            results[worker.tasks.popleft().number] = answer
        return results

    def _replace(self, dead: _Worker) -> _Worker:
        """A new worker with the shards of a dead one. Raises RuntimeError for a shard that keeps killing workers."""
        code = dead.end()
        first = dead.tasks[0]
        first.attempts += 1
        if first.attempts >= ATTEMPTS:
            raise RuntimeError(
                f"{ATTEMPTS} workers died running samples {first.shard.first} .. "
                f"{first.shard.first + len(first.shard.samples) - 1} (exit code {code}): is there memory enough?"
            )
        worker = _Worker(self.job)
        for task in dead.tasks:
            worker.give(task)
        return worker

    def close(self) -> None:
        for worker in self.workers:
            worker.end()


class _Task:
    """A shard under way and how many workers died of it."""

    def __init__(self, number: int, shard: Shard) -> None:
        self.number, self.shard, self.attempts = number, shard, 0


class _Worker:
    """A process that answers each shard it is sent with its result, or with what went wrong."""

    def __init__(self, job: Job) -> None:
        # a fresh interpreter: forking one that has threads may hang
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.tasks: deque[_Task] = deque()
        self.process = context.Process(target=_work, args=(job, theirs), daemon=True)
        with _interrupts_ignored():  # a new process inherits that, and is deaf to Ctrl-C from the beginning
            self.process.start()
        theirs.close()

    def give(self, task: _Task) -> None:
        self.tasks.append(task)
        with suppress(OSError):  # it has died: noticed, and mended, where its results are collected
            self.connection.send(task.shard)

    def end(self) -> int | None:
        """Stop it where it still runs. Returns its exit code."""
        self.process.terminate()
        self.process.join(END_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()
        return self.process.exitcode


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """While this is open Ctrl-C is lost; where another thread than the main one asks, nothing changes."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(job: Job, connection: Connection) -> None:
    """The life of a worker. Ctrl-C reaches it too, but its parent decides when it ends, by a SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # closes the engine
    inbox: SimpleQueue[Shard | BaseException] = SimpleQueue()
    Thread(target=_take_in, args=(connection, inbox), daemon=True).start()
    try:
        with closing(ShardRunner(job)) as runner:
            while True:
                for result in runner.results(_waiting(inbox)):
                    connection.send(result)
    except (EOFError, BrokenPipeError):  # the parent is gone
        return
    except Exception as error:
        connection.send(_portable(error))


def _take_in(connection: Connection, inbox: SimpleQueue[Shard | BaseException]) -> None:
    """Take what the parent sends off the pipe at once: while it waits to send it takes no result, and a worker that
    waits to send one would wait for ever. What ends it, the parent's end too, is put behind the last shard."""
    try:
        while True:
            inbox.put(connection.recv())
    except BaseException as error:  # also of a shard that cannot be unpacked
        inbox.put(error)


def _waiting(inbox: SimpleQueue[Shard | BaseException]) -> Iterator[Shard]:
    """The next shard, and those that have come by the time they are asked for. An engine that streams gives all its
    results when there is no more: else it would wait for a shard, and the parent for a result."""
    shard = inbox.get()
    while True:
        if isinstance(shard, BaseException):
            raise shard
        yield shard
        try:
            shard = inbox.get(timeout=GRACE_SECONDS)
        except Empty:
            return


def _portable(error: Exception) -> Exception:
    """An error that survives the way to another process, where a command words it by its type."""
    if isinstance(error, CheckFailed):
        return CheckFailed(str(error))
    return error if isinstance(error, UserError) else RuntimeError(f"in a worker: {type(error).__name__}: {error}")


class DaskWorkers:
    """The workers of a Dask cluster at `address`. Each must have spikebert installed and be able to read the bundle."""

    several = True

    def __init__(self, job: Job, address: str) -> None:
        try:
            from distributed import Client
        except ModuleNotFoundError as error:
            raise missing_extra(error.name or "distributed") from error
        self.job = job
        try:
            self.client = Client(address, timeout=10)
        except (OSError, ValueError) as error:
            raise UserError(f"--scheduler {address}: no Dask scheduler answers there ({error})") from error

    def results(self, shards: Iterable[Shard]) -> Generator[ShardResult, None, None]:
        waiting = iter(shards)
        under_way: deque = deque()
        while True:
            window = AHEAD * max(1, sum(self.client.nthreads().values()))
            while len(under_way) < window and (shard := next(waiting, None)) is not None:
                # a lost worker's shards are run again by the scheduler
                under_way.append(self.client.submit(_run_on_cluster, self.job, shard, pure=False))
            if not under_way:
                return
            yield under_way.popleft().result()

    def close(self) -> None:
        self.client.close()


class _Kept:
    """The runner of a worker of a cluster, kept from shard to shard until another job comes.

    Such a worker may have several threads; an engine serves one at a time. And it outlives a run: the same folder may
    hold another bundle by the next one, which `Job.digest` tells.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self.job: Job | None = None
        self.runner: ShardRunner | None = None

    def run(self, job: Job, shard: Shard) -> ShardResult:
        with self.lock:
            if self.runner is None or self.job != job:
                if self.runner is not None:
                    self.runner.close()
                self.runner = None  # where the next one cannot be opened
                self.runner, self.job = ShardRunner(job), job
            return self.runner.run(shard)


KEPT = _Kept()


def _run_on_cluster(job: Job, shard: Shard) -> ShardResult:
    return KEPT.run(job, shard)
