"""How many tokens does a data set need? A bundle on texts that are cut shorter and shorter.

    python -m benchmarks.text_lengths chnsenti --file CHNSENTI/validation.tsv --lengths 16 32 64 96 128

A text is cut as a bundle of such an n_max would cut it: its end goes, [CLS] and [SEP] stay. The network was trained on
longer ones: a training with texts of that length may do better. Differences are paired by text.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.compare_runs import right_and_against
from benchmarks.timing import table
from converters.bundle import Bundle, read_bundle
from converters.on_texts import OnTexts, run_on_texts
from sim.find_bundle import find_bundle
from sim.rows import BadRow, open_rows
from spikebert.commands import UserError, note, run_command, write_output
from spikebert.data import LabelledTexts, TokenisedTexts

LENGTHS = (16, 32, 64, 96, 128)
HEADER = ("tokens", "texts cut", "right", "against the longest, points", "tokens a text", "operations a text")


def read_labelled(file: Path, labels: Sequence[str]) -> LabelledTexts:
    """The rows that have a label. Raises UserError where there is none, and for a row that cannot be read."""
    found = []
    for row in open_rows(file, labels).items:
        if isinstance(row, BadRow):
            raise UserError(f"{file}, row {row.number}: {row.reason}")
        if row.label is not None:
            found.append((row.text, row.label))
    if not found:
        raise UserError(f"{file}: no row has a label: give texts whose classes are known")
    return LabelledTexts([text for text, _ in found], [label for _, label in found])


def cut_texts(bundle: Bundle, texts: LabelledTexts, tokens: int) -> tuple[TokenisedTexts, int]:
    """The texts as token ids, at most `tokens` each, special ones included; and how many were cut."""
    bundle.tokenizer.enable_truncation(tokens)
    cut = [bundle.tokenise(text) for text in texts.texts]
    bundle.tokenizer.enable_truncation(bundle.graph.n_max)  # as it was
    return TokenisedTexts([list(text.ids) for text in cut], texts.labels), sum(text.truncated for text in cut)


def measure(bundle: Bundle, texts: LabelledTexts, lengths: Sequence[int]) -> dict[int, tuple[OnTexts, int]]:
    """By tokens, most first: what the network did, and how many texts were cut.

    Raises UserError for lengths that the bundle cannot take.
    """
    special, most = bundle.tokenizer.num_special_tokens_to_add(is_pair=False), bundle.graph.n_max
    least = special + 1
    wrong = [length for length in lengths if not least <= length <= most]
    if wrong:
        raise UserError(f"--lengths {wrong[0]}: {bundle.place} takes {least} .. {most} tokens")
    found = {}
    for length in sorted(set(lengths), reverse=True):
        note(f"{bundle.place}: {length} tokens ...")
        tokenised, cut = cut_texts(bundle, texts, length)
        found[length] = run_on_texts(bundle.graph, tokenised), cut
    return found


def report(found: dict[int, tuple[OnTexts, int]]) -> str:
    longest, _ = next(iter(found.values()))
    lines = []
    for length, (measured, cut) in found.items():
        count = len(measured.right)
        lines.append(
            [
                str(length), f"{cut / count:.1%}", *right_and_against([measured], [longest]),
                f"{measured.tokens / count:.1f}", f"{measured.activity.total.synaptic_operations / count:,.0f}",
            ]
        )  # fmt: skip
    return table(HEADER, lines)


def run(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="a folder, a zip, or the name of a bundle beside the recipes")
    parser.add_argument("--file", type=Path, required=True, help="texts with labels, as spikebert-run takes them")
    parser.add_argument(
        "--lengths", nargs="+", type=int, metavar="TOKENS",
        help=f"special ones included; without this {', '.join(map(str, LENGTHS))}, as far as the bundle takes them",
    )  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    options = parser.parse_args(argv)
    bundle = read_bundle(find_bundle(options.bundle))
    most = bundle.graph.n_max
    lengths = options.lengths or [*(length for length in LENGTHS if length < most), most]
    write_output(report(measure(bundle, read_labelled(options.file, bundle.labels), lengths)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(run, argv)


if __name__ == "__main__":
    sys.exit(main())
