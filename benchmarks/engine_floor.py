"""The floor: how long the synaptic operations of a file would take if a spike cost its additions and nothing else.

    python -m benchmarks.engine_floor recipes/research/reviews_long.zip --file recipes/data/reviews/validation.tsv

What is counted and what an add is stands in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import peak
from benchmarks.sentences import FAST, LARGE, activity_of, read_batches
from benchmarks.timing import Usage, machine, table
from converters.bundle import read_bundle
from converters.execution import EngineOptions, TokenBatch
from converters.graph import Graph
from sim.engines import open_engine

GOAL = 0.4  # of the peak from the first-level cache


def best_pass(graph: Graph, batches: Sequence[TokenBatch], seconds: float) -> float:
    """The shortest time in which `fast` runs all the batches."""
    engine = open_engine(FAST, graph, EngineOptions())
    best, end = float("inf"), time.perf_counter() + seconds
    try:
        while time.perf_counter() < end:
            start = time.perf_counter()
            for batch in batches:
                engine.run(batch)
            best = min(best, time.perf_counter() - start)
    finally:
        engine.close()
    return best


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--file", type=Path, required=True, help="sentences, as for spikebert-run")
    parser.add_argument("--seconds", type=float, default=10, help="for the engine")
    arguments = parser.parse_args(argv)
    start = Usage.now()
    bundle = read_bundle(arguments.bundle)
    batches = read_batches(bundle, arguments.file)[LARGE]
    operations = activity_of(bundle.graph, batches).total.synaptic_operations
    seconds = best_pass(bundle.graph, batches, arguments.seconds)
    rows = []
    for cache, size in (("first-level", peak.FIRST_LEVEL), ("second-level", peak.SECOND_LEVEL)):
        rates = {name: peak.adds_per_second(loop, width, size) for name, (loop, width) in peak.loops().items()}
        for name, rate in rates.items():
            floor = operations / rate
            cells = (f"{rate / 1e9:.1f}", f"{floor:.4f}", f"{floor / seconds:.0%}")
            rows.append((f"{cache} cache, {size >> 10} KiB a core, {name}", *cells))
    print(table(["adds of int8 weights from", "10^9 adds/s", "floor, s", "share reached"], rows))
    print(
        f"\nfast: {operations:,} synaptic operations in {seconds:.4f} s, {operations / seconds / 1e9:.1f} 10^9 a second"
    )
    print(f"goal: {GOAL:.0%} of the best peak")
    print(f"memory is read at {peak.bytes_per_second() / 1e9:.1f} 10^9 bytes a second")
    print(machine(start))


if __name__ == "__main__":
    main()
