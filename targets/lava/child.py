"""The child process in which the real Lava runtime lives. Started by `supervisor.py`, never by hand.

Lava forks one operating system process for every Lava process (*actors* here). When one of them fails, Lava's own
`run` waits for ever and its `stop` may too. So this process never trusts either: `run` goes to a thread, the main
thread watches the actors, another thread the parent, and the actors' end is always by SIGKILL.

What follows from that, whoever dies:

parent gone     `control` hangs up, and the actors are killed here
this one gone   the kernel kills the actors (PR_SET_PDEATHSIG); the parent removes the shared memory
an actor gone   its traceback, or its exit code, goes to the parent
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import shared_memory
from multiprocessing.connection import Connection, wait
from pathlib import Path

from targets.lava.lowering import Plan
from targets.lava.records import RecordLayout, feed_width

SHARED_MEMORY = Path("/dev/shm")
PR_SET_PDEATHSIG = 1
CAUSE_CHARACTERS = 1500  # of a traceback's end: a report stays below PIPE_BUF, so that one write is never torn


@dataclass(frozen=True, eq=False)
class Job:
    """What the parent wants to have run; travels over the private socket between the two.

    feed_fd, record_fd   descriptors of the `StepFile`s, inherited
    models               process class path -> ProcessModel class path, before Lava's own choice
    shared_memory_prefix of the names of all shared memory made here, so that it can be told from others'
    file_descriptors     soft limit that this process and its actors need
    """

    plan: Plan
    layout: RecordLayout
    feed_fd: int
    record_fd: int
    models: Mapping[str, str]
    shared_memory_prefix: str
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


def remove_shared_memory(prefix: str) -> None:
    """Remove the shared memory whose name begins so."""
    for path in SHARED_MEMORY.glob(f"{prefix}*"):
        path.unlink(missing_ok=True)


class _ParentGone(BaseException):
    """Raised in the main thread, whatever it is caught in; not an Exception, so that Lava does not swallow it."""


def main(control_fd: int) -> None:
    """Serve one parent until it lets go. Does not return."""
    control = Connection(control_fd)
    signal.signal(signal.SIGTERM, _raise_parent_gone)
    threading.Thread(target=_interrupt_with_parent, args=(control_fd,), daemon=True).start()
    prefix = None
    try:
        job = control.recv()
        prefix = job.shared_memory_prefix
        _prepare(job, control)
        _serve(job, control)
    except (EOFError, _ParentGone):
        pass
    except Exception:
        _try_send(control, Failed("the child process that holds the Lava runtime", traceback.format_exc()))
    finally:
        _end(prefix)


def _interrupt_with_parent(control_fd: int) -> None:
    """Wait until the parent's end of the socket closes, then interrupt the main thread until it ends the process.

    The main thread itself must clean up: another one could not keep it from starting more actors meanwhile.
    """
    main_thread = threading.main_thread().ident
    assert main_thread is not None  # it runs
    hang_up = select.poll()
    hang_up.register(control_fd, 0)  # no events: only a hang-up wakes it, not messages
    hang_up.poll()
    while True:
        signal.pthread_kill(main_thread, signal.SIGTERM)
        time.sleep(1.0)


def _raise_parent_gone(_signal: int, _frame: object) -> None:
    raise _ParentGone


def _end(prefix: str | None) -> None:
    """End this process and everything it made. Does not return."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        _kill_session()
        if prefix is not None:
            remove_shared_memory(prefix)
    finally:
        os._exit(0)  # not sys.exit: Lava's finalisers would wait for processes that are gone


def _kill_session() -> None:
    """Kill and reap all other processes of this session: actors, Lava's manager, Python's resource tracker."""
    for pid in session_members(os.getsid(0)):
        if pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # no child is left
        while True:
            os.waitpid(-1, 0)


def session_members(session: int) -> list[int]:
    """Ids of the processes of a session that run, those that only wait to be reaped apart."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended just now
        if int(its_session) == session and state != "Z":
            members.append(int(stat.parent.name))
    return members


def _prepare(job: Job, control: Connection) -> None:
    """Limits and hooks that must stand before Lava makes anything."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (job.file_descriptors, hard))
    # The name is how leaked segments are told from other programs'. Python offers no public way to choose it.
    vars(shared_memory)["_SHM_NAME_PREFIX"] = f"/{job.shared_memory_prefix}"
    vars(shared_memory)["_SHM_SAFE_NAME_LENGTH"] = len(job.shared_memory_prefix) + 1 + 16
    supervisor_pid = os.getpid()

    def in_actor() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        control.close()  # or the parent would not see this process end
        _die_with(supervisor_pid)

    os.register_at_fork(after_in_child=in_actor)


def _die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it ended before the call
        os._exit(1)


def _serve(job: Job, control: Connection) -> None:
    program = _RuntimeProgram(job)
    control.send(program.start())
    while True:
        control.send(program.run(control.recv()))


class _RuntimeProgram:
    """A network in the Lava runtime, and the eyes on its actors."""

    def __init__(self, job: Job) -> None:
        from lava.magma.runtime import runtime as lava_runtime  # Lava only after `_prepare`

        from targets.lava.network import COMPILE_CONFIG, build, run_config
        from targets.lava.stepfile import StepFile

        feed = StepFile(job.feed_fd, feed_width(job.plan))
        records = StepFile(job.record_fd, job.layout.width)
        self._head = build(job.plan, job.layout, feed, records).head
        self._executable = self._head.compile(run_config(job.models), dict(COMPILE_CONFIG))
        self._names = {id(builder): process.name for process, builder in self._executable.proc_builders.items()}
        for builder in self._executable.runtime_service_builders.values():
            self._names[id(builder)] = "Lava's runtime service"
        self._reports, report_out = os.pipe()
        lava_runtime.target_fn = _reporting(lava_runtime.target_fn, self._names, report_out)
        self._actors: dict[int, tuple[multiprocessing.Process, str]] = {}  # by sentinel: with name

    def start(self) -> Ready | Failed:
        """Start the actors. Raises what Lava raises where no actor is to blame."""
        try:
            self._head.create_runtime(executable=self._executable)
        except Exception:
            if wait([self._reports], timeout=1.0):
                return self._failure()
            raise
        actors = self._head.runtime._messaging_infrastructure.actors  # in the order of the builders
        self._actors = {actor.sentinel: (actor, name) for actor, name in zip(actors, self._names.values())}
        return Ready()

    def run(self, steps: int) -> Done | Failed:
        """Run some steps."""
        from lava.magma.core.run_conditions import RunSteps

        finished, finish = os.pipe()
        errors: list[str] = []

        def work() -> None:
            try:
                self._head.runtime.start(RunSteps(num_steps=steps, blocking=True))
            except Exception:
                errors.append(traceback.format_exc())
            os.close(finish)

        threading.Thread(target=work, daemon=True).start()
        ready = wait([finished, self._reports, *self._actors])
        if ready != [finished]:
            return self._failure()
        os.close(finished)
        if errors:
            wait([self._reports], timeout=1.0)  # Lava noticed before the actor's own report came
            return self._failure() if wait([self._reports], timeout=0) else Failed("Lava's runtime", errors[0])
        return Done()

    def _failure(self) -> Failed:
        """What an actor reported, or how one ended that could not report any more."""
        if wait([self._reports], timeout=0):
            report = json.loads(os.read(self._reports, 1 << 16).splitlines()[0])
            return Failed(report["process"], report["cause"])
        actor, name = next(entry for sentinel, entry in self._actors.items() if wait([sentinel], timeout=0))
        multiprocessing.Process.join(actor, timeout=1.0)  # its sentinel comes a moment before its exit code
        code = actor.exitcode
        cause = f"it was killed by signal {-code}" if code is not None and code < 0 else f"it ended with code {code}"
        return Failed(name, cause)


def _reporting(target: Callable, names: Mapping[int, str], report_fd: int) -> Callable:
    """Lava's function that an actor runs, made to report the real traceback of what it raises."""

    def reporting_target(*args: object, **kwargs: object) -> None:
        name = names.get(id(kwargs["builder"]), "?")
        try:
            target(*args, **kwargs)
        except Exception:
            cause = traceback.format_exc().encode("ascii", "replace").decode()[-CAUSE_CHARACTERS:]
            os.write(report_fd, json.dumps({"process": name, "cause": cause}).encode() + b"\n")
            raise

    return reporting_target


def _try_send(control: Connection, message: Failed) -> None:
    try:
        control.send(message)
    except OSError:
        print(message, file=sys.stderr)  # no parent left to tell
