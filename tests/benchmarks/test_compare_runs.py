"""Runs side by side: paired differences, one row a name, and what cannot be compared is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.compare_runs import difference, main


def test_a_difference_is_paired_by_sentence() -> None:
    """Of 100 sentences one model has 10 right that the other has wrong, and 4 wrong that it has right."""
    base = np.zeros(100, bool)
    base[:50] = True
    right = base.copy()
    right[:4], right[90:] = False, True
    better, half = difference([right], [base])
    assert better == pytest.approx(0.06)
    assert half == pytest.approx(1.96 * np.sqrt((14 - 100 * 0.06**2) / 100) / 10)  # McNemar's variance
    assert difference([base], [base]) == (0, 0)
    assert difference([right, base], [base, base])[0] == pytest.approx(0.03), "seeds are averaged"


def test_a_run_beside_itself_and_as_two_seeds(trained: Path, tmp_path: Path, capsys) -> None:
    run, plot = trained / "run", tmp_path / "plot.png"
    assert main([f"one={run}", f"same={run}", f"seeds={run},{run}", "--plot", str(plot)]) == 0
    one, same, seeds = capsys.readouterr().out.splitlines()[2:5]
    accuracy = json.loads((run / "results.json").read_text())["accuracy"]["integer student"]["validation"]["value"]
    assert f"{accuracy:.1%} (" in one and f"{accuracy:.1%} (2 seeds, " in seeds
    assert "+0.0 (+0.0 .. +0.0)" not in one and "+0.0 (+0.0 .. +0.0)" in same and "+0.0 (+0.0 .. +0.0)" in seeds
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_compared_is_refused(trained: Path, tmp_path: Path, capsys) -> None:
    run = trained / "run"
    other, data = tmp_path / "other", tmp_path / "data"
    shutil.copytree(run, other)
    shutil.copytree(trained / "data", data)
    with open(data / "validation.tsv", "a", encoding="utf-8") as file:
        file.write("one more\t1\n")
    results = json.loads((other / "results.json").read_text())
    results["recipe"]["data"]["folder"] = str(data)
    (other / "results.json").write_text(json.dumps(results))
    for arguments, said in (
        ((f"one={run}", f"other={other}"), "its validation sentences are not those of the first run"),
        ((f"one={run}", f"one={run}"), "two of the runs have one name"),
        ((str(run),), "give NAME=RUN"),
        ((f"one={tmp_path}",), "no results.json"),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err
