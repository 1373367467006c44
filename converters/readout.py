"""What the host makes of the readout's currents: the logits at every timestep, and what they mean to a person."""

from __future__ import annotations

import numpy as np

from converters.encoder import decay
from converters.graph import SHIFT, Graph, Readout


def logits_over_time(graph: Graph, current: np.ndarray) -> np.ndarray:
    """The logits int64 [T, B, classes] that a sample has after each timestep, the last ones those of the whole run.

    current int64 [T, B, N, classes], the value of the readout: at padding it is 0
    """
    return integrate(graph.readout, current.sum(axis=2, dtype=np.int64), 0)


def logits_of(graph: Graph, current: np.ndarray) -> np.ndarray:
    """The logits int64 [B, classes] after the last timestep; `current` as of `logits_over_time`."""
    last: np.ndarray = logits_over_time(graph, current)[-1]
    return last


def integrate(node: Readout, current: np.ndarray, before: np.ndarray | int) -> np.ndarray:
    """The equation of `Readout`: int64 [T, ...], the current summed over tokens -> the logits after each timestep, from
    those that there were `before` [...]."""
    logits = np.empty_like(current)
    for t, a in enumerate(current):
        before = before + a if node.kind == "sum" else decay(np.asarray(before), node.dv) + (a << SHIFT)
        logits[t] = before
    return logits


def unit_of(node: Readout, timesteps: int) -> int:
    """What a current of 1 at every timestep brings to the logits after so many."""
    return int(integrate(node, np.ones(timesteps, np.int64), 0)[-1])


def float_logits(graph: Graph, logits: np.ndarray, timesteps: int, tokens: int) -> np.ndarray:
    """`logits * scale / (unit * tokens)`, float64 [classes]: what a person is told of a sample.

    logits    int64 [classes], after so many timesteps
    tokens    real ones; a sample without any counts as one
    """
    made: np.ndarray = logits * graph.readout.scale / (unit_of(graph.readout, timesteps) * max(1, tokens))
    return made
