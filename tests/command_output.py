"""What a command printed, read as a user would."""

from __future__ import annotations

import pytest


def one_error(capfd: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error; nothing on standard output."""
    captured = capfd.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


def without_compiling(errors: str) -> str:
    """Standard error without the note that the fast engine is slow to open: on a busy machine it may come or not."""
    return "".join(line for line in errors.splitlines(keepends=True) if not line.startswith("fast engine: compiling"))
