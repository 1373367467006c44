"""How many cores and chips of Loihi 2 networks of several sizes take, and how long it takes to place them.

    python -m benchmarks.mapping                                # the table of docs/mapping.md; some minutes
    python -m benchmarks.mapping --size 6x384 --tokens 32 --check

Weights are random, for a mapping depends on their zeros alone. One network is made for each size: for another length of
text it differs in nothing but its tokens.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

from benchmarks.networks import random_network
from targets.loihi2.mapping.check import check_network
from targets.loihi2.mapping.network import ChipNetwork, chip_network
from targets.loihi2.mapping.place import place
from targets.loihi2.mapping.report import to_json
from targets.loihi2.mapping.timing import estimate
from targets.loihi2.mapping.traffic import FIRING_RATE, assumed_rates, assumed_rates_name

SIZES = ("2x128", "2x384", "6x384", "12x768")
TOKENS = (16, 32, 64, 128)
HEAD_WIDTH = 64
TITLES = (
    "network",
    "N",
    "neurons",
    "cores",
    "chips",
    "board",
    "binds",
    "ms a sentence",
    "messages a step",
    "CPU seconds",
)


def network_of(size: str) -> ChipNetwork:
    """Of a size such as "6x384": depth and width."""
    depth, width = map(int, size.split("x"))
    heads = max(1, width // HEAD_WIDTH)
    graph = random_network(depth, width, heads, min(TOKENS), 4, FIRING_RATE, one_threshold=True)
    return chip_network(graph)


def row(size: str, network: ChipNetwork, check: bool) -> list[str]:
    """Place it; a line of the table."""
    start = time.process_time()  # of this process alone: machines are busy
    mapping = place(network, assumed_rates(network, FIRING_RATE), assumed_rates_name(FIRING_RATE))
    seconds = time.process_time() - start
    if check:
        start = time.process_time()
        problems = check_network(network, json.loads(json.dumps(to_json(mapping))))
        print(f"{len(problems)} problems, checked in {time.process_time() - start:.1f} s")
    binds = max(mapping.binds, key=lambda name: mapping.binds[name])
    within = mapping.crossing / mapping.traffic.between.sum()
    return [
        size,
        str(network.tokens),
        f"{network.neurons:,}",
        f"{mapping.cores:,} ({mapping.fewest_cores:,})",
        f"{mapping.chips:,}",
        mapping.board.name if mapping.board else "none",
        f"{binds} ({mapping.utilisation[binds]:.0%})",
        f"{estimate(mapping).stream_ms:.1f}",
        f"{mapping.traffic.between.sum():,.0f} ({within:.0%})",
        f"{seconds:.1f}",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mapping", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", action="append", help=f"depth x width; default: {', '.join(SIZES)}")
    parser.add_argument("--tokens", type=int, action="append", help=f"default: {', '.join(map(str, TOKENS))}")
    parser.add_argument("--check", action="store_true", help="hold each mapping against the limits, counted anew")
    arguments = parser.parse_args(argv)
    print(f"| {' | '.join(TITLES)} |\n| {' | '.join('---' for _ in TITLES)} |", flush=True)
    for size in arguments.size or SIZES:
        network = network_of(size)
        for tokens in arguments.tokens or TOKENS:
            print(f"| {' | '.join(row(size, network.with_tokens(tokens), arguments.check))} |", flush=True)


if __name__ == "__main__":
    main()
