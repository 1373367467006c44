"""Does an early exit pay? Sentences per second of the fast engine with and without, at several margins.

    python -m benchmarks.early_exit recipes/research/reviews_long.zip --file recipes/data/reviews/validation.tsv

All rows take turns on the same batches: sorted by length, of 64 and one by one. What a row costs depends on how many
sentences stop, and on how often they are asked: from one question to the next the engine shares no row of weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.sentences import LARGE, read_batches
from benchmarks.timing import Usage, machine, side_by_side, table
from converters.bundle import Bundle, read_bundle
from converters.early_exit import MARGIN_MAX, EarlyExit
from converters.execution import TokenBatch
from sim.fast.engine import FastEngine

MARGINS = (1.0, 2.0, 3.0, 1000.0)  # logits; the last one that of nobody
ENDLESS = 1000.0


@dataclass(frozen=True)
class Row:
    """One way to run, and what came of it.

    timesteps, operations  of a sentence, the mean
    rates                  sentences per second by size of a batch
    """

    name: str
    timesteps: float
    operations: float
    rates: dict[int, float]


def ways(bundle: Bundle, margins: Sequence[float]) -> dict[str, EarlyExit | None]:
    """Without; and for each margin asked after every timestep, after the first alone, and halfway alone."""
    graph = bundle.graph
    found: dict[str, EarlyExit | None] = {"without": None}
    for margin in margins:
        for after in dict.fromkeys([None, (1,), (max(1, graph.timesteps // 2),)]):
            lead = "nobody stops" if margin == ENDLESS else f"margin {margin:g}"
            asked = "each" if after is None else ", ".join(map(str, after))
            reach = min(margin, MARGIN_MAX * graph.readout.scale)
            found[f"{lead}, after {asked}"] = EarlyExit.of_logits(graph, reach, after)
    return found


def measure(
    bundle: Bundle, batches: dict[int, list[TokenBatch]], margins: Sequence[float], seconds: float
) -> list[Row]:
    with ExitStack() as stack:
        engines = {name: FastEngine(bundle.graph, 0, each) for name, each in ways(bundle, margins).items()}
        for engine in engines.values():
            stack.callback(engine.close)
        rates: dict[str, dict[int, float]] = {name: {} for name in engines}
        for size, of_size in batches.items():
            work = {name: [partial(engine.run, batch) for batch in of_size] for name, engine in engines.items()}
            for name, taken in side_by_side(work, seconds).items():
                rates[name][size] = sum(map(len, of_size[: len(taken)])) / sum(taken)
        return [Row(name, *_did(engine, batches[LARGE]), rates[name]) for name, engine in engines.items()]


def _did(engine: FastEngine, batches: Sequence[TokenBatch]) -> tuple[float, float]:
    """Mean timesteps and synaptic operations of a sentence."""
    runs = [engine.run(batch) for batch in batches]
    sentences = sum(map(len, batches))
    ran = [
        np.full(len(b), engine.graph.timesteps) if r.timesteps is None else r.timesteps for r, b in zip(runs, batches)
    ]
    operations = sum(run.activity.total.synaptic_operations for run in runs if run.activity is not None)
    return float(np.concatenate(ran).mean()), operations / sentences


def report(rows: Sequence[Row], start: Usage) -> str:
    first, sizes = rows[0], sorted(rows[0].rates, reverse=True)
    header = [
        "",
        "timesteps",
        "operations",
        *(text for size in sizes for text in (f"batch {size}, sentences/s", "gain")),
    ]
    lines = [
        [
            row.name,
            f"{row.timesteps:.2f}",
            f"{row.operations / 1e6:.1f} M",
            *(
                cell
                for size in sizes
                for cell in (f"{row.rates[size]:,.0f}", f"{row.rates[size] / first.rates[size]:.2f}")
            ),
        ]
        for row in rows
    ]
    return "\n".join([table(header, lines), "", machine(start)])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--file", type=Path, required=True, help="sentences, as for spikebert-run")
    parser.add_argument("--margins", type=float, nargs="+", default=MARGINS, help="logits; 1000: nobody stops")
    parser.add_argument("--seconds", type=float, default=10, help="for each row and batch size")
    arguments = parser.parse_args(argv)
    bundle, start = read_bundle(arguments.bundle), Usage.now()
    if bundle.graph.timesteps == 1:
        parser.error(f"{arguments.bundle} has 1 timestep: there is nothing to stop before")
    print(report(measure(bundle, read_batches(bundle, arguments.file), arguments.margins, arguments.seconds), start))


if __name__ == "__main__":
    main()
