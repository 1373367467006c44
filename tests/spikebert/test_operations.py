"""Operations counted while a model trains are those that an engine counts, and training for few of them leaves few."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_models import GRADED, small_batch, small_model
from small_teachers import recipe_arguments
from torch import nn

from converters.execution import TokenBatch
from converters.from_torch import graph_from_model
from converters.graph import Readout, Synapses
from sim.activity import count_activity
from sim.reference import ReferenceEngine
from spikebert.data import TokenisedTexts
from spikebert.distillation import LossWeights
from spikebert.evaluation import validation
from spikebert.layers import SpikingLayer
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.operations import events, forget, operations_to
from spikebert.packing import Packing
from spikebert.quantisation import quantise
from spikebert.spikes import Spikes
from spikebert.train_command import main


@pytest.mark.parametrize(
    "changes", [{}, {"position_spikes": 4}, {"norm": "none"}, {"timesteps": 1}, {"encoder": "sign"}, GRADED]
)
def test_they_are_those_of_an_engine(changes: dict) -> None:
    """Of a model without weights that are rounded to 0."""
    model = small_model(**changes)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, SpikingLayer) and hasattr(layer, "linear"):
                weight = layer.linear.weight
                weight.copy_(torch.where(weight < 0, -1, 1) * weight.abs().clamp(min=float(weight.abs().max()) / 20))
    model, inputs = quantise(model), small_batch()
    graph = graph_from_model(model)
    layers = [node for node in graph if isinstance(node, (Synapses, Readout))]
    assert all(np.count_nonzero(node.weight) == node.weight.size for node in layers)
    batch = TokenBatch(inputs["input_ids"].numpy(), inputs["attention_mask"].numpy())
    activity = count_activity(graph, ReferenceEngine(graph).run(batch, observe=graph.spiking).values, batch)
    expected = sum(activity.per_node[node.name].synaptic_operations for node in layers)
    with torch.no_grad():
        assert int(model(**inputs, output_operations=True).operations) == expected > 0
    assert model(**inputs).operations is None


@pytest.mark.parametrize(
    ("cap", "maximum", "gradient"), [(1, 1, [1, 1, 1]), (1, 9, [1, 1, 0]), (4, 4, [1, 1, 1 / 4]), (4, 9, [1, 1, 1 / 4])]
)
def test_the_gradient_of_a_spike(cap: int, maximum: int, gradient: list[float]) -> None:
    """Of bits, of sums of bits, of graded spikes, and of sums with such: how many are not 0, and what draws them."""
    values = torch.tensor([[[0.0, 1.0, 1.0 if maximum == 1 else 4.0]]], requires_grad=True)
    count = events(Spikes(values, Packing(torch.ones(1, 1)), maximum, cap=cap))
    count.backward()
    assert count == 2 and values.grad is not None and values.grad.flatten().tolist() == gradient


def test_a_sum_knows_the_largest_spike_in_it() -> None:
    model = small_model(spike="graded", spike_cap=3, encoder_cap=7)
    x = model.encoder(**small_batch())
    assert (x.cap, model.blocks[0](x).cap, forget(model.blocks[0](x), counts=True).cap) == (7, 7, 7)
    y = model.blocks[0].out(model.blocks[0].query(x))
    assert (y.cap, (y + y).cap, (y + y).maximum) == (3, 3, 6)


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("changes", [{}, {"position_spikes": 4}, GRADED])
def test_they_are_the_same_however_a_step_keeps_its_activations(integer: bool, changes: dict) -> None:
    """Forgotten block by block, computed again, or all kept for firing rates: in value and in gradient."""
    found = []
    for way in ("forgotten", "computed again", "kept"):
        model = small_model(**changes)
        model = (quantise(model) if integer else model).train()
        if way == "computed again":
            model.gradient_checkpointing_enable()
        output = model(**small_batch(), output_operations=True, output_firing_rates=way == "kept")
        output.operations.backward()
        gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        found.append({"operations": output.operations.detach()} | gradients)
    first, *others = found
    assert first["encoder.token.weight"].abs().max() > 0 and first["blocks.1.up.linear.weight"].abs().max() > 0
    for other in others:
        assert other.keys() == first.keys()
        for name, value in first.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-3, msg=name)


def test_dropout_forgets_nothing() -> None:
    """In a model of one's own it may stand behind a block whose history is forgotten."""
    model = small_model().train()
    x = forget(model.blocks[0](model.encoder(**small_batch())), counts=True)
    dropped = nn.Dropout(0.5)(x)
    assert operations_to(dropped) == operations_to(x) > 0


def test_a_model_is_chosen_by_accuracy_less_what_its_operations_cost_beyond_about_the_budget() -> None:
    model, texts = small_model(), TokenisedTexts([[1, 2, 3], [4, 5]], [0, 1])
    plain = validation(model, texts, 0, torch.device("cpu"))()
    assert plain.value == plain.figures["validation_accuracy"] and "operations" not in plain.text
    many = LossWeights(operations=1, operations_per_token=1e9)
    needed = validation(model, texts, 0, torch.device("cpu"), many)().figures["operations_per_token"]
    assert needed > 100
    for free, cost in ((10.0, 0.5 * (needed / 10 - 1.1)), (needed / 1.2, 0.05), (needed / 1.09, 0), (1e9, 0)):
        weights = LossWeights(operations=0.5, operations_per_token=free)
        score = validation(model, texts, 0, torch.device("cpu"), weights)()
        assert f"{needed:,.0f} synaptic operations a token" in score.text
        assert score.value == pytest.approx(plain.value - cost), free


def test_stage_1_can_train_for_few(trained: Path, tmp_path: Path) -> None:
    """A student that has learnt so from the start needs fewer before stage 2 asks for it."""
    needed = {}
    for free in (0.0, 1e9, 300.0):
        run = tmp_path / f"{free:.0f}"
        shutil.copytree(trained / "run" / "teacher", run / "teacher")
        flags = [f"--stage1.operations_per_token={free}", "--stage1.operations_weight=3", "--stage1.epochs=4"]
        assert main([*recipe_arguments(trained), f"--out={run}", *flags, "--until=stage1"]) == 0
        student = SpikeBertForSequenceClassification.from_pretrained(run / "stage1").eval()
        output = student(torch.arange(1, 9)[None], output_operations=True)
        needed[free] = float(output.operations.detach())
    assert needed[300.0] < 0.9 * needed[0.0] and needed[1e9] == needed[0.0], needed


def test_training_for_few_leaves_few(trained: Path, tmp_path: Path) -> None:
    """The same recipe, from the same stage 1, with and without; the integer stage as well."""
    needed = {}
    for free, weight in ((1e9, 1.0), (300.0, 3.0)):
        run = tmp_path / f"{free:.0f}"
        for stage in ("teacher", "stage1"):
            shutil.copytree(trained / "run" / stage, run / stage)
        flags = [f"--stage2.operations_per_token={free}", f"--stage2.operations_weight={weight}"]
        assert main([*recipe_arguments(trained), f"--out={run}", *flags]) == 0
        figures = [json.loads((run / stage / "stage.json").read_text())["figures"] for stage in ("stage2", "integer")]
        needed[free] = [each["operations_per_token"] for each in figures]
    assert all(few < many / 2 for few, many in zip(needed[300.0], needed[1e9])), needed
    # what is free changes nothing
    got, expected = (
        load_file(run / "stage2" / "model.safetensors") for run in (tmp_path / "1000000000", trained / "run")
    )
    assert all(torch.equal(got[name], expected[name]) for name in expected)
