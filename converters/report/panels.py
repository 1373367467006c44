"""Cuts a graph into panels that a person can take in at once: what stands before the blocks, each block, what follows.

Blocks are told by their names: `blocks.3.up.lif` belongs to `blocks.3`. Blocks of one shape are drawn alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

NUMBERED = re.compile(r"\d+|(block|layer)s?_?\d+")  # the part of a name that ends the name of a block


class Named(Protocol):
    """Whatever is told of a node."""

    @property
    def name(self) -> str: ...


Node = TypeVar("Node", bound=Named)


@dataclass(frozen=True)
class Panel(Generic[Node]):
    """Nodes that are shown together.

    title the name of the block; "" for nodes that are in none
    nodes in graph order
    """

    title: str
    nodes: tuple[Node, ...]

    def local_name(self, name: str) -> str:
        """A node's name without that of the block."""
        return name.removeprefix(f"{self.title}.") if self.title else name


def block_of(name: str) -> str:
    """`blocks.3` of `blocks.3.up`, `block3` of `block3.up`; "" of a name that is in no block."""
    parts = name.split(".")
    for place in range(len(parts) - 1):
        if NUMBERED.fullmatch(parts[place]):
            return ".".join(parts[: place + 1])
    return ""


def cut_into_panels(nodes: Sequence[Node]) -> tuple[Panel[Node], ...]:
    """The nodes of each block together, at the place of its first; other nodes in runs between the blocks."""
    panels: list[tuple[str, list[Node]]] = []
    blocks: dict[str, list[Node]] = {}
    for node in nodes:
        title = block_of(node.name)
        if title in blocks:
            blocks[title].append(node)
        elif not title and panels and not panels[-1][0]:
            panels[-1][1].append(node)
        else:
            panels.append((title, [node]))
            if title:
                blocks[title] = panels[-1][1]
    return tuple(Panel(title, tuple(members)) for title, members in panels)
