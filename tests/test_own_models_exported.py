"""Models that are not SpikeBERTs become whole bundles, and the examples that show it run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from random_models import OwnModel, draw_shape, make_chain, make_model
from small_teachers import make_tokenizer
from torch import nn

from converters.bundle import read_bundle
from converters.pipeline import export_module
from sim.run_command import main as run_main
from spikebert import Encoder, Readout, SpikingChain, SpikingLinear, quantise
from spikebert.commands import CheckFailed, UserError
from spikebert.layers import Logits
from spikebert.spikes import Spikes

ROOT = Path(__file__).parents[1]
SHAPE = {"n_max": 12, "depth": 2, "timesteps": 4, "decay": 2048, "norm": "batch"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)  # as many words as the random models have
    return folder


@pytest.mark.parametrize("kind", ["own", "chain"])
def test_a_module_becomes_a_whole_bundle(kind: str, tokenizer: Path, tmp_path: Path, capfd) -> None:
    model = make_model(draw_shape(np.random.default_rng(1), kind=kind, **SHAPE))
    passes = ["remove-unread-nodes", "remove-dead-neurons"]
    done = export_module(
        model, tmp_path / "bundle", "lava", tokenizer=tokenizer, labels=["bad", "fair", "good"], passes=passes
    )
    assert done.comparison.mismatches == 0 and done.comparison.values_compared > 0
    bundle = read_bundle(tmp_path / "bundle")
    assert bundle.config["model"] == {"class": f"{type(model).__module__}.{type(model).__qualname__}"}
    assert bundle.labels == ("bad", "fair", "good")
    assert {"prove-ranges", *passes} == set(bundle.manifest["provenance"]["passes"])
    assert (bundle.folder / "lava").is_dir() and (bundle.folder / "report.html").is_file()
    assert run_main([str(bundle.folder), "--text", "a good film", "--verify", "--json"]) == 0
    assert '"mismatches": 0' in capfd.readouterr().out
    assert run_main([str(bundle.folder), "--check"]) == 0


def chain(vocabulary: int = 20, n_max: int = 12) -> SpikingChain:
    return SpikingChain(Encoder(vocabulary, 6, n_max), [SpikingLinear(6, 5)], Readout(5, 2))


@pytest.mark.parametrize(
    ("model", "labels", "said"),
    [
        (
            lambda: chain(vocabulary=10),
            None,
            "the tokenizer knows 20 tokens, the Encoder's table has 10: make it larger",
        ),
        (lambda: chain(n_max=1), None, "the tokenizer adds 2 special tokens to a text: it must be 1 .. n_max"),
        (lambda: chain(), ["one"], "labels names 1 classes, the model has 2"),
    ],
)
def test_a_tokenizer_or_labels_that_do_not_fit_are_refused(model, labels, said, tokenizer, tmp_path) -> None:
    with pytest.raises(UserError, match=said):
        export_module(quantise(model()), tmp_path / "bundle", tokenizer=tokenizer, labels=labels)
    assert not (tmp_path / "bundle").exists()


def test_a_model_in_float_mode_or_of_foreign_modules_makes_no_bundle(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"SpikingChain: the model makes no legal graph: .*spikebert\.quantise"):
        export_module(chain(), tmp_path / "bundle", tokenizer=tokenizer)
    foreign = SpikingChain(Encoder(20, 6, 12), [nn.ReLU()], Readout(6, 2))
    with pytest.raises(CheckFailed, match=r"'layers\.0' \(ReLU\): 'relu' cannot be done with spikes"):
        export_module(foreign, tmp_path / "bundle", tokenizer=tokenizer)
    with pytest.raises(CheckFailed, match=r"spikebert\.from_spikingjelly"):
        shape = draw_shape(np.random.default_rng(0), kind="chain")
        export_module(make_chain(shape, np.random.default_rng(0)), tmp_path / "bundle", tokenizer=tokenizer)
    assert not (tmp_path / "bundle").exists()


class Cheating(nn.Module):
    """Reaches below the spikes, where nothing is refused: the comparison with the reference finds it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.layer, self.readout = Encoder(20, 6, 12), SpikingLinear(6, 5), Readout(5, 2)

    def forward(self, input_ids, attention_mask=None) -> Logits:
        x = self.encoder(input_ids, attention_mask)
        x = Spikes(1 - x.values, x.packing, x.maximum, x.maker, x.inputs, x.current)
        return self.readout(self.layer(x))


def test_what_is_done_below_the_spikes_is_found(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"the graph is not the network of the torch model: .* node 'encoder'"):
        export_module(quantise(Cheating()), tmp_path / "bundle", tokenizer=tokenizer)
    assert not (tmp_path / "bundle").exists()


def test_an_own_model_is_trained_again_after_it_was_saved(tmp_path: Path) -> None:
    """Plain PyTorch: the same class, turned to integers, takes the state of the integer model."""
    shape = draw_shape(np.random.default_rng(2), kind="own", **SHAPE)
    model = make_model(shape)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    again = quantise(OwnModel(shape, np.random.default_rng(shape.seed)), shape.weight_bits)
    again.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    ids = torch.arange(12)[None]
    assert torch.equal(again(ids).integer_logits, model(ids).integer_logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_model", "spikingjelly_chain"])
def test_the_example_runs(name: str, tmp_path: Path) -> None:
    pytest.importorskip("lava")
    program = ROOT / "examples" / f"{name}.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, program, "--epochs", "1", "--sentences", "2", "--out", tmp_path / name],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "values as in PyTorch, 0 mismatches" in done.stdout
    assert "of the validation sentences right" in done.stdout and "accuracy" in done.stdout
    assert "of 'lava-inline' equal those of the reference" in done.stdout + done.stderr
