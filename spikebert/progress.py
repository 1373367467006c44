"""Progress on standard error: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LINE_SECONDS = 30  # between lines where there is no terminal


def say(message: str) -> None:
    """One line on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(message, markup=False)


class Progress:
    """`with Progress("stage 1", total=steps) as progress: progress.advance(loss=...)`."""

    def __init__(self, title: str, total: int, done: int = 0, enabled: bool = True) -> None:
        self.title, self.total, self.done, self.enabled = title, total, done, enabled
        self.terminal = sys.stderr.isatty()
        self.last_line = time.monotonic()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        self.bar = RichProgress(
            *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), disable=not enabled
        )

    def __enter__(self) -> Progress:
        if self.enabled and self.terminal:
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=self.total, completed=self.done, loss="")
        return self

    def __exit__(self, *error: object) -> None:
        if self.enabled and self.terminal:
            self.bar.stop()

    def advance(self, loss: float) -> None:
        """One step more; `loss` is the mean so far."""
        self.done += 1
        if self.enabled and self.terminal:
            self.bar.update(self.task, advance=1, loss=f"loss {loss:.4f}")
        elif self.enabled and time.monotonic() - self.last_line > LINE_SECONDS:
            self.say(f"step {self.done} of {self.total}, loss {loss:.4f}")

    def say(self, message: str) -> None:
        """A line that stays, above the bar."""
        if self.enabled:
            self.last_line = time.monotonic()
            self.bar.console.print(f"{self.title}: {message}", markup=False, highlight=False, soft_wrap=True)
