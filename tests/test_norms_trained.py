"""Every kind of norm from training to Lava by the command lines, as a user does; and the paper's own architecture."""

from __future__ import annotations

import json
import resource
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from small_teachers import recipe_arguments

from converters.bundle import read_bundle
from converters.execution import TokenBatch
from converters.export_command import main as export_main
from converters.from_torch import graph_from_model
from converters.graph import LIF, Norm
from sim.reference import ReferenceEngine
from sim.run_command import main as run_main
from sim.verify import compare
from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification, quantise
from spikebert.train_command import main as train_main

KINDS = {
    "layer": ["--student.norm=layer"],
    "none": ["--student.norm=none", "--student.scalar_thresholds=true"],
}


@pytest.fixture(scope="module", params=["layer", pytest.param("none", marks=pytest.mark.slow)])
def trained_with(request, tmp_path_factory) -> tuple[str, Path]:
    """The kind of norm, and a folder with a run of it."""
    folder = tmp_path_factory.mktemp(request.param)
    assert train_main([*recipe_arguments(folder), *KINDS[request.param]]) == 0
    return request.param, folder


def test_it_learns_is_exported_and_runs_verified(trained_with: tuple[str, Path], capfd) -> None:
    pytest.importorskip("lava.magma")
    kind, folder = trained_with
    results = json.loads((folder / "run" / "results.json").read_text())
    assert results["accuracy"]["integer student"]["test"]["value"] > 0.7, "the task is easy: one word decides"
    bundle = folder / "bundle"
    assert export_main(["--model", str(folder / "run"), "--out", str(bundle), "--target", "lava"]) == 0
    graph = read_bundle(bundle).graph
    assert sum(isinstance(node, Norm) for node in graph) == (6 if kind == "layer" else 0)
    assert all(np.ndim(node.threshold) == 0 for node in graph if isinstance(node, LIF))
    for engine in ("fast", "lava-inline", "torch"):
        capfd.readouterr()
        command = [str(bundle), "--engine", engine, "--verify", "--json", "--file", str(folder / "data" / "test.tsv")]
        model = ["--model", str(folder / "run")] if engine == "torch" else []
        assert run_main([*command, *model]) == 0
        told = json.loads(capfd.readouterr().out)
        assert told["verify"]["mismatches"] == 0 and told["verify"]["values_compared"] > 10_000
        assert (told["activity"]["normalised_values"] > 0) == (kind == "layer")
        assert told["accuracy"] > 0.7


def test_a_run_with_another_norm_is_another_recipe(trained_with: tuple[str, Path], capfd) -> None:
    kind, folder = trained_with
    other = [argument for argument in KINDS[kind] if "norm" not in argument]
    assert train_main([*recipe_arguments(folder), *other, "--student.norm=rms"]) == 2
    assert "norm" in capfd.readouterr().err


def test_loihi_2_says_what_to_do_instead(trained_with: tuple[str, Path], tmp_path: Path, capfd) -> None:
    """No norm is left where there was none; thresholds are one for a layer."""
    kind, folder = trained_with
    command = ["--model", str(folder / "run"), "--out", str(tmp_path / "chip"), "--target", "loihi2"]
    code, told = export_main([*command, "--pass", "expand-attention"]), capfd.readouterr().err
    assert (code, "no-norm-process" in told) == ((1, True) if kind == "layer" else (0, False)), told


@pytest.mark.slow
def test_the_papers_architecture_is_exact(capsys) -> None:
    """12 blocks x 768, 12 heads, 3072, LayerNorm, constant spikes of `>= 0`, no positions; random weights.

    Four short sentences, every value of every node: the integer model, the reference, Lava's ProcessModels.
    """
    pytest.importorskip("lava.magma")
    from targets.lava.engine import LavaInlineEngine

    began = time.monotonic()
    torch.manual_seed(0)
    config = SpikeBertConfig(
        vocab_size=500, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
        max_position_embeddings=16, encoder="sign", positions=False, norm="layer", num_labels=2,
    )  # fmt: skip
    model = quantise(SpikeBertForSequenceClassification(config).eval(), 8)
    graph = graph_from_model(model)
    assert sum(isinstance(node, Norm) for node in graph) == 6 * 12
    rng = np.random.default_rng(0)
    lengths = np.array([4, 7, 5, 6])
    mask = np.arange(7) < lengths[:, None]
    batch = TokenBatch(rng.integers(0, 500, mask.shape), mask)
    names = [node.name for node in graph]
    expected = ReferenceEngine(graph).run(batch, names)
    with torch.no_grad():
        ids, masked = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
        assert np.array_equal(model(ids, masked).integer_logits.numpy(), expected.logits)
    with closing(LavaInlineEngine(graph)) as engine:
        comparison = compare(graph, expected, engine.run(batch, names))
    assert comparison.mismatches == 0, str(comparison.first_mismatch)
    rates = [expected.values[node.name][:, mask].mean() for node in graph if isinstance(node, LIF)]
    with capsys.disabled():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"\n12 x 768 with LayerNorm: {comparison.values_compared:,} values equal, "
            f"{time.monotonic() - began:.0f} s, peak {peak:.1f} GiB, firing rates {min(rates):.3f} .. {max(rates):.3f}"
        )
