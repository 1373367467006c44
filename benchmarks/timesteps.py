"""How many timesteps does a bundle need? The same network run for fewer and for more than it was trained for.

    python -m benchmarks.timesteps mr=MR/validation.tsv sst2=SST2/validation.tsv --timesteps 1 2 3 4 8 --plot FILE.png

What happens at a timestep does not depend on how many follow, so nothing is trained or changed:
`spikebert-export --timesteps` writes such a bundle. Each argument is BUNDLE=TEXTS: a folder, a zip, or the name of a
bundle beside the recipes, and texts with labels. Differences are paired by text.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.compare_runs import right_and_against
from benchmarks.text_lengths import cut_texts, read_labelled
from benchmarks.timing import table
from converters.bundle import Bundle, read_bundle
from converters.graph import Graph
from converters.on_texts import OnTexts, run_on_texts
from sim.find_bundle import find_bundle
from spikebert.commands import UserError, note, run_command, write_output
from spikebert.data import LabelledTexts

TIMESTEPS = (1, 2, 3, 4, 6, 8)
HEADER = ("", "timesteps", "right", "against its own, points", "firing rate", "operations a token", "of dense (45nm)")


def with_timesteps(graph: Graph, timesteps: int) -> Graph:
    """The graph for another T. Raises UserError below 1, and beyond those of spike-coded positions."""
    source = graph.source
    if timesteps < 1:
        raise UserError(f"--timesteps {timesteps}: 1 is the least")
    if source.code is not None and timesteps > len(source.code):
        raise UserError(
            f"--timesteps {timesteps}: the bundle has spike-coded positions of {len(source.code)} timesteps"
        )
    code = None if source.code is None else source.code[:timesteps]
    return Graph(timesteps, graph.n_max, (replace(source, code=code), *graph.nodes[1:]))


def measure(bundle: Bundle, texts: LabelledTexts, timesteps: Sequence[int]) -> dict[int, OnTexts]:
    """By timesteps, its own among them, fewest first. Raises UserError as `with_timesteps` does."""
    graphs = {count: with_timesteps(bundle.graph, count) for count in sorted({bundle.graph.timesteps, *timesteps})}
    tokenised, _ = cut_texts(bundle, texts, bundle.graph.n_max)
    found = {}
    for count, graph in graphs.items():
        note(f"{bundle.place}: {count} timesteps ...")
        found[count] = run_on_texts(graph, tokenised)
    return found


def rows(name: str, found: Mapping[int, OnTexts], own: int) -> list[list[str]]:
    """Of the table; `own` timesteps are those of the bundle."""
    return [
        [
            name, str(count), *right_and_against([on], [found[own]]), f"{on.firing_rate:.1%}",
            f"{on.operations_per_token:,.0f}", f"{on.of_dense:.1%}",
        ]
        for count, on in found.items()
    ]  # fmt: skip


def draw(found: Sequence[tuple[str, Mapping[int, OnTexts]]], to: Path) -> None:
    """Accuracy by operations a token: a line for each bundle, a point for each number of timesteps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.4), layout="constrained")
    axes = figure.add_subplot()
    for name, by_timesteps in found:
        right = [100 * on.accuracy.value for on in by_timesteps.values()]
        operations = [on.operations_per_token for on in by_timesteps.values()]
        (line,) = axes.plot(operations, right, marker="o", markersize=4)
        name_at = {"xytext": (-8, -3), "ha": "right", "color": line.get_color()}
        axes.annotate(name, (operations[0], right[0]), textcoords="offset points", **name_at)
        for count, x, y in zip(by_timesteps, operations, right, strict=True):
            axes.annotate(str(count), (x, y), textcoords="offset points", xytext=(-2, 5), fontsize=7)
    axes.set_xscale("log")
    axes.margins(x=0.12)  # room for the names
    axes.set_xlabel("synaptic operations a token, all layers and timesteps (numbers: timesteps)")
    axes.set_ylabel("right, %")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(to, dpi=120)


def split_argument(text: str) -> tuple[str, Path]:
    """BUNDLE=TEXTS. Raises UserError for anything else."""
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise UserError(f"'{text}': give BUNDLE=TEXTS, such as mr=MR/validation.tsv")
    return name, Path(file)


def run(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE=TEXTS")
    parser.add_argument("--timesteps", nargs="+", type=int, default=TIMESTEPS, metavar="T")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="accuracy by operations")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    options = parser.parse_args(argv)
    given = []
    for name, file in map(split_argument, options.bundles):
        bundle = read_bundle(find_bundle(name))
        given.append((name, bundle, read_labelled(file, bundle.labels)))
    found = [(name, bundle, measure(bundle, texts, options.timesteps)) for name, bundle, texts in given]
    lines = [row for name, bundle, measured in found for row in rows(name, measured, bundle.graph.timesteps)]
    write_output(table(HEADER, lines))
    if options.plot:
        draw([(Path(name).name, measured) for name, _, measured in found], options.plot)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(run, argv)


if __name__ == "__main__":
    sys.exit(main())
