"""The dense rival learns in the student's place, and its integers are measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_teachers import recipe_arguments
from transformers import BertForSequenceClassification

from benchmarks.dense_student import main
from spikebert.train_command import main as train_main


def test_it_learns_what_the_student_learnt(trained: Path, tmp_path: Path, capfd) -> None:
    flags = [str(trained / "run"), "--out", str(tmp_path / "dense"), "--learning-rate", "1e-2", "--json"]
    assert main(flags) == 0
    accuracies = json.loads(capfd.readouterr().out)
    assert list(accuracies) == ["teacher", "float student", "integer student", "dense, float32", "dense, int8"]
    assert accuracies["dense, float32"]["value"] >= 0.9 and accuracies["dense, int8"]["value"] >= 0.9
    results = json.loads((trained / "run" / "results.json").read_text())["accuracy"]
    assert accuracies["integer student"] == results["integer student"]["validation"]
    config = BertForSequenceClassification.from_pretrained(tmp_path / "dense" / "stage2").config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (1, 32, 32)
    assert main(flags) == 0 and "finished before" in capfd.readouterr().err, "nothing is taught twice"


@pytest.mark.slow
def test_it_has_the_smaller_vocabulary_too(trained: Path, tmp_path: Path, capfd) -> None:
    run = tmp_path / "run"
    budget = ["--stage1.operations_per_token=1e4", "--stage2.operations_per_token=1e4"]  # a dense one has none
    assert train_main([*recipe_arguments(trained), f"--out={run}", "--data.vocabulary=10", *budget]) == 0
    assert main([str(run), "--out", str(tmp_path / "dense"), "--learning-rate", "1e-2"]) == 0
    assert BertForSequenceClassification.from_pretrained(tmp_path / "dense" / "stage2").config.vocab_size == 10
    assert "| dense, int8" in capfd.readouterr().out


def test_wrong_use_is_told(trained: Path, tmp_path: Path, capfd) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path / "dense")]) == 2
    assert "not a finished run" in capfd.readouterr().err
    assert main([str(trained / "run"), "--out", str(trained / "run")]) == 2
    assert "choose another folder" in capfd.readouterr().err
    results = json.loads((trained / "run" / "results.json").read_text())
    results["recipe"]["stage1"]["reuse"] = "another/run"
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert main([str(tmp_path), "--out", str(tmp_path / "dense")]) == 2
    assert "took over a stage 1" in capfd.readouterr().err
