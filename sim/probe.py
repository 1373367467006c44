"""Probes: nodes of a network that a person wants to look into, chosen by name, and what they did in a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

import numpy as np

from converters.graph import CURRENTS, Graph
from spikebert.commands import UserError

NAMED_MAX = 3  # nodes that an error names
CLOSE = 0.5  # how like a name must be, 0 .. 1


def choose_nodes(graph: Graph, patterns: Sequence[str]) -> tuple[str, ...]:
    """The nodes whose names match any of the patterns, each once, in graph order.

    `*` stands for any characters, dots too, `?` for one, `[ab]` for one of these. Raises UserError for a pattern that
    no node matches, with the names that are like it.
    """
    names = list(graph.features)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"--probe: no node is called '{pattern}'. {_hint(pattern, names)}")
    return tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def _hint(pattern: str, names: Sequence[str]) -> str:
    close = get_close_matches(pattern, names, NAMED_MAX, CLOSE)
    if close:
        return f"Did you mean {' or '.join(close)}? graph.json lists all"
    first = ", ".join(names[:NAMED_MAX])
    return f"There are {len(names)} nodes: {first}, ...; graph.json lists all"


@dataclass(frozen=True, eq=False)
class NodeSummary:
    """What one node did over some samples, at real tokens: padding is left out, and what comes after an early exit.

    sites   int64 [T], real tokens x features of the samples that ran each timestep: so many values
    low     the smallest value; None where there were none
    high    the largest
    total   the sum of all
    nonzero int64 [T], how many were not 0 at each timestep
    active  bool [D], the features that were not 0 at some time
    """

    sites: np.ndarray
    low: int | None
    high: int | None
    total: int
    nonzero: np.ndarray
    active: np.ndarray

    @property
    def rate(self) -> float | None:
        """The share of values that were not 0: of a neuron its firing rate. None where there were no values."""
        values = int(self.sites.sum())
        return int(self.nonzero.sum()) / values if values else None

    @property
    def mean(self) -> float | None:
        values = int(self.sites.sum())
        return self.total / values if values else None

    @property
    def silent(self) -> int:
        """How many features were never anything but 0."""
        return int(np.count_nonzero(~self.active))

    def __add__(self, other: NodeSummary) -> NodeSummary:
        """Of both sets of samples together."""
        return NodeSummary(
            self.sites + other.sites,
            min((low for low in (self.low, other.low) if low is not None), default=None),
            max((high for high in (self.high, other.high) if high is not None), default=None),
            self.total + other.total,
            self.nonzero + other.nonzero,
            self.active | other.active,
        )

    def to_json(self) -> dict[str, object]:
        return {
            "features": len(self.active),
            "silent_features": self.silent,
            "low": self.low,
            "high": self.high,
            "sum": self.total,
            "mean": self.mean,
            "rate": self.rate,
            "nonzero": int(self.nonzero.sum()),
            "nonzero_by_timestep": self.nonzero.tolist(),
        }


def summarise(values: np.ndarray, mask: np.ndarray, stops: np.ndarray | None = None) -> NodeSummary:
    """Values [T, B, N, D] of a node, mask [B, N], and where samples may stop, after how many timesteps each did [B]."""
    timesteps, width = len(values), values.shape[-1]
    ran = np.broadcast_to(mask.astype(bool), (timesteps, *mask.shape))  # [T, B, N]
    if stops is not None:
        ran = ran & (np.arange(timesteps)[:, None] < stops)[..., None]
    real = values[ran]  # [all that was run, D]
    counts = np.stack([np.count_nonzero(value[here], axis=0) for value, here in zip(values, ran)])  # [T, D]
    return NodeSummary(
        sites=ran.sum(axis=(1, 2)) * width,
        low=int(real.min()) if real.size else None,
        high=int(real.max()) if real.size else None,
        total=int(real.sum(dtype=np.int64)),
        nonzero=counts.sum(axis=1),
        active=counts.any(axis=0),
    )


def gives_currents(graph: Graph, name: str) -> bool:
    """Whether the values of a node are currents; else they are spikes, plain or graded."""
    return isinstance(graph[name], CURRENTS)
