"""What do fewer bits of the token table cost? A bundle whose table is rounded again, nothing trained.

    python -m benchmarks.token_bits sst2 --file SST2/validation.tsv --bits 6 5 4 3 2

Rounded as `quantise.token_bits` rounds. The table stays int8, and what it takes in a zip is what its few values can be
packed into. Differences are paired by text.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.compare_runs import right_and_against
from benchmarks.text_lengths import cut_texts, read_labelled
from benchmarks.timing import table
from converters.bundle import Bundle, read_bundle
from converters.graph import Graph
from converters.on_texts import OnTexts, run_on_texts
from converters.passes.edit import with_nodes
from sim.find_bundle import find_bundle
from spikebert.commands import UserError, note, run_command, write_output
from spikebert.data import LabelledTexts

BITS = (6, 5, 4, 3, 2)
HEADER = ("bits", "right", "against 8 bits, points", "table in a zip, MB", "operations a text")


def with_token_bits(graph: Graph, bits: int) -> Graph:
    """The graph with its token table rounded to so many bits."""
    step = 2 ** (8 - bits)
    most = 127 // step
    rounded = np.clip(np.rint(graph.source.table / step), -most, most) * step
    return with_nodes(graph, {graph.source.name: [replace(graph.source, table=rounded.astype(np.int8))]})


def measure(bundle: Bundle, texts: LabelledTexts, bits: Sequence[int]) -> dict[int, tuple[OnTexts, int]]:
    """By bits, 8 first: what the network did, and bytes of the packed table.

    Raises UserError for bits beyond 2 .. 8.
    """
    wrong = [count for count in bits if not 2 <= count <= 8]
    if wrong:
        raise UserError(f"--bits {wrong[0]}: a token table has 2 .. 8")
    tokenised, _ = cut_texts(bundle, texts, bundle.graph.n_max)
    found = {}
    for count in sorted({8, *bits}, reverse=True):
        note(f"{bundle.place}: token table of {count} bits ...")
        graph = bundle.graph if count == 8 else with_token_bits(bundle.graph, count)
        found[count] = run_on_texts(graph, tokenised), len(zlib.compress(graph.source.table.tobytes(), 9))
    return found


def report(found: dict[int, tuple[OnTexts, int]]) -> str:
    whole, _ = found[8]
    lines = [
        [
            str(bits), *right_and_against([measured], [whole]), f"{packed / 1e6:.2f}",
            f"{measured.activity.total.synaptic_operations / len(measured.right):,.0f}",
        ]
        for bits, (measured, packed) in found.items()
    ]  # fmt: skip
    return table(HEADER, lines)


def run(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="a folder, a zip, or the name of a bundle beside the recipes")
    parser.add_argument("--file", type=Path, required=True, help="texts with labels, as spikebert-run takes them")
    parser.add_argument("--bits", nargs="+", type=int, default=BITS, help=f"2 .. 8; {' '.join(map(str, BITS))}")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    options = parser.parse_args(argv)
    bundle = read_bundle(find_bundle(options.bundle))
    write_output(report(measure(bundle, read_labelled(options.file, bundle.labels), options.bits)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(run, argv)


if __name__ == "__main__":
    sys.exit(main())
