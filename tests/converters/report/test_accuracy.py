"""Accuracies of stages from results.json, of new runs, old ones and none."""

from __future__ import annotations

import pytest

from converters.report.accuracy import stage_accuracies
from converters.report.contents import Measured

ENTRY = {"correct": 3, "texts": 4, "value": 0.75, "low": 0.3, "high": 0.95}
MEASURED = Measured(3, 4, 0.75, 0.3, 0.95)
STAGES = ["teacher", "float", "folded", "quantised", "integer"]


def test_every_stage_of_a_new_run() -> None:
    names = ("teacher", "float student", "folded student", "quantised student", "integer student")
    found = stage_accuracies({"accuracy": {name: {"validation": ENTRY, "test": ENTRY} for name in names}})
    assert [stage.stage for stage in found] == STAGES
    assert all(stage.splits == {"validation": MEASURED, "test": MEASURED} for stage in found)


def test_an_old_run_knows_the_quantised_model_on_validation_alone() -> None:
    names = ("teacher", "float student", "integer student")
    results = {
        "accuracy": {name: {"validation": ENTRY} for name in names},
        "stages": {"integer": {"rounded_validation": ENTRY | {"correct": 2}}},
    }
    found = {stage.stage: stage.splits for stage in stage_accuracies(results)}
    assert found["folded"] == {"validation": None, "test": None}
    assert found["quantised"]["validation"] == Measured(2, 4, 0.75, 0.3, 0.95) and found["quantised"]["test"] is None
    assert found["integer"] == {"validation": MEASURED, "test": None}


def test_nothing_is_known_of_a_model_without_a_record() -> None:
    assert [stage.splits for stage in stage_accuracies({})] == [{"validation": None, "test": None}] * 5


def test_a_damaged_record_is_not_passed_over() -> None:
    with pytest.raises(KeyError):
        stage_accuracies({"accuracy": {"teacher": {"test": {"value": 1.0}}}})
