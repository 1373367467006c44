"""The process between the owner of a network and the Lava runtime: it ends everything below it, whoever dies.

    owner (the user's Python) ── keeper ── runtime (child.py) ── actors (Lava's processes)

It leads a session of its own and does nothing but look, ten times a second, whether the owner and the runtime are
there. It is small and never runs Lava's code, so it does not fail with it. Started by `supervisor.py`, never by hand.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

LOOK_MS = 100
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
KILLED = 128  # exit code of the keeper: this and the signal that killed the runtime, as shells have it


def main(control_fd: int, job_fd: int, owner_pid: int) -> NoReturn:
    """Start the runtime, wait for its end or the owner's, end everything else, and exit as the runtime did."""
    for number in (signal.SIGINT, signal.SIGCHLD):  # whatever the owner does with them
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans below come here, not to process 1, which may not reap
    keeper_pid = os.getpid()
    try:
        runtime = os.fork()
    except OSError as error:
        print(f"no process could be started for the runtime: {error}", flush=True)
        os._exit(1)
    if runtime == 0:
        _become_runtime(control_fd, job_fd, keeper_pid)
    os.close(job_fd)  # the runtime reads it
    code = _wait(runtime, control_fd, owner_pid)
    if code is None:
        os.kill(runtime, signal.SIGKILL)  # and the kernel kills its actors
    _end_descendants()
    os._exit(code or 0)


def _become_runtime(control_fd: int, job_fd: int, keeper_pid: int) -> NoReturn:
    die_with(keeper_pid)
    try:
        from targets.lava.child import main as run  # Lava and numpy only here

        run(control_fd, job_fd)
    except BaseException:  # else the fork would go on as a second keeper
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)


def _wait(runtime: int, control_fd: int, owner_pid: int) -> int | None:
    """The exit code of the runtime once it has ended; None once the owner has, or has shut down the socket."""
    hang_up = select.poll()
    hang_up.register(control_fd, 0)  # no events: only a hang-up wakes it, messages are the runtime's
    while not hang_up.poll(LOOK_MS) and os.getppid() == owner_pid:
        pid, status = os.waitpid(-1, os.WNOHANG)
        while pid != 0:
            if pid == runtime:
                return KILLED + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            pid, status = os.waitpid(-1, os.WNOHANG)
    return None


def _end_descendants() -> None:
    """Reap all processes below this one until none is left, and kill those that do not end with the runtime.

    Their orphans come here too, in whatever session they are.
    """
    with contextlib.suppress(ChildProcessError):  # none is left
        for look in itertools.count():
            while os.waitpid(-1, os.WNOHANG)[0] != 0:
                pass
            if look % 50 == 20:  # seldom, for it reads all of /proc
                for pid in set(_processes_with(parent=os.getpid(), session=os.getpid())) - {os.getpid()}:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends; at once where that has happened already.

    The parent must have forked it from a thread that lives as long: the kernel looks at that thread.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def session_members(session: int) -> list[int]:
    """Ids of the processes of a session that run, those that only wait to be reaped apart."""
    return _processes_with(session=session)


def _processes_with(parent: int | None = None, session: int | None = None) -> list[int]:
    """Ids of running processes of this parent, and of this session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, its_parent, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended just now
        if state not in "ZX" and (int(its_parent) == parent or int(its_session) == session):
            found.append(int(stat.parent.name))
    return found
