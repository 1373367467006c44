"""How good the model was at each stage on its way from floats to integers, as spikebert-train recorded it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converters.report.contents import Measured, StageAccuracy

SPLITS = ("validation", "test")
# stage -> its name in results.json, and what it is
STAGES = {
    "teacher": ("teacher", "the BERT that taught, for comparison"),
    "float": ("float student", "the spiking model as trained: floats, BatchNorm"),
    "folded": ("folded student", "BatchNorm folded into the weights, still floats"),
    "quantised": ("quantised student", "weights and thresholds rounded to integers, not trained since"),
    "integer": ("integer student", "trained on with integers: what this bundle computes"),
}


def stage_accuracies(results: Mapping[str, Any]) -> tuple[StageAccuracy, ...]:
    """Every stage in order, from `results.json`, or {} where nothing is known. None where it was not measured.

    Runs made before the folded and the quantised model were measured at the end hold the accuracy of the quantised one
    on validation, in the figures of the integer stage. Raises KeyError or TypeError where the record is damaged.
    """
    recorded = results.get("accuracy", {})
    before = results.get("stages", {}).get("integer", {}).get("rounded_validation")
    stages = []
    for stage, (name, meaning) in STAGES.items():
        splits = {split: _measured(recorded.get(name, {}).get(split)) for split in SPLITS}
        if stage == "quantised" and splits["validation"] is None:
            splits["validation"] = _measured(before)
        stages.append(StageAccuracy(stage, meaning, splits))
    return tuple(stages)


def _measured(entry: Mapping[str, Any] | None) -> Measured | None:
    if entry is None:
        return None
    shares = (float(entry[field]) for field in ("value", "low", "high"))
    return Measured(int(entry["correct"]), int(entry["texts"]), *shares)
