"""`python -m targets.sanafe`: a bundle's spikes, played on SANA-FE's Loihi 1."""

from __future__ import annotations

import argparse
import json
import operator
import tempfile
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from converters.bundle import Bundle, read_bundle
from converters.execution import Activity, TokenBatch
from converters.graph import Graph
from sim.activity import count_activity
from sim.energy import Tokens, read_cost_table
from sim.find_bundle import find_bundle
from sim.reference import ReferenceEngine
from sim.rows import FORMATS, BadRow, open_rows
from sim.whole_file import check_path, whole_file
from spikebert.commands import (
    OK,
    CheckFailed,
    UserError,
    counted_progress,
    missing_extra,
    note,
    run_command,
    write_json,
    write_output,
)
from targets.sanafe.expected import expected_counts, first_difference
from targets.sanafe.layout import PLAYS, Layout, make_layout
from targets.sanafe.machine import VERSION, Machine, architecture
from targets.sanafe.report import Beside, put_beside, require_same_work, to_json, to_text
from targets.sanafe.spikes import messages, require_values
from targets.sanafe.target import ARCHITECTURE_FILE

EXAMPLES = """examples:
  python -m targets.sanafe build/small                      # the bundle's own eight inputs, the whole network
  python -m targets.sanafe build/small --file data.tsv --limit 20 --out sanafe.json
  python -m targets.sanafe reviews --play token --file data.tsv --limit 5

exit codes: 0 ok, 1 SANA-FE came to other counts than the spikes say, or the graph is illegal, 2 wrong use (too large;
sanafe is not installed), 3 SANA-FE failed, 130 interrupted
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m targets.sanafe",
        description="Play the spikes of a bundle on SANA-FE, a simulator of energy and time that is calibrated on "
        "Loihi 1, and put its\ntotals beside ours. Before anything is told every count of every step is held against "
        "the spikes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="folder or zip of a bundle, or the name of a shipped one")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--text", action="append", metavar="TEXT", help="a text; may be repeated")
    source.add_argument("--file", type=Path, metavar="FILE", help=f"texts in a column 'text': {FORMATS}")
    parser.add_argument("--limit", type=_positive, metavar="N", help="the first N texts only")
    parser.add_argument(
        "--play",
        choices=list(PLAYS),
        default="whole",
        help="; ".join(f"{name}: {does}" for name, does in PLAYS.items()) + " (default: whole)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all that --json prints to this file")
    parser.add_argument("--overwrite", action="store_true", help="replace what --out names")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def body(argv: Sequence[str]) -> int:
    arguments = make_parser().parse_args(argv)
    if arguments.out:
        check_path("--out", arguments.out, arguments.overwrite)
        if arguments.file and arguments.out.resolve() == arguments.file.resolve():
            raise UserError(f"--out and --file both name {arguments.out}: the texts would be lost. Give two files")
    require_sanafe()
    bundle = read_bundle(find_bundle(arguments.bundle))
    beside = play(arguments, bundle, _batch(arguments, bundle))
    document = to_json(beside)
    if arguments.out:
        _write(arguments.out, document)
    if arguments.json:
        write_json(document)
    else:
        write_output(to_text(beside))
    return OK


def require_sanafe() -> None:
    """Raises MissingExtra without it, UserError for another version than that of our prices."""
    try:
        import sanafe  # noqa: F401
    except ModuleNotFoundError:
        raise missing_extra("sanafe") from None
    from importlib.metadata import version

    if version("sanafe") != VERSION:
        raise UserError(f"sanafe {version('sanafe')} is installed, this is made for {VERSION}: "
                        f"pip install sanafe=={VERSION}")  # fmt: skip


def play(arguments: argparse.Namespace, bundle: Bundle, batch: TokenBatch) -> Beside:
    """Record the spikes of a batch, play them, hold the counts against them."""
    from targets.sanafe.simulate import Chip

    layout = make_layout(bundle.graph, arguments.play)
    require_values(layout)
    sent, activity, own_activity = record(layout, bundle.graph, batch)
    expected, by_connection = expected_counts(layout, sent)
    operations = require_same_work(layout, by_connection, activity)
    steps = len(expected.fired)
    with tempfile.TemporaryDirectory() as folder:
        path = _architecture(bundle, layout.mapping.chips, layout.machine, Path(folder))
        note(f"loading {len(layout.mapping.boxes)} groups of neurons into SANA-FE {VERSION}")
        chip = Chip(layout, path)
        with counted_progress("playing", steps) as advance:
            run = chip.play(sent, advance)
    difference = first_difference(expected, run.counts)
    if difference is not None:
        raise CheckFailed(f"SANA-FE came to another count than the spikes say, first at {difference}")
    note(f"SANA-FE's counts of all {steps:,} steps are those that the spikes say, and {operations:,} operations at "
         "synapses those of spikebert-run")  # fmt: skip
    tokens = Tokens()
    for real in batch.mask.sum(axis=1).tolist():
        tokens = tokens.with_sentence(int(real))
    return put_beside(layout, bundle.graph, run, by_connection, own_activity, tokens, read_cost_table("loihi1"))


def record(layout: Layout, graph: Graph, batch: TokenBatch) -> tuple[dict[str, np.ndarray], Activity, Activity]:
    """What every neuron sends, and the activity of the layout's graph and of the bundle's own.

    One sentence after another, so that no more than the values of one are in memory.
    """
    engine, names = ReferenceEngine(layout.graph), [node.name for node in layout.graph]
    sent, activities, own = [], [], []
    for i in range(len(batch)):
        one = batch[i : i + 1]
        values = engine.run(one, names).values
        sent.append(messages(layout, values, one.mask))
        activities.append(count_activity(layout.graph, values, one))
        own.append(count_activity(graph, values, one))
    joined = {name: np.concatenate([each[name] for each in sent]) for name in sent[0]}
    return joined, reduce(operator.add, activities), reduce(operator.add, own)


def _architecture(bundle: Bundle, chips: int, machine: Machine, folder: Path) -> Path:
    """The bundle's own description of the machine, where it has one that is this one; else one in `folder`."""
    text = architecture(chips, machine)
    exported = bundle.folder / "sanafe" / ARCHITECTURE_FILE
    if exported.is_file() and exported.read_text(encoding="utf-8") == text:
        return exported
    path = folder / ARCHITECTURE_FILE
    path.write_text(text, encoding="utf-8")
    return path


def _batch(arguments: argparse.Namespace, bundle: Bundle) -> TokenBatch:
    """The texts of the command line or of the file, or the bundle's own inputs."""
    if arguments.text:
        return bundle.encode(arguments.text[: arguments.limit])[0]
    if arguments.file:
        return bundle.encode(list(_texts(arguments.file, bundle, arguments.limit)))[0]
    golden = bundle.golden.batch[: arguments.limit]
    width = int(golden.mask.sum(axis=1).max())
    return TokenBatch(golden.ids[:, :width], golden.mask[:, :width])


def _texts(path: Path, bundle: Bundle, limit: int | None) -> Iterator[str]:
    rows = open_rows(path, bundle.labels, limit)
    for row in rows.items:
        if isinstance(row, BadRow):
            raise UserError(f"{path}, {rows.unit} {row.number}: {row.reason}")
        yield row.text


def _write(path: Path, document: dict[str, Any]) -> None:
    with whole_file("--out", path) as file:
        file.write(f"{json.dumps(document)}\n".encode())


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"'{text}' is no number above 0")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(body, argv)
