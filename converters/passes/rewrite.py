"""What a pass is and what it promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from converters.graph import Graph
from converters.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Rewrite:
    """A graph that a pass made of another.

    summary   what was done, one line for a person
    origins   node of the new graph -> the features of the node of that name in the old graph that it still has, int64
              [D]. A node that is not named has all of them; one that the old graph lacks is new.
    added     node of the new graph -> how many features it has behind those, that the old one had not
    token_ids int64 [rows of the old table]: the new id of each token, -1 for one that is gone; None where ids stay
    schedule  when each value exists on a machine, from the pass that finds it
    """

    graph: Graph
    summary: str
    origins: Mapping[str, np.ndarray] = field(default_factory=dict)
    added: Mapping[str, int] = field(default_factory=dict)
    token_ids: np.ndarray | None = None
    schedule: Schedule | None = None


class Pass(Protocol):
    """A frozen dataclass whose fields are its options. Its docstring states the identity it uses.

    The promise: for every batch the logits are those of the old graph, and every value of a node that both graphs
    have is that of the old node, at the features that `Rewrite` names.
    """

    @property
    def name(self) -> str:
        """Verb first, as in the name of its file, with hyphens."""
        ...

    def rewrite(self, graph: Graph) -> Rewrite:
        """Raises GraphError where the graph is not what the pass needs, or proves not to be legal."""
        ...
