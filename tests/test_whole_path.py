"""Train, export and run, as a user does, on a teacher and texts made here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_teachers import recipe_arguments

from converters.bundle import read_bundle
from converters.export_command import main as export_main
from converters.pipeline import training_record
from sim.run_command import main as run_main
from spikebert.train_command import main as train_main


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory) -> Path:
    bundle = tmp_path_factory.mktemp("exported") / "bundle"
    assert export_main(["--model", str(trained / "run"), "--out", str(bundle), "--target", "lava"]) == 0
    return bundle


def test_training_leaves_every_stage_and_its_figures(trained: Path) -> None:
    results = json.loads((trained / "run" / "results.json").read_text())
    assert set(results["accuracy"]) == {"teacher", "float student", "integer student"}
    assert results["accuracy"]["teacher"]["test"]["value"] > 0.8, "the task is easy: one word decides"
    assert results["accuracy"]["integer student"]["test"]["value"] > 0.7
    assert 0 < results["mean_firing_rate"] < 1
    assert sorted(path.name for path in (trained / "run").iterdir() if path.is_dir()) == [
        "integer", "stage1", "stage2", "teacher"
    ]  # fmt: skip
    assert list((trained / "run" / "stage2" / "tensorboard").iterdir())
    assert not list((trained / "run").rglob("*.pt")), "no checkpoint stays behind"


def test_a_second_run_trains_nothing_and_measures_the_same(trained: Path, capfd) -> None:
    before = (trained / "run" / "results.json").read_bytes()
    assert train_main(recipe_arguments(trained)) == 0
    assert capfd.readouterr().err.count("finished before") == 4
    assert (trained / "run" / "results.json").read_bytes() == before


def test_a_changed_recipe_does_not_pass_for_the_old_one(trained: Path, capfd) -> None:
    assert train_main([*recipe_arguments(trained), "--stage2.epochs=4"]) == 2
    assert "stage2.epochs 3 -> 4" in capfd.readouterr().err


def test_changed_labels_do_not_pass_for_the_old_ones(trained: Path, tmp_path: Path, capfd) -> None:
    shutil.copytree(trained / "data", tmp_path / "data")
    path = tmp_path / "data" / "train.tsv"
    path.write_text(path.read_text().replace("\t1\n", "\t0\n", 1))
    shutil.copytree(trained / "run", tmp_path / "run")
    for record in (tmp_path / "run").glob("*/stage.json"):  # the same recipe, with its data somewhere else
        record.write_text(record.read_text().replace(str(trained / "data"), str(tmp_path / "data")))
    moved = [*recipe_arguments(trained), f"--out={tmp_path / 'run'}", f"--data.folder={tmp_path / 'data'}"]
    assert train_main(moved) == 2
    assert "sha256.data" in capfd.readouterr().err


def test_a_teacher_is_never_overwritten(trained: Path, tmp_path: Path, capfd) -> None:
    shutil.copytree(trained / "teacher", tmp_path / "teacher")
    weights = (tmp_path / "teacher" / "model.safetensors").read_bytes()
    arguments = [*recipe_arguments(trained), f"--out={tmp_path}", f"--teacher.model={tmp_path / 'teacher'}"]
    assert train_main(arguments) == 2
    assert "choose another --out" in capfd.readouterr().err
    assert (tmp_path / "teacher" / "model.safetensors").read_bytes() == weights


def test_figures_of_another_model_are_not_its_own(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "run" / "integer", tmp_path / "stranger")
    shutil.copy(trained / "run" / "results.json", tmp_path)
    assert training_record(tmp_path / "stranger") == ({}, {})
    accuracies, recipe = training_record(trained / "run" / "integer")
    assert recipe["seed"] == 42 and "test, integer student" in accuracies


def test_stage1_of_another_run_is_taken_over(trained: Path, tmp_path: Path, capfd) -> None:
    shutil.copytree(trained / "run" / "teacher", tmp_path / "run" / "teacher")
    arguments = [
        *recipe_arguments(trained),
        f"--out={tmp_path / 'run'}",
        f"--stage1.reuse={trained / 'run' / 'stage1'}",
    ]
    assert train_main(arguments) == 0
    assert "stage 1: epoch" not in capfd.readouterr().err
    other = [*arguments, f"--out={tmp_path / 'wide'}", "--student.hidden_size=16"]
    assert train_main(other) == 2
    assert "has another shape" in capfd.readouterr().err


def test_the_bundle_says_what_it_is(trained: Path, exported: Path) -> None:
    bundle = read_bundle(exported)
    assert bundle.labels == ("bad", "good")
    measured = json.loads((trained / "run" / "results.json").read_text())["accuracy"]["integer student"]["test"][
        "value"
    ]
    assert bundle.config["accuracies"]["test, integer student"] == measured
    assert bundle.manifest["target"] == "lava"
    assert len(bundle.golden.batch) == 8


@pytest.mark.parametrize("engine", ["reference", "fast", "torch"])
def test_run_verifies_on_the_test_split(trained: Path, exported: Path, engine: str, capfd) -> None:
    command = [str(exported), "--engine", engine, "--verify", "--json", "--file", str(trained / "data" / "test.tsv")]
    assert run_main([*command, "--model", str(trained / "run")]) == 0
    report = json.loads(capfd.readouterr().out)
    results = json.loads((trained / "run" / "results.json").read_text())
    assert report["verify"]["mismatches"] == 0 and report["verify"]["values_compared"] > 10_000
    assert report["accuracy"] == results["accuracy"]["integer student"]["test"]["value"]


def test_another_model_is_caught(trained: Path, exported: Path, tmp_path: Path, capfd) -> None:
    from spikebert.model import SpikeBertForSequenceClassification

    model = SpikeBertForSequenceClassification.from_pretrained(trained / "run" / "integer")
    model.blocks[0].up.linear.bias.data += 3 / model.blocks[0].up.threshold
    model.save_pretrained(tmp_path)
    command = [
        str(exported),
        "--engine",
        "torch",
        "--model",
        str(tmp_path),
        "--verify",
        "--json",
        "--text",
        "a good film",
    ]
    assert run_main(command) == 1
    first = json.loads(capfd.readouterr().out)["verify"]["first_mismatch"]
    assert first["node"] == "blocks.0.up" and abs(first["expected"] - first["got"]) == 3


def test_export_refuses_what_it_must(trained: Path, exported: Path, tmp_path: Path, capfd) -> None:
    out = tmp_path / "bundle"
    assert export_main(["--model", str(trained / "run"), "--out", str(exported)]) == 2
    assert "exists" in capfd.readouterr().err
    assert export_main(["--model", str(tmp_path / "nothing"), "--out", str(out)]) == 2
    assert "no model there" in capfd.readouterr().err
    assert export_main(["--model", str(trained / "run" / "stage2"), "--out", str(out)]) == 2
    assert "float mode" in capfd.readouterr().err
    assert export_main(["--model", str(trained / "run"), "--out", str(out), "--target", "abacus"]) == 2
    assert "there is no target 'abacus'" in capfd.readouterr().err
    assert not out.exists()


def test_export_notices_a_graph_that_is_not_the_model(trained: Path, tmp_path: Path, capfd, monkeypatch) -> None:
    """The mistake put back: a converter that leaves out a bias."""
    import converters.from_torch as bridge

    honest = bridge._linear

    def forgetful(layer, x, decay):
        synapses, lif = honest(layer, x, decay)
        zero = np.zeros_like(synapses.bias)
        return [type(synapses)(synapses.name, synapses.inputs, synapses.weight, zero, synapses.weight_bits), lif]

    monkeypatch.setattr(bridge, "_linear", forgetful)
    assert export_main(["--model", str(trained / "run"), "--out", str(tmp_path / "bundle")]) == 1
    assert "the graph is not the network of the torch model" in capfd.readouterr().err
    assert not (tmp_path / "bundle").exists()
