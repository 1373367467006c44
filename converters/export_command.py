"""`spikebert-export`: a trained model in, a bundle out."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from converters.execution import ATTENTION_KINDS
from converters.passes.catalogue import ABOUT, options_of
from spikebert.commands import OK, note, output_kept_clean, printable, run_command, write_json, write_output

EXAMPLE = """\
examples:
  spikebert-export --target lava --model runs/reviews --out build/reviews
  spikebert-export --model runs/reviews --out build/reviews --pass merge-query-key-value \\
      --pass split-wide-layers:most_features=512 --save-passes build/passes
  spikebert-export --target loihi2 --pass expand-attention --model build/reviews --out build/for_loihi2

Before anything is written the graph is held against the integer PyTorch model, every value of every node,
on eight inputs; those become the bundle's golden vectors. A bundle is held against those that it has.
Exit code 1: they differ, or the target refuses.
"""
HELD_AGAINST = {"torch": "torch model and graph agree", "golden": "the bundle's graph repeats what it has recorded"}
EXAMPLE_VALUES = {int: "N", bool: "true"}


def passes_help() -> str:
    """Every pass with what it does, and its options as they are written."""
    lines = ["passes, in the order in which they run (docs/compiler.md):"]
    for name, does in ABOUT.items():
        options = [f"{option}={EXAMPLE_VALUES[kind]}" for option, kind in options_of(name).items()]
        lines.append(f"  {name:<26} {does}{''.join(f' [:{option}]' for option in options)}")
    return "\n".join(lines) + "\n"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spikebert-export",
        description="Write the bundle that a target host runs.",
        epilog=f"{passes_help()}\n{EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        help="a run of spikebert-train, an integer model, or a bundle, to export it again: its folder, a zip of it, or "
        "the name of a known one",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--target", help="check the graph for this target and add what it needs, e.g. lava")
    parser.add_argument("--timesteps", type=int, metavar="T", help="run for so many timesteps; as trained if left out")
    parser.add_argument(
        "--vocabulary",
        type=int,
        metavar="N",
        help="keep at most N tokens, those that --vocabulary-text uses most",
    )
    parser.add_argument(
        "--vocabulary-text",
        nargs="+",
        default=[],
        metavar="FILE",
        help="a text a line, plain, .gz or .xz; of a .tsv its column 'text'",
    )
    parser.add_argument(
        "--no-texts",
        action="store_true",
        help="do not run the network on the texts that training measured it on: the card then tells no activity, and "
        "no accuracy with other tokens or timesteps; what that of a bundle tells of the same network stays",
    )
    parser.add_argument("--name", help="name on the model card; the folder's name if left out")
    parser.add_argument(
        "--pass",
        dest="passes",
        action="append",
        default=[],
        metavar="NAME[:OPTION=VALUE,...]",
        help="change the graph by a pass, and prove it the same; may be repeated; the order is that of the list below",
    )
    parser.add_argument(
        "--attention",
        choices=ATTENTION_KINDS,
        default="process",
        help="stock: of stock neurons and synapses, the same as --pass expand-attention (default: process)",
    )
    parser.add_argument(
        "--save-passes", type=Path, metavar="DIR", help="keep the graph before and after each pass there, as text"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older bundle at --out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def body(argv: Sequence[str]) -> int:
    arguments = make_parser().parse_args(argv)
    stock = ["expand-attention"] if arguments.attention == "stock" else []
    from converters.from_bundle import bundle_at, export_again
    from converters.pipeline import Request, check_request, export
    from targets.legality import IllegalGraphError

    try:
        with output_kept_clean():
            request = Request(
                arguments.out,
                arguments.target,
                name=arguments.name,
                overwrite=arguments.overwrite,
                command=printable(shlex.join(["spikebert-export", *argv])),
                passes=[*stock, *arguments.passes],  # of a pass given twice the later counts, with its options
                save_passes=arguments.save_passes,
                timesteps=arguments.timesteps,
                vocabulary=arguments.vocabulary,
                vocabulary_text=arguments.vocabulary_text,
                run_texts=not arguments.no_texts,
            )
            check_request(request)  # what is wrong with it is said before a model is looked for
            bundle = bundle_at(arguments.model)
            done = export(arguments.model, request) if bundle is None else export_again(bundle, request)
    except IllegalGraphError as error:
        if arguments.json:
            write_json({"bundle": None, "violations": error.to_json()})
        raise
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    report = {
        "bundle": str(arguments.out),
        "report": str(arguments.out / "report.html"),
        "target": arguments.target,
        "bytes": size,
        "nodes": len(done.bundle.graph.nodes),
        "passes": [asdict(record) for record in done.passes],
        "verify": {"against": done.against, **done.comparison.to_json()},
    }
    if arguments.json:
        write_json(report)
    else:
        compared = done.comparison.values_compared
        note(f"{HELD_AGAINST[done.against]}: {compared:,} values on the golden inputs, 0 mismatches")
        for record in done.passes:
            same = f"; {record.values_compared:,} values as before" if record.values_compared else ""
            note(f"{record.name}: {record.summary}{same}")
        write_output(f"{arguments.out}: {len(done.bundle.graph.nodes)} nodes, {size / 1e6:.1f} MB")
        note(f"report: {arguments.out / 'report.html'} (open it in a browser), report.json beside it for machines")
        example = shlex.quote(done.bundle.config["example"])
        note(f"try: spikebert-run {arguments.out} --text {example}")
    return OK


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(body, argv)


if __name__ == "__main__":
    sys.exit(main())
