"""`spikebert-export` with passes, end to end on a trained model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command_output import one_error

import converters.from_torch as bridge
from converters.bundle import read_bundle
from converters.export_command import main
from converters.graph import LIF, Graph
from sim.run_command import main as run
from sim.verify import Comparison


def export(trained: Path, out: Path, *flags: str) -> int:
    return main(["--model", str(trained / "run"), "--out", str(out), *flags])


def test_ranges_are_always_proven_and_told(trained: Path, tmp_path: Path, capfd) -> None:
    assert export(trained, tmp_path / "bundle", "--json") == 0
    told = json.loads(capfd.readouterr().out)["passes"]
    assert [each["name"] for each in told] == ["prove-ranges"]
    assert "of 65,535, at '" in told[0]["summary"] and told[0]["values_compared"] == 0  # it changed nothing
    assert read_bundle(tmp_path / "bundle").manifest["provenance"]["passes"] == {"prove-ranges": told[0]["summary"]}


@pytest.fixture
def dead(monkeypatch) -> None:
    """The bridge makes a graph in which no neuron of the first block's wide layer can fire."""
    honest = bridge.graph_from_model

    def with_dead_neurons(model) -> Graph:
        graph = honest(model)
        silent = {"blocks.0.up.lif"}
        nodes = tuple(
            replace(node, threshold=65535) if isinstance(node, LIF) and node.name in silent else node for node in graph
        )
        return Graph(graph.timesteps, graph.n_max, nodes)

    monkeypatch.setattr(bridge, "graph_from_model", with_dead_neurons)
    # what the torch model does is another network now, and not what is tested here
    monkeypatch.setattr("converters.pipeline.check_against_torch", lambda *_: Comparison())


def test_a_pass_by_name_and_what_it_leaves(trained: Path, tmp_path: Path, dead: None, capfd) -> None:
    out, saved = tmp_path / "bundle", tmp_path / "passes"
    assert export(trained, tmp_path / "whole") == 0
    assert export(trained, out, "--pass", "remove-dead-neurons", "--save-passes", str(saved), "--target", "lava") == 0
    assert "remove-dead-neurons: " in capfd.readouterr().err
    whole, smaller = read_bundle(tmp_path / "whole").graph, read_bundle(out).graph
    assert smaller.features["blocks.0.up"] == 1 < whole.features["blocks.0.up"]
    assert sorted(path.name for path in saved.iterdir()) == [
        f"{stage}.{kind}.txt"
        for stage in ("00-before", "01-prove-ranges", "02-remove-dead-neurons")
        for kind in ("graph", "ranges")
    ]
    logits = []
    for bundle in (tmp_path / "whole", out):
        assert run([str(bundle), "--verify", "--json"]) == 0
        report = json.loads(capfd.readouterr().out)
        assert report["verify"]["mismatches"] == 0
        logits.append(report["logits"])
    assert logits[0] == logits[1]


def test_a_pass_that_is_none_is_named(trained: Path, tmp_path: Path, capfd) -> None:
    assert export(trained, tmp_path / "bundle", "--pass", "fuse") == 2
    assert "there is no pass 'fuse'. Passes: prove-ranges, " in one_error(capfd)
    assert not (tmp_path / "bundle").exists()


def test_a_place_for_passes_that_is_a_file_is_refused(trained: Path, tmp_path: Path, capfd) -> None:
    (tmp_path / "file").write_text("here already")
    assert export(trained, tmp_path / "bundle", "--save-passes", str(tmp_path / "file")) == 2
    assert "file: " in one_error(capfd)
    assert not (tmp_path / "bundle").exists() and (tmp_path / "file").read_text() == "here already"
