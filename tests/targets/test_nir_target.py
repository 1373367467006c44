"""`--target nir` as a user meets it: models of their own become files that others read, a SpikeBERT is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nir")
pytest.importorskip("torch")
pytest.importorskip("norse")

import nir
import torch
from command_output import one_error
from nir_consumers import differences, open_in_nirtorch, open_in_norse
from random_graphs import random_batch, random_graph
from small_teachers import make_tokenizer
from spikingjelly.activation_based import layer, neuron
from torch import nn

from converters.bundle import read_bundle
from converters.execution import TokenBatch
from converters.export_command import main as export_main
from converters.graph import Attention, Graph
from converters.pipeline import export_module
from sim.reference import ReferenceEngine
from sim.run_command import main as run_main
from spikebert import Encoder, Neuron, Readout, SpikingLinear, from_spikingjelly, quantise
from spikebert.layers import Logits
from targets.legality import IllegalGraphError
from targets.nir.target import NirTarget

DOCS = Path(__file__).parents[2] / "docs" / "nir.md"
WORDS, N_MAX = 20, 12


class Residual(nn.Module):
    """A wide and a narrow layer beside each other, and the source added twice."""

    def __init__(self, decay: int = 2048) -> None:
        super().__init__()
        self.encoder = Encoder(WORDS, 8, N_MAX, timesteps=4)
        self.up, self.down = SpikingLinear(8, 16, Neuron(0)), SpikingLinear(16, 8, Neuron(decay))
        self.side = SpikingLinear(8, 8, Neuron(decay))
        self.output = Readout(8, 2)

    def forward(self, input_ids, attention_mask=None) -> Logits:
        x = self.encoder(input_ids, attention_mask)
        return self.output(x + self.down(self.up(x)) + self.side(x + x))


def make_model(decay: int = 2048) -> nn.Module:
    torch.manual_seed(0)
    model = Residual(decay)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_var.fill_(0.3)
            nn.init.uniform_(part.bias, 0.2, 0.8)
    return quantise(model.eval(), weight_bits=5)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return folder


@pytest.mark.parametrize("passes", [(), ("lay-out-bias-lanes", "split-wide-layers:most_features=5")])
def test_a_model_of_ones_own_becomes_a_file(tokenizer: Path, tmp_path: Path, capfd, passes: tuple) -> None:
    done = export_module(make_model(), tmp_path / "bundle", "nir", tokenizer=tokenizer, passes=passes)
    bundle = read_bundle(tmp_path / "bundle")
    assert "nir/network.nir" in bundle.manifest["files"]
    network = nir.read(done.bundle.folder / "nir" / "network.nir")
    batch = random_batch(np.random.default_rng(0), bundle.graph, 50)
    assert differences(bundle.graph, batch, network, open_in_nirtorch) == []
    assert run_main([str(bundle.folder), "--text", "a good film", "--verify", "--json"]) == 0
    assert '"mismatches": 0' in capfd.readouterr().out


def test_a_chain_of_spikingjelly_becomes_a_file_for_norse(tokenizer: Path, tmp_path: Path) -> None:
    """From one framework to another, on the same bits."""
    torch.manual_seed(0)
    chain = nn.Sequential(
        nn.Embedding(WORDS, 12),
        neuron.LIFNode(tau=2.0),
        layer.Linear(12, 20),
        layer.BatchNorm1d(20),
        neuron.LIFNode(tau=2.0, decay_input=False),
        layer.Linear(20, 12),
        neuron.IFNode(v_threshold=0.3),
        layer.Linear(12, 3),
    ).eval()
    model = from_spikingjelly(chain, timesteps=4, n_max=N_MAX)
    bundle = export_module(model, tmp_path / "bundle", "nir", tokenizer=tokenizer).bundle
    batch = random_batch(np.random.default_rng(0), bundle.graph, 50)
    network = nir.read(bundle.folder / "nir" / "network.nir")
    assert {nir.LIF, nir.IF} <= {type(node) for node in network.nodes.values()}
    assert differences(bundle.graph, batch, network, open_in_norse) == []
    assert run_the_documentation(bundle.folder) == run_reference(bundle.graph, TokenBatch([[2, 7, 3]], [[1, 1, 1]]))


def run_the_documentation(folder: Path) -> list[int]:
    """The logits of the program that docs/nir.md shows for a bundle."""
    text = DOCS.read_text(encoding="utf-8").split("## Running a file")[1]
    program = text.split("```python")[1].split("```")[0]
    assert 'Path("build/mine")' in program
    values: dict = {}
    exec(program.replace('Path("build/mine")', f"Path({str(folder)!r})"), values)
    return values["logits"].tolist()


def run_reference(graph: Graph, batch: TokenBatch) -> list[int]:
    (logits,) = ReferenceEngine(graph).run(batch).logits
    assert np.ptp(logits) > 0
    return logits.tolist()


def test_a_decay_that_rounds_is_refused_and_nothing_written(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(IllegalGraphError) as raised:
        export_module(make_model(decay=410), tmp_path / "bundle", "nir", tokenizer=tokenizer)
    assert [(violation.node, violation.rule) for violation in raised.value.violations] == [
        ("down.lif", "exact-decay"),
        ("side.lif", "exact-decay"),
    ]
    assert "33 bits, the limit is 7: train with decay 0 (any T), 2048 (T up to 8)" in str(raised.value)
    assert not (tmp_path / "bundle").exists()


def test_a_spikebert_is_refused_with_every_reason(trained: Path, tmp_path: Path, capfd) -> None:
    """By the command: exit code 1, each attention named with both rules that it breaks, nothing written."""
    arguments = ["--target", "nir", "--model", str(trained / "run"), "--out", str(tmp_path / "bundle")]
    assert export_main(arguments) == 1
    said = capfd.readouterr().err
    assert export_main([*arguments, "--json"]) == 1
    violations = json.loads(capfd.readouterr().out)["violations"]
    from converters.from_torch import graph_from_model, load_integer_model

    graph = graph_from_model(load_integer_model(trained / "run" / "integer"))
    attentions = [node.name for node in graph if isinstance(node, Attention)]
    assert attentions
    for name in attentions:
        assert f"node '{name}': no-product: 3 signals multiplied, the limit is 1: take attention out" in said
        assert f"node '{name}': one-token: {graph.n_max} tokens, the limit is 1" in said
    found = [(violation["rule"], violation["node"]) for violation in violations]
    assert found == [(rule, name) for rule in ("no-product", "one-token") for name in attentions]
    assert not (tmp_path / "bundle").exists()


def test_emit_refuses_what_check_refuses(tmp_path: Path) -> None:
    graph = random_graph(np.random.default_rng(0), blocks=1)
    with pytest.raises(IllegalGraphError) as raised:
        NirTarget().emit(graph, tmp_path / "nir")
    assert list(raised.value.violations) == NirTarget().check(graph)
    assert not (tmp_path / "nir").exists()


def test_without_nir_the_extra_is_named_before_the_model_is_read(tmp_path: Path, capfd, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "nir", None)
    arguments = ["--target", "nir", "--model", str(tmp_path / "absent"), "--out", str(tmp_path / "bundle")]
    assert export_main(arguments) == 2
    assert "'nir' is not installed. Install it with: pip install 'spikebert[nir]'" in one_error(capfd)
