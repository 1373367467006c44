"""The release models are trained side by side, the English ones from one stage 1; what fails is said."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
import yaml
from small_teachers import make_data, make_teacher

from benchmarks.release import ENGLISH, SHARED, TASKS, Places, flags_of, main

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_the_recipe_of_its_name(task: str, tmp_path: Path) -> None:
    recipe = yaml.safe_load((RECIPES / f"{task}.yaml").read_text(encoding="utf-8"))
    assert recipe["out"] == f"runs/{task}" and recipe["licence"].startswith("research only")
    flags = flags_of(task, Places(tmp_path / "data", tmp_path / "corpus", tmp_path / "out"))
    assert flags[flags.index("--data.folder") + 1] == str(tmp_path / "data" / task)
    assert any(flag.startswith("--stage1.text=") for flag in flags) == (task not in ENGLISH), "those share a stage 1"


@pytest.mark.parametrize("task", ENGLISH)
def test_the_shared_stage_1_is_of_the_students_of_its_tasks(task: str) -> None:
    own, shared = (yaml.safe_load((RECIPES / f"{name}.yaml").read_text("utf-8")) for name in (task, SHARED[task]))
    assert own["student"] == shared["student"] and own["teacher"]["model"] == shared["teacher"]["model"]


def small(tmp_path: Path) -> list[str]:
    """Arguments for runs of seconds: tiny teacher and student, and a corpus of few lines."""
    for task in TASKS:
        make_data(tmp_path / "data" / task, texts=40)
    (tmp_path / "corpus").mkdir()
    for name in ("en_imdb_unsup", "zh_shopping_reviews", "zh_wikipedia"):
        with lzma.open(tmp_path / "corpus" / f"{name}.txt.xz", "wt", encoding="utf-8") as file:
            file.write("the film was very good\nthe soup was cold\n" * 20)
    return [
        "--data", str(tmp_path / "data"), "--corpus", str(tmp_path / "corpus"), "--out", str(tmp_path / "runs"),
        f"--teacher.model={make_teacher(tmp_path / 'teacher')}", "--student.hidden_size=16", "--student.layers=1",
        "--student.heads=2", "--student.intermediate_size=16", "--student.n_max=10", "--stage2.extra_lines=8",
        "--stage2.epochs=1", "--precision=float32",
    ]  # fmt: skip


@pytest.mark.parametrize("flag", ["--until=stage2", "--stage1.reuse=elsewhere", "--recipe=mr"])
def test_flags_that_it_gives_itself_are_refused(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--data={tmp_path}", f"--corpus={tmp_path}", f"--out={tmp_path / 'runs'}", flag]) == 2
    assert "gives it to every run itself" in capsys.readouterr().err


@pytest.mark.slow
def test_tasks_are_trained_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*small(tmp_path), "--only", "subj", "waimai"]
    assert main(arguments) == 0
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[2:] == ["subj", "waimai"]
    runs = tmp_path / "runs"
    records = {name: json.loads((runs / name / "stage1" / "stage.json").read_text()) for name in ("subj", "waimai")}
    figures = records["subj"]["figures"]
    assert figures["reused"] == str(runs / SHARED["subj"] / "stage1")
    assert figures["learnt_from"] == [str(tmp_path / "corpus" / "en_imdb_unsup.txt.xz")]
    (said,) = figures["licences"].values()  # of the recipe that the students share
    assert said.startswith("research only: unlabelled text of IMDb")
    assert records["waimai"]["figures"]["texts"] == 80
    assert {path.name for path in (runs / SHARED["subj"]).iterdir()} == {"teacher", "stage1"}
    results = {path: path.stat().st_mtime_ns for path in runs.glob("*/stage2/stage.json")}
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in results} == results, "what is finished is not trained again"


@pytest.mark.slow
def test_a_task_that_fails_is_said_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*small(tmp_path), "--only", "chnsenti", "waimai"]
    (tmp_path / "data" / "chnsenti" / "train.tsv").write_text("no header\n", encoding="utf-8")
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert "not trained: chnsenti" in said.err and "chnsenti.log says why" in said.err
    assert "| waimai |" in said.out and (tmp_path / "runs" / "waimai" / "results.json").is_file()
