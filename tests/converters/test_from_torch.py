"""The torch model in integer mode and its graph are one network: every value of every node, and the logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import small_batch, small_model

from converters.early_exit import EarlyExit
from converters.execution import TokenBatch
from converters.from_torch import graph_from_model, load_integer_model
from converters.graph import GraphError
from converters.ranges import largest_current, prove_ranges
from converters.torch_engine import TorchEngine
from sim.reference import ReferenceEngine
from sim.verify import compare
from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification
from spikebert.commands import UserError
from spikebert.quantisation import quantise


def both(model, seed: int = 0):
    """The same batch through torch and through the graph's reference, all nodes observed."""
    graph = graph_from_model(model)
    inputs = small_batch(seed)
    batch = TokenBatch(inputs["input_ids"].numpy(), inputs["attention_mask"].numpy())
    everything = [node.name for node in graph]
    return graph, TorchEngine(graph, model).run(batch, everything), ReferenceEngine(graph).run(batch, everything)


@pytest.mark.parametrize("decay", [0, 410, 2048, 4095])
@pytest.mark.parametrize("timesteps", [1, 4, 8, 16])
def test_every_value_is_equal(decay: int, timesteps: int) -> None:
    model = quantise(small_model(decay=decay, timesteps=timesteps))
    graph, torch_run, reference_run = both(model)
    comparison = compare(graph, torch_run, reference_run)
    assert comparison.mismatches == 0, comparison.first_mismatch
    firing = [torch_run.values[name].mean() for name in graph.spiking]
    assert min(firing) > 0 and max(firing) < 5, "a silent or saturated network would prove little"


@pytest.mark.parametrize(
    "changes",
    [
        {"decay": [0, 410, 4095]},
        {"encoder": "sign"},
        {"positions": False},
        {"attention_threshold": 0},
        {"attention_threshold": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("weight_bits", [2, 4, 8])
def test_options_are_equal_too(changes: dict, weight_bits: int) -> None:
    model = quantise(small_model(**changes), weight_bits, token_bits=weight_bits)
    graph, torch_run, reference_run = both(model, seed=weight_bits)
    comparison = compare(graph, torch_run, reference_run)
    assert comparison.mismatches == 0, comparison.first_mismatch


def test_still_equal_after_training_steps_in_integer_mode() -> None:
    model = quantise(small_model())
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    before = graph_from_model(model)
    for step in range(5):
        inputs = small_batch(step)
        model.train()(**inputs, labels=torch.randint(0, 3, (5,))).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    graph, torch_run, reference_run = both(model.eval())
    assert compare(graph, torch_run, reference_run).mismatches == 0
    layer = "blocks.0.query"
    assert not np.array_equal(before[layer].weight, graph[layer].weight), "the integers did not move"


def test_a_changed_weight_is_found() -> None:
    model = quantise(small_model())
    graph, torch_run, _ = both(model)
    with torch.no_grad():
        model.blocks[1].up.linear.weight[3] += 2 / model.blocks[1].up.threshold
    changed = graph_from_model(model)
    inputs = small_batch()
    batch = TokenBatch(inputs["input_ids"].numpy(), inputs["attention_mask"].numpy())
    comparison = compare(graph, torch_run, ReferenceEngine(changed).run(batch, list(torch_run.values)))
    assert comparison.mismatches > 0
    assert comparison.first_mismatch.node == "blocks.1.up"


def test_a_float_model_is_refused(tmp_path) -> None:
    model = small_model()
    with pytest.raises(GraphError, match="float mode"):
        graph_from_model(model)
    model.save_pretrained(tmp_path / "float")
    with pytest.raises(UserError, match="quantise"):
        load_integer_model(tmp_path / "float")
    with pytest.raises(UserError, match="no model there"):
        load_integer_model(tmp_path / "nothing")


def test_saved_and_loaded_it_is_the_same_graph(tmp_path) -> None:
    model = quantise(small_model())
    model.save_pretrained(tmp_path / "integer")
    loaded = load_integer_model(tmp_path)  # a run folder: its integer/ is found
    for node, again in zip(graph_from_model(model), graph_from_model(loaded)):
        assert node.name == again.name and node.inputs == again.inputs
        for field in ("weight", "bias", "table", "position"):
            if getattr(node, field, None) is not None:
                assert np.array_equal(getattr(node, field), getattr(again, field))


def test_early_exit_is_the_references() -> None:
    model = quantise(small_model())
    graph, inputs = graph_from_model(model), small_batch()
    batch, names = TokenBatch(inputs["input_ids"].numpy(), inputs["attention_mask"].numpy()), tuple(graph.features)
    early_exit = EarlyExit(margin=190)
    expected = ReferenceEngine(graph, early_exit).run(batch, names)
    assert len(set(expected.timesteps.tolist())) > 1
    comparison = compare(graph, expected, TorchEngine(graph, model, early_exit).run(batch, names))
    assert comparison.mismatches == 0, comparison.first_mismatch


def test_the_torch_engine_names_an_unknown_node() -> None:
    model = quantise(small_model())
    engine = TorchEngine(graph_from_model(model), model)
    with pytest.raises(ValueError, match="no such node in this graph: nothing"):
        engine.run(TokenBatch(np.zeros((1, 2)), np.ones((1, 2))), ["nothing"])


def test_a_model_with_weights_left_out_is_refused(tmp_path) -> None:
    quantise(small_model()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["readout.linear.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"1 of the model's weights are not in its file, first 'readout\.linear\.weight'"
    ):
        load_integer_model(tmp_path)


@pytest.mark.slow
def test_a_bert_base_passes_by_construction_whatever_its_weights() -> None:
    """12 x 768, sums of up to 25 spikes, and weights that training would never make: twenty times too large, all of
    one sign. The constraint of `spikebert.rounding` shrinks each row until it provably fits, so the graph is legal."""
    config = SpikeBertConfig(
        vocab_size=50, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
        max_position_embeddings=64,
    )  # fmt: skip
    model = quantise(SpikeBertForSequenceClassification(config))
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.abs_().mul_(20)
                layer.bias.fill_(20.0)
    graph = graph_from_model(model)
    assert graph.value_max["blocks.11.add_mlp"] == 25
    ranges = prove_ranges(graph)
    name, reach = largest_current(graph, ranges)
    assert 65535 * 0.9 < reach <= 65535, (name, "the bound is nearly used, so the constraint did the work")
    assert 0 < graph["blocks.11.up"].weight.max() < 127, (
        "its rows were shrunk: 768 weights of 127 would reach 2 million"
    )
