"""Runs passes one after another, and proves on the golden inputs that each left the network the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.execution import Execution, TokenBatch
from converters.graph import Graph, GraphError
from converters.graph_text import graph_text
from converters.passes.rewrite import Pass, Rewrite
from converters.ranges import prove_ranges, ranges_table
from converters.schedule import Schedule, schedule_table
from sim.verify import Comparison, compare
from spikebert.commands import CheckFailed, UserError


@dataclass(frozen=True, eq=False)
class Interpreters:
    """What passes are proven with, each with every value of every node.

    run     the reference
    clocked the reference in machine time, by a schedule
    """

    run: Callable[[Graph, TokenBatch], Execution]
    clocked: Callable[[Graph, Schedule, TokenBatch], Execution]


@dataclass(frozen=True, eq=False)
class PassRecord:
    """What one pass did: its name, its line for a person, and how many values were compared with those before."""

    name: str
    summary: str
    values_compared: int


@dataclass(frozen=True, eq=False)
class PassedGraph:
    """What passes made of a graph.

    batch     the golden inputs, with the ids that the new graph takes
    token_ids int64 [rows of the old table]: the new id of each token, -1 for one that is gone; None where ids stayed
    """

    graph: Graph
    batch: TokenBatch
    records: tuple[PassRecord, ...] = ()
    token_ids: np.ndarray | None = None


def run_passes(
    graph: Graph, passes: Sequence[Pass], batch: TokenBatch, interpreters: Interpreters, save: Path | None = None
) -> PassedGraph:
    """The graph after all passes, and what each did.

    batch the golden inputs
    save  a folder for the graph before the first and after each pass, numbered, as text, with its ranges, and with
          its schedule where a pass found one

    Raises CheckFailed where a pass refuses the graph, makes an illegal one, or changes a value, and UserError where
    `save` cannot be made.
    """
    if save is not None:
        _make_folder(save)
        _save(save, 0, "before", graph, None)
    passed = PassedGraph(graph, batch)
    for number, each in enumerate(passes, start=1):
        try:
            rewrite = each.rewrite(passed.graph)
        except GraphError as error:
            raise CheckFailed(f"pass '{each.name}': {error}") from error
        passed = _pass_on(each.name, passed, rewrite, interpreters)
        if save is not None:
            _save(save, number, each.name, passed.graph, rewrite.schedule)
    return passed


def _pass_on(name: str, before: PassedGraph, rewrite: Rewrite, interpreters: Interpreters) -> PassedGraph:
    """What there is after a pass, once it is proven."""
    batch, token_ids = before.batch, before.token_ids
    if rewrite.token_ids is not None:
        new = rewrite.token_ids
        missing = np.argwhere((batch.mask == 1) & (new[batch.ids] < 0))
        if len(missing):
            sample, token = missing[0]
            gone = batch.ids[sample, token]
            raise CheckFailed(f"pass '{name}' removed token id {gone}: golden sample {sample} has it at token {token}")
        batch = TokenBatch(np.where(batch.mask == 1, new[batch.ids], 0), batch.mask)
        token_ids = new if token_ids is None else np.where(token_ids >= 0, new[token_ids], -1)
    compared = 0
    if rewrite.graph is not before.graph:
        compared += _prove_same(name, before, rewrite, batch, interpreters)
    if rewrite.schedule is not None:
        compared += _prove_schedule(name, rewrite.graph, rewrite.schedule, batch, interpreters)
    record = PassRecord(name, rewrite.summary, compared)
    return PassedGraph(rewrite.graph, batch, (*before.records, record), token_ids)


def _prove_same(name: str, before: PassedGraph, rewrite: Rewrite, batch: TokenBatch, interpreters: Interpreters) -> int:
    """How many values of both graphs were compared, one golden input after another: all at once would take gigabytes
    for a large network. Raises CheckFailed with the first that differs."""
    if (before.graph.timesteps, before.graph.n_max) != (rewrite.graph.timesteps, rewrite.graph.n_max):
        raise CheckFailed(f"pass '{name}' changed the timesteps, or how many tokens the graph takes")
    comparison = Comparison()
    for i in range(len(batch)):
        old = interpreters.run(before.graph, before.batch[i : i + 1])
        new = interpreters.run(rewrite.graph, batch[i : i + 1])
        expected = {node: values for node, values in old.values.items() if node in new.values}
        for node, kept in rewrite.origins.items():
            expected[node] = expected[node][..., kept]
        given = dict(new.values)
        for node, values in expected.items():
            told, width = values.shape[-1] + rewrite.added.get(node, 0), given[node].shape[-1]
            if told != width:
                raise CheckFailed(f"pass '{name}': node '{node}' has {width} features, it says {told}")
            given[node] = given[node][..., : values.shape[-1]]
        comparison += compare(
            rewrite.graph, Execution(old.logits, expected), Execution(new.logits, given), first_sample=i
        )
    if comparison.mismatches:
        raise CheckFailed(f"pass '{name}' changed the network: golden {comparison.first_mismatch}")
    return comparison.values_compared


def _prove_schedule(name: str, graph: Graph, schedule: Schedule, batch: TokenBatch, interpreters: Interpreters) -> int:
    """How many values were compared, samples back to back. Raises CheckFailed with the first that differs."""
    comparison = compare(graph, interpreters.run(graph, batch), interpreters.clocked(graph, schedule, batch))
    if comparison.mismatches:
        raise CheckFailed(f"pass '{name}' made a wrong schedule: golden {comparison.first_mismatch}")
    return comparison.values_compared


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: no folder can be made there for the passes: {error.strerror}") from None


def _save(folder: Path, number: int, name: str, graph: Graph, schedule: Schedule | None) -> None:
    start = folder / f"{number:02}-{name}"
    start.with_suffix(".graph.txt").write_text(graph_text(graph), encoding="utf-8")
    start.with_suffix(".ranges.txt").write_text(ranges_table(graph, prove_ranges(graph)), encoding="utf-8")
    if schedule is not None:
        start.with_suffix(".schedule.txt").write_text(schedule_table(schedule), encoding="utf-8")
