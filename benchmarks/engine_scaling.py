"""Does time go with synaptic operations? Time per sentence against firing rate, N, D, depth and T, as a picture.

    python -m benchmarks.engine_scaling --out docs/img/engine_scaling.png

Each panel changes one of the five and keeps the others. Beside the measured time stands what it would be if every
synaptic operation took as long as in the base network.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import matplotlib

from benchmarks.networks import full_batch, random_network
from benchmarks.timing import Usage, machine, side_by_side, table
from sim.fast.engine import FastEngine

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

HEAD_SIZE = 64


@dataclass(frozen=True)
class Shape:
    """A network and its sentences. `rate` is the firing rate in per cent."""

    rate: float = 10
    tokens: int = 32
    hidden: int = 256
    depth: int = 2
    timesteps: int = 4


@dataclass(frozen=True)
class Point:
    """What was measured: milliseconds and synaptic operations for each sentence."""

    value: float
    milliseconds: float
    operations: float


AXES = {  # field of Shape -> label, values
    "rate": ("firing rate, %", (1, 2, 5, 10, 20, 30)),
    "tokens": ("N, tokens", (8, 16, 32, 64, 128)),
    "hidden": ("D, features of a token", (64, 128, 256, 384, 512)),
    "depth": ("depth, blocks", (1, 2, 4, 6)),
    "timesteps": ("T, timesteps", (1, 2, 4, 8, 16)),
}


def measure(base: Shape, name: str, values: Sequence[float], samples: int, seconds: float) -> list[Point]:
    """The base network with one field changed to each of the values. All take turns."""
    work, operations = {}, []
    with ExitStack() as stack:
        for value in values:
            shape = replace(base, **{name: value})
            heads = max(1, shape.hidden // HEAD_SIZE)
            graph = random_network(
                shape.depth, shape.hidden, heads, shape.tokens, shape.timesteps, firing_rate=shape.rate / 100
            )
            batch, engine = full_batch(graph, samples), FastEngine(graph)
            stack.callback(engine.close)
            operations.append(engine.run(batch).activity.total.synaptic_operations / samples)
            work[str(value)] = [partial(engine.run, batch)]
        taken = side_by_side(work, seconds)
    return [Point(value, 1000 * taken[str(value)][0] / samples, counted) for value, counted in zip(values, operations)]


def scaled(points: Sequence[Point], base: float) -> list[float]:
    """The time each point would take if its operations took as long as those of the base network."""
    anchor = next(point for point in points if point.value == base)
    return [point.operations * anchor.milliseconds / anchor.operations for point in points]


def draw(panels: dict[str, list[Point]], base: Shape, out: Path) -> None:
    """Five panels, and the legend in place of a sixth."""
    figure, grid = pyplot.subplots(2, 3, figsize=(11, 6.4), layout="constrained")
    for axes, (name, points) in zip(grid.flat, panels.items()):
        values = [point.value for point in points]
        axes.plot(values, [point.milliseconds for point in points], "o-", color="C0", label="measured")
        expected = scaled(points, getattr(base, name))
        axes.plot(
            values, expected, "s--", color="C1", label="as synaptic operations grow\n(scaled to the base network)"
        )
        axes.set_xlabel(AXES[name][0], fontsize=12)
        axes.set_ylabel("ms a sentence", fontsize=12)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=11)
        axes.grid(alpha=0.3)
    _legend(grid.flat[-1], grid.flat[0], base)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def _legend(place: Axes, panel: Axes, base: Shape) -> None:
    place.axis("off")
    place.legend(*panel.get_legend_handles_labels(), loc="upper center", fontsize=12, frameon=False)
    others = f"{base.depth} x {base.hidden}, N = {base.tokens}, T = {base.timesteps},\nfiring rate {base.rate:g} %"
    place.text(
        0.5, 0.3, f"base network, one thing\nchanged in each panel:\n{others}", ha="center", va="center", fontsize=12
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--samples", type=int, default=64, help="sentences of a batch")
    parser.add_argument("--seconds", type=float, default=5, help="for each point")
    arguments = parser.parse_args(argv)
    start, base = Usage.now(), Shape()
    panels = {
        name: measure(base, name, values, arguments.samples, arguments.seconds) for name, (_, values) in AXES.items()
    }
    for name, points in panels.items():
        rows = [
            [
                f"{point.value:g}",
                f"{point.milliseconds:.3f}",
                f"{point.operations / 1e6:,.2f}",
                f"{1e9 * point.milliseconds / point.operations:.1f}",
            ]
            for point in points
        ]
        print(table([AXES[name][0], "ms a sentence", "10^6 operations", "ps an operation"], rows), end="\n\n")
    draw(panels, base, arguments.out)
    print(f"{machine(start)}\nwrote {arguments.out}")


if __name__ == "__main__":
    main()
