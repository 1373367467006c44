"""The process in which the real Lava runtime lives. Forked by `keeper.py`, never started by hand.

Lava forks one operating system process for every Lava process (*actors* here). When one of them fails, Lava's own
`run` waits for ever and its `stop` may too. So Lava has the main thread, and another thread watches: it reports the
first actor that fails, or ends, and then ends this process; the kernel ends the actors with it (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import _multiprocessing
import contextlib
import json
import multiprocessing.synchronize
import os
import pickle
import resource
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import NoReturn

from targets.lava.channel_memory import ChannelMemory
from targets.lava.grouping import Group
from targets.lava.keeper import die_with
from targets.lava.plan import Plan
from targets.lava.records import RecordLayout, feed_width
from targets.lava.resources import remedy_for, signal_text
from targets.lava.semaphores import UnnamedSemaphores

CAUSE_CHARACTERS = 1500  # of a traceback's end: a report stays below PIPE_BUF, so that one write is never torn
LOOK_SECONDS = 0.1  # between looks for actors that are new, while the network starts
REPORT_SECONDS = 3.0  # in which an actor's own report comes, where Lava noticed its failure first


@dataclass(frozen=True, eq=False)
class Job:
    """What the owner wants to have run; waits in a file in memory until the runtime reads it.

    feed_fd, record_fd descriptors of the `StepFile`s, inherited
    groups             the processes of the plan that run as one
    models             process class path -> ProcessModel class path, before Lava's own choice; None: see `run_config`
    file_descriptors   soft limit that this process and its actors need
    """

    plan: Plan
    groups: tuple[Group, ...]
    layout: RecordLayout
    feed_fd: int
    record_fd: int
    models: Mapping[str, str] | None
    file_descriptors: int


@dataclass(frozen=True)
class Ready:
    """The network stands and waits for steps."""


@dataclass(frozen=True)
class Done:
    """The steps asked for are over."""


@dataclass(frozen=True)
class Failed:
    """Something went wrong in `process`; `cause` is a traceback where there is one."""

    process: str
    cause: str


class _Owner:
    """The other end of the socket, to which both threads write, one at a time."""

    def __init__(self, control: Connection) -> None:
        self._control, self._writing = control, threading.Lock()
        self.close = control.close

    def receive(self) -> int:
        """How many steps the owner wants next. Ends this process where there is no owner any more."""
        try:
            return self._control.recv()
        except (EOFError, ConnectionError):
            os._exit(0)

    def send(self, message: Ready | Done) -> None:
        with self._writing:
            self._control.send(message)

    def send_last(self, message: Failed) -> NoReturn:
        """Send, and end this process before anything else is sent."""
        with self._writing:
            try:
                self._control.send(message)
            finally:  # also where no owner is left to tell
                os._exit(1)


def main(control_fd: int, job_fd: int) -> NoReturn:
    """Do the job written in a file, for one owner until it lets go. Ends the process."""
    owner = _Owner(Connection(control_fd))
    program = None
    try:
        with os.fdopen(job_fd, "rb") as job_file:
            job_file.seek(0)  # the owner, who wrote it, left off at its end
            job: Job = pickle.load(job_file)
        _prepare(job, owner)
        program = _RuntimeProgram(job, owner)
        program.start()
        owner.send(Ready())
        while True:
            program.run(owner.receive())
            owner.send(Done())
    except Exception as error:
        # an actor may be to blame, which tells it itself; of one that cannot, the watching thread tells meanwhile
        told = program.report(REPORT_SECONDS) if program is not None else None
        owner.send_last(told or Failed("Lava's runtime", cause_of(error)))


def cause_of(error: Exception) -> str:
    """What a user should know of it: where the machine has too little of something that, else the traceback."""
    remedy = remedy_for(error)
    return f"{error}: {remedy}" if remedy else "".join(traceback.format_exception(error))


def _prepare(job: Job, owner: _Owner) -> None:
    """Limits and hooks that must stand before Lava makes anything."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (job.file_descriptors, hard))
    _multiprocessing.SemLock = UnnamedSemaphores().make  # what `multiprocessing.Semaphore` and its like are made of
    runtime_pid = os.getpid()

    def in_actor() -> None:
        die_with(runtime_pid)
        owner.close()  # the socket is not the actors'

    os.register_at_fork(after_in_child=in_actor)


class _RuntimeProgram:
    """A network in the Lava runtime, and the eyes on its actors."""

    def __init__(self, job: Job, owner: _Owner) -> None:
        from lava.magma.runtime import runtime as lava_runtime  # Lava only after `_prepare`
        from lava.magma.runtime.message_infrastructure import multiprocessing as lava_multiprocessing

        from targets.lava.network import COMPILE_CONFIG, build, run_config
        from targets.lava.stepfile import StepFile

        self._owner = owner
        feed = StepFile(job.feed_fd, feed_width(job.plan))
        records = StepFile(job.record_fd, job.layout.width)
        self._head = build(job.plan, job.groups, job.layout, feed, records).head
        self._executable = self._head.compile(run_config(job.models), dict(COMPILE_CONFIG))
        self._names = {id(builder): process.name for process, builder in self._executable.proc_builders.items()}
        for builder in self._executable.runtime_service_builders.values():
            self._names[id(builder)] = "Lava's runtime service"
        self._reports, report_out = os.pipe()
        lava_runtime.target_fn = _reporting(lava_runtime.target_fn, self._names, report_out)
        lava_multiprocessing.SharedMemoryManager = ChannelMemory
        self._started = threading.Event()

    def start(self) -> None:
        """Start the actors, in the main thread: they live as long as the thread that forks them."""
        threading.Thread(target=self._watch, daemon=True).start()
        self._head.create_runtime(executable=self._executable)
        self._started.set()

    def run(self, steps: int) -> None:
        """Run some steps. Never returns where an actor fails."""
        from lava.magma.core.run_conditions import RunSteps

        self._head.runtime.start(RunSteps(num_steps=steps, blocking=True))

    def _watch(self) -> NoReturn:
        """Wait for an actor's report of what it raised, or for the end of one that could not report any more."""
        while True:
            complete = self._started.is_set()  # before the actors are looked up
            actors = self._actors()
            if wait([self._reports, *actors], timeout=None if complete else LOOK_SECONDS):
                self._owner.send_last(self._failure(actors))

    def _actors(self) -> dict[int, tuple[multiprocessing.Process, str]]:
        """Sentinel -> process and name, of all actors so far: Lava starts them in the order of the builders."""
        infrastructure = getattr(self._head.runtime, "_messaging_infrastructure", None)
        started = list(infrastructure.actors) if infrastructure is not None else []
        return {actor.sentinel: (actor, name) for actor, name in zip(started, self._names.values())}

    def _failure(self, actors: Mapping[int, tuple[multiprocessing.Process, str]]) -> Failed:
        """Who is to blame. An actor that ended well was told to by Lava, because another had failed: that one's own
        report may come later than this."""
        deadline = time.monotonic() + REPORT_SECONDS
        running, well = dict(actors), None
        while ready := wait([self._reports, *running], timeout=max(0.0, deadline - time.monotonic())):
            if told := self.report(0):
                return told
            actor, name = running.pop(next(sentinel for sentinel in running if sentinel in ready))
            code = _exit_code(actor)
            if code is not None and code < 0:
                return Failed(name, f"it was killed by {signal_text(-code)}")
            if code != 0:
                return Failed(name, f"it ended by itself, with exit code {code}")
            well = well or Failed(name, "it ended by itself, with exit code 0")
        assert well is not None  # the caller saw one of them ready
        return well

    def report(self, seconds: float) -> Failed | None:
        """What an actor told of its own failure; None where none has within so long."""
        if not wait([self._reports], timeout=seconds):
            return None
        report = json.loads(os.read(self._reports, 1 << 16).splitlines()[0])
        return Failed(report["process"], report["cause"])


def _exit_code(actor: multiprocessing.Process) -> int | None:
    """Of an actor that has ended, negative where a signal killed it. 0 where Lava's own `join` has let go of it."""
    with contextlib.suppress(ValueError):  # it is closed
        multiprocessing.Process.join(actor, timeout=REPORT_SECONDS)  # its sentinel comes a moment before its exit code
        deadline = time.monotonic() + REPORT_SECONDS
        while actor.exitcode is None and time.monotonic() < deadline:
            time.sleep(0.001)  # Lava's own `join`, in another thread, has taken the code and is about to note it
        return actor.exitcode
    return 0


def _reporting(target: Callable, names: Mapping[int, str], report_fd: int) -> Callable:
    """Lava's function that an actor runs, made to report the real traceback of what it raises."""

    def reporting_target(*args: object, **kwargs: object) -> None:
        name = names.get(id(kwargs["builder"]), "?")
        try:
            target(*args, **kwargs)
        except Exception as error:
            cause = cause_of(error).encode("ascii", "replace").decode()[-CAUSE_CHARACTERS:]
            os.write(report_fd, json.dumps({"process": name, "cause": cause}).encode() + b"\n")
            raise

    return reporting_target
