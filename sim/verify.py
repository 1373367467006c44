"""Comparing two executions of one graph, value by value: equal or not, never close."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from converters.execution import Execution
from converters.graph import Graph

LOGITS = "logits"  # the name under which a difference in the logits alone is reported
TIMESTEPS = "timesteps"  # and one in the timesteps after which a sample stopped (early exit)


@dataclass(frozen=True)
class Mismatch:
    """One value that differs. For the logits `timestep` and `token` are None and `feature` is the class; for the
    timesteps after which a sample stopped it is 0."""

    sample: int
    timestep: int | None
    node: str
    token: int | None
    feature: int
    expected: int
    got: int

    def __str__(self) -> str:
        if self.node == TIMESTEPS:
            return f"sample {self.sample} stopped after {self.got} timesteps, expected {self.expected}"
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


class Differences:
    """Collects what differs between two executions, one node after another, so that neither is ever held whole.

    first_sample  number of the first sample of the batch
    """

    def __init__(self, first_sample: int = 0) -> None:
        self.first_sample = first_sample
        self._compared = self._mismatches = 0
        self._firsts: list[Mismatch] = []  # of each node that differs

    def add(self, name: str, expected: np.ndarray, got: np.ndarray, stops: np.ndarray | None = None) -> None:
        """The values [T, B, N, D] of a node; nodes come in graph order, and after them `TIMESTEPS`, [B, 1], where
        samples may stop, and `LOGITS`, [B, classes].

        stops int64 [B], after how many timesteps each sample stopped. What comes after was not computed: it must be 0
              in both, but does not count as compared

        Raises ValueError where `got` has another shape, or holds no integers.
        """
        if name not in (LOGITS, TIMESTEPS):  # the sample first
            expected, got = expected.swapaxes(0, 1), got.swapaxes(0, 1)
        if expected.shape != got.shape:
            raise ValueError(f"'{name}': the engine gave shape {got.shape}, expected {expected.shape} (samples first)")
        if got.dtype.kind not in "biu":
            raise ValueError(f"'{name}': the engine gave {got.dtype}, expected integers")
        differs = expected != got
        timesteps_spared = 0 if stops is None else int((expected.shape[1] - stops).sum())
        self._compared += differs.size - timesteps_spared * math.prod(expected.shape[2:])
        self._mismatches += int(np.count_nonzero(differs))
        if differs.any():
            self._firsts.append(_first(name, expected, got, differs, self.first_sample))

    @property
    def comparison(self) -> Comparison:
        """Of all that was added."""
        first = min(self._firsts, key=_sample_and_timestep, default=None)
        return Comparison(self._compared, self._mismatches, first)


def compare(graph: Graph, expected: Execution, got: Execution, first_sample: int = 0) -> Comparison:
    """Compare the logits and every node that `expected` has values of. Padding is compared too.

    `first_sample` is the number of the first sample of this batch. Raises ValueError where `got` lacks a node, has
    another shape, or holds no integers.
    """
    differences = Differences(first_sample)
    for name in (node.name for node in graph if node.name in expected.values):
        if name not in got.values:
            raise ValueError(f"the engine gave no values of node '{name}'")
        differences.add(name, expected.values[name], got.values[name], expected.timesteps)
    if expected.timesteps is not None:
        if got.timesteps is None:
            raise ValueError("the engine does not say after how many timesteps samples stopped")
        differences.add(TIMESTEPS, expected.timesteps[:, None], got.timesteps[:, None])
    differences.add(LOGITS, expected.logits, got.logits)
    return differences.comparison


def _first(name: str, right: np.ndarray, given: np.ndarray, differs: np.ndarray, first_sample: int) -> Mismatch:
    """The first difference within one node, or within the logits."""
    index = np.unravel_index(int(differs.argmax()), differs.shape)
    numbers = int(right[index]), int(given[index])
    if name in (LOGITS, TIMESTEPS):
        sample, feature = map(int, index)
        return Mismatch(first_sample + sample, None, name, None, feature, *numbers)
    sample, timestep, token, feature = map(int, index)
    return Mismatch(first_sample + sample, timestep, name, token, feature, *numbers)


def _sample_and_timestep(mismatch: Mismatch) -> tuple[int, float]:
    """Orders the first differences of several nodes; of equal ones `min` keeps the first in graph order."""
    return mismatch.sample, math.inf if mismatch.timestep is None else mismatch.timestep
