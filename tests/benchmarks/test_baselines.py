"""Students without a teacher: the recipes of the release models, from labels alone; never twice."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from small_teachers import make_data, make_teacher

from benchmarks.baselines import ALONE, main
from benchmarks.screen_options import main as screen
from spikebert.recipe import Recipe


def test_its_flags_are_fields_of_a_recipe_and_leave_the_labels_alone() -> None:
    flags = shlex.split(ALONE)
    values = {}
    for flag, value in zip(flags[::2], flags[1::2], strict=True):
        part, field = flag.removeprefix("--").split(".")
        assert hasattr(getattr(Recipe(out="run"), part), field), flag
        values[field, part] = value
    taught = [name for name, part in values if part == "stage2" and name.endswith("_weight") and name != "label_weight"]
    assert sorted(taught) == ["embedding_weight", "hidden_weight", "logits_weight"]
    assert all(float(values[name, "stage2"]) == 0 for name in taught) and float(values["label_weight", "stage2"]) == 1


@pytest.mark.parametrize("command", [main, screen])
def test_without_the_engine_that_measures_nothing_is_trained(
    command: Callable[[list[str]], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As in a tree that is on Python's path and was never installed."""
    monkeypatch.setattr("sim.engines._registered", dict)
    assert command([f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'runs'}"]) == 2
    said = capsys.readouterr().err
    assert "there is no engine 'fast'. Engines: none: install spikebert with pip" in said and "training" not in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_both_students_are_trained_from_labels_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("mr", "waimai"):
        make_data(tmp_path / "data" / task, texts=40)
    out = tmp_path / "runs"
    arguments = [
        "--data", str(tmp_path / "data"), "--out", str(out), "--only", "mr", "waimai", "--stage2.epochs=1",
        f"--teacher.model={make_teacher(tmp_path / 'teacher')}", "--student.hidden_size=16", "--student.layers=1",
        "--student.heads=2", "--student.intermediate_size=16", "--student.n_max=10", "--precision=float32",
    ]  # fmt: skip
    assert main(arguments) == 0
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[2:] == ["mr", "waimai"]
    stages = {path: path.stat().st_mtime_ns for path in out.glob("*/*/stage.json")}
    assert {path.parents[1].name for path in stages} == {"mr", "mr_dense", "waimai", "waimai_dense"}
    weights = json.loads((out / "mr_dense" / "stage2" / "stage.json").read_text())["made_from"]["stage2"]
    assert (weights["label_weight"], weights["logits_weight"], weights["extra_lines"]) == (1, 0, 0)
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in stages} == stages, "what is finished is not trained again"


@pytest.mark.slow
def test_a_task_without_texts_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", str(tmp_path), "--out", str(tmp_path / "runs"), "--only", "mr", "--at-once", "1"]
    assert main([*flags, f"--teacher.model={make_teacher(tmp_path / 'teacher')}"]) == 1
    said = capsys.readouterr().err
    assert "mr.log says why" in said and "not trained: mr" in said


def test_flags_that_it_gives_itself_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "runs"), "--recipe=mr"]) == 2
    assert "gives it to every run itself" in capsys.readouterr().err
