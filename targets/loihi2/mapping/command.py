"""`python -m targets.loihi2.mapping`: where the network of a bundle would be on Loihi 2."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from converters.bundle import read_bundle
from sim.find_bundle import find_bundle
from sim.whole_file import check_path, whole_file
from spikebert.commands import CHECK_FAILED, OK, UserError, note, run_command, write_json, write_output
from targets.loihi2.mapping.check import check_mapping
from targets.loihi2.mapping.chips import BOARDS
from targets.loihi2.mapping.network import ChipNetwork, chip_network
from targets.loihi2.mapping.place import place
from targets.loihi2.mapping.remedies import remedies
from targets.loihi2.mapping.report import to_json, to_text
from targets.loihi2.mapping.traffic import FIRING_RATE, assumed_rates, assumed_rates_name, measured_rates

EXAMPLES = """examples:
  python -m targets.loihi2.mapping reviews
  spikebert-run reviews --file data.tsv --json > run.json
  python -m targets.loihi2.mapping reviews --activity run.json --out mapping.json
  python -m targets.loihi2.mapping reviews --board oheo-gulch --alternatives
  python -m targets.loihi2.mapping reviews --check mapping.json

exit codes: 0 ok, 1 it does not fit the board, the graph is illegal, or a check failed, 2 wrong use
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m targets.loihi2.mapping",
        description="Place the network of a bundle on the cores and chips of Loihi 2. No chip is needed. Attention is "
        "placed as the\nneurons that --pass expand-attention makes of it, whether or not the bundle was exported so.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="folder or zip of a bundle, or the name of a shipped one")
    parser.add_argument(
        "--board", choices=[board.name for board in BOARDS], help="default: the smallest that has enough chips"
    )
    rates = parser.add_mutually_exclusive_group()
    rates.add_argument(
        "--rate",
        type=_rate,
        default=FIRING_RATE,
        metavar="R",
        help=f"assume that every neuron fires at this share of all steps (default: {FIRING_RATE})",
    )
    rates.add_argument(
        "--activity", type=Path, metavar="FILE", help="what spikebert-run --json printed of a run of this bundle"
    )
    parser.add_argument(
        "--alternatives", action="store_true", help="try out what would make it smaller, also where it fits"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the mapping to this file, as JSON")
    parser.add_argument(
        "--check", type=Path, metavar="FILE", help="place nothing: hold this mapping of the bundle against the limits"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what --out names")
    parser.add_argument("--json", action="store_true", help="print one JSON object, the mapping")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def body(argv: Sequence[str]) -> int:
    arguments = make_parser().parse_args(argv)
    if arguments.out:
        check_path("--out", arguments.out, arguments.overwrite)
        for flag in ("activity", "check"):
            read = getattr(arguments, flag)
            if read and arguments.out.resolve() == read.resolve():
                raise UserError(f"--out and --{flag} both name {read}: it would be lost. Give two files")
    graph = read_bundle(find_bundle(arguments.bundle)).graph
    if arguments.check:
        return _check(arguments, graph)
    network = chip_network(graph)
    board = next((board for board in BOARDS if board.name == arguments.board), None)
    rates, rates_from = _rates(arguments, network)
    mapping = place(network, rates, rates_from, board)
    tried = []
    if arguments.alternatives or not mapping.fits:
        tried = remedies(network, mapping.model, mapping.board or BOARDS[-1])
    document = to_json(mapping, tried)
    if arguments.out:
        _write(arguments.out, document)
    if arguments.json:
        write_json(document)
    else:
        write_output(to_text(mapping, tried))
    if not mapping.fits:
        largest = mapping.board or BOARDS[-1]
        note(f"error: {mapping.chips:,} chips, {largest.name} has {largest.chips:,}")
        return CHECK_FAILED
    return OK


def _check(arguments: argparse.Namespace, graph: Any) -> int:
    problems = check_mapping(graph, _read_json(arguments.check))
    if arguments.json:
        write_json({"ok": not problems, "problems": [vars(problem) for problem in problems]})
    elif not problems:
        write_output(f"{arguments.check}: every neuron is placed once, and every core is within its limits")
    else:
        write_output("\n".join(map(str, problems)))
    return CHECK_FAILED if problems else OK


def _rates(arguments: argparse.Namespace, network: ChipNetwork) -> tuple[dict[str, float], str]:
    if arguments.activity is None:
        return assumed_rates(network, arguments.rate), assumed_rates_name(arguments.rate)
    run = _read_json(arguments.activity)
    return measured_rates(network, run, str(arguments.activity)), f"measured in {arguments.activity.name}"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None


def _write(path: Path, document: dict[str, Any]) -> None:
    with whole_file("--out", path) as file:
        file.write(f"{json.dumps(document)}\n".encode())


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no share from 0 to 1")
    return rate


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(body, argv)
