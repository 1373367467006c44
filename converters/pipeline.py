"""What `spikebert-export` does: model -> graph -> the same bits? -> legal for the target? -> bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from converters.bundle import GOLDEN_MAX, Bundle, Golden, golden_nodes, make_golden, write_bundle
from converters.execution import Execution, TokenBatch
from converters.graph import Graph
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


class Target(Protocol):
    """What an entry point of `spikebert.targets` names: a class that is made without arguments."""

    name: str

    def check(self, graph: Graph) -> Sequence[object]: ...

    def emit(self, graph: Graph, folder: Path) -> None: ...


@dataclass(frozen=True, eq=False)
class Export:
    """What an export did: the bundle, and torch against reference on the golden inputs."""

    bundle: Bundle
    comparison: Comparison


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


def check_against_torch(graph: Graph, torch_engine: Any, batch: TokenBatch) -> tuple[Comparison, Execution]:
    """Every value of every node, torch model against reference. Raises CheckFailed with the first difference."""
    everything = [node.name for node in graph]
    expected = torch_engine.run(batch, everything)
    got = ReferenceEngine(graph).run(batch, everything)
    comparison = compare(graph, expected, got)
    if comparison.mismatches:
        raise CheckFailed(
            f"the graph is not the network of the torch model: {comparison.mismatches} of "
            f"{comparison.values_compared} values differ, first {comparison.first_mismatch}"
        )
    return comparison, got


def check_legal(graph: Graph, target: Target) -> None:
    """Raises CheckFailed with every violation."""
    violations = target.check(graph)
    if violations:
        lines = "".join(f"\n  {violation}" for violation in violations)
        raise CheckFailed(f"the graph is not legal for the target '{target.name}':{lines}")


def export(
    model_folder: Path,
    out: Path,
    target_name: str | None,
    *,
    name: str | None = None,
    example: str = "a gripping , funny film",
    overwrite: bool = False,
    command: str = "",
) -> Export:
    """Write the bundle of a trained model.

    Raises UserError for what the user can mend, CheckFailed where the graph differs from the torch model or
    is illegal for the target. Nothing is written then.
    """
    from transformers import AutoTokenizer

    from converters.from_torch import graph_from_model, load_integer_model
    from converters.torch_engine import TorchEngine

    target = None if target_name is None else find_target(target_name)
    model = load_integer_model(model_folder)
    graph = graph_from_model(model)
    tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path)
    batch = tokenise_golden(tokenizer, graph.n_max, tokenizer.pad_token_id or 0)
    comparison, execution = check_against_torch(graph, TorchEngine(graph, model), batch)
    if target is not None:
        check_legal(graph, target)
    golden: Golden = make_golden(graph, batch, execution)
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    accuracies, recipe = training_record(model_folder)
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
        provenance={"command": command, "recipe": recipe, "versions": _versions()},
        target=target_name,
        add_target=None if target is None else lambda folder: target.emit(graph, folder),
        overwrite=overwrite,
    )
    assert golden_nodes(graph)
    return Export(bundle, comparison)


def training_record(model_folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """From `results.json` of a run of spikebert-train, if it is there: accuracies by name, and the recipe."""
    import json

    for folder in (model_folder, model_folder.parent):
        path = folder / "results.json"
        if path.is_file():
            results = json.loads(path.read_text(encoding="utf-8"))
            accuracies = {
                f"{split}, {model}": measured["value"]
                for model, splits in results["accuracy"].items()
                for split, measured in splits.items()
            }
            return accuracies, results["recipe"]
    return {}, {}


def _versions() -> dict[str, str]:
    return {package: version(package) for package in ("spikebert", "torch", "transformers", "numpy")}
