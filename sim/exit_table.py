"""Which margin to stop at: what an early exit would do to texts whose logits are known after every timestep.

One run to the end tells it for all margins: a sample that stops after t has the logits it has then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converters.early_exit import EarlyExit, stops_of
from converters.graph import Graph
from sim.rows import Row
from sim.shards import ShardResult

MARGINS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)  # logits


@dataclass(eq=False)
class Margin:
    """One margin, and what became of the samples.

    logits     the lead that is asked for; None: nobody stops
    early_exit None: nobody stops
    stopped    int64 [T], samples that stopped after each timestep
    correct    labelled samples whose class is right; alike: samples that have the class they have after T
    """

    logits: float | None
    early_exit: EarlyExit | None
    stopped: np.ndarray
    correct: int = 0
    alike: int = 0

    @property
    def mean_timesteps(self) -> float:
        return int(self.stopped @ np.arange(1, len(self.stopped) + 1)) / int(self.stopped.sum())


@dataclass(eq=False)
class ExitTable:
    """Grows with every shard.

    margins  by rising lead, the last one that of nobody
    samples  so far; `labelled` of them have a class
    """

    graph: Graph
    margins: Sequence[Margin]
    samples: int = 0
    labelled: int = 0

    def add(self, rows: Sequence[Row], result: ShardResult) -> None:
        """The samples of a shard that was run with `Job.over_time`."""
        logits = result.over_time
        assert logits is not None
        labels = np.array([-1 if row.label is None else row.label for row in rows])
        everyone, last = np.arange(len(rows)), logits[-1].argmax(1)
        self.samples += len(rows)
        self.labelled += int((labels >= 0).sum())
        for margin in self.margins:
            stops = np.full(len(rows), self.graph.timesteps)
            if margin.early_exit is not None:
                stops = stops_of(self.graph, margin.early_exit, logits, result.real_tokens)
            classes = logits[stops - 1, everyone].argmax(1)
            margin.stopped += np.bincount(stops - 1, minlength=self.graph.timesteps)
            margin.correct += int((classes == labels).sum())
            margin.alike += int((classes == last).sum())

    def to_json(self) -> list[dict[str, object]]:
        return [
            {
                "margin": margin.logits,
                "margin_units": margin.early_exit and margin.early_exit.margin,
                "accuracy": margin.correct / self.labelled if self.labelled else None,
                "class_as_after_all": margin.alike / self.samples,
                "mean_timesteps": margin.mean_timesteps,
                "stopped_after": {str(t): count for t, count in enumerate(margin.stopped.tolist(), start=1)},
            }
            for margin in self.margins
        ]


def exit_table(graph: Graph, leads: Sequence[float], after: tuple[int, ...] | None) -> ExitTable:
    """An empty table. Raises ValueError for a lead or a timestep that is none of this graph's, or where T is 1."""
    if graph.timesteps == 1:
        raise ValueError("the network has 1 timestep: there is nothing to stop before")

    def row(lead: float | None, early_exit: EarlyExit | None) -> Margin:
        if early_exit is not None:
            early_exit.checks(graph)
        return Margin(lead, early_exit, np.zeros(graph.timesteps, np.int64))

    rows = [row(lead, EarlyExit.of_logits(graph, lead, after)) for lead in sorted(set(leads))]
    return ExitTable(graph, [*rows, row(None, None)])


def table_report(table: ExitTable) -> str:
    """Lines of text: a line for each margin."""
    steps = range(1, table.graph.timesteps + 1)
    head = f"{'margin':>8} {'units':>8} {'probability':>11} {'accuracy':>10} {'as after all':>12} {'timesteps':>10}   "
    lines = [head + "".join(f"{f'after {t}':>10}" for t in steps)]
    two = table.graph.features[table.graph.output] == 2
    for margin in table.margins:
        if margin.logits is None or margin.early_exit is None:
            asked = f"{'never':>8} {'':>8} {'':>11}"
        else:
            least = f"{1 / (1 + np.exp(-margin.logits)):.3f}" if two else ""
            asked = f"{margin.logits:>8g} {margin.early_exit.margin:>8,} {least:>11}"
        right = f"{100 * margin.correct / table.labelled:.2f} %" if table.labelled else ""
        alike = f"{100 * margin.alike / table.samples:.2f} %"
        shares = "".join(f"{100 * count / table.samples:>8.1f} %" for count in margin.stopped.tolist())
        lines.append(f"{asked} {right:>10} {alike:>12} {margin.mean_timesteps:>10.3f}   {shares}")
    return "\n".join([*lines, "", _what_it_says(table, two)])


def _what_it_says(table: ExitTable, two: bool) -> str:
    chance = ", which is at least this probability" if two else ""
    return (
        f"margin: a text stops when its best class leads the second by so many logits{chance}; units: the same in the "
        f"readout's. {table.samples:,} texts, {table.labelled:,} with a class. Choose on texts that are not the test's."
    )
