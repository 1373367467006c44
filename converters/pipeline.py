"""What `spikebert-export` does: model -> graph -> the same bits? -> passes -> legal for the target? -> bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from converters.bundle import (
    GOLDEN_MAX,
    Bundle,
    Golden,
    check_destination,
    golden_nodes,
    make_golden,
    write_bundle,
)
from converters.execution import Execution, TokenBatch
from converters.graph import Graph, GraphError
from converters.passes.run import DEFAULT_PASSES, PassRecord, find_passes, run_passes
from sim.reference import ReferenceEngine
from sim.verify import Comparison, compare
from spikebert.commands import CheckFailed, UserError

TARGETS = "spikebert.targets"
# Short inputs of our own: an empty text, one word, repetition, punctuation, another script, a longer sentence.
GOLDEN_TEXTS = (
    "",
    "good",
    "not good , not good at all",
    "a gripping , funny film",
    "The battery died after two days !",
    "服务很好，下次还会来。",
    "what a waste of an evening",
    "the soup was cold , the waiter was rude and we still paid thirty dollars each",
)


class Violation(Protocol):
    """One thing a target cannot hold; `str` of it is for a person."""

    node: str
    rule: str
    value: int
    limit: int
    remedy: str


class IllegalForTarget(CheckFailed):
    """A graph that a target refuses; `violations` holds every reason."""

    def __init__(self, target: str, violations: Sequence[Violation]) -> None:
        self.violations = tuple(violations)
        lines = "".join(f"\n  {violation}" for violation in self.violations)
        super().__init__(f"the graph is not legal for the target '{target}':{lines}")

    def to_json(self) -> list[dict[str, object]]:
        return [{name: getattr(each, name) for name in Violation.__annotations__} for each in self.violations]


class Target(Protocol):
    """What an entry point of `spikebert.targets` names: a class that is made without arguments."""

    name: str

    def check(self, graph: Graph) -> Sequence[Violation]: ...

    def emit(self, graph: Graph, folder: Path) -> None: ...


@dataclass(frozen=True, eq=False)
class Export:
    """What an export did: the bundle, torch against reference on the golden inputs, and what each pass did."""

    bundle: Bundle
    comparison: Comparison
    passes: tuple[PassRecord, ...]


def find_target(name: str) -> Target:
    """Raises UserError for a target that is not registered."""
    registered = {point.name: point for point in entry_points(group=TARGETS)}
    if name not in registered:
        raise UserError(f"there is no target '{name}'. Targets: {', '.join(sorted(registered))}")
    return registered[name].load()()


def tokenise_golden(tokenizer: Any, n_max: int, pad_id: int) -> TokenBatch:
    """`GOLDEN_TEXTS` as a batch [8, N], tokenised by a transformers tokenizer."""
    encoded = [tokenizer(text, truncation=True, max_length=n_max)["input_ids"] for text in GOLDEN_TEXTS[:GOLDEN_MAX]]
    width = max(map(len, encoded))
    ids = np.array([text + [pad_id] * (width - len(text)) for text in encoded])
    return TokenBatch(ids, np.arange(width) < np.array([[len(text)] for text in encoded]))


def run_reference(graph: Graph, batch: TokenBatch) -> Execution:
    """What the definition makes of a batch, every value of every node."""
    return ReferenceEngine(graph).run(batch, [node.name for node in graph])


def run_golden(graph: Graph, batch: TokenBatch) -> Execution:
    """What the reference does with the golden inputs, with the spikes that a bundle records, in bytes."""
    names, engine = golden_nodes(graph), ReferenceEngine(graph)
    done = []
    for i in range(len(batch)):
        one = engine.run(batch[i : i + 1], names)
        done.append(Execution(one.logits, {name: one.values[name].astype(np.uint8) for name in names}))
    values = {name: np.concatenate([one.values[name] for one in done], axis=1) for name in names}
    return Execution(np.concatenate([one.logits for one in done]), values)


def check_against_torch(graph: Graph, torch_engine: Any, batch: TokenBatch) -> Comparison:
    """Every value of every node, torch model against reference, one sample after another: all at once would take
    gigabytes for a large network. Raises CheckFailed with the first difference."""
    names, comparison = [node.name for node in graph], Comparison()
    for i in range(len(batch)):
        one = batch[i : i + 1]
        comparison += compare(graph, torch_engine.run(one, names), run_reference(graph, one), first_sample=i)
    if comparison.mismatches:
        raise CheckFailed(
            f"the graph is not the network of the torch model: {comparison.mismatches} of "
            f"{comparison.values_compared} values differ, first {comparison.first_mismatch}"
        )
    return comparison


def check_legal(graph: Graph, target: Target) -> None:
    """Raises IllegalForTarget with every violation."""
    violations = target.check(graph)
    if violations:
        raise IllegalForTarget(target.name, violations)


def export(
    model_folder: Path,
    out: Path,
    target_name: str | None,
    *,
    name: str | None = None,
    example: str = "a gripping , funny film",
    overwrite: bool = False,
    command: str = "",
    passes: Sequence[str] = DEFAULT_PASSES,
    save_passes: Path | None = None,
) -> Export:
    """Write the bundle of a trained model.

    passes      names of passes (`converters.passes`); `prove-ranges` is run whether named or not
    save_passes a folder for the graph before and after each pass, as text

    Raises UserError for what the user can mend, CheckFailed where the graph differs from the torch model or
    is illegal for the target. Nothing is written then.
    """
    check_destination(out, overwrite)
    target = None if target_name is None else find_target(target_name)
    chosen = find_passes([*DEFAULT_PASSES, *passes])
    accuracies, recipe = training_record(model_folder)

    from converters.from_torch import graph_from_model, load_integer_model, load_tokenizer
    from converters.torch_engine import TorchEngine

    model = load_integer_model(model_folder)
    tokenizer = load_tokenizer(Path(model.config.name_or_path))
    try:
        graph = graph_from_model(model)
    except GraphError as error:
        raise CheckFailed(f"{model_folder}: the model makes no legal graph: {error}") from error
    if target is not None:
        check_legal(graph, target)  # before the long work; no pass makes a graph legal that is not
    batch = tokenise_golden(tokenizer, graph.n_max, tokenizer.pad_token_id or 0)
    comparison = check_against_torch(graph, TorchEngine(graph, model), batch)
    graph, records = run_passes(graph, chosen, batch, run_reference, save_passes)
    if target is not None:
        check_legal(graph, target)
    golden: Golden = make_golden(graph, batch, run_golden(graph, batch))
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    bundle = write_bundle(
        out,
        graph,
        tokenizer=Path(model.config.name_or_path),
        golden=golden,
        config={
            "name": name or out.name,
            "labels": labels,
            "accuracies": accuracies,
            "example": example,
            "model": {key: value for key, value in model.config.to_diff_dict().items() if key != "_name_or_path"},
        },
        provenance={
            "command": command,
            "recipe": recipe,
            "passes": {record.name: record.summary for record in records},
            "versions": _versions(),
        },
        target=target_name,
        add_target=None if target is None else lambda folder: target.emit(graph, folder),
        overwrite=overwrite,
    )
    return Export(bundle, comparison, records)


def training_record(model_folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Accuracies by name, and the recipe, where `model_folder` is a run of spikebert-train or its `integer/`.

    Empty for any other model: figures of another one beside it are not its own. Raises UserError where the
    record is damaged.
    """
    run = model_folder if (model_folder / "integer").is_dir() else model_folder.parent
    path, stage = run / "results.json", run / "integer" / "stage.json"
    if not (path.is_file() and stage.is_file() and model_folder in (run, run / "integer")):
        return {}, {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        made_from = json.loads(stage.read_text(encoding="utf-8"))["made_from"]
        if any(made_from[section] != value for section, value in results["recipe"].items() if section in made_from):
            raise UserError(f"{path} was measured with another recipe than {stage.parent}: run spikebert-train again")
        accuracies = {
            f"{split}, {model}": measured["value"]
            for model, splits in results["accuracy"].items()
            for split, measured in splits.items()
        }
        return accuracies, results["recipe"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: run spikebert-train again to measure again") from None


def _versions() -> dict[str, str]:
    return {package: version(package) for package in ("spikebert", "torch", "transformers", "numpy")}
