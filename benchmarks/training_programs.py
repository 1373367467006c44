"""Runs of spikebert-train side by side, each a program of its own, that end when who started them is stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType

from spikebert.commands import UserError


class TrainingPrograms:
    """`with TrainingPrograms(threads=1) as programs:`, and `programs.train(...)` from as many threads as shall train.

    threads  of each program, where OMP_NUM_THREADS does not say it

    An interrupt (Ctrl-C, SIGTERM) within it ends the programs that run, and no more are started.
    """

    def __init__(self, threads: int) -> None:
        self.environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped, self.lock = False, Lock()

    def __enter__(self) -> TrainingPrograms:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.stop()

    def train(self, folder: Path, flags: Sequence[str]) -> None:
        """Wait for `spikebert-train FLAGS --out FOLDER`; what it says goes to a file beside the folder.

        Raises UserError where it fails, or is stopped.
        """
        log = folder.with_name(folder.name + ".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "spikebert.train_command", *flags, "--out", str(folder)]
        with log.open("a") as said:
            with self.lock:
                if self.stopped:
                    raise UserError(f"{folder}: stopped")
                program = subprocess.Popen(command, env=self.environment, stdout=said, stderr=said)
                self.running.add(program)
            code = program.wait()
            with self.lock:
                self.running.discard(program)
        if code != 0:
            raise UserError(f"{folder}: spikebert-train ended with {code}; {log} says why")

    def stop(self) -> None:
        """End those that run, and start no more."""
        with self.lock:
            self.stopped = True
            for program in self.running:
                program.terminate()
