"""Compiling a function with numba. It needs no torch: the fast engine uses it too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(**options: Any) -> Callable[[Callable], Callable]:
    """A decorator like `numba.njit(**options)`, with what it compiled kept on disk.

    Where no folder for that can be written (a read-only installation and home), each process compiles for itself.
    """

    def decorate(function: Callable) -> Callable:
        try:
            return njit(cache=True, error_model="numpy", **options)(function)
        except RuntimeError:  # numba's "no locator available"
            return njit(error_model="numpy", **options)(function)

    return decorate
