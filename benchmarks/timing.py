"""Timing rivals side by side, and saying on which machine.

Machines are noisy: other programs come and go, clocks rise and fall. So rivals take turns, each piece of work is
timed again and again, and the median counts.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path

from spikebert.commands import processors

Work = Callable[[], object]

TURNS = 5
SETTLE = (
    0.05  # seconds before a turn: threads of the one before (ONNX Runtime's, OpenMP's) wait for work in a busy loop
)
FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")  # of x86: vectors, and int8 products
LIBRARIES = ("numpy", "numba", "torch", "onnxruntime")


def side_by_side(rivals: Mapping[str, Sequence[Work]], seconds: float) -> dict[str, list[float]]:
    """The median seconds of each piece of work, for as many pieces, from the first on, as a rival gets done.

    Each rival works about `seconds`, in turns, going through its pieces over and over; the first piece runs once
    before, untimed. At least one piece is timed in each turn.
    """
    times: dict[str, list[list[float]]] = {name: [[] for _ in pieces] for name, pieces in rivals.items()}
    places = {name: cycle(range(len(pieces))) for name, pieces in rivals.items()}
    for pieces in rivals.values():
        pieces[0]()
    for _ in range(TURNS):
        for name, pieces in rivals.items():
            time.sleep(SETTLE)
            end = time.perf_counter() + seconds / TURNS
            while True:
                place = next(places[name])
                start = time.perf_counter()
                pieces[place]()
                now = time.perf_counter()
                times[name][place].append(now - start)
                if now >= end:
                    break
    return {name: [statistics.median(taken) for taken in of_pieces if taken] for name, of_pieces in times.items()}


@dataclass(frozen=True)
class Usage:
    """Seconds since some moment: of the clock, and of the processors, used by this program and by all programs."""

    clock: float
    own: float
    everybody: float | None  # None where the system does not tell

    @classmethod
    def now(cls) -> Usage:
        own = os.times()  # of the children those that have ended
        everybody = None
        if Path("/proc/stat").exists():
            user, nice, system, _, _, *others = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
            everybody = (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")
        return cls(time.perf_counter(), sum(own[:4]), everybody)

    def others_since(self) -> str:
        """How much other programs took of the machine since then. A run with many of them should be repeated."""
        now = Usage.now()
        if now.everybody is None or self.everybody is None:
            return "not known here what other programs took"
        others = (now.everybody - self.everybody) - (now.own - self.own)
        share = max(0.0, others) / ((now.clock - self.clock) * (os.cpu_count() or 1))
        return f"other programs took {share:.0%} of the machine meanwhile"


def machine(start: Usage) -> str:
    """Processor, cores, what it can, the versions that were measured, and how alone they were since `start`."""
    present = cpu_flags()
    flags = ", ".join(f"{flag} {'yes' if flag in present else 'no'}" for flag in FLAGS)
    model = _cpu_fields().get("model name", platform.processor() or platform.machine())
    libraries = ", ".join(f"{library} {version(library)}" for library in LIBRARIES if find_spec(library))
    return f"{model}, {processors()} cores for every row; {flags}\n{libraries}; {start.others_since()}"


def cpu_flags() -> list[str]:
    """What the processor can, by Linux's names; empty elsewhere."""
    return _cpu_fields().get("flags", "").split()


def _cpu_fields() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left and the others to the right, legible as it stands."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))]
        return f"| {' | '.join(padded)} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([line(header), f"|{rule}|", *map(line, rows)])
