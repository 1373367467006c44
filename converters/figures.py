"""What a bundle tells of how good and how busy its network is: on the card, in the manifest, and in the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from converters.bundle import Bundle
from converters.report.accuracy import MEASURED, SPLITS, STAGES, WITH_TOKENS, stage_accuracies, tokens_of_others
from converters.report.contents import Measured, StageAccuracy

OTHERS = {f"{split}, {name}" for split in SPLITS for name, _ in STAGES.values() if name != MEASURED}


@dataclass(frozen=True)
class Figures:
    """What is known.

    accuracies    what was measured, "split, model" -> fraction
    counts        the same -> [right, texts]; of older bundles perhaps none
    activity      split -> `OnTexts.to_json`
    stages        for the report
    texts_sha256  split -> `LabelledTexts.sha256` of its texts; of older bundles none
    """

    accuracies: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, list[int]] = field(default_factory=dict)
    activity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stages: tuple[StageAccuracy, ...] = ()
    texts_sha256: Mapping[str, str] = field(default_factory=dict)

    def for_manifest(self) -> dict[str, Any]:
        """Fields of a bundle's config."""
        return {name: dict(getattr(self, name)) for name in ("accuracies", "counts", "activity", "texts_sha256")}


def figures_of_training(results: Mapping[str, Any], activity: Mapping[str, Mapping[str, Any]]) -> Figures:
    """From results.json of spikebert-train, and what the network then did with the texts."""
    more_tokens = tokens_of_others(results)
    measured = {
        f"{split}, {model}{'' if model == MEASURED else more_tokens}": found
        for model, splits in results.get("accuracy", {}).items()
        for split, found in splits.items()
    }
    return Figures(
        {name: found["value"] for name, found in measured.items()},
        {name: [found["correct"], found["texts"]] for name, found in measured.items()},
        activity,
        stage_accuracies(results),
        results.get("texts_sha256", {}),
    )


def figures_of_bundle(bundle: Bundle) -> Figures:
    """As the bundle tells them; one of older versions, or not of ours, may tell little."""
    config = bundle.config
    told = {name: config.get(name) or {} for name in ("accuracies", "counts", "activity", "texts_sha256")}
    try:
        report = json.loads((bundle.folder / "report.json").read_text(encoding="utf-8"))
        stages = tuple(map(_stage, report["accuracy"]))
    except (OSError, ValueError, KeyError, TypeError):  # none, or of another layout
        stages = stage_accuracies({})
    return Figures(**told, stages=stages)


def of_other_timesteps(figures: Figures) -> Figures:
    """What stays known where the network shall run for another T: nothing was measured so, of no stage."""
    stages = (
        replace(stage, meaning=stage.meaning.partition(WITH_TOKENS)[0], splits=dict.fromkeys(stage.splits))
        for stage in figures.stages
    )
    return Figures(stages=tuple(stages), texts_sha256=figures.texts_sha256)


def of_other_tokens(figures: Figures, tokens_before: int) -> Figures:
    """What stays known where the network knows fewer tokens than before: of the other stages that they had more.

    What was measured under a name that is none of ours may have been the network, so it is left out.
    """
    more = f"{WITH_TOKENS}{tokens_before:,} tokens"
    names = {name: name if WITH_TOKENS in name else name + more for name in figures.accuracies}
    kept = {name: now for name, now in names.items() if name.partition(WITH_TOKENS)[0] in OTHERS}
    stages = (
        replace(stage, splits=dict.fromkeys(stage.splits))
        if STAGES[stage.stage][0] == MEASURED
        else replace(stage, meaning=stage.meaning + ("" if WITH_TOKENS in stage.meaning else more))
        for stage in figures.stages
    )
    return Figures(
        {now: figures.accuracies[name] for name, now in kept.items()},
        {now: figures.counts[name] for name, now in kept.items() if name in figures.counts},
        stages=tuple(stages),
        texts_sha256=figures.texts_sha256,
    )


def with_own(
    figures: Figures, accuracies: Mapping[str, Mapping[str, Any]], activity: Mapping[str, Mapping[str, Any]]
) -> Figures:
    """With what the network itself did, split -> `Accuracy.to_dict` and `OnTexts.to_json`."""
    stages = (
        replace(stage, splits=stage.splits | {split: Measured(**found) for split, found in accuracies.items()})
        if STAGES[stage.stage][0] == MEASURED
        else stage
        for stage in figures.stages
    )
    values = {f"{split}, {MEASURED}": found["value"] for split, found in accuracies.items()}
    counts = {f"{split}, {MEASURED}": [found["correct"], found["texts"]] for split, found in accuracies.items()}
    return replace(
        figures,
        accuracies={**figures.accuracies, **values},
        counts={**figures.counts, **counts},
        activity={**figures.activity, **activity},
        stages=tuple(stages),
    )


def _stage(told: Mapping[str, Any]) -> StageAccuracy:
    splits = {split: None if found is None else Measured(**found) for split, found in told["splits"].items()}
    if told["stage"] not in STAGES:
        raise KeyError(told["stage"])
    return StageAccuracy(told["stage"], told["meaning"], splits)
