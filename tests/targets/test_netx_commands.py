"""The target and the engine `netx` as a user meets them: a model of one's own becomes a bundle, and runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lava.lib.dl.netx")
pytest.importorskip("spikingjelly")

import torch
from command_output import one_error
from netx_chains import random_chain
from random_models import calibrate, draw_shape, make_batch, make_model
from small_bundles import sign_again, small_bundle
from small_teachers import make_tokenizer
from torch import nn

from converters.bundle import read_bundle
from converters.export_command import main as export_main
from converters.pipeline import export_module
from sim.run_command import main as run_main
from spikebert import Encoder, Neuron, Readout, SpikingLinear, quantise
from spikebert.commands import CheckFailed, MissingExtra
from spikebert.layers import Logits
from targets.legality import IllegalGraphError
from targets.netx.network_file import write_network

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "netx.md"
SHAPE = {"n_max": 12, "depth": 2, "timesteps": 4, "decay": 410, "weight_bits": 8, "reset": "zero", "spike": "binary"}


class Tagger(nn.Module):
    """Three spiking layers of different widths, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder(vocabulary=20, features=16, n_max=12, timesteps=4)
        self.up, self.over = SpikingLinear(16, 24, Neuron(decay=410)), SpikingLinear(24, 24, Neuron(decay=2048))
        self.down = SpikingLinear(24, 8)
        self.readout = Readout(8, 3)

    def forward(self, input_ids, attention_mask=None) -> Logits:
        return self.readout(self.down(self.over(self.up(self.encoder(input_ids, attention_mask)))))


def make_tagger() -> nn.Module:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    return quantise(calibrate(Tagger(), make_batch(draw_shape(rng, **SHAPE), rng, samples=4)), weight_bits=8)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)  # as many words as the models have
    return folder


@pytest.fixture(scope="module")
def bundle(tokenizer: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "mine"
    export_module(make_tagger(), folder, "netx", tokenizer=tokenizer)
    return folder


def verified(folder: Path, capfd, *arguments: str) -> dict:
    capfd.readouterr()
    assert run_main([str(folder), "--engine", "netx", "--verify", "--json", *arguments]) == 0
    return json.loads(capfd.readouterr().out)


def test_a_model_of_ones_own_becomes_a_bundle_that_proves_its_round_trip(bundle: Path, capfd) -> None:
    assert sorted(path.name for path in (bundle / "netx").iterdir()) == ["network.net", "netx.json"]
    how = json.loads((bundle / "netx" / "netx.json").read_text())
    assert (how["reset_interval"], how["reset_offset"], how["depth_steps"]) == (4, 1, 4)
    assert how["input"]["valid_lanes"] > 0  # its norms became biases
    assert [layer["neuron"] for layer in how["layers"]] == ["up.lif", "over.lif", "down.lif", None]
    assert how["round_trip"]["values_compared"] > 10_000
    result = verified(bundle, capfd, "--text", "a good film", "--text", "the soup was very cold")
    assert result["verify"]["mismatches"] == 0 and result["verify"]["values_compared"] > 5_000
    rates = {name: node["rate"] for name, node in result["activity"]["per_node"].items()}
    assert all(0 < rates[name] < 1 for name in ("encoder", "up.lif", "over.lif", "down.lif"))
    assert run_main([str(bundle), "--check"]) == 0


def test_a_spikingjelly_chain_becomes_one(tokenizer: Path, tmp_path: Path, capfd) -> None:
    model = make_model(draw_shape(np.random.default_rng(1), kind="chain", **SHAPE))
    export_module(model, tmp_path / "chain", "netx", tokenizer=tokenizer)
    assert verified(tmp_path / "chain", capfd, "--text", "a good film")["verify"]["mismatches"] == 0


def test_a_bundle_that_was_not_made_for_netx_runs_if_it_is_a_chain(tmp_path: Path, capfd) -> None:
    graph = random_chain(np.random.default_rng(0), n_max=6, vocabulary=40)
    small_bundle(tmp_path / "chain", graph)
    assert verified(tmp_path / "chain", capfd, "--text", "a good film")["verify"]["mismatches"] == 0
    small_bundle(tmp_path / "attention")
    assert run_main([str(tmp_path / "attention"), "--engine", "netx", "--text", "a"]) == 1
    assert "node 'block0.attention': no-attention: 1" in capfd.readouterr().err


def test_a_description_that_disagrees_with_the_graph_is_refused(bundle: Path, tmp_path: Path, capfd) -> None:
    folder = Path(shutil.copytree(bundle, tmp_path / "other"))
    path = folder / "netx" / "netx.json"
    path.write_text(path.read_text().replace('"reset_offset": 1', '"reset_offset": 2'))
    sign_again(folder)
    capfd.readouterr()
    assert run_main([str(folder), "--engine", "netx", "--text", "a"]) == 2
    assert "netx.json: 'reset_offset' differs from that of the graph; export the bundle again" in one_error(capfd)


def test_the_engine_runs_the_file_of_the_bundle(bundle: Path, tmp_path: Path, capfd) -> None:
    """A threshold changed in it is a mismatch, and --verify says where."""
    import h5py

    folder = Path(shutil.copytree(bundle, tmp_path / "other"))
    with h5py.File(folder / "netx" / "network.net", "a") as file:
        file["layer/2/neuron/vThMant"][()] = 0
    sign_again(folder)
    assert run_main([str(folder), "--engine", "netx", "--verify", "--text", "a good film"]) == 1
    assert "node 'over.lif'" in capfd.readouterr().err


def test_a_file_that_does_not_come_back_the_same_is_not_exported(tokenizer: Path, tmp_path: Path, monkeypatch) -> None:
    def spoil(chain, path: Path) -> None:
        write_network(replace(chain, layers=(replace(chain.layers[0], vth=0), *chain.layers[1:])), path)

    monkeypatch.setattr("targets.netx.target.write_network", spoil)
    with pytest.raises(CheckFailed, match=r"lava-dl's network is not that of the graph: node 'up\.lif'"):
        export_module(make_tagger(), tmp_path / "place" / "bundle", "netx", tokenizer=tokenizer)
    assert list((tmp_path / "place").iterdir()) == []


def test_a_model_with_a_residual_is_refused_with_every_reason(tokenizer: Path, tmp_path: Path) -> None:
    class Residual(Tagger):
        def forward(self, input_ids, attention_mask=None) -> Logits:
            up = self.up(self.encoder(input_ids, attention_mask))
            return self.readout(self.down(up + self.over(up)))

    with pytest.raises(IllegalGraphError) as raised:
        export_module(quantise(Residual()), tmp_path / "bundle", "netx", tokenizer=tokenizer)
    assert [(each.node, each.rule) for each in raised.value.violations] == [
        ("add", "no-residual"),
        ("up.lif", "one-reader"),
    ]
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_spikebert_export_refuses_a_transformer_and_tells_machines_why(trained: Path, tmp_path: Path, capfd) -> None:
    arguments = ["--target", "netx", "--model", str(trained / "run"), "--out", str(tmp_path / "bundle"), "--json"]
    assert export_main(arguments) == 1
    captured = capfd.readouterr()
    refused = json.loads(captured.out)
    rules = {violation["rule"] for violation in refused["violations"]}
    assert refused["bundle"] is None and rules == {"no-attention", "no-residual", "one-reader"}
    assert "the graph is not legal for the target 'netx':" in captured.err
    assert not (tmp_path / "bundle").exists()


def test_without_lava_dl_the_extra_is_named_before_any_work(bundle: Path, tmp_path: Path) -> None:
    setup = "import sys\nsys.modules['lava'] = None\n"
    export = "from converters.export_command import main\nsys.exit(main(sys.argv[1:]))"
    run = "from sim.run_command import main\nsys.exit(main(sys.argv[1:]))"
    for program, *arguments in (
        (export, "--target", "netx", "--model", "nowhere", "--out", str(tmp_path / "out")),
        (run, str(bundle), "--engine", "netx", "--text", "a"),
    ):
        command = [sys.executable, "-c", setup + program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "pip install 'spikebert[lava-dl]'" in done.stderr


def test_the_target_itself_names_the_extra(monkeypatch) -> None:
    from targets.netx.target import NetxTarget

    monkeypatch.setattr("targets.netx.engine.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"spikebert\[lava-dl\]"):
        NetxTarget()


@pytest.mark.slow
def test_the_program_of_the_documentation_runs_in_the_real_runtime(bundle: Path, tmp_path: Path) -> None:
    """Lava's own runtime, an operating system process each; in a child, for a runtime that fails may never end."""
    (program,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "build").mkdir()
    shutil.copytree(bundle, tmp_path / "build" / "mine")
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    golden = read_bundle(bundle).golden
    assert done.stdout.rstrip().endswith(f"{golden.logits.size} logits, 0 differ")
