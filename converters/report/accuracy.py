"""How good the model was at each stage on its way from floats to integers, as spikebert-train recorded it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converters.report.contents import Measured, StageAccuracy

SPLITS = ("validation", "test")
MEASURED = "integer student"  # the model that is exported, in results.json
TOKENS_BEFORE = "tokens_before"  # what the others knew, where an export left fewer (`converters.fewer_tokens`)
WITH_TOKENS = ", with "
# stage -> its name in results.json, and what it is
STAGES = {
    "teacher": ("teacher", "the BERT that taught, for comparison"),
    "float": ("float student", "the spiking model as trained: floats, BatchNorm"),
    "folded": ("folded student", "BatchNorm folded into the weights, still floats"),
    "quantised": ("quantised student", "weights and thresholds rounded to integers, not trained since"),
    "integer": (MEASURED, "trained on with integers: what this bundle computes"),
}
UNTRAINED = "rounded to integers, not trained since: what this bundle computes"


def stage_accuracies(results: Mapping[str, Any]) -> tuple[StageAccuracy, ...]:
    """Every stage in order, from `results.json`, or {} where nothing is known. None where it was not measured.

    Runs made before the folded and the quantised model were measured at the end hold the accuracy of the quantised one
    on validation, in the figures of the integer stage. Raises KeyError or TypeError where the record is damaged.
    """
    recorded = results.get("accuracy", {})
    before = results.get("stages", {}).get("integer", {}).get("rounded_validation")
    more_tokens = tokens_of_others(results)
    trained = results.get("recipe", {}).get("quantise", {}).get("epochs", 1)
    stages = []
    for stage, (name, meaning) in STAGES.items():
        meaning = (meaning if trained else UNTRAINED) if name == MEASURED else meaning + more_tokens
        splits = {split: _measured(recorded.get(name, {}).get(split)) for split in SPLITS}
        if stage == "quantised" and splits["validation"] is None:
            splits["validation"] = _measured(before)
        stages.append(StageAccuracy(stage, meaning, splits))
    return tuple(stages)


def tokens_of_others(results: Mapping[str, Any]) -> str:
    """What is said of a model that was measured with more tokens than the exported one knows; nothing as a rule."""
    return f"{WITH_TOKENS}{results[TOKENS_BEFORE]:,} tokens" if TOKENS_BEFORE in results else ""


def of_fewer_tokens(results: Mapping[str, Any], tokens_before: int) -> dict[str, Any]:
    """`results` where the exported model knows fewer tokens than the measured one, `tokens_before`: without what they
    tell of that one."""
    others = {name: measured for name, measured in results.get("accuracy", {}).items() if name != MEASURED}
    before = {TOKENS_BEFORE: tokens_before} if others and TOKENS_BEFORE not in results else {}
    return {**results, "accuracy": others, **before}


def _measured(entry: Mapping[str, Any] | None) -> Measured | None:
    if entry is None:
        return None
    shares = (float(entry[field]) for field in ("value", "low", "high"))
    return Measured(int(entry["correct"]), int(entry["texts"]), *shares)
