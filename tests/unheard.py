"""A node of a kind that nobody knows: rules must pass over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, eq=False)
class Unheard:
    """Smuggled into a Graph after it was checked."""

    op: ClassVar[str] = "unheard"
    name: str
    inputs: tuple[str, ...]
