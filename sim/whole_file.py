"""A file that a command writes: it appears whole or not at all, and errors name the flag that asked for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO

from spikebert.commands import UserError


def check_path(flag: str, path: Path, overwrite: bool) -> None:
    """Raises UserError where no file can be put at `path`."""
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder. Name a file")
    if path.exists() and not path.is_file():  # a device or a pipe: to replace it would take it away from all
        raise UserError(f"{flag} {path} is no regular file. Name one")
    if path.exists() and not overwrite:
        raise UserError(f"{flag} {path} exists. Give --overwrite to replace it, or another name")
    if not path.parent.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {path.parent}. Make it first")


@contextmanager
def whole_file(flag: str, path: Path) -> Iterator[BinaryIO]:
    """A file to write to. It appears at `path`, or where a link there leads, when the block ends well; until then it
    has another name, under which nothing is left behind. Raises UserError where it cannot be opened, ended or put in
    place.
    """
    place = path.resolve()
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        with ExitStack() as opened:
            with errors_name(flag, path):
                file = open(partial, "wb")  # noqa: SIM115 (closed by the stack)
            opened.callback(close_quietly, file)
            yield file
            with errors_name(flag, path):
                file.flush()
        with errors_name(flag, path):
            os.replace(partial, place)
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def errors_name(flag: str, path: Path) -> Iterator[None]:
    """While this is open an OSError becomes a UserError that names the file and the flag."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{flag} {path}: {error.strerror or error}. Check the rights and the space") from error


def close_quietly(file: IO[bytes]) -> None:
    """Close a file that is not needed. A disk that is full was told of when something was written or flushed."""
    with suppress(OSError):
        file.close()
