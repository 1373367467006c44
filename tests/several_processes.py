"""Starts one Python program as several processes that find each other, as `accelerate launch` does, and ends them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
SECONDS = 300  # until a test gives up: the machine may be busy


def environment(process: int, processes: int, port: int) -> dict[str, str]:
    """That of one process; one thread each, so that sums are made in the same order every time."""
    ours = {
        "RANK": process, "LOCAL_RANK": process, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": 1,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }  # fmt: skip
    alone = {"ACCELERATE_USE_CPU", "OMP_NUM_THREADS", "PYTHONPATH"}
    return dict(os.environ) | {name: str(value) for name, value in ours.items() if processes > 1 or name in alone}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Running:
    """One process, and the file that all it says goes to (a pipe that nobody reads would fill and stop it)."""

    process: subprocess.Popen
    log: IO[str]

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()


@contextmanager
def started(processes: int, *arguments: object) -> Iterator[list[Running]]:
    """`python ARGUMENTS` so many times over; what still runs at the end is killed (SIGKILL)."""
    port, command = free_port(), [sys.executable, *map(str, arguments)]
    running: list[Running] = []
    with ExitStack() as logs:
        try:
            for index in range(processes):
                log = logs.enter_context(tempfile.TemporaryFile("w+"))
                surroundings = environment(index, processes, port)
                process = subprocess.Popen(command, cwd=ROOT, env=surroundings, stdout=log, stderr=subprocess.STDOUT)
                running.append(Running(process, log))
            yield running
        finally:
            for one in running:
                one.process.kill()
                one.process.wait()


def wait_until(reached: Callable[[], bool], running: Sequence[Running]) -> None:
    """Raises AssertionError, with what they said, where a process ends before that or time is up."""
    deadline = time.monotonic() + SECONDS
    while not reached():
        if any(one.process.poll() is not None for one in running) or time.monotonic() > deadline:
            raise AssertionError(said(running))
        time.sleep(0.02)


def run_to_the_end(processes: int, *arguments: object) -> None:
    """Raises AssertionError, with what they said, where one does not end with 0 (the others would wait for it)."""
    with started(processes, *arguments) as running:
        deadline = time.monotonic() + SECONDS
        while any(one.process.poll() is None for one in running) and time.monotonic() < deadline:
            if any(one.process.poll() not in (None, 0) for one in running):
                break
            time.sleep(0.02)
        assert [one.process.poll() for one in running] == [0] * processes, said(running)


def said(running: Sequence[Running]) -> str:
    return "\n---\n".join(one.said() for one in running)
