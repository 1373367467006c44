"""Every kind of neuron from training to Lava by the command lines, as a user does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_teachers import recipe_arguments

from converters.bundle import read_bundle
from converters.export_command import main as export_main
from converters.graph import LIF, Source
from sim.run_command import main as run_main
from spikebert.train_command import main as train_main

KINDS = {
    "soft": (["--student.reset=subtract", "--student.decay=[2048, 410]"], ("subtract", "binary", 1)),
    "graded": (["--student.spike=graded", "--student.spike_cap=3"], ("zero", "graded", 3)),
    "graded everywhere": (
        [
            "--student.spike=graded",
            "--student.spike_cap=15",
            "--student.encoder_cap=15",
            "--student.value_cap=15",
            "--student.graded_gain=4",
            "--student.timesteps=1",
        ],
        ("zero", "graded", 15),
    ),
    "ternary": (["--student.spike=ternary", "--student.reset=subtract"], ("subtract", "ternary", 1)),
}


@pytest.fixture(scope="module", params=KINDS)
def trained_with(request, tmp_path_factory) -> tuple[str, Path]:
    """The kind of neurons, and a folder with a run of them."""
    folder = tmp_path_factory.mktemp(request.param.split()[0])
    assert train_main([*recipe_arguments(folder), *KINDS[request.param][0]]) == 0
    return request.param, folder


@pytest.mark.slow
def test_it_learns_is_exported_and_runs_verified(trained_with: tuple[str, Path], capfd) -> None:
    pytest.importorskip("lava.magma")
    kind, folder = trained_with
    results = json.loads((folder / "run" / "results.json").read_text())
    assert results["accuracy"]["integer student"]["test"]["value"] > 0.7, "the task is easy: one word decides"
    assert 0 < results["mean_firing_rate"] < 1
    bundle = folder / "bundle"
    assert export_main(["--model", str(folder / "run"), "--out", str(bundle), "--target", "lava"]) == 0
    graph = read_bundle(bundle).graph
    node = graph["blocks.0.up.lif"]
    assert isinstance(node, LIF) and (node.reset, node.spike, node.cap) == KINDS[kind][1]
    assert isinstance(graph.source, Source) and graph.source.reset == node.reset
    caps = graph.source.cap, graph.value_max["blocks.0.value.lif"]
    assert caps == ((15, 15) if kind == "graded everywhere" else (1, 1))
    assert (graph.source.dv, node.dv) == ((2048, 410) if kind == "soft" else (2048, 2048))
    for engine in ("fast", "lava-inline", "torch"):
        capfd.readouterr()
        command = [str(bundle), "--engine", engine, "--verify", "--json", "--file", str(folder / "data" / "test.tsv")]
        model = ["--model", str(folder / "run")] if engine == "torch" else []
        assert run_main([*command, *model]) == 0
        told = json.loads(capfd.readouterr().out)
        assert told["verify"]["mismatches"] == 0 and told["verify"]["values_compared"] > 10_000
        assert told["accuracy"] > 0.7


@pytest.mark.slow
def test_loihi_2_says_what_to_do_instead(trained_with: tuple[str, Path], tmp_path: Path, capfd) -> None:
    _, folder = trained_with
    command = ["--model", str(folder / "run"), "--out", str(tmp_path / "chip"), "--target", "loihi2"]
    assert export_main([*command, "--pass", "expand-attention"]) == 1
    assert "stock-neuron" in capfd.readouterr().err
