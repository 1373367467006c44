"""Progress on standard error: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn, track
from rich.progress import Progress as RichProgress

LINE_SECONDS = 30  # between lines where there is no terminal
ASK_SECONDS = 2  # between questions to the machine

Part = TypeVar("Part")


def say(message: str) -> None:
    """One line on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(message, markup=False)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def counted(lines: Iterable[str], title: str) -> Iterator[str]:
    """The lines; now and then it is said how many went by: nobody knows how many there will be."""
    started = said = time.monotonic()
    for number, line in enumerate(lines, start=1):
        yield line
        if number % 1000 == 0 and (now := time.monotonic()) - said > LINE_SECONDS:
            said = now
            say(f"{title}: {number:,} lines, {number / (now - started):,.0f} a second")


def parts_done(parts: Sequence[Part], title: str) -> Iterator[Part]:
    """The parts of a long work, while it is told how many are done and how long the others will take."""
    console = Console(stderr=True)
    tell = telling(title, "parts")
    bar = track(parts, title, console=console, transient=True, disable=not console.is_terminal)
    for done, part in enumerate(bar):
        if not console.is_terminal:
            tell(done, len(parts))
        yield part


def telling(title: str, parts: str) -> Callable[[int, int], None]:
    """A function to call with how many of how many parts of a long work are done: now and then it says so, and how long
    the others will take."""
    started = said = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said
        if 0 < done < total and (now := time.monotonic()) - said > LINE_SECONDS:
            said = now
            left = (now - started) / done * (total - done)
            say(f"{title}: {done:,} of {total:,} {parts}, {duration(left)} left")

    return tell


class Progress:
    """`with Progress("stage 1", total=steps) as progress: progress.advance(loss, speed)`.

    machine  what else there is to tell, beginning with a comma, or nothing; asked now and then
    """

    def __init__(
        self, title: str, total: int, done: int = 0, enabled: bool = True, machine: Callable[[], str] = str
    ) -> None:
        self.title, self.total, self.done, self.enabled, self.machine = title, total, done, enabled, machine
        self.terminal = sys.stderr.isatty()
        self.started = self.last_line = time.monotonic()
        self.done_before = done
        self.machine_says, self.asked_at = "", -math.inf
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[news]}"),
        )
        self.bar = RichProgress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), disable=not enabled
        )

    def __enter__(self) -> Progress:
        if self.enabled and self.terminal:
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=self.total, completed=self.done, news="")
        return self

    def __exit__(self, *error: object) -> None:
        if self.enabled and self.terminal:
            self.bar.stop()

    @property
    def seconds_left(self) -> float:
        """If all goes on as since the start."""
        return (time.monotonic() - self.started) / max(self.done - self.done_before, 1) * (self.total - self.done)

    def advance(self, loss: float, speed: float) -> None:
        """One step more; `loss` is the mean so far, `speed` is in sentences per second."""
        self.done += 1
        if self.enabled and self.terminal:
            self.bar.update(self.task, advance=1, news=self._news(loss, speed))
        elif self.enabled and time.monotonic() - self.last_line > LINE_SECONDS:
            self.say(f"step {self.done} of {self.total}, {self._news(loss, speed)}, {duration(self.seconds_left)} left")

    def say(self, message: str) -> None:
        """A line that stays, above the bar."""
        if self.enabled:
            self.last_line = time.monotonic()
            self.bar.console.print(f"{self.title}: {message}", markup=False, highlight=False, soft_wrap=True)

    def _news(self, loss: float, speed: float) -> str:
        if time.monotonic() - self.asked_at >= ASK_SECONDS:
            self.machine_says, self.asked_at = self.machine(), time.monotonic()
        return f"loss {loss:.4f}, {speed:.0f} sentences/s{self.machine_says}"
