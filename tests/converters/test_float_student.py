"""From a bundle back to a float student: the same integers in other words, and training goes on from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_output import one_error
from random_graphs import random_graph
from safetensors.torch import load_file
from small_bundles import small_bundle
from small_models import GRADED, small_batch, small_config, small_model
from small_teachers import recipe_arguments
from transformers import BertConfig, BertModel

from converters.bundle import Bundle, read_bundle
from converters.export_command import main as export
from converters.float_student import config_of, expect_currents, extended_table, fill, main, source_units
from converters.from_torch import graph_from_model
from converters.graph import Node
from sim.reference import ReferenceEngine
from spikebert.commands import UserError
from spikebert.layers import SpikingLinear
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.quantisation import fold, quantise
from spikebert.recording import record
from spikebert.train_command import main as train

WORDS = "the film good bad\nthe film good bad\nthe soup was sad\n"


@pytest.fixture(scope="module")
def bundle(trained: Path, tmp_path_factory) -> Bundle:
    """Of a trained student, with 9 of its teacher's 20 tokens."""
    folder = tmp_path_factory.mktemp("float_student")
    (folder / "texts.txt").write_text(WORDS)
    flags = ["--vocabulary", "9", "--vocabulary-text", str(folder / "texts.txt")]
    assert export(["--model", str(trained / "run"), "--out", str(folder / "bundle"), *flags]) == 0
    return read_bundle(folder / "bundle")


@pytest.fixture
def student(bundle: Bundle) -> SpikeBertForSequenceClassification:
    """The float student of its tokens alone."""
    table = torch.tensor(bundle.graph.source.table) / source_units(bundle.graph)
    model = SpikeBertForSequenceClassification(config_of(bundle, len(table))).eval()
    fill(model, bundle.graph, table)
    return model


def batch_of(bundle: Bundle) -> tuple[torch.Tensor, torch.Tensor]:
    batch, _ = bundle.encode(["the film good", "bad", "the soup was sad the film", "good good bad film"])
    return torch.tensor(batch.ids), torch.tensor(batch.mask)


def test_its_layers_are_the_integers_of_the_bundle(bundle: Bundle, student: SpikeBertForSequenceClassification) -> None:
    expect_currents(student, [batch_of(bundle)])
    nodes, layers = {node.name: node for node in bundle.graph}, dict(student.named_modules())
    linear = {name: layer for name, layer in layers.items() if isinstance(layer, SpikingLinear)}
    assert len(linear) == 6 * student.config.num_hidden_layers
    for name, layer in linear.items():
        weight, bias = (
            value.detach().double() * nodes[f"{name}.lif"].threshold for value in fold(layer.linear, layer.norm)
        )
        for found, wanted in ((weight, nodes[name].weight), (bias, nodes[name].bias)):
            assert np.array_equal(found.round(), wanted)
            assert (found - found.round()).abs().max() < 0.01
    readout = nodes[bundle.graph.output]
    assert np.array_equal((student.readout.linear.weight / readout.scale).detach().round(), readout.weight)
    assert np.array_equal((student.readout.linear.bias / readout.scale).detach().round(), readout.bias)


def test_it_fires_as_the_bundle_does(bundle: Bundle, student: SpikeBertForSequenceClassification) -> None:
    """All but for decays, which integers truncate, and sums that end at a threshold."""
    ids, mask = batch_of(bundle)
    nodes = [name for name in bundle.graph.features if name.endswith(".lif")]
    batch, _ = bundle.encode(["the film good", "bad", "the soup was sad the film", "good good bad film"])
    wanted = ReferenceEngine(bundle.graph).run(batch, nodes)
    expect_currents(student, [(ids, mask)])
    with torch.no_grad():
        found = student(ids, mask, output_trace=nodes)
    same = [float(np.mean(found.trace[name].numpy() == wanted.values[name])) for name in nodes]
    assert min(same) > 0.97
    assert np.array_equal(found.logits.argmax(-1), wanted.predictions)
    assert any(wanted.values[name].any() for name in nodes)
    with torch.no_grad():  # a control: one layer less, and it is seen
        student.blocks[0].up.linear.weight.zero_()
        other = student(ids, mask, output_trace=nodes)
    assert min(float(np.mean(other.trace[name].numpy() == wanted.values[name])) for name in nodes) < 0.97


def test_a_batch_in_training_has_the_currents_that_are_expected(
    bundle: Bundle, student: SpikeBertForSequenceClassification
) -> None:
    ids, mask = batch_of(bundle)
    before = record(student, ids, mask).steps[1].spikes.current
    expect_currents(student, [(ids[:1], mask[:1]), (ids[1:], mask[1:])])
    after = record(student, ids, mask).steps[1].spikes.current
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    student.train()
    torch.testing.assert_close(record(student, ids, mask).steps[1].spikes.current, before, rtol=1e-2, atol=1e-2)


def test_tokens_that_are_missing_follow_the_teachers_embedding() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(30, 6, generator=generator)
    rows = teacher @ torch.randn(6, 4, generator=generator) + torch.randn(4, generator=generator)
    ids = np.random.default_rng(0).permutation(30)[:20]
    table, explained = extended_table(rows[torch.from_numpy(ids)], ids, teacher)
    assert explained > 0.999
    assert torch.equal(table[torch.from_numpy(ids)], rows[torch.from_numpy(ids)])
    torch.testing.assert_close(table, rows, rtol=0, atol=0.02)
    _, by_chance = extended_table(torch.randn(20, 4, generator=generator), ids, teacher)
    assert by_chance < 0.8


def test_training_goes_on_from_it(bundle: Bundle, trained: Path, tmp_path: Path, capfd) -> None:
    shutil.copytree(trained / "teacher", tmp_path / "teacher")
    shutil.copytree(trained / "data", tmp_path / "data")
    flags = ["--teacher", str(tmp_path / "teacher"), "--texts", str(tmp_path / "data" / "train.tsv"), "--count", "30"]
    assert main([str(bundle.folder), *flags, "--out", str(tmp_path / "start")]) == 0
    assert "9 of the bundle, 11 by the teacher's embedding" in capfd.readouterr().err
    capfd.readouterr()
    arguments = [*recipe_arguments(tmp_path), f"--stage1.reuse={tmp_path / 'start'}", "--stage1.reuse_readout=true"]
    assert train([*arguments, "--data.labels=[sad,merry]"]) == 2
    assert "has readout 'sum' and classes ['bad', 'good'], this one 'sum' and ['sad', 'merry']" in one_error(capfd)
    assert train([*arguments, "--until=stage1"]) == 0
    start, taken = (load_file(tmp_path / folder / "model.safetensors") for folder in ("start", "run/stage1"))
    assert start.keys() == taken.keys() and all(torch.equal(taken[name], start[name]) for name in start)
    assert train(arguments) == 0
    capfd.readouterr()
    assert export(["--model", str(tmp_path / "run"), "--out", str(tmp_path / "bundle")]) == 0
    said = read_bundle(tmp_path / "bundle").config["licences"]
    assert said["It went on from the bundle"] == "bundle"
    assert said["of bundle: and from the teacher"] == bundle.config["licences"]["and from the teacher"]
    stage1 = json.loads((tmp_path / "run" / "stage1" / "stage.json").read_text())
    assert stage1["figures"]["learnt_from"] == ["data"], "what the bundle's card says"
    again = [
        *recipe_arguments(tmp_path),
        f"--out={tmp_path / 'again'}",
        f"--stage1.reuse={tmp_path / 'run' / 'stage2'}",
    ]
    assert train([*again, "--until=stage1"]) == 0
    figures = json.loads((tmp_path / "again" / "stage1" / "stage.json").read_text())["figures"]
    assert figures["licences"]["It went on from the bundle"] == "bundle", "whoever goes on from it knows that too"
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["accuracy"]["integer student"]["validation"]["value"] > 0.9
    capfd.readouterr()
    assert main([str(bundle.folder), *flags, "--out", str(tmp_path / "start")]) == 2
    assert "start exists" in one_error(capfd)


class Changed(SimpleNamespace):
    """A graph whose nodes a pass has changed, as far as `fill` reads it."""

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)


def test_a_layer_that_a_pass_changed_is_named(bundle: Bundle, student: SpikeBertForSequenceClassification) -> None:
    """It has another name, or fewer neurons: with one alone torch would fill all with it."""
    up = next(node for node in bundle.graph if node.name == "blocks.0.up")
    for other in (replace(up, name="part"), replace(up, weight=up.weight[:1], bias=up.bias[:1])):
        nodes = [other if node is up else node for node in bundle.graph]
        with pytest.raises(UserError, match=r"'blocks\.0\.up'.*a pass has changed it"):
            fill(
                student, Changed(nodes=nodes, source=bundle.graph.source, output=bundle.graph.output),
                student.encoder.token.weight,
            )  # fmt: skip


def test_currents_may_be_measured_again(bundle: Bundle, student: SpikeBertForSequenceClassification) -> None:
    ids, mask = batch_of(bundle)
    expect_currents(student, [(ids[:2], mask[:2])])
    before = student(ids, mask).logits
    expect_currents(student, [(ids, mask)])
    torch.testing.assert_close(student(ids, mask).logits, before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"position_spikes": 8}, {"readout": "spikes"}, {"readout": "membrane"}, {"encoder": "sign"},
        {"spike": "graded", "spike_cap": 3}, GRADED, {"spike": "ternary"}, {"attention_similarity": "xnor"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("timesteps", [2, 4])
def test_every_option_comes_back(tmp_path: Path, changes: dict, timesteps: int) -> None:
    model = small_model(decay=0, **changes)
    batch = small_batch()
    integers = quantise(model, 8)
    integers.set_timesteps(timesteps)
    graph = graph_from_model(integers)
    twin = SpikeBertForSequenceClassification(small_config(decay=0, timesteps=timesteps, **changes)).eval()
    fill(twin, graph, torch.tensor(graph.source.table) / source_units(graph))
    names = [name for name in graph.features if name.endswith(".lif")]
    with torch.no_grad():
        wanted, found = (each(**batch, output_trace=names).trace for each in (integers, twin))
    for name in names:
        assert float((wanted[name] == found[name]).float().mean()) > 0.95, name  # sums that end at a threshold, and on
    assert any(wanted[name].any() for name in names)


def test_tokens_of_an_encoder_of_signs_are_scaled_as_new_ones() -> None:
    graph = random_graph(np.random.default_rng(0), source_kind="sign")
    assert 0.4 < float(np.std(graph.source.table / source_units(graph))) < 0.6


def test_what_has_no_float_student_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not made of a SpikeBERT"):
        config_of(small_bundle(tmp_path / "own"), 20)
    for changes in ({"norm": "rms"}, {"norm": "none"}, {"attention_position": "learned"}):
        kept = bundle.config["model"] | changes
        other = Bundle(
            bundle.graph, bundle.manifest | {"config": {"model": kept}}, bundle.tokenizer, bundle.golden, bundle.folder
        )
        with pytest.raises(UserError, match="only students with norm 'batch'"):
            config_of(other, 20)


def test_teachers_that_will_not_do_are_refused(bundle: Bundle, trained: Path, tmp_path: Path, capfd) -> None:
    texts = ["--texts", str(trained / "data" / "train.tsv")]

    def refused(teacher: Path) -> str:
        capfd.readouterr()
        assert main([str(bundle.folder), "--teacher", str(teacher), *texts, "--out", str(tmp_path / "out")]) == 2
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
        return capfd.readouterr().err.splitlines()[-1]

    assert "cannot load" in refused(trained / "data")
    assert "cannot load" in refused(trained / "run" / "stage2"), "a student"
    upper = shutil.copytree(trained / "teacher", tmp_path / "upper")
    tokenizer = json.loads((upper / "tokenizer.json").read_text())
    tokenizer["normalizer"] = None
    (upper / "tokenizer.json").write_text(json.dumps(tokenizer))
    same = main([str(bundle.folder), "--teacher", str(upper), *texts, "--out", str(tmp_path / "lower")])
    assert same == 0, "these texts have no capitals"
    (tmp_path / "capitals.tsv").write_text("text\tlabel\nThe FILM\t0\n")
    texts = ["--texts", str(tmp_path / "capitals.tsv")]
    assert "takes 'The FILM' apart otherwise" in refused(upper)
    narrow = shutil.copytree(trained / "teacher", tmp_path / "narrow")
    make_narrow(narrow)
    assert "it takes 8 tokens at most" in refused(narrow)


def make_narrow(folder: Path) -> None:
    """A teacher that takes 8 tokens."""
    config = BertConfig.from_pretrained(folder)
    config.max_position_embeddings = 8
    BertModel(config).save_pretrained(folder)
