"""What the nodes of a graph did on some inputs, added up one sample after another, so that memory stays small."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converters.execution import Execution
from converters.graph import Graph


@dataclass(frozen=True, eq=False)
class Observed:
    """What one node did at real tokens; padding, where all is 0, is left out.

    low, high the least and the largest value
    sites     timesteps x real tokens: how often each feature was seen
    nonzero   int64 [D]: how often each feature was not 0; of a neuron, how often it fired
    """

    low: int
    high: int
    sites: int
    nonzero: np.ndarray

    def __add__(self, other: Observed) -> Observed:
        """Together with what the node did on other samples."""
        return Observed(
            min(self.low, other.low),
            max(self.high, other.high),
            self.sites + other.sites,
            self.nonzero + other.nonzero,
        )


@dataclass(frozen=True, eq=False)
class Observations:
    """What a network did on some inputs.

    samples, tokens how many; tokens are real ones, special tokens included
    nodes           node name -> what it did, of every node that was observed
    logit_low, logit_high the least and the largest integer logit
    """

    samples: int
    tokens: int
    nodes: dict[str, Observed]
    logit_low: int
    logit_high: int

    def __add__(self, other: Observations) -> Observations:
        """Together with what the same graph did on other samples."""
        return Observations(
            self.samples + other.samples,
            self.tokens + other.tokens,
            {name: self.nodes[name] + other.nodes[name] for name in self.nodes},
            min(self.logit_low, other.logit_low),
            max(self.logit_high, other.logit_high),
        )


def observe(graph: Graph, execution: Execution, mask: np.ndarray) -> Observations:
    """What happened in one batch: mask [B, N], and `execution` with the values of every node."""
    real = mask == 1
    return Observations(
        len(mask),
        int(real.sum()),
        {node.name: _observe_node(execution.values[node.name][:, real]) for node in graph},
        int(execution.logits.min()),
        int(execution.logits.max()),
    )


def _observe_node(values: np.ndarray) -> Observed:
    """values [T, real tokens, D]"""
    nonzero = np.count_nonzero(values, axis=(0, 1)).astype(np.int64)
    return Observed(int(values.min()), int(values.max()), values.shape[0] * values.shape[1], nonzero)
