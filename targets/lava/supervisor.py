"""Keeps the real Lava runtime in a child process, with a deadline, and cleans up after it whatever happens.

The child is the leader of its own session, so one `killpg` reaches everything Lava forks, and a Ctrl-C at the
terminal reaches only the parent, which then closes in order.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Mapping
from multiprocessing.connection import Connection

from targets.lava.child import Done, Failed, Job, Ready, remove_shared_memory
from targets.lava.lowering import Plan
from targets.lava.records import RecordLayout
from targets.lava.resources import check_resources
from targets.lava.stepfile import StepFile

GOODBYE_SECONDS = 10.0  # in which the child may end on its own before it is killed
LOG_TAIL_BYTES = 2000
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class LavaRuntimeError(RuntimeError):
    """The Lava runtime failed. The message holds the real traceback of the ProcessModel that raised, if one did."""


class LavaTimeoutError(LavaRuntimeError):
    """The Lava runtime did not answer within its deadline."""


class SupervisedProgram:
    """A network in the real Lava runtime, in a child process.

    start_seconds the deadline for building the network
    step_seconds  the deadline of a run is `steps * step_seconds`

    Raises `ResourceError` where the machine has too little for it, LavaRuntimeError and LavaTimeoutError where
    the runtime fails; after any of them everything is cleaned up, and the program is closed.
    """

    def __init__(
        self,
        plan: Plan,
        layout: RecordLayout,
        feed: StepFile,
        records: StepFile,
        models: Mapping[str, str],
        start_seconds: float,
        step_seconds: float,
    ) -> None:
        file_descriptors = check_resources(plan, layout)
        self._step_seconds = step_seconds
        prefix = f"psm_spikebert_{os.getpid()}_{secrets.token_hex(4)}_"
        ours, theirs = socket.socketpair()
        self._control = Connection(ours.detach())
        self._log_fd = os.memfd_create("spikebert-lava-log", os.MFD_CLOEXEC)
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-c", _child_command(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._log_fd,
                stderr=self._log_fd,
                pass_fds=(theirs.fileno(), feed.fd, records.fd),
                env={**os.environ, **ONE_THREAD},
                start_new_session=True,
            )
        # also runs when this object is collected and at the end of the interpreter
        self._finalizer = weakref.finalize(
            self, _shut_down, os.getpid(), self._child, self._control, prefix, self._log_fd
        )
        job = Job(plan, layout, feed.fd, records.fd, models, prefix, file_descriptors)
        self._call(job, Ready, start_seconds)

    @property
    def pid(self) -> int:
        """Of the child, which is also the id of its process group and session."""
        return self._child.pid

    def run(self, steps: int) -> None:
        """Advance the network by `steps`."""
        self._call(steps, Done, steps * self._step_seconds)

    def close(self) -> None:
        """End the child and everything it made. May be called twice."""
        self._finalizer()

    def _call(self, message: object, expected: type, seconds: float) -> None:
        """Send, and wait for the answer; close on anything else, a KeyboardInterrupt too."""
        if not self._finalizer.alive:
            raise LavaRuntimeError("the Lava runtime was closed")
        try:
            answer = self._exchange(message, seconds)
            if isinstance(answer, Failed):
                raise LavaRuntimeError(f"Lava: '{answer.process}' failed: {answer.cause}")
            if not isinstance(answer, expected):
                raise LavaRuntimeError(f"Lava's child answered {answer!r}, {expected.__name__} was expected")
        except BaseException:
            self.close()
            raise

    def _exchange(self, message: object, seconds: float) -> object:
        try:
            self._control.send(message)
            if not self._control.poll(seconds):
                raise LavaTimeoutError(
                    f"Lava did not answer within {seconds:g} s and was ended; raise the deadline if it needs longer."
                    f"{self._log_tail()}"
                )
            return self._control.recv()
        except (EOFError, ConnectionError):
            raise LavaRuntimeError(f"the child process that holds the Lava runtime died.{self._log_tail()}") from None

    def _log_tail(self) -> str:
        """The last that Lava printed, for an error message."""
        size = os.fstat(self._log_fd).st_size
        text = os.pread(self._log_fd, LOG_TAIL_BYTES, max(0, size - LOG_TAIL_BYTES)).decode(errors="replace").strip()
        return f" It last printed:\n{text}" if text else ""


def _child_command(control_fd: int) -> str:
    """Python for the child: our own import path, whatever the working directory holds."""
    return f"import sys; sys.path[:] = {sys.path!r}; from targets.lava.child import main; main({control_fd})"


def _shut_down(owner_pid: int, child: subprocess.Popen, control: Connection, prefix: str, log_fd: int) -> None:
    """Let the child end, make sure it has, and remove what it may have left."""
    if os.getpid() != owner_pid:
        return  # a fork of the owner must not end the owner's child
    control.close()
    try:
        child.wait(GOODBYE_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:  # also where a second Ctrl-C comes while waiting
        _kill_group(child.pid)
        child.wait()
        remove_shared_memory(prefix)
        os.close(log_fd)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # all of them have ended
        os.killpg(group, signal.SIGKILL)
