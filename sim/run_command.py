"""`spikebert-run`: run a bundle on texts with any engine, count its activity, and check it bit for bit.

A thin shell: it reads arguments and inputs, `sim.run.run` does the work, `sim.report` words the result.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from converters.bundle import Bundle, Golden, Tokenised, golden_nodes, read_bundle
from converters.execution import Engine, EngineOptions, Execution, TokenBatch
from sim.engines import engine_names, open_engine
from sim.find_bundle import find_bundle
from sim.report import human_report, input_note
from sim.run import RunResult, batch_size_for, run
from sim.text_file import read_text_file
from sim.verify import compare
from spikebert.commands import (
    CHECK_FAILED,
    OK,
    CheckFailed,
    UserError,
    note,
    output_kept_clean,
    run_command,
    write_json,
    write_output,
)

NAME_LENGTH = 60  # characters of a text that are printed

EXAMPLES = """examples:
  spikebert-run reviews --text "a gripping , funny film"
  spikebert-run build/sst2 --file data.tsv --json
  spikebert-run build/sst2 --engine lava --verify --file data.tsv --limit 8
  spikebert-run build/sst2 --verify

exit codes: 0 ok, 1 the check failed, 2 wrong use, 3 a runtime failed, 130 interrupted
"""


@dataclass(frozen=True)
class Inputs:
    """What is to be run: token ids of each sample, where it came from, and its class where that is known."""

    tokenised: tuple[Tokenised, ...]
    names: tuple[str, ...]
    labels: tuple[int, ...] | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    return run_command(_body, argv)


def _body(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    with output_kept_clean():
        bundle = read_bundle(find_bundle(arguments.bundle))
        inputs = _inputs(arguments, bundle)
        for name, text in zip(inputs.names, inputs.tokenised):
            if message := input_note(text):
                note(f"note: {name}: {message}")
        result = _run(arguments, bundle, inputs)
    if arguments.json:
        write_json(result.to_json(inputs.labels))
    else:
        real_tokens = [len(text.ids) for text in inputs.tokenised]
        names = inputs.names if arguments.text else None
        write_output(human_report(bundle, result, real_tokens, inputs.labels, names))
    if result.comparison is None or result.comparison.mismatches == 0:
        return OK
    note(f"error: engine '{arguments.engine}' differs from the reference: {result.comparison.first_mismatch}")
    return CHECK_FAILED


def _run(arguments: argparse.Namespace, bundle: Bundle, inputs: Inputs) -> RunResult:
    batches = _batches(bundle, inputs.tokenised, arguments.verify, arguments.batch_size)
    options = EngineOptions(bundle=bundle.folder, model=arguments.model)
    with closing(open_engine(arguments.engine, bundle.graph, options)) as engine:
        if not arguments.verify:
            return run(bundle.graph, batches, engine, arguments.engine)
        with closing(open_engine("reference", bundle.graph)) as reference:
            _check_golden(bundle, reference)
            return run(bundle.graph, batches, engine, arguments.engine, reference)


def _check_golden(bundle: Bundle, reference: Engine) -> None:
    """What the reference does here must be what it did where the bundle was made. Raises CheckFailed."""
    golden: Golden = bundle.golden
    execution = reference.run(golden.batch, golden_nodes(bundle.graph))
    comparison = compare(bundle.graph, Execution(golden.logits, golden.spikes), execution)
    if comparison.mismatches:
        raise CheckFailed(
            f"{bundle.folder / 'golden.safetensors'}: the reference differs from the recorded spikes: "
            f"{comparison.first_mismatch}. Check numpy on this machine, or export the bundle again"
        )


def _inputs(arguments: argparse.Namespace, bundle: Bundle) -> Inputs:
    """The texts of the command line, of the file, or with neither the bundle's own golden samples."""
    limit = arguments.limit
    if arguments.text:
        texts = [_valid_text(text, number) for number, text in enumerate(arguments.text[:limit], start=1)]
        return Inputs(tuple(map(bundle.tokenise, texts)), tuple(map(_quoted, texts)))
    if arguments.file:
        file = read_text_file(arguments.file, bundle.labels, limit)
        names = tuple(f"{arguments.file}, line {line}" for line in range(2, len(file.texts) + 2))
        return Inputs(tuple(map(bundle.tokenise, file.texts)), names, file.labels)
    if not arguments.verify:
        raise UserError("nothing to run. Give --text, --file, or --verify alone to check the bundle's golden samples")
    golden = bundle.golden.batch[:limit]
    rows = (tuple(ids[mask == 1].tolist()) for ids, mask in zip(golden.ids, golden.mask))
    tokenised = tuple(Tokenised(ids, full=len(ids), unknown=0, special=0) for ids in rows)
    return Inputs(tokenised, tuple(f"golden sample {number}" for number in range(len(tokenised))))


def _valid_text(text: str, number: int) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"--text number {number} is not valid UTF-8. Pass it in a UTF-8 file with --file") from None
    return text


def _quoted(text: str) -> str:
    """A text as a short name: in quotes, control characters escaped."""
    return json.dumps(text if len(text) <= NAME_LENGTH else text[: NAME_LENGTH - 3] + "...", ensure_ascii=False)


def _batches(bundle: Bundle, tokenised: Sequence[Tokenised], verify: bool, batch_size: int | None) -> list[TokenBatch]:
    """Batches in order. When verifying they are padded to n_max, so that padding is checked too."""
    size = batch_size or batch_size_for(bundle.graph, executions=2 if verify else 1)
    pad_to = bundle.graph.n_max if verify else None
    return [bundle.batch(tokenised[start : start + size], pad_to) for start in range(0, len(tokenised), size)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spikebert-run",
        description="Run a bundle on texts with any engine, count spikes and operations, check it bit for bit.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="folder of a bundle, or the name of one that is shipped")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--text", action="append", metavar="TEXT", help="a text to classify; may be repeated")
    source.add_argument(
        "--file", type=Path, metavar="TSV", help="tab-separated UTF-8 file; first line 'text' or 'text<TAB>label'"
    )
    parser.add_argument("--engine", default="fast", help=f"one of {', '.join(engine_names())} (default: fast)")
    parser.add_argument("--model", type=Path, metavar="DIR", help="folder of the trained model, for the engine 'torch'")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare every value of every node with the reference; without texts, on the bundle's golden samples",
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
