"""`spikebert-run`: run a bundle on texts with any engine, count its activity, and check it bit for bit.

A thin shell: it reads arguments and opens the input, `sim.run.run` does the work, `sim.report` words the result.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from converters.bundle import Bundle, Tokenised, read_bundle
from converters.early_exit import EarlyExit
from converters.execution import ATTENTION_KINDS
from converters.graph import Graph
from sim.check import check_bundle
from sim.energy import SHIPPED, CostTable, estimate, read_cost_table
from sim.engines import engine_names, holds_values
from sim.exit_table import MARGINS, ExitTable, exit_table, table_report
from sim.find_bundle import find_bundle
from sim.page.contents import RunReport, Sentence, energies_of, facts_of
from sim.page.page import run_page
from sim.page.raster import raster_of
from sim.predictions import check_predictions_path, predictions_file
from sim.probe import choose_nodes
from sim.record import check_record_path, record_file
from sim.report import energy_report, human_report, prediction_of, sample_report
from sim.rows import FORMATS, BadRow, Row, Rows, open_rows
from sim.run import Outcome, Summary, batch_size_for, run
from sim.shards import Job, ShardResult, model_digest
from sim.whole_file import check_path, whole_file
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
    printable,
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
  spikebert-run build/sst2 --engine lava --attention stock --verify
  spikebert-run build/sst2 --file data.tsv --probe '*.query.lif' blocks.0.attention
  spikebert-run build/sst2 --file data.tsv --record spikes.npz    # read it with sim.record.read_record
  spikebert-run build/sst2 --file data.tsv --energy               # or --energy 45nm my_table.json
  spikebert-run build/sst2 --file data.tsv --verify --report run.html
  spikebert-run build/sst2 --file validation.tsv --exit-table     # accuracy and mean timesteps of several margins
  spikebert-run build/sst2 --file data.tsv --exit-margin 2 --exit-after 1
  spikebert-run sst2.zip --check

exit codes: 0 ok, 1 the check failed, 2 wrong use (a damaged bundle; a bad row, after all others were run),
3 a runtime failed, 130 interrupted
"""

REPORT_FLAG = "--report"
WITH_CHECK = ("bundle", "check", "json", "debug")  # the arguments that --check goes with


@dataclass(frozen=True)
class Inputs:
    """What is to be run.

    rows       texts; those of golden samples are empty, and `tokenised` holds their tokens
    place      where they are from, for people: a file, or the command line
    name_of    a row for people
    show_each  whether each sample is reported, not only their sums
    """

    rows: Rows
    place: str
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
        if arguments.record:
            check_record_path(arguments.record, arguments.overwrite)
        if arguments.report:
            check_path(REPORT_FLAG, arguments.report, arguments.overwrite)
        _check_names_differ(arguments)
        job = _job(arguments, bundle)
        inputs = _inputs(arguments, bundle)
        summary = _summary(arguments, bundle, job)
        table = _exit_table(arguments, bundle.graph)
        tables = _cost_tables(arguments)
        about = _about(arguments, bundle, inputs, printable(shlex.join(["spikebert-run", *argv])))
        kept = _run(arguments, bundle, job, inputs, summary, about, table)
        if not summary.samples:
            raise UserError(f"{arguments.file}: {_bad_rows(summary, inputs)}")
        if arguments.report:
            _write_page(arguments.report, bundle, inputs, summary, kept, str(about["command"]))
    assert summary.activity is not None  # there is one where a sample was run
    energies = estimate(bundle.graph, summary.activity, summary.tokens, tables)
    if arguments.json:
        used = {energy.table.name: energy.to_json(summary.samples) for energy in energies}
        margins = {} if table is None else {"exit_table": table.to_json()}
        write_json(summary.to_json(kept) | _flags_used(arguments, job) | ({"energy": used} if used else {}) | margins)
    else:
        shown = kept if inputs.show_each else []
        each = [sample_report(bundle, inputs.name_of(row), outcome) for row, outcome in _good(shown)]
        parts = [*each, *([""] if each else []), human_report(bundle, summary)]
        parts += [] if table is None else ["", table_report(table)]
        write_output("\n".join([*parts, *(["", energy_report(energies, summary.samples)] if energies else [])]))
        if arguments.report:
            note(f"report: {arguments.report} (open it in a browser)")
        if arguments.record:
            note(f"recorded {len(job.record):,} nodes, {summary.samples:,} samples: {arguments.record}")
    if summary.comparison is not None and summary.comparison.mismatches:
        note(f"error: engine '{arguments.engine}' differs from the reference: {summary.comparison.first_mismatch}")
        return CHECK_FAILED
    if summary.bad:
        note(f"error: {arguments.file}: {_bad_rows(summary, inputs)}. All others were run")
        return WRONG_USE
    return OK


def _check_names_differ(arguments: argparse.Namespace) -> None:
    """Raises UserError where two flags name one file to write, or one the file that is read."""
    flags = ("predictions", "record", "report")
    written = [(f"--{flag}", getattr(arguments, flag)) for flag in flags if getattr(arguments, flag)]
    read = arguments.file
    for place, (flag, path) in enumerate(written):
        if read and path.resolve() == read.resolve():
            raise UserError(f"{flag} and --file both name {path}: the texts would be lost. Give two files")
        for other, another in written[place + 1 :]:
            if path.resolve() == another.resolve():
                raise UserError(f"{flag} and {other} both name {path}. Give two files")


def _write_page(
    path: Path, bundle: Bundle, inputs: Inputs, summary: Summary, kept: Sequence[Outcome], command: str
) -> None:
    """The report of a run; the sentence that it shows is the first one that was run."""
    row, outcome = next(_good(kept))
    sample = inputs.sample_of(row)
    tokens = bundle.tokenise(sample) if isinstance(sample, str) else sample
    predicted = prediction_of(bundle, outcome)
    name = inputs.name_of(row) if inputs.tokenised else f"{inputs.name_of(row)}: {_quoted(row.text)}"
    sentence = Sentence(
        _quoted(row.text) if inputs.show_each and not inputs.tokenised else name,
        predicted.prediction or "",
        predicted.probability or 0.0,
        raster_of(bundle, tokens.ids),
    )
    facts = facts_of(bundle, summary.engine, command, inputs.place)
    report = RunReport(bundle, summary, energies_of(bundle, summary), sentence, facts)
    with whole_file(REPORT_FLAG, path) as file:
        file.write(run_page(report).encode("utf-8", "backslashreplace"))


def _cost_tables(arguments: argparse.Namespace) -> list[CostTable]:
    """Those that --energy asks for. Raises UserError where two of them have one name: they are told apart by it."""
    names = () if arguments.energy is None else arguments.energy or SHIPPED
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"--energy names '{twice[0]}' twice. Give each table once")
    tables = [read_cost_table(name) for name in names]
    if twice := [name for name, count in Counter(table.name for table in tables).items() if count > 1]:
        own = [file for file, table in zip(names, tables) if table.name == twice[0]]
        raise UserError(
            f"--energy: {' and '.join(own)} both have the name '{twice[0]}'. Change 'name' in your own file"
        )
    return tables


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


def _job(arguments: argparse.Namespace, bundle: Bundle) -> Job:
    """How samples are to be run. Raises UserError where a probe is no node."""
    graph = bundle.graph
    probe = choose_nodes(graph, arguments.probe or ())
    elsewhere = arguments.workers > 1 or arguments.scheduler is not None
    return Job(
        bundle.folder.resolve(),
        arguments.engine,
        arguments.model and arguments.model.resolve(),
        arguments.verify,
        probe=probe,
        record=(probe or graph.spiking) if arguments.record else (),
        attention=arguments.attention,
        stock_models=arguments.stock_models,
        early_exit=_early_exit(arguments, graph),
        over_time=arguments.exit_table is not None,
        digest=bundle.manifest["digest"] if elsewhere else "",
        model_digest=model_digest(arguments.model) if elsewhere else "",
    )


def _early_exit(arguments: argparse.Namespace, graph: Graph) -> EarlyExit | None:
    """When samples stop. Raises UserError for what this graph has not."""
    if arguments.exit_margin is None:
        if arguments.exit_after and arguments.exit_table is None:
            raise UserError("--exit-after says when to ask, not for what: give --exit-margin or --exit-table too")
        return None
    if arguments.exit_table is not None:
        raise UserError("--exit-table runs all timesteps to compare margins. Leave out --exit-margin")
    try:
        early_exit = EarlyExit.of_logits(graph, arguments.exit_margin, _exit_after(arguments))
        early_exit.checks(graph)
    except ValueError as error:
        raise UserError(f"--exit-margin, --exit-after: {error}") from None
    return early_exit


def _exit_table(arguments: argparse.Namespace, graph: Graph) -> ExitTable | None:
    if arguments.exit_table is None:
        return None
    try:
        return exit_table(graph, arguments.exit_table or MARGINS, _exit_after(arguments))
    except ValueError as error:
        raise UserError(f"--exit-table, --exit-after: {error}") from None


def _exit_after(arguments: argparse.Namespace) -> tuple[int, ...] | None:
    return tuple(sorted(set(arguments.exit_after))) if arguments.exit_after else None


def _summary(arguments: argparse.Namespace, bundle: Bundle, job: Job) -> Summary:
    classes, early_exit = len(bundle.labels), job.early_exit
    timesteps = 0 if early_exit is None else bundle.graph.timesteps
    confusion, stopped = np.zeros((classes, classes), np.int64), np.zeros(timesteps, np.int64)
    return Summary(arguments.engine, confusion, early_exit=early_exit, stopped=stopped)


def _about(arguments: argparse.Namespace, bundle: Bundle, inputs: Inputs, command: str) -> dict[str, object]:
    """What a record tells of its run."""
    return {
        "what": "values of nodes of a spiking network, for every sample of a run",
        "bundle": {"name": bundle.place.name, "digest": bundle.manifest["digest"]},
        "labels": list(bundle.labels),
        "engine": arguments.engine,
        "command": command,
        "spikebert": version("spikebert"),
        "input": inputs.place,
        "numbers": f"{inputs.rows.unit}s, from {1 if arguments.file else 0}",
    }


def _flags_used(arguments: argparse.Namespace, job: Job) -> dict[str, object]:
    """What the object of --json has more, where flags ask for more."""
    used: dict[str, object] = {}
    if arguments.record:
        size = arguments.record.stat().st_size
        used["record"] = {"file": str(arguments.record), "bytes": size, "nodes": list(job.record)}
    if job.attention != "process":
        used["attention"] = job.attention
    if job.stock_models:
        used["stock_models"] = True
    if job.early_exit is not None:
        used["exit_margin"] = arguments.exit_margin
    return used


def _run(
    arguments: argparse.Namespace,
    bundle: Bundle,
    job: Job,
    inputs: Inputs,
    summary: Summary,
    about: Mapping[str, object],
    table: ExitTable | None,
) -> list[Outcome]:
    """Runs everything; returns the outcomes where they are to be told one by one, else none are kept."""
    kept: list[Outcome] = []
    observed = job.observes(bundle.graph, not holds_values(arguments.engine))
    size = arguments.batch_size or batch_size_for(bundle.graph, observed)
    with ExitStack() as opened:
        write = record = None
        if arguments.predictions:
            stops = job.early_exit is not None
            write = opened.enter_context(predictions_file(arguments.predictions, bundle.labels, stops))
        if arguments.record:
            stops = job.early_exit is not None
            record = opened.enter_context(record_file(arguments.record, bundle.graph, job.record, about, stops))
        workers = opened.enter_context(closing(_workers(arguments, job, bundle)))
        advance = opened.enter_context(counted_progress(f"running on {arguments.engine}", inputs.rows.total))
        notes = 0

        def tell(outcome: Outcome) -> None:
            nonlocal notes
            if outcome.note and (notes := notes + 1) <= NOTES_MAX and isinstance(outcome.row, Row):
                note(f"note: {inputs.name_of(outcome.row)}: {outcome.note}")
            if write:
                write(prediction_of(bundle, outcome))
            if arguments.json or inputs.show_each or (arguments.report and not kept and outcome.logits is not None):
                kept.append(outcome)
            advance()

        def keep(rows: Sequence[Row], result: ShardResult) -> None:
            if record is not None and result.batch is not None:
                record.add(rows, result.batch, result.logits, result.recorded, result.timesteps)
            if table is not None:
                table.add(rows, result)

        run(inputs.rows.items, workers, summary, size, tell, inputs.sample_of, keep)
    if notes > NOTES_MAX:
        note(f"note: {notes - NOTES_MAX:,} more texts are unusual (cut, empty, or of unknown words)")
    return kept


def _workers(arguments: argparse.Namespace, job: Job, bundle: Bundle) -> Workers:
    """Who runs the samples: this process, several, or a cluster."""
    if arguments.scheduler is not None and bundle.zip:
        raise UserError(
            f"--scheduler: {bundle.zip} is a zip. Unpack it where every worker can read it and give that folder"
        )
    if arguments.scheduler is not None:
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
        return Inputs(_rows_of(texts, "text"), "--text", lambda row: _quoted(row.text), show_each=True)
    if arguments.file:
        rows = open_rows(arguments.file, bundle.labels, limit)
        return Inputs(rows, printable(str(arguments.file)), lambda row: f"{arguments.file}, {rows.unit} {row.number}")
    if not arguments.verify:
        raise UserError("nothing to run. Give --text, --file, or --verify alone to check the bundle's golden samples")
    golden = bundle.golden.batch[:limit]
    samples = (tuple(ids[mask == 1].tolist()) for ids, mask in zip(golden.ids, golden.mask))
    tokenised = tuple(Tokenised(ids, full=len(ids), unknown=0, special=0) for ids in samples)
    rows = _rows_of([""] * len(tokenised), "golden sample")
    return Inputs(rows, "the bundle's own samples", lambda row: f"golden sample {row.number}", tokenised=tokenised)


def _rows_of(texts: Sequence[str], unit: str) -> Rows:
    rows: list[Row | BadRow] = [Row(number, text) for number, text in enumerate(texts)]
    return Rows(iter(rows), len(rows), unit)


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
        "--file", type=Path, metavar="FILE", help=f"texts in a column 'text', classes in 'label' where known: {FORMATS}"
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="write the prediction of every row to this file, in such a format",
    )
    parser.add_argument(
        "--probe",
        action="extend",
        nargs="+",
        metavar="NODE",
        help="tell what these nodes did: rates, ranges; names as in graph.json, or patterns such as 'blocks.0.*'",
    )
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE.npz",
        help="write every value of the nodes of --probe, for every sample, to this file of numpy arrays; without "
        "--probe, of all spiking nodes",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE.html",
        help="write a page about the run: accuracy, the spikes of the first sentence, every layer, energy by all "
        "tables",
    )
    parser.add_argument(
        "--energy",
        nargs="*",
        metavar="TABLE",
        help=f"estimate the energy of a sentence by these cost tables: {', '.join(SHIPPED)} (all of them where none is "
        "named), or files of your own",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the files of --predictions, --record and --report"
    )
    spread = parser.add_mutually_exclusive_group()
    spread.add_argument(
        "--workers", type=_positive, default=1, metavar="N", help="share the rows among N processes of this machine"
    )
    spread.add_argument("--scheduler", metavar="ADDRESS", help="share the rows among the workers of a Dask cluster")
    parser.add_argument("--engine", default="fast", help=f"one of {', '.join(engine_names())} (default: fast)")
    parser.add_argument("--model", type=Path, metavar="DIR", help="folder of the trained model, for the engine 'torch'")
    early = parser.add_argument_group("early exit, on the engines 'fast', 'reference' and 'torch'")
    early.add_argument(
        "--exit-margin",
        type=_lead,
        metavar="LOGITS",
        help="a text stops once its best class leads the second by so many logits, as they are shown (2 means a "
        "probability of 0.88 of two classes); --exit-table helps to choose",
    )
    early.add_argument(
        "--exit-after",
        nargs="+",
        type=_positive,
        metavar="T",
        help="ask only after these timesteps (default: after each): few questions are quicker",
    )
    early.add_argument(
        "--exit-table",
        nargs="*",
        type=_lead,
        metavar="LOGITS",
        help="run all timesteps, and tell accuracy and mean timesteps for several margins, or for those named",
    )
    lava = parser.add_argument_group("the engines 'lava' and 'lava-inline'")
    lava.add_argument(
        "--attention",
        choices=ATTENTION_KINDS,
        default="process",
        help="attention as one process of ours, or from Lava's own neurons and synapses (default: process)",
    )
    lava.add_argument("--stock-models", action="store_true", help="run with Lava's own ProcessModels alone; slow")
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


def _lead(text: str) -> float:
    try:
        lead = float(text)
    except ValueError:
        lead = -1.0
    if not 0 <= lead < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 0")
    return lead


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"'{text}' is no number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
