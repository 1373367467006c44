"""What the host makes of the readout's currents: the logits at every timestep, and what they mean to a person."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from converters.early_exit import EarlyExit, cut_values, stops_of
from converters.execution import Execution, TokenBatch
from converters.graph import Graph


def logits_over_time(graph: Graph, current: np.ndarray) -> np.ndarray:
    """The logits int64 [T, B, classes] that a sample has after each timestep, the last ones those of the whole run.

    current int64 [T, B, N, classes], the value of the readout: at padding it is 0
    """
    summed: np.ndarray = current.sum(axis=2, dtype=np.int64).cumsum(axis=0)
    return summed


def float_logits(graph: Graph, logits: np.ndarray, timesteps: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """`logits * scale / (timesteps * tokens)`, float64 [..., classes]: what a person is told.

    logits    int64 [..., classes], after so many
    timesteps int64 [...], of samples of so many
    tokens    int64 [...]: real ones; a sample without any counts as one
    """
    made: np.ndarray = logits * graph.readout.scale / (timesteps * np.maximum(1, tokens))[..., None]
    return made


def stopped_early(
    graph: Graph, early_exit: EarlyExit, logits: np.ndarray, values: Mapping[str, np.ndarray], batch: TokenBatch
) -> Execution:
    """What stopping early gives, out of a run to the end: for engines that compute all timesteps at once.

    logits `logits_over_time` [T, B, classes]; values of the nodes observed [T, B, N, D]
    """
    stops = stops_of(graph, early_exit, logits, batch.mask.sum(1))
    cut = {name: cut_values(value, stops) for name, value in values.items()}
    return Execution(logits[stops - 1, np.arange(len(stops))], cut, timesteps=stops)
