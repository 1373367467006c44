"""Random models through export and every engine: how many values were compared, how many differ, what was refused.

    python -m benchmarks.campaign --values 100000000 --seed 0 --checks torch,fast,early-exit,lava-inline
    python -m benchmarks.campaign --models 100 --seed 0 --checks lava-inline,lava-stock,lava

Models of shapes nobody chose (`tests/random_models.py`: SpikeBERTs, modules of our layers, SpikingJelly chains) become
graphs, as `spikebert-export` makes them. Every value of every node is compared with the reference: of the PyTorch
module, of the engine `fast`, of both where texts stop early, of the graphs after each pass, and, for graphs that are
small enough to wait for, of Lava: `lava-inline`, the same with attention of Lava's own neurons (`lava-stock`), and its
runtime (`lava`). A refusal is counted by its reason. Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import Usage, machine, table
from converters.early_exit import EarlyExit
from converters.execution import Engine, EngineOptions, TokenBatch
from converters.from_torch import graph_from_model
from converters.graph import Attention, Graph, GraphError
from converters.passes.catalogue import PASS_NAMES, PassContext, choose_passes, make_passes
from converters.passes.run import Interpreters, run_passes
from converters.pipeline import run_reference
from converters.torch_engine import TorchEngine
from sim.clocked import run_clocked
from sim.engines import open_engine
from sim.reference import ReferenceEngine
from sim.verify import Comparison, compare
from spikebert.commands import CheckFailed, MissingExtra, UserError
from targets.legality import IllegalGraphError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # where the random models are
from random_graphs import middle_margin
from random_models import KINDS, Shape, draw_shape, make_batch, make_model

CHECKS = ("torch", "fast", "early-exit", "passes", "lava-inline", "lava-stock", "lava")
LAVA_WORK = 60_000  # nodes x steps x features for which Lava is run: some seconds
STOCK_WORK = 20_000  # attention of stock neurons has some for each pair of tokens
OPTIONS = {"split-wide-layers": ":most_features=16"}  # the models are narrow
NEEDS_A_TOKENIZER = {"remove-unreachable-tokens"}
PASSES = tuple(name + OPTIONS.get(name, "") for name in PASS_NAMES if name not in NEEDS_A_TOKENIZER)


def passes_for(graph: Graph) -> tuple[str, ...]:
    """The passes that take this graph: a position bias has no stock neurons."""
    biased = any(isinstance(node, Attention) and node.bias is not None for node in graph)
    return tuple(name for name in PASSES if not (biased and name == "expand-attention"))


@dataclass
class Tally:
    """What happened to the models of one kind in one check."""

    models: int = 0
    compared: Comparison = field(default_factory=Comparison)
    refused: Counter[str] = field(default_factory=Counter)


class Campaign:
    """Runs models and keeps count. checks: those wanted, of `CHECKS`."""

    def __init__(self, checks: set[str], say: Callable[[str], None]) -> None:
        self.checks, self.say = checks, say
        self.tallies: dict[tuple[str, str], Tally] = {}
        self.rates: dict[str, list[float]] = {kind: [] for kind in KINDS}

    @property
    def values(self) -> int:
        """Compared with an engine; what passes were proven with is not counted."""
        return sum(tally.compared.values_compared for (check, _), tally in self.tallies.items() if check in CHECKS)

    @property
    def mismatches(self) -> int:
        return sum(tally.compared.mismatches for tally in self.tallies.values())

    def run(self, shape: Shape) -> None:
        """One model through every check. A difference is told at once, with the shape that gives it again."""
        tally = self._tally(shape, "export")
        tally.models += 1
        model = make_model(shape)
        try:
            graph = graph_from_model(model)
        except (GraphError, UserError) as error:
            tally.refused[str(error)] += 1
            return
        batch = make_batch(shape, np.random.default_rng(shape.seed))
        expected = run_reference(graph, batch)
        real = batch.mask == 1
        self.rates[shape.kind] += [float((expected.values[name][:, real] != 0).mean()) for name in graph.spiking]
        if "torch" in self.checks:
            self._compare(shape, "torch", graph, batch, lambda: TorchEngine(graph, model))
        if "fast" in self.checks:
            self._compare(shape, "fast", graph, batch, lambda: open_engine("fast", graph, EngineOptions(threads=1)))
        if "passes" in self.checks:
            for spec in PASSES:
                self._pass(shape, spec, [spec], graph, batch)
            self._pass(shape, "all passes", passes_for(graph), graph, batch)
        if "early-exit" in self.checks and graph.timesteps > 1:
            leaves = EarlyExit(middle_margin(graph, batch))
            options = EngineOptions(threads=1, early_exit=leaves)
            self._compare(shape, "early-exit", graph, batch, lambda: TorchEngine(graph, model, leaves), leaves)
            self._compare(shape, "early-exit", graph, batch, lambda: open_engine("fast", graph, options), leaves)
        work = _lava_work(graph, batch)
        for check in ("lava-inline", "lava"):
            if check in self.checks and work <= LAVA_WORK:
                self._compare(shape, check, graph, batch[:1], lambda check=check: open_engine(check, graph))
        if "lava-stock" in self.checks and work <= STOCK_WORK:
            stock = EngineOptions(attention="stock")
            self._compare(shape, "lava-stock", graph, batch[:1], lambda: open_engine("lava-inline", graph, stock))

    def _tally(self, shape: Shape, check: str) -> Tally:
        return self.tallies.setdefault((check, shape.kind), Tally())

    def _compare(
        self,
        shape: Shape,
        check: str,
        graph: Graph,
        batch: TokenBatch,
        open_it: Callable[[], Engine],
        early_exit: EarlyExit | None = None,
    ) -> None:
        tally = self._tally(shape, check)
        tally.models += 1
        try:
            engine = open_it()
        except IllegalGraphError as error:
            tally.refused.update({violation.rule for violation in error.violations})
            return
        except UserError as error:
            if isinstance(error, MissingExtra) or check != "lava-stock":
                raise
            tally.refused[re.sub("'.*?'", "'...'", str(error))] += 1  # attention that has no stock neurons, of any name
            return
        names = [node.name for node in graph]
        try:
            got = engine.run(batch, names)
        finally:
            engine.close()
        comparison = compare(graph, ReferenceEngine(graph, early_exit).run(batch, names), got)
        tally.compared += comparison
        if comparison.mismatches:
            self.say(f"{check}: {shape}: {comparison.mismatches} values differ, first {comparison.first_mismatch}")

    def _pass(self, shape: Shape, name: str, specs: Sequence[str], graph: Graph, batch: TokenBatch) -> None:
        """`run_passes` compares the graph after each pass with that before."""
        tally = self._tally(shape, name)
        tally.models += 1
        todo = make_passes(choose_passes(specs), PassContext(Path()))
        try:
            passed = run_passes(graph, todo, batch[:2], Interpreters(run_reference, run_clocked))
        except CheckFailed as error:
            if isinstance(error.__cause__, GraphError):  # the pass does not take such a graph, and says why
                tally.refused[str(error)] += 1
                return
            tally.compared += Comparison(0, 1)
            self.say(f"{name}: {shape}: {error}")
            return
        tally.compared += Comparison(sum(record.values_compared for record in passed.records))

    def report(self) -> Iterator[str]:
        """For a person: a table, how alive the models were, and every reason for a refusal."""
        rows = []
        for (check, kind), tally in sorted(self.tallies.items()):
            refused, compared = sum(tally.refused.values()), tally.compared
            counts = (tally.models, refused, compared.values_compared, compared.mismatches)
            rows.append([check, kind, *(f"{count:,}" for count in counts)])
        rows.append(["engines together", "", "", "", f"{self.values:,}", f"{self.mismatches:,}"])
        yield table(["check", "models", "how many", "refused", "values compared", "mismatches"], rows)
        for kind, rates in self.rates.items():
            if rates:
                silent = float(np.mean(np.array(rates) == 0))
                yield f"{kind}: spiking nodes are not 0 at {np.mean(rates):.1%} of places; {silent:.1%} are silent"
        for (check, kind), tally in sorted(self.tallies.items()):
            for reason, count in tally.refused.most_common():
                yield f"refused by {check} ({kind}), {count} times: {reason}"


def _lava_work(graph: Graph, batch: TokenBatch) -> int:
    return len(graph.nodes) * graph.timesteps * batch.ids.shape[1] * max(graph.features.values())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--values", type=int, default=10_000_000, help="stop when so many values of engines were compared"
    )
    parser.add_argument("--models", type=int, default=10**9, help="stop after so many models")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, help="of one kind only")
    parser.add_argument(
        "--checks", default="torch,fast,passes,lava-inline", help=f"of {', '.join(CHECKS)} (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    checks = set(arguments.checks.split(","))
    if unknown := checks.difference(CHECKS):
        parser.error(f"--checks: {', '.join(sorted(unknown))} is none of {', '.join(CHECKS)}")
    rng = np.random.default_rng(arguments.seed)
    fixed = {"kind": arguments.kind} if arguments.kind else {}
    campaign = Campaign(checks, print)
    started, usage = time.monotonic(), Usage.now()
    for models in range(1, arguments.models + 1):
        campaign.run(draw_shape(rng, **fixed))
        minutes = (time.monotonic() - started) / 60
        if models % 20 == 0:
            print(f"{models} models, {campaign.values:,} values, {campaign.mismatches} mismatches, {minutes:.1f} min")
        if campaign.values >= arguments.values or minutes >= arguments.minutes:
            break
    print(f"\nseed {arguments.seed}, {models} models, {minutes:.1f} minutes")
    print(machine(usage))
    print("\n".join(campaign.report()))
    return 1 if campaign.mismatches else 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # the models are small
    sys.exit(main())
