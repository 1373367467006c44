"""Comparing two executions of one graph, value by value: equal or not, never close."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from converters.execution import Execution
from converters.graph import Graph

LOGITS = "logits"  # the name under which a difference in the logits alone is reported


@dataclass(frozen=True)
class Mismatch:
    """One value that differs. For the logits `timestep` and `token` are None and `feature` is the class."""

    sample: int
    timestep: int | None
    node: str
    token: int | None
    feature: int
    expected: int
    got: int

    def __str__(self) -> str:
        where = f"node '{self.node}', " + (
            f"class {self.feature}"
            if self.timestep is None
            else f"timestep {self.timestep}, token {self.token}, feature {self.feature}"
        )
        return f"sample {self.sample}, {where}: expected {self.expected}, got {self.got}"


@dataclass(frozen=True)
class Comparison:
    """How many values were compared, how many differ, and the first that does.

    First means: lowest sample, then timestep, then node in graph order, then token, then feature; the logits of
    a sample come after its nodes.
    """

    values_compared: int = 0
    mismatches: int = 0
    first_mismatch: Mismatch | None = None

    def __add__(self, later: Comparison) -> Comparison:
        """Together with the comparison of later samples."""
        return Comparison(
            self.values_compared + later.values_compared,
            self.mismatches + later.mismatches,
            self.first_mismatch or later.first_mismatch,
        )

    def to_json(self) -> dict[str, object]:
        first = None if self.first_mismatch is None else asdict(self.first_mismatch)
        return {"values_compared": self.values_compared, "mismatches": self.mismatches, "first_mismatch": first}


def compare(graph: Graph, expected: Execution, got: Execution, first_sample: int = 0) -> Comparison:
    """Compare the logits and every node that `expected` has values of. Padding is compared too.

    `first_sample` is the number of the first sample of this batch. Raises ValueError where `got` lacks a node, has
    another shape, or holds no integers.
    """
    compared = mismatches = 0
    firsts: list[Mismatch] = []  # of each node that differs, in graph order
    nodes = [node.name for node in graph if node.name in expected.values]
    for name in [*nodes, LOGITS]:
        right, given = _pair(expected, got, name)
        differs = right != given
        compared += right.size
        mismatches += int(np.count_nonzero(differs))
        if differs.any():
            firsts.append(_first(name, right, given, differs, first_sample))
    return Comparison(compared, mismatches, min(firsts, key=_sample_and_timestep, default=None))


def _pair(expected: Execution, got: Execution, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Both arrays of a node, or of the logits, with the sample first: [B, T, N, D], or [B, classes]."""
    if name == LOGITS:
        right, given = expected.logits, got.logits
    elif name in got.values:
        right, given = expected.values[name].swapaxes(0, 1), got.values[name].swapaxes(0, 1)
    else:
        raise ValueError(f"the engine gave no values of node '{name}'")
    if right.shape != given.shape:
        raise ValueError(f"'{name}': the engine gave shape {given.shape}, expected {right.shape} (samples first)")
    if given.dtype.kind not in "biu":
        raise ValueError(f"'{name}': the engine gave {given.dtype}, expected integers")
    return right, given


def _first(name: str, right: np.ndarray, given: np.ndarray, differs: np.ndarray, first_sample: int) -> Mismatch:
    """The first difference within one node, or within the logits."""
    index = np.unravel_index(int(differs.argmax()), differs.shape)
    numbers = int(right[index]), int(given[index])
    if name == LOGITS:
        sample, feature = map(int, index)
        return Mismatch(first_sample + sample, None, name, None, feature, *numbers)
    sample, timestep, token, feature = map(int, index)
    return Mismatch(first_sample + sample, timestep, name, token, feature, *numbers)


def _sample_and_timestep(mismatch: Mismatch) -> tuple[int, float]:
    """Orders the first differences of several nodes; of equal ones `min` keeps the first in graph order."""
    return mismatch.sample, math.inf if mismatch.timestep is None else mismatch.timestep
