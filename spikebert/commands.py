"""What the commands share: exit codes, errors a person can act on, and who may write to standard output.

Every command is a thin shell: `main(argv)` calls `run_command(body, argv)`, `body(argv)` does the work and
returns an exit code. This module needs only the standard library (`progress` loads `rich` when called), and
is one of the few modules of `spikebert` that every package may import.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

OK = 0
CHECK_FAILED = 1  # the check was made and failed, or the graph is illegal
WRONG_USE = 2  # bad arguments, bad input, or an extra that is not installed: the user can mend it
RUNTIME_FAILED = 3  # the machine or a runtime failed
INTERRUPTED = 130  # Ctrl-C, SIGTERM, or the reader of our output went away

# module -> the extra of this project that installs it; the longest name that fits counts
EXTRAS = {
    "torch": "train",
    "transformers": "train",
    "spikingjelly": "train",
    "accelerate": "train",
    "tensorboard": "train",
    "jsonargparse": "train",
    "docstring_parser": "train",
    "yaml": "train",
    "datasets": "hub",
    "lava": "lava",
    "nir": "nir",
    "sanafe": "sanafe",
    "pyarrow": "parquet",
    "dask": "dask",
    "distributed": "dask",
    "scipy": "mapping",
    "lava.lib.dl": "lava-dl",
}


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and how to mend it."""


class MissingExtra(UserError):
    """A library that an optional extra of this project installs is not there."""


class CheckFailed(Exception):
    """A check was made and did not hold, or a graph is illegal. The message says what was found."""


class _OutputClosed(Exception):
    """Nobody reads our standard output any more."""


def run_command(body: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run the body of a command and turn whatever happens into an exit code and one clear line.

    UserError, a missing extra -> 2; CheckFailed -> 1; KeyboardInterrupt, SIGTERM, a closed pipe -> 130; any other
    exception -> 3. With `--debug` among the arguments the traceback is printed too.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        with _sigterm_interrupts():
            return body(arguments)
    except SystemExit as stop:  # argparse: --help is 0, wrong arguments are 2
        return stop.code if isinstance(stop.code, int) else OK if stop.code is None else WRONG_USE
    except CheckFailed as error:
        return _fail(CHECK_FAILED, str(error), debug)
    except UserError as error:
        return _fail(WRONG_USE, str(error), debug)
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted", debug)
    except _OutputClosed:
        _discard_output()
        return INTERRUPTED
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "")
        if extra is None:
            return _fail(RUNTIME_FAILED, _describe(error), debug)
        return _fail(WRONG_USE, str(missing_extra(error.name or "")), debug)
    except Exception as error:  # the last line of defence: whatever a runtime throws
        return _fail(RUNTIME_FAILED, _describe(error), debug)


def extra_of(module: str) -> str | None:
    """The extra that installs `module` (dotted names too), or None if no extra does."""
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((EXTRAS[name] for name in names if name in EXTRAS), None)


def missing_extra(module: str) -> MissingExtra:
    """The error for a module of an extra that is not installed: names the extra and how to install it."""
    extra = extra_of(module)
    note = " (Lava needs Python 3.10)" if extra in ("lava", "lava-dl") and sys.version_info >= (3, 11) else ""
    return MissingExtra(f"'{module}' is not installed. Install it with: pip install 'spikebert[{extra}]'{note}")


def printable(text: str) -> str:
    """The same, with bytes of file names that are no UTF-8 spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def write_output(text: str) -> None:
    """Write `text` and a line break to standard output at once. A closed pipe ends the command quietly."""
    try:
        print(text.encode(sys.stdout.encoding or "utf-8", "backslashreplace").decode(sys.stdout.encoding or "utf-8"))
        sys.stdout.flush()
    except BrokenPipeError:
        raise _OutputClosed from None


def write_json(result: dict[str, object]) -> None:
    """Write the one JSON object of `--json` to standard output."""
    write_output(json.dumps(result, allow_nan=False))


def note(message: str) -> None:
    """Tell the user something beside the result, on standard error."""
    print(message, file=sys.stderr, flush=True)


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def output_kept_clean() -> Iterator[None]:
    """While this is open whatever libraries and child processes print goes to standard error.

    Both `sys.stdout` and file descriptor 1 are redirected, so C code and forked processes are covered.
    """
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@contextlib.contextmanager
def counted_progress(description: str, total: int) -> Iterator[Callable[[], None]]:
    """A function to call after each of `total` things: a bar with their rate and the time left, on a terminal only."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )

    class Rate(ProgressColumn):
        def render(self, task: Task) -> str:
            return f"{task.finished_speed or task.speed or 0:,.0f}/s"

    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """While this is open SIGTERM raises KeyboardInterrupt in this process, so that everything is closed."""
    owner = os.getpid()

    def interrupt(number: int, frame: object) -> NoReturn:
        if os.getpid() != owner:  # a forked child inherits the handler; for it SIGTERM keeps its usual meaning
            os._exit(128 + number)
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: signals are not ours
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _fail(code: int, message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    elif code == RUNTIME_FAILED:
        message += " (--debug prints the traceback)"
    with contextlib.suppress(BrokenPipeError):
        note(f"error: {message}" if code != INTERRUPTED else message)
    return code


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _discard_output() -> None:
    """Point standard output to nowhere, so that Python's own flush at exit finds no closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
