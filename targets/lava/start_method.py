"""Lava's import, without what it does to the process that imports it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def start_method_kept() -> Iterator[None]:
    """Import Lava within this: multiprocessing's start method is afterwards what it was.

    On import Lava sets it to fork, which fails where a method is set already (a DataLoader does that) and would change
    it where none is.
    """
    method = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(None, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(method, force=True)
