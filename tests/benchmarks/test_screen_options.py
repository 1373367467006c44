"""The screening of options: one run each, never twice, with one teacher; what fails is said."""

from __future__ import annotations

import json
from operator import attrgetter
from pathlib import Path

import pytest
from small_teachers import recipe_arguments

from benchmarks.screen_options import OPTIONS, folder_of, main
from spikebert.recipe import Recipe


def arguments(folder: Path, *own: str) -> list[str]:
    tiny = [flag for flag in recipe_arguments(folder) if not flag.startswith(("--out", "--data.folder"))]
    return ["--data", str(folder / "data"), "--out", str(folder / "screen"), *own, *tiny]


def test_every_option_is_a_field_of_a_recipe() -> None:
    for flags in OPTIONS.values():
        for flag in flags.split()[::2]:
            attrgetter(flag.removeprefix("--"))(Recipe(out="run"))  # raises where there is no such field


@pytest.mark.slow
def test_options_are_trained_once_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ("--only", "membrane", "t2", "--seeds", "42", "43", "--at-once", "2", "--plot", str(tmp_path / "plot.png"))
    assert main(arguments(tmp_path, *own)) == 0
    lines = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines[0] == "" and lines[2:] == ["base", "membrane", "t2"]
    assert (tmp_path / "plot.png").stat().st_size > 0
    out = tmp_path / "screen"
    results = {path: path.stat().st_mtime_ns for path in out.glob("*/results.json")}
    assert {path.parent.name for path in results} == {
        name + seed for name in ("base", "membrane", "t2") for seed in ("", "-43")
    }
    recipes = {path.parent.name: json.loads(path.read_text())["recipe"] for path in results}
    assert recipes["membrane-43"]["student"]["readout"] == "membrane" and recipes["membrane-43"]["seed"] == 43
    assert recipes["t2"]["student"]["timesteps"] == 2 and recipes["base"]["student"]["timesteps"] == 4
    teachers = {(path.parent / "teacher" / "model.safetensors").read_bytes() for path in results}
    assert len(teachers) == 2, "all of a seed learn from one teacher"
    assert main(arguments(tmp_path, *own)) == 0
    assert {path: path.stat().st_mtime_ns for path in results} == results, "what is finished is not trained again"


@pytest.mark.slow
def test_a_run_that_fails_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path, "--only", "t2", "--student.norm=odd")) == 2
    error = capsys.readouterr().err
    assert "screen/base: spikebert-train ended with 2" in error and "base.log says why" in error
    assert "odd" in folder_of(tmp_path / "screen", "base", 42).with_name("base.log").read_text()
