"""What stays known of a network that becomes another one."""

from __future__ import annotations

from converters.figures import Figures, figures_of_training, of_other_timesteps, of_other_tokens, with_own
from converters.report.accuracy import TOKENS_BEFORE


def measured(correct: int, texts: int) -> dict[str, float]:
    return {"correct": correct, "texts": texts, "value": correct / texts, "low": 0.0, "high": 1.0}


RESULTS = {
    "accuracy": {
        "teacher": {"validation": measured(9, 10)},
        "integer student": {"validation": measured(8, 10), "test": measured(7, 10)},
    },
    "texts_sha256": {"validation": "v", "test": "t"},
}
ACTIVITY = {"validation": {"texts": 10, "tokens": 50}}


def stages(figures: Figures) -> dict[str, dict[str, int | None]]:
    """Stage -> split -> how many were right."""
    return {
        stage.stage: {split: found and found.correct for split, found in stage.splits.items()}
        for stage in figures.stages
    }


def test_all_that_training_measured_is_told() -> None:
    figures = figures_of_training(RESULTS, ACTIVITY)
    assert figures.accuracies == {
        "validation, teacher": 0.9,
        "validation, integer student": 0.8,
        "test, integer student": 0.7,
    }
    assert figures.counts["validation, teacher"] == [9, 10]
    assert stages(figures)["integer"] == {"validation": 8, "test": 7}
    told = figures.for_manifest()
    assert told["activity"] == ACTIVITY and told["texts_sha256"] == RESULTS["texts_sha256"]


def test_nothing_was_measured_for_other_timesteps() -> None:
    figures = of_other_timesteps(figures_of_training(RESULTS | {TOKENS_BEFORE: 20}, ACTIVITY))
    assert figures.accuracies == figures.counts == figures.activity == {}
    assert all(found is None for splits in stages(figures).values() for found in splits.values())
    assert not any("20 tokens" in stage.meaning for stage in figures.stages)
    assert figures.texts_sha256 == RESULTS["texts_sha256"], "they can be measured again"


def test_with_fewer_tokens_the_others_had_more() -> None:
    whole = figures_of_training(RESULTS, ACTIVITY)
    whole.accuracies["SST-2 dev"] = 0.5  # type: ignore[index]  # of which nobody knows what it was
    fewer = of_other_tokens(whole, 1200)
    assert fewer.accuracies == {"validation, teacher, with 1,200 tokens": 0.9}
    assert fewer.counts == {"validation, teacher, with 1,200 tokens": [9, 10]} and fewer.activity == {}
    assert stages(fewer)["integer"] == {"validation": None, "test": None}
    assert stages(fewer)["teacher"] == {"validation": 9, "test": None}
    assert of_other_tokens(fewer, 700) == fewer, "what the teacher knew stays"


def test_what_the_network_did_itself_stands_beside_it() -> None:
    fewer = of_other_tokens(figures_of_training(RESULTS, ACTIVITY), 1200)
    now = with_own(fewer, {"validation": measured(6, 10)}, {"validation": {"texts": 10, "tokens": 60}})
    assert now.accuracies == {"validation, teacher, with 1,200 tokens": 0.9, "validation, integer student": 0.6}
    assert now.counts["validation, integer student"] == [6, 10]
    assert now.activity == {"validation": {"texts": 10, "tokens": 60}}
    assert stages(now)["integer"] == {"validation": 6, "test": None}
    assert stages(now)["teacher"] == {"validation": 9, "test": None}
