"""The dense rival learns in the student's place, and its integers are measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_teachers import recipe_arguments
from transformers import BertForSequenceClassification

from benchmarks.dense_student import dense_recipe, main
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


def test_a_stage_1_that_was_taken_over_is_taught_first_and_once(trained: Path, tmp_path: Path, capfd) -> None:
    run, first, flags = tmp_path / "run", tmp_path / "first", ["--learning-rate", "1e-2", "--json"]
    reuse = [f"--out={run}", f"--stage1.reuse={trained / 'run' / 'stage1'}", "--stage2.epochs=1", "--quantise.epochs=0"]
    assert train_main([*recipe_arguments(trained), *reuse]) == 0
    assert main([str(run), "--out", str(tmp_path / "a"), "--stage1", str(first), *flags]) == 0
    assert "dense, int8" in json.loads(capfd.readouterr().out)
    assert not (first / "stage2").exists()
    before, taken = (load_file(folder / "stage1" / "model.safetensors") for folder in (first, tmp_path / "a"))
    same = {name for name, weight in before.items() if torch.equal(weight, taken[name])}
    assert {name for name in before if name not in same} == {"classifier.weight", "classifier.bias"}

    assert main([str(run), "--out", str(tmp_path / "b"), "--stage1", str(first), *flags]) == 0
    assert f"finished before, in {first / 'stage1'}" in capfd.readouterr().err


def test_what_was_taken_over_must_be_a_stage_1_from_its_start(trained: Path, tmp_path: Path, capfd) -> None:
    results = json.loads((trained / "run" / "results.json").read_text())
    stage1 = results["recipe"]["stage1"]
    for reused, more, complaint in (
        (tmp_path / "gone", {}, "no stage.json"),
        (trained / "run" / "stage2", {}, "no stage 1 from its start"),
        (trained / "run" / "stage1", {"reuse_readout": True}, "took over a readout"),
    ):
        results["recipe"]["stage1"] = stage1 | {"reuse": str(reused)} | more
        (tmp_path / "results.json").write_text(json.dumps(results))
        assert main([str(tmp_path), "--out", str(tmp_path / "dense")]) == 2
        assert complaint in capfd.readouterr().err


def test_wrong_use_is_told(trained: Path, tmp_path: Path, capfd) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path / "dense")]) == 2
    assert "not a finished run" in capfd.readouterr().err
    assert main([str(trained / "run"), "--out", str(trained / "run")]) == 2
    assert "choose another folder" in capfd.readouterr().err
    assert main([str(trained / "run"), "--out", str(tmp_path / "dense"), "--stage1", str(tmp_path / "first")]) == 2
    assert "--stage1 is of runs that took one over" in capfd.readouterr().err
    (tmp_path / "results.json").write_text((trained / "run" / "results.json").read_text())
    assert main([str(tmp_path), "--out", str(tmp_path / "dense")]) == 2
    assert f"{tmp_path / 'teacher'} is not there" in capfd.readouterr().err


def test_what_is_of_spikes_alone_is_not_asked_of_a_dense_student(tmp_path) -> None:
    values = {
        "student": {"blocks_from_teacher": True},
        "stage1": {"operations_per_token": 9.0},
        "stage2": {"norm_texts": 5, "operations_per_token": 9.0},
    }
    recipe = dense_recipe(values, tmp_path, 1e-3)
    assert not recipe.student.blocks_from_teacher and recipe.stage2.norm_texts == 0
    assert recipe.stage1.operations_per_token == recipe.stage2.operations_per_token == 0
