"""What a step of training costs against T, N, D and depth, as a picture: ours beside plain SpikingJelly.

Each panel changes one of the four and keeps the others; all sentences have N tokens, so nobody pads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import matplotlib

from benchmarks.timing import side_by_side, table
from benchmarks.train_batches import Sentences
from benchmarks.train_ways import OURS, PLAIN, WAYS, Shape, Trainer, make_model, prepare_torch

matplotlib.use("Agg")
from matplotlib import pyplot

DRAWN = (OURS, "ours, float32", PLAIN)
BATCH = 16


@dataclass(frozen=True)
class Base:
    """A network and its sentences."""

    timesteps: int = 4
    tokens: int = 32
    width: int = 256
    depth: int = 2

    def shape(self) -> Shape:
        return Shape(self.depth, self.width, self.timesteps, self.tokens)


AXES = {  # field of Base -> label, values
    "timesteps": ("T, timesteps", (1, 2, 4, 8)),
    "tokens": ("N, tokens", (8, 16, 32, 64, 128)),
    "width": ("D, features of a token", (64, 128, 256, 512)),
    "depth": ("depth, blocks", (1, 2, 4, 6)),
}
Panel = dict[str, list[float]]  # way -> milliseconds a sentence, of each value


def measure(base: Base, name: str, values: Sequence[int], sentences: Sentences, seconds: float) -> Panel:
    """The base with one field changed to each of the values. The ways take turns at each."""
    device = prepare_torch()
    panel: Panel = {way: [] for way in DRAWN}
    for value in values:
        point = replace(base, **{name: value})
        [batch] = sentences.of_length(point.tokens, BATCH, 1)
        work = {}
        for way in DRAWN:
            model = make_model(WAYS[way], point.shape().config(sentences.vocabulary, sentences.classes))
            work[way] = [partial(Trainer(model, WAYS[way].mixed(), device).step, batch)]
        for way, [taken] in side_by_side(work, seconds).items():
            panel[way].append(1000 * taken / BATCH)
    return panel


def measure_all(sentences: Sentences, seconds: float, base: Base | None = None) -> dict[str, Panel]:
    """A panel for each of AXES. seconds: for each way and value."""
    base = base or Base()
    return {name: measure(base, name, values, sentences, seconds) for name, (_, values) in AXES.items()}


def report(panels: Mapping[str, Panel]) -> str:
    """A table of each panel, in milliseconds a sentence."""
    tables = []
    for name, panel in panels.items():
        label, values = AXES[name]
        columns = [f"{PLAIN} / {OURS}", *(f"{way}, ms a sentence" for way in DRAWN)]
        rows = [
            [str(value), f"{panel[PLAIN][i] / panel[OURS][i]:.2f}", *(f"{panel[way][i]:.2f}" for way in DRAWN)]
            for i, value in enumerate(values)
        ]
        tables.append(table([label, *columns], rows))
    return "\n\n".join(tables)


def draw(panels: Mapping[str, Panel], out: Path, base: Base | None = None) -> None:
    """Four panels in one PNG."""
    base = base or Base()
    figure, grid = pyplot.subplots(2, 2, figsize=(9, 6.8), layout="constrained")
    for axes, (name, panel) in zip(grid.flat, panels.items()):
        label, values = AXES[name]
        for way, style in zip(DRAWN, ("o-", "s-", "^--")):
            axes.plot(values, panel[way], style, label=way)
        axes.set_xlabel(label, fontsize=12)
        axes.set_ylabel("ms a sentence", fontsize=12)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=11)
        axes.grid(alpha=0.3)
    grid.flat[0].legend(fontsize=11)
    figure.suptitle(
        f"One step of training, batches of {BATCH}; {base.depth} x {base.width}, N = {base.tokens}, "
        f"T = {base.timesteps}, one thing changed in each panel",
        fontsize=12,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=90)
    pyplot.close(figure)
