"""How rarely must neurons fire for the spiking network to be faster than a dense BERT of the same size?

    python -m benchmarks.engine_break_even

Random networks that fire at given rates run on `fast`, beside a BERT in ONNX Runtime in int8 and in float32, on the
same cores and the same sentences, all of N tokens.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from benchmarks.dense_bert import onnx_classifier, random_bert
from benchmarks.networks import CLASSES, VOCABULARY, WIDENING, full_batch, random_network
from benchmarks.timing import Usage, machine, side_by_side, table
from sim.fast.engine import FastEngine

DENSE = {"int8": True, "float32": False}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--timesteps", type=int, default=4)
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--rates", type=float, nargs="+", default=[1, 2, 3, 5, 10, 15, 20, 30], help="per cent")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10, help="for each figure")
    arguments = parser.parse_args(argv)
    start = Usage.now()
    print(f"{arguments.depth} x {arguments.hidden}, {arguments.heads} heads, MLP {WIDENING * arguments.hidden}", end="")
    print(f", T = {arguments.timesteps}, batches of {arguments.batch}")
    for tokens in arguments.tokens:
        print(f"\nN = {tokens}\n\n{compare(arguments, tokens)}")
    print(f"\n{machine(start)}")


def compare(arguments: argparse.Namespace, tokens: int) -> str:
    """The table of one length, and where the ratios pass 1."""
    size = (arguments.depth, arguments.hidden, arguments.heads)
    dense = random_bert(*size, WIDENING * arguments.hidden, VOCABULARY, tokens, CLASSES)
    rivals = {name: onnx_classifier(dense, int8) for name, int8 in DENSE.items()}
    rates: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in DENSE}
    rows = []
    for wanted in sorted(arguments.rates):
        graph = random_network(*size, tokens, arguments.timesteps, wanted / 100)
        batch = full_batch(graph, arguments.batch)
        engine = FastEngine(graph)
        try:
            counted = engine.run(batch).activity
            work = {"fast": [partial(engine.run, batch)]}
            work |= {name: [partial(classify, batch)] for name, classify in rivals.items()}
            seconds = {name: taken[0] for name, taken in side_by_side(work, arguments.seconds).items()}
        finally:
            engine.close()
        rates.append(counted.total.rate)
        for name in DENSE:
            ratios[name].append(seconds[name] / seconds["fast"])
        speeds = [f"{arguments.batch / taken:,.1f}" for taken in seconds.values()]
        rows.append([f"{counted.total.rate:.1%}", *speeds, *(f"{ratios[name][-1]:.2f}" for name in DENSE)])
    header = ["firing rate", "fast, sentences/s", *(f"BERT {name}" for name in DENSE)]
    header += [f"fast is so many times BERT {name}" for name in DENSE]
    ends = [f"break-even with BERT {name}: {describe(rates, ratios[name])}" for name in DENSE]
    return "\n".join([table(header, rows), "", *ends])


def describe(rates: Sequence[float], ratios: Sequence[float]) -> str:
    found = break_even(rates, ratios)
    if found is not None:
        return f"at a firing rate of {found:.1%}"
    return (
        f"none between {rates[0]:.1%} and {rates[-1]:.1%}, fast is {'faster' if ratios[0] > 1 else 'slower'} throughout"
    )


def break_even(rates: Sequence[float], ratios: Sequence[float]) -> float | None:
    """The rate at which the ratio falls through 1, on a straight line in logarithms between its neighbours."""
    points = [(math.log(rate), math.log(ratio)) for rate, ratio in zip(rates, ratios)]
    for (x, y), (next_x, next_y) in pairwise(points):
        if y >= 0 > next_y:
            return math.exp(x + (next_x - x) * y / (y - next_y))
    return None


if __name__ == "__main__":
    main()
