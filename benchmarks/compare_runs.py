"""Finished runs of spikebert-train side by side, on their own validation sentences: what an option is worth.

    python -m benchmarks.compare_runs plain=runs/mr_base xnor=runs/mr_xnor
    python -m benchmarks.compare_runs plain=runs/a_1,runs/a_2,runs/a_3 xnor=runs/b_1,runs/b_2,runs/b_3     seeds
    python -m benchmarks.compare_runs ... --plot accuracy_by_operations.png

Each is NAME=RUN, or several runs of one recipe with other seeds; the first is what the others are compared with. All
must have the same validation sentences. The integer model is made a graph and run by the engine `fast`, so accuracy,
firing rate and operations are those of what a chip would run. Differences are paired by sentence.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.timing import table
from converters.from_torch import graph_from_model, load_integer_model, load_tokenizer
from converters.on_texts import OnTexts, run_on_texts
from converters.passes.balance_delays import balance_delays
from converters.schedule import LatencyTable
from spikebert.commands import UserError, note, output_kept_clean, run_command, write_output
from spikebert.data import LabelledTexts, read_split, tokenise
from spikebert.evaluation import Accuracy
from spikebert.recipe import Data

Z = 1.96  # of a 95 % interval


def read_run(folder: Path) -> dict[str, Any]:
    """`results.json`. Raises UserError where the run is not finished."""
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(f"{folder}: no results.json: not a finished run of spikebert-train")
    results: dict[str, Any] = json.loads(path.read_text())
    return results


def measure(folder: Path) -> tuple[OnTexts, LabelledTexts, int]:
    """A run on its validation sentences, these, and by how many steps its slowest node lags behind the source on Lava.

    Raises UserError where there is none, or no texts.
    """
    recipe = read_run(folder)["recipe"]
    graph = graph_from_model(load_integer_model(folder))
    texts = read_split(Data(**recipe["data"]), "validation")
    assert texts is not None  # only a test split may be missing
    tokenised = tokenise(load_tokenizer(folder / "integer"), texts.texts, graph.n_max, texts.labels)
    return run_on_texts(graph, tokenised), texts, balance_delays(graph, LatencyTable()).depth_steps


def difference(right: Sequence[np.ndarray], base: Sequence[np.ndarray]) -> tuple[float, float]:
    """By how much one is better than another, and half of its 95 % interval: paired by sentence, seeds averaged.

    right, base  of each seed bool [texts]

    The interval is that of the mean of the differences of the sentences (normal approximation); how far seeds lie apart
    is not in it.
    """
    differences = np.mean(right, axis=0) - np.mean(base, axis=0)
    return float(differences.mean()), Z * float(differences.std()) / sqrt(len(differences))


def accuracy_cell(accuracy: Accuracy) -> str:
    """With its 95 % interval."""
    return f"{accuracy.value:.1%} ({accuracy.low:.1%} .. {accuracy.high:.1%})"


def points_cell(right: Sequence[np.ndarray], base: Sequence[np.ndarray]) -> str:
    """`difference` in points, with its interval."""
    better, half = difference(right, base)
    return f"{100 * better:+.1f} ({100 * (better - half):+.1f} .. {100 * (better + half):+.1f})"


def right_and_against(runs: Sequence[OnTexts], base: Sequence[OnTexts]) -> list[str]:
    """Two cells: how much is right (of several seeds their mean, the worst and the best), and how many points more than
    in `base`; nothing against itself."""
    if len(runs) == 1:
        accuracy = accuracy_cell(runs[0].accuracy)
    else:
        values = [run.accuracy.value for run in runs]
        accuracy = f"{mean(values):.1%} ({len(values)} seeds, {min(values):.1%} .. {max(values):.1%})"
    compared = "" if runs[0] is base[0] else points_cell([run.right for run in runs], [run.right for run in base])
    return [accuracy, compared]


def row(name: str, runs: Sequence[OnTexts], base: Sequence[OnTexts], depth: int) -> list[str]:
    """A line of the table; of several seeds means."""
    return [
        name,
        *right_and_against(runs, base),
        f"{mean(run.firing_rate for run in runs):.1%}",
        f"{mean(run.operations_per_token for run in runs):,.0f}",
        f"{mean(run.of_dense for run in runs):.1%}",
        str(depth),
    ]


HEADER = (
    "", "validation", "against the first, points", "firing rate", "operations a token", "of dense (45nm)", "Lava steps",
)  # fmt: skip


def draw(found: dict[str, list[OnTexts]], to: Path) -> None:
    """Accuracy against operations per token, a point for each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, runs in found.items():
        for run in runs:
            own = run.accuracy
            x, y = run.operations_per_token, 100 * own.value
            # at 100 % the interval's end is a rounding below it
            below, above = max(0.0, y - 100 * own.low), max(0.0, 100 * own.high - y)
            axes.errorbar([x], [y], [[below], [above]], fmt="o", color="tab:blue", capsize=3)
            axes.annotate(
                f"{name}\n{run.of_dense:.0%} of dense", (x, y), textcoords="offset points", xytext=(7, 5), fontsize=8
            )
    axes.set_xscale("log")
    axes.set_xlabel("synaptic operations a token, all layers and timesteps")
    axes.set_ylabel("validation accuracy, integers, % (95 % intervals)")
    axes.margins(x=0.22)  # room for the names
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(lambda value, _: f"{value:,.0f}")
    axes.tick_params(axis="x", which="both", labelrotation=30)
    axes.grid(alpha=0.3, which="both")
    figure.savefig(to, dpi=120)


def split_argument(text: str) -> tuple[str, list[Path]]:
    """NAME=RUN[,RUN...]. Raises UserError for anything else."""
    name, equals, folders = text.partition("=")
    if not (name and equals and folders):
        raise UserError(f"'{text}': give NAME=RUN, or NAME=RUN,RUN,... for several seeds")
    return name, [Path(folder) for folder in folders.split(",")]


def compare(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN[,RUN...]")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="accuracy against operations")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    options = parser.parse_args(argv)
    named = dict(map(split_argument, options.runs))
    if len(named) < len(options.runs):
        raise UserError("two of the runs have one name: several seeds are NAME=RUN,RUN")
    found: dict[str, list[OnTexts]] = {}
    depths: dict[str, int] = {}
    first: LabelledTexts | None = None
    with output_kept_clean():
        for name, folders in named.items():
            for folder in folders:
                note(f"{name}: {folder} ...")
                measured, texts, depths[name] = measure(folder)
                first = first or texts
                if texts != first:
                    raise UserError(f"{folder}: its validation sentences are not those of the first run")
                found.setdefault(name, []).append(measured)
    base = next(iter(found.values()))
    write_output(table(HEADER, [row(name, runs, base, depths[name]) for name, runs in found.items()]))
    if options.plot:
        draw(found, options.plot)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(compare, argv)


if __name__ == "__main__":
    sys.exit(main())
