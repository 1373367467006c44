"""`spikebert-run`: run a bundle on texts with any engine, count its activity, and check it bit for bit.

A thin shell: it reads arguments and opens the input, `sim.run.run` does the work, `sim.report` words the result.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.bundle import Bundle, Tokenised, read_bundle
from sim.check import check_bundle
from sim.engines import engine_names, holds_values
from sim.find_bundle import find_bundle
from sim.predictions import check_predictions_path, predictions_file
from sim.report import human_report, prediction_of, sample_report
from sim.rows import FORMATS, BadRow, Row, Rows, open_rows
from sim.run import Outcome, Summary, batch_size_for, run
from sim.shards import Job
from sim.workers import DaskWorkers, LocalWorkers, ThisProcess, Workers
from spikebert.commands import (
    CHECK_FAILED,
    OK,
    WRONG_USE,
    CheckFailed,
    UserError,
    counted_progress,
    note,
    output_kept_clean,
    processors,
    run_command,
    write_json,
    write_output,
)

NAME_LENGTH = 60  # characters of a text that are printed
NOTES_MAX = 10  # unusual texts that are named; the others are counted

EXAMPLES = """examples:
  spikebert-run reviews --text "a gripping , funny film"
  spikebert-run build/sst2 --file data.tsv --json
  spikebert-run build/sst2 --file data.jsonl --predictions out.jsonl --workers 4
  spikebert-run build/sst2 --engine lava --verify --file data.tsv --limit 8
  spikebert-run build/sst2 --verify
  spikebert-run sst2.zip --check

exit codes: 0 ok, 1 the check failed, 2 wrong use (a damaged bundle; a bad row, after all others were run),
3 a runtime failed, 130 interrupted
"""

WITH_CHECK = ("bundle", "check", "json", "debug")  # the arguments that --check goes with


@dataclass(frozen=True)
class Inputs:
    """What is to be run.

    rows       texts; those of golden samples are empty, and `tokenised` holds their tokens
    name_of    a row for people
    show_each  whether each sample is reported, not only their sums
    """

    rows: Rows
    name_of: Callable[[Row], str]
    show_each: bool = False
    tokenised: tuple[Tokenised, ...] = ()

    def sample_of(self, row: Row) -> str | Tokenised:
        return self.tokenised[row.number] if self.tokenised else row.text


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    return run_command(_body, argv)


def _body(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.check:
        return _check(arguments)
    with output_kept_clean():
        bundle = read_bundle(find_bundle(arguments.bundle))
        if arguments.predictions:
            check_predictions_path(arguments.predictions, arguments.overwrite)
        inputs = _inputs(arguments, bundle)
        classes = len(bundle.labels)
        summary = Summary(arguments.engine, np.zeros((classes, classes), np.int64))
        kept = _run(arguments, bundle, inputs, summary)
    if not summary.samples:
        raise UserError(f"{arguments.file}: {_bad_rows(summary, inputs)}")
    if arguments.json:
        write_json(summary.to_json(kept))
    else:
        each = [sample_report(bundle, inputs.name_of(row), outcome) for row, outcome in _good(kept)]
        write_output("\n".join([*each, *([""] if each else []), human_report(bundle, summary)]))
    if summary.comparison is not None and summary.comparison.mismatches:
        note(f"error: engine '{arguments.engine}' differs from the reference: {summary.comparison.first_mismatch}")
        return CHECK_FAILED
    if summary.bad:
        note(f"error: {arguments.file}: {_bad_rows(summary, inputs)}. All others were run")
        return WRONG_USE
    return OK


def _check(arguments: argparse.Namespace) -> int:
    """Check the bundle, run no texts. Raises UserError where it cannot be read, CheckFailed where a check fails."""
    parser = _parser()
    given = [name for name, value in vars(arguments).items() if value != parser.get_default(name)]
    if others := [f"--{name.replace('_', '-')}" for name in given if name not in WITH_CHECK]:
        raise UserError(f"--check goes with --json and --debug alone. Leave out {', '.join(others)}")
    report: dict[str, object] = {"bundle": arguments.bundle, "ok": False, "error": None, "checks": []}
    try:
        with output_kept_clean():
            checks = check_bundle(read_bundle(find_bundle(arguments.bundle)))
    except UserError as error:
        if arguments.json:
            write_json(report | {"error": str(error)})
        raise
    failed = [check for check in checks if not check.ok]
    if arguments.json:
        reason = failed[0].text if failed else None
        write_json(report | {"ok": not failed, "error": reason, "checks": [check.to_json() for check in checks]})
    else:
        write_output("\n".join(map(str, checks)))
    if failed:
        raise CheckFailed(f"{arguments.bundle}: {failed[0].name}: {failed[0].text}")
    return OK


def _run(arguments: argparse.Namespace, bundle: Bundle, inputs: Inputs, summary: Summary) -> list[Outcome]:
    """Runs everything; returns the outcomes where they are to be told one by one, else none are kept."""
    kept: list[Outcome] = []
    held = 2 if arguments.verify else int(holds_values(arguments.engine))
    size = arguments.batch_size or batch_size_for(bundle.graph, executions=held)
    with ExitStack() as opened:
        write = None
        if arguments.predictions:
            write = opened.enter_context(predictions_file(arguments.predictions, bundle.labels))
        workers = opened.enter_context(closing(_workers(arguments, bundle)))
        advance = opened.enter_context(counted_progress(f"running on {arguments.engine}", inputs.rows.total))
        notes = 0

        def tell(outcome: Outcome) -> None:
            nonlocal notes
            if outcome.note and (notes := notes + 1) <= NOTES_MAX and isinstance(outcome.row, Row):
                note(f"note: {inputs.name_of(outcome.row)}: {outcome.note}")
            if write:
                write(prediction_of(bundle, outcome))
            if arguments.json or inputs.show_each:
                kept.append(outcome)
            advance()

        run(inputs.rows.items, workers, summary, size, tell, inputs.sample_of)
    if notes > NOTES_MAX:
        note(f"note: {notes - NOTES_MAX:,} more texts are unusual (cut, empty, or of unknown words)")
    return kept


def _workers(arguments: argparse.Namespace, bundle: Bundle) -> Workers:
    """Who runs the samples: this process, several, or a cluster."""
    if arguments.scheduler and bundle.zip:
        raise UserError(
            f"--scheduler: {bundle.zip} is a zip. Unpack it where every worker can read it and give that folder"
        )
    model = arguments.model and arguments.model.resolve()
    job = Job(bundle.folder.resolve(), arguments.engine, model, arguments.verify)
    if arguments.scheduler:
        return DaskWorkers(job, arguments.scheduler)
    if arguments.workers > 1:
        return LocalWorkers(job, arguments.workers, threads=max(1, processors() // arguments.workers))
    return ThisProcess(job, bundle)


def _good(outcomes: Sequence[Outcome]) -> Iterator[tuple[Row, Outcome]]:
    return ((outcome.row, outcome) for outcome in outcomes if isinstance(outcome.row, Row))


def _bad_rows(summary: Summary, inputs: Inputs) -> str:
    first = "; ".join(f"{inputs.rows.unit} {row.number}: {row.reason}" for row in summary.first_bad)
    more = f"; and {summary.bad - len(summary.first_bad):,} more" if summary.bad > len(summary.first_bad) else ""
    return f"{summary.bad:,} of {summary.bad + summary.samples:,} rows could not be read: {first}{more}"


def _inputs(arguments: argparse.Namespace, bundle: Bundle) -> Inputs:
    """The texts of the command line, of the file, or with neither the bundle's own golden samples."""
    limit = arguments.limit
    if arguments.text:
        texts = [_valid_text(text, number) for number, text in enumerate(arguments.text[:limit], start=1)]
        return Inputs(_rows_of(texts), lambda row: _quoted(row.text), show_each=True)
    if arguments.file:
        rows = open_rows(arguments.file, bundle.labels, limit)
        return Inputs(rows, lambda row: f"{arguments.file}, {rows.unit} {row.number}")
    if not arguments.verify:
        raise UserError("nothing to run. Give --text, --file, or --verify alone to check the bundle's golden samples")
    golden = bundle.golden.batch[:limit]
    samples = (tuple(ids[mask == 1].tolist()) for ids, mask in zip(golden.ids, golden.mask))
    tokenised = tuple(Tokenised(ids, full=len(ids), unknown=0, special=0) for ids in samples)
    return Inputs(_rows_of([""] * len(tokenised)), lambda row: f"golden sample {row.number}", tokenised=tokenised)


def _rows_of(texts: Sequence[str]) -> Rows:
    rows: list[Row | BadRow] = [Row(number, text) for number, text in enumerate(texts)]
    return Rows(iter(rows), len(rows))


def _valid_text(text: str, number: int) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"--text number {number} is not valid UTF-8. Pass it in a UTF-8 file with --file") from None
    return text


def _quoted(text: str) -> str:
    """A text as a short name: in quotes, control characters escaped."""
    return json.dumps(text if len(text) <= NAME_LENGTH else text[: NAME_LENGTH - 3] + "...", ensure_ascii=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spikebert-run",
        description="Run a bundle on texts with any engine, count spikes and operations, check it bit for bit.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "bundle", metavar="BUNDLE", help="folder of a bundle, a zip of one, or the name of one that is shipped"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--text", action="append", metavar="TEXT", help="a text to classify; may be repeated")
    source.add_argument(
        "--file", type=Path, metavar="FILE", help=f"texts in a column 'text', classes in 'label' if known: {FORMATS}"
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="write the prediction of every row to this file, in such a format",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --predictions")
    spread = parser.add_mutually_exclusive_group()
    spread.add_argument(
        "--workers", type=_positive, default=1, metavar="N", help="share the rows among N processes of this machine"
    )
    spread.add_argument("--scheduler", metavar="ADDRESS", help="share the rows among the workers of a Dask cluster")
    parser.add_argument("--engine", default="fast", help=f"one of {', '.join(engine_names())} (default: fast)")
    parser.add_argument("--model", type=Path, metavar="DIR", help="folder of the trained model, for the engine 'torch'")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare every value of every node with the reference; without texts, on the bundle's golden samples",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="check the bundle alone: every hash and shape, proven ranges, and that this machine repeats its golden "
        "samples; goes with --json alone",
    )
    parser.add_argument("--limit", type=_positive, metavar="N", help="run the first N samples only")
    parser.add_argument(
        "--batch-size", type=_positive, metavar="N", help="samples at a time (default: what memory allows)"
    )
    parser.add_argument(
        "--json", action="store_true", help="write one JSON object to standard output, and nothing else"
    )
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    return parser


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"'{text}' is no number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
