"""Keeps the real Lava runtime in processes of its own, with deadlines, and cleans up after it whatever happens.

Below this process stands a keeper (`keeper.py`), which leads a session and group of its own: one `killpg` reaches
everything Lava forks, and a Ctrl-C at the terminal reaches only this process, which then closes in order.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection

from targets.lava.child import Done, Failed, Job, Ready
from targets.lava.grouping import Group
from targets.lava.keeper import KILLED, session_members
from targets.lava.plan import Plan
from targets.lava.records import RecordLayout
from targets.lava.resources import check_resources, shortages_explained, signal_text
from targets.lava.stepfile import StepFile

LOOK_SECONDS = 0.1  # between looks whether the network still goes on
ANSWER_SECONDS = 3  # in which an answer that has begun comes to its end
GOODBYE_SECONDS = 3.0  # in which the keeper ends everything on its own, before it is killed itself
GONE_SECONDS = 15.0  # in which killed processes are gone; a hundred of them take some seconds on a busy machine
LOG_TAIL_BYTES = 2000
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LavaRuntimeError(RuntimeError):
    """The Lava runtime failed. The message holds the real traceback of the ProcessModel that raised, if one did."""


class LavaTimeoutError(LavaRuntimeError):
    """The Lava runtime did not go on within its deadline."""


class SupervisedProgram:
    """A network in the real Lava runtime, in processes below this one.

    start_seconds the deadline for building the network
    step_seconds  the deadline for each step of a run, and for the answer after the last: a run of n steps takes
                  (n + 1) * step_seconds at most. Time in which this process itself stands still does not count

    Raises `ResourceError` where the machine has too little for it, LavaRuntimeError and LavaTimeoutError where
    the runtime fails; after any of them everything is cleaned up, and the program is closed.
    """

    def __init__(
        self,
        plan: Plan,
        groups: tuple[Group, ...],
        layout: RecordLayout,
        feed: StepFile,
        records: StepFile,
        models: Mapping[str, str] | None,
        start_seconds: float,
        step_seconds: float,
    ) -> None:
        file_descriptors = check_resources(plan, groups, layout)
        self._feed, self._step_seconds = feed, step_seconds
        with contextlib.ExitStack() as undo:
            with shortages_explained(), interrupts_held():
                job = Job(plan, groups, layout, feed.fd, records.fd, models, file_descriptors)
                self._keeper, self._control, self._log_fd = _start_keeper(job)
                # also runs when this object is collected and at the end of the interpreter
                self._finalizer = weakref.finalize(
                    self, _shut_down, os.getpid(), self._keeper, self._control, self._log_fd
                )
                undo.callback(self.close)
            self._answer(Ready, start_seconds)
            undo.pop_all()

    @property
    def pid(self) -> int:
        """Of the keeper, which is also the id of the process group and session of all that runs."""
        return self._keeper.pid

    def run(self, steps: int) -> None:
        """Advance the network by `steps`."""
        self._answer(Done, self._step_seconds, steps)

    def close(self) -> None:
        """End the runtime and everything it made. May be called twice."""
        with interrupts_held():
            self._finalizer()

    def _answer(self, expected: type, seconds: float, steps: int | None = None) -> None:
        """Ask for `steps`, if any, and wait for the answer; close on anything else, a KeyboardInterrupt too."""
        if not self._finalizer.alive:
            raise LavaRuntimeError("the Lava runtime was closed")
        try:
            answer = self._exchange(steps, expected, seconds)
            if isinstance(answer, Failed):
                raise LavaRuntimeError(f"Lava: '{answer.process}' failed: {answer.cause}")
            if not isinstance(answer, expected):
                raise LavaRuntimeError(f"Lava's runtime answered {answer!r}, {expected.__name__} was expected")
        except BaseException:
            self.close()
            raise

    def _exchange(self, steps: int | None, expected: type, seconds: float) -> object:
        try:
            if steps is not None:
                with contextlib.suppress(ConnectionError):  # the other end is closed; its last words may be there
                    self._control.send(steps)  # never waits: so small, and answered before the next
            if not self._wait_for_answer(seconds):
                what = "start" if expected is Ready else f"get beyond time_step {self._feed.reached}"
                raise LavaTimeoutError(
                    f"Lava did not {what} within {seconds:g} s and was ended; raise the deadline if it needs longer."
                    f"{self._log_tail()}"
                )
            return self._control.recv()
        except BlockingIOError:
            raise LavaTimeoutError(
                f"Lava's runtime stood still in the midst of a message and was ended.{self._log_tail()}"
            ) from None
        except (EOFError, ConnectionError):
            raise LavaRuntimeError(f"Lava's runtime died: {self._end()}.{self._log_tail()}") from None

    def _wait_for_answer(self, seconds: float) -> bool:
        """Whether an answer came; the deadline begins anew with each step that the network reaches."""
        look, waited, reached = min(LOOK_SECONDS, seconds), 0.0, self._feed.reached
        while not self._control.poll(look):
            waited += look
            if self._feed.reached != reached:
                waited, reached = 0.0, self._feed.reached
            if waited >= seconds:
                return False
        return True

    def _end(self) -> str:
        """How the keeper ended, which has let go of the socket."""
        end = _wait_without_reaping(self.pid, GOODBYE_SECONDS)
        if end is None:
            return "it let go of its owner"
        if end.si_code != os.CLD_EXITED:
            return f"its keeper was killed by {signal_text(end.si_status)}"
        if end.si_status > KILLED:
            return f"it was killed by {signal_text(end.si_status - KILLED)}"
        return f"it ended with exit code {end.si_status}"

    def _log_tail(self) -> str:
        """The last that Lava printed, for an error message."""
        size = os.fstat(self._log_fd).st_size
        text = os.pread(self._log_fd, LOG_TAIL_BYTES, max(0, size - LOG_TAIL_BYTES)).decode(errors="replace").strip()
        return f" It last printed:\n{text}" if text else ""


def _start_keeper(job: Job) -> tuple[subprocess.Popen, Connection, int]:
    """The keeper, our end of the socket to what it keeps, and the descriptor of what all of them print.

    The job waits in a file in memory, whole before there is anyone to read it: through the socket a keeper that
    stands still would hold us up in the midst of it.
    """
    with contextlib.ExitStack() as undo:
        ours, theirs = socket.socketpair()
        with theirs, os.fdopen(os.memfd_create("spikebert-lava-job", os.MFD_CLOEXEC), "wb") as job_file:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", ANSWER_SECONDS, 0))
            control = Connection(ours.detach())
            undo.callback(control.close)
            pickle.dump(job, job_file, pickle.HIGHEST_PROTOCOL)
            job_file.flush()
            log_fd = os.memfd_create("spikebert-lava-log", os.MFD_CLOEXEC)
            undo.callback(os.close, log_fd)
            arguments = f"{theirs.fileno()}, {job_file.fileno()}, {os.getpid()}"
            # our own import path, whatever the working directory holds
            command = f"import sys; sys.path[:] = {sys.path!r}; from targets.lava.keeper import main; main({arguments})"
            keeper = subprocess.Popen(
                [sys.executable, "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                pass_fds=(theirs.fileno(), job_file.fileno(), job.feed_fd, job.record_fd),
                env={**os.environ, **ONE_THREAD},
                start_new_session=True,
            )
        undo.pop_all()
        return keeper, control, log_fd


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C, and other signals for which this process has a handler of its own, wait until the end of the block.

    So that nothing is half started or half cleaned up. By handlers and not by a mask: with a mask a thread of some
    library would take the signal, and Python's handler would run here all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread alone
        return
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in INTERRUPTS if callable(signal.getsignal(number))}
    try:
        for number in handlers:
            signal.signal(number, lambda number, _frame: came.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in dict.fromkeys(came):
            signal.raise_signal(late)


def _shut_down(owner_pid: int, keeper: subprocess.Popen, control: Connection, log_fd: int) -> None:
    """Let the keeper end everything, make sure it has, and remove what may be left."""
    if os.getpid() != owner_pid:
        return  # a fork of the owner must not end what is the owner's
    with interrupts_held():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(control.fileno())) as ours:
            ours.shutdown(socket.SHUT_RDWR)  # a close would not reach the keeper where the owner has forked
        control.close()
        end = _wait_without_reaping(keeper.pid, GOODBYE_SECONDS)  # unreaped, its id cannot be another's
        if end is None or end.si_code != os.CLD_EXITED:  # else it has ended and reaped all the others before itself
            _kill_group(keeper.pid)
        keeper.poll()
        _reap_group(keeper.pid)
        os.close(log_fd)


def _kill_group(group: int) -> None:
    """Kill all processes of a group, which is a session too, and wait until they are gone."""
    with contextlib.suppress(ProcessLookupError):  # all of them have ended
        os.killpg(group, signal.SIGKILL)
    deadline = time.monotonic() + GONE_SECONDS
    while session_members(group) and time.monotonic() < deadline:
        time.sleep(0.01)


def _wait_without_reaping(pid: int, seconds: float) -> os.waitid_result | None:
    """How a child ended, or None where it has not within so long, or somebody else has reaped it."""
    deadline = time.monotonic() + seconds
    end = None
    with contextlib.suppress(ChildProcessError):
        while end is None and time.monotonic() < deadline:
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if end is None:
                time.sleep(0.005)
    return end


def _reap_group(group: int) -> None:
    """Reap the dead of the group that are our children: where this is process 1, all orphans come here. A process shows
    as dead a moment before it can be reaped, while others of its threads still end."""
    deadline = time.monotonic() + GONE_SECONDS
    with contextlib.suppress(ChildProcessError):  # none is left
        while time.monotonic() < deadline:
            if os.waitpid(-group, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
