"""Runs passes one after another, and proves on the golden inputs that each left the network the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from converters.execution import Execution, TokenBatch
from converters.graph import Graph, GraphError
from converters.graph_text import graph_text
from converters.passes.prove_ranges import ProveRanges
from converters.passes.remove_dead_neurons import RemoveDeadNeurons
from converters.passes.remove_unread_nodes import RemoveUnreadNodes
from converters.passes.rewrite import Pass, Rewrite
from converters.ranges import prove_ranges, ranges_table
from sim.verify import Comparison, compare
from spikebert.commands import CheckFailed, UserError

# In the order in which they run.
PASSES: tuple[Pass, ...] = (ProveRanges(), RemoveUnreadNodes(), RemoveDeadNeurons())
PASS_NAMES = tuple(each.name for each in PASSES)
DEFAULT_PASSES = ("prove-ranges",)

Run = Callable[[Graph, TokenBatch], Execution]  # the reference interpreter, with every value of every node


@dataclass(frozen=True, eq=False)
class PassRecord:
    """What one pass did: its name, its line for a person, and how many values were compared with those before."""

    name: str
    summary: str
    values_compared: int


def find_passes(names: Sequence[str]) -> tuple[Pass, ...]:
    """Passes by name, in the order in which they run. Raises UserError for a name that is none."""
    known = {each.name: each for each in PASSES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"there is no pass '{unknown[0]}'. Passes: {', '.join(known)}")
    return tuple(each for each in PASSES if each.name in names)


def run_passes(
    graph: Graph, passes: Sequence[Pass], batch: TokenBatch, run: Run, save: Path | None = None
) -> tuple[Graph, tuple[PassRecord, ...]]:
    """The graph after all passes, and what each did.

    batch the golden inputs; `run` executes a graph on them (the reference interpreter)
    save  a folder for the graph before the first and after each pass, numbered, as text, with its ranges

    Raises CheckFailed where a pass refuses the graph, makes an illegal one, or changes a value, and UserError where
    `save` cannot be made.
    """
    if save is not None:
        _make_folder(save)
        _save(save, 0, "before", graph)
    records = []
    for number, each in enumerate(passes, start=1):
        try:
            rewrite = each.rewrite(graph)
        except GraphError as error:
            raise CheckFailed(f"pass '{each.name}': {error}") from error
        compared = 0 if rewrite.graph is graph else _prove_same(each.name, graph, rewrite, batch, run)
        graph = rewrite.graph
        records.append(PassRecord(each.name, rewrite.summary, compared))
        if save is not None:
            _save(save, number, each.name, graph)
    return graph, tuple(records)


def _prove_same(name: str, graph: Graph, rewrite: Rewrite, batch: TokenBatch, run: Run) -> int:
    """How many values of both graphs were compared, one golden input after another: all at once would take gigabytes
    for a large network. Raises CheckFailed with the first that differs."""
    comparison = Comparison()
    for i in range(len(batch)):
        before, after = run(graph, batch[i : i + 1]), run(rewrite.graph, batch[i : i + 1])
        expected = {node: values for node, values in before.values.items() if node in after.values}
        for node, kept in rewrite.origins.items():
            expected[node] = expected[node][..., kept]
        for node, values in expected.items():
            if values.shape != after.values[node].shape:
                features = f"{after.values[node].shape[-1]} features, it says {values.shape[-1]}"
                raise CheckFailed(f"pass '{name}': node '{node}' has {features}")
        comparison += compare(rewrite.graph, Execution(before.logits, expected), after, first_sample=i)
    if comparison.mismatches:
        raise CheckFailed(f"pass '{name}' changed the network: golden {comparison.first_mismatch}")
    return comparison.values_compared


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: no folder can be made there for the passes: {error.strerror}") from None


def _save(folder: Path, number: int, name: str, graph: Graph) -> None:
    start = folder / f"{number:02}-{name}"
    start.with_suffix(".graph.txt").write_text(graph_text(graph), encoding="utf-8")
    start.with_suffix(".ranges.txt").write_text(ranges_table(graph, prove_ranges(graph)), encoding="utf-8")
