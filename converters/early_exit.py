"""Early exit: a sample stops once its class is certain, and costs nothing from then on.

What happens at a timestep does not depend on how many follow. So a sample that stops after `t` timesteps is, in every
spike, that sample in the same network of `t` timesteps, and its logits are the reference's after `t`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from converters.execution import Execution, TokenBatch
from converters.graph import Graph
from converters.readout import unit_of

MARGIN_MAX = 2**17  # two currents differ by 131,070 at most


@dataclass(frozen=True)
class EarlyExit:
    """When a sample stops.

    After a timestep t at which it is asked, a sample of `n` real tokens stops if

        logits[best] - logits[second] >= margin * unit * n

    where `logits` are those it has then, the second is the largest but one, and `unit` what a current of 1 brings in t
    timesteps (`converters.readout.unit_of`): of a sum t. So `margin` is how far the mean current of the best class is
    ahead, in the readout's accumulator units; times the readout's `scale` it is the lead of the logits that a person is
    told. A sample that never stops runs all T timesteps.

    margin int, 0 (stop at the first time it is asked) .. MARGIN_MAX
    after  the timesteps, from 1, after which it is asked, rising; None for all. T itself says nothing: all end there
    """

    margin: int
    after: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= MARGIN_MAX:
            raise ValueError(f"the margin is {self.margin:,} accumulator units, it must be 0 .. {MARGIN_MAX:,}")
        if self.after is not None and (not self.after or sorted(set(self.after)) != list(self.after)):
            raise ValueError(f"timesteps to stop after must be given, each once, rising, not {self.after}")

    @classmethod
    def of_logits(cls, graph: Graph, lead: float, after: tuple[int, ...] | None = None) -> EarlyExit:
        """For a lead of the float logits, rounded up to whole accumulator units. Raises ValueError where it is none."""
        scale = Fraction(graph.readout.scale)
        most = float(MARGIN_MAX * scale)
        if not 0 <= lead <= most:
            raise ValueError(f"a lead of {lead:g} logits, it must be 0 .. {most:.3g}")
        return cls(math.ceil(Fraction(lead) / scale), after)

    def checks(self, graph: Graph) -> tuple[int, ...]:
        """The timesteps, 1 .. T - 1, after which it is asked. Raises ValueError where the graph has none such, or one
        class alone."""
        if graph.features[graph.output] < 2:
            raise ValueError("a network of one class has no second to be ahead of: it cannot stop early")
        if self.after is None:
            return tuple(range(1, graph.timesteps))
        if graph.timesteps == 1:
            raise ValueError("a network of one timestep cannot stop before it")
        if self.after[0] < 1 or self.after[-1] >= graph.timesteps:
            raise ValueError(
                f"stopping after timestep {self.after[0] if self.after[0] < 1 else self.after[-1]}: the network has "
                f"{graph.timesteps}, so it can be after 1 .. {graph.timesteps - 1}"
            )
        return self.after

    def certain(self, logits: np.ndarray, unit: int, tokens: np.ndarray) -> np.ndarray:
        """bool [B]: which samples stop, given their logits int64 [B, classes], `unit`, and real tokens int64 [B]."""
        second, best = np.partition(logits, -2, axis=-1)[..., -2:].T
        stops: np.ndarray = best - second >= self.margin * unit * tokens
        return stops


def shortened(graph: Graph, timesteps: int) -> Graph:
    """The same network with only its first timesteps."""
    source = graph.source
    if source.code is not None:
        source = replace(source, code=source.code[:timesteps])
    return replace(graph, timesteps=timesteps, nodes=(source, *graph.nodes[1:]))


def stops_of(graph: Graph, early_exit: EarlyExit, logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """After how many timesteps each sample stops: int64 [B], given `logits_over_time` [T, B, classes]."""
    stops = np.full(logits.shape[1], graph.timesteps, np.int64)
    for t in reversed(early_exit.checks(graph)):
        stops[early_exit.certain(logits[t - 1], unit_of(graph.readout, t), tokens)] = t
    return stops


def cut_values(values: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Values [T, B, N, D] with 0 at what was not run: a sample that stopped after t has values until timestep t - 1."""
    ran = np.arange(len(values))[:, None] < stops  # [T, B]
    return values * ran[..., None, None]


def stopped_early(
    graph: Graph, early_exit: EarlyExit, logits: np.ndarray, values: Mapping[str, np.ndarray], batch: TokenBatch
) -> Execution:
    """What stopping early gives, out of a run to the end: for engines that compute all timesteps at once.

    logits `logits_over_time` [T, B, classes]; values of the nodes observed [T, B, N, D]
    """
    stops = stops_of(graph, early_exit, logits, batch.mask.sum(1))
    cut = {name: cut_values(value, stops) for name, value in values.items()}
    return Execution(logits[stops - 1, np.arange(len(stops))], cut, timesteps=stops)
