"""ProcessModels for Conv that fail in one step, each in another way; for tests of the supervisor.

Two variables of the environment tell more: LAVA_FAULT_STEP, the time_step (default 3), and LAVA_FAULT_FILE, where the
moment of the fault is written, in seconds of time.monotonic, which counts alike in all processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from targets.lava.processes.fast_synapses import FastConvModel


def tell_the_moment() -> None:
    """Of the first fault: others follow in other processes, and any of them may be killed in the midst of writing."""
    if path := os.environ.get("LAVA_FAULT_FILE"):
        own = Path(f"{path}.{os.getpid()}")
        own.write_text(str(time.monotonic()))
        with contextlib.suppress(FileExistsError):
            os.link(own, path)


class Faulty(FastConvModel):
    """Does `fault` before it sends in the faulty step."""

    def run_spk(self) -> None:
        if self.time_step == int(os.environ.get("LAVA_FAULT_STEP", "3")):
            tell_the_moment()
            self.fault()
        super().run_spk()

    def fault(self) -> None:
        raise NotImplementedError


class RaisesBeforeSending(Faulty):
    def fault(self) -> None:
        raise ArithmeticError("a fault put here by a test, before sending")


class RaisesAfterSending(FastConvModel):
    def run_spk(self) -> None:
        super().run_spk()
        if self.time_step == 3:
            raise ArithmeticError("a fault put here by a test, after sending")


class SlowToTell(ArithmeticError):
    """Takes its time for its text, so that Lava has ended other actors before this one's failure is known."""

    def __str__(self) -> str:
        time.sleep(0.5)
        return super().__str__()


class RaisesAndTellsLate(FastConvModel):
    def run_spk(self) -> None:
        super().run_spk()
        if self.time_step == 3:
            raise SlowToTell("a fault put here by a test, told late")


class RaisesWhenMade(FastConvModel):
    def __init__(self, proc_params: object) -> None:
        raise ArithmeticError("a fault put here by a test, while building")


class KillsItselfWhenMade(FastConvModel):
    def __init__(self, proc_params: object) -> None:
        tell_the_moment()
        os.kill(os.getpid(), signal.SIGKILL)


class HangsWhenMade(FastConvModel):
    def __init__(self, proc_params: object) -> None:
        time.sleep(600)


class Hangs(Faulty):
    def fault(self) -> None:
        time.sleep(600)


class Spins(Faulty):
    def fault(self) -> None:
        while True:
            pass


class StopsItself(Faulty):
    def fault(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)


class StopsTheRuntime(Faulty):
    def fault(self) -> None:
        os.kill(os.getppid(), signal.SIGSTOP)


class KillsItself(Faulty):
    def fault(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class KillsTheRuntime(Faulty):
    def fault(self) -> None:
        os.kill(os.getppid(), signal.SIGKILL)


class KillsTheKeeper(Faulty):
    def fault(self) -> None:
        os.kill(os.getsid(0), signal.SIGKILL)


class ExitsAtOnce(Faulty):
    def fault(self) -> None:
        os._exit(7)


class Segfaults(Faulty):
    def fault(self) -> None:
        ctypes.string_at(0)


class TouchesLostMemory(Faulty):
    """Memory of a file that has become shorter: SIGBUS, as where a file system has no page left."""

    def fault(self) -> None:
        with tempfile.TemporaryFile() as file:
            file.truncate(mmap.PAGESIZE)
            view = mmap.mmap(file.fileno(), mmap.PAGESIZE)
            file.truncate(0)
            view[0]


class OpensTooManyFiles(Faulty):
    def fault(self) -> None:
        self.files = []
        while True:
            self.files.append(os.open(os.devnull, os.O_RDONLY))


class TakesAllMemory(Faulty):
    def fault(self) -> None:
        self.taken = []
        while True:
            self.taken.append(np.ones(16 << 20, dtype=np.uint8))


class IsSlow(FastConvModel):
    def run_spk(self) -> None:
        time.sleep(0.1)
        super().run_spk()


class StartsADaemon(Faulty):
    """A process that leaves the session, and then one that fails."""

    def fault(self) -> None:
        if os.fork() == 0:
            os.setsid()
            time.sleep(600)
        raise ArithmeticError("a fault put here by a test, after a daemon was started")
