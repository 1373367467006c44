"""What rounding cuts off is counted as a person would count it."""

from __future__ import annotations

import torch
from small_models import small_model

from spikebert.clipping import Cut, count_cut, scaled_weights
from spikebert.layers import Encoder, Readout, SpikingLinear
from spikebert.quantisation import quantise
from spikebert.recording import record_one_token
from spikebert.rounding import round_weight


def test_clipped_and_shrunk_are_counted_apart() -> None:
    """In units of 10, two bits hold -1, 0, 1. The last row is shrunk: 1 was to become 0."""
    weight = torch.tensor([[0.1, 0.14, -0.16], [0.04, -0.1, 0.3], [0.1, 0.0, 0.1]])
    integers = torch.tensor([[1, 1, -1], [0, -1, 1], [0, 0, 1]])
    assert count_cut(weight, 10.0, integers, 2) == Cut(values=9, clipped=2, shrunk=1)


def test_a_row_that_could_pass_the_accumulator_is_shrunk() -> None:
    weight = torch.zeros(2, 600)
    weight[0] = 1.0  # 600 weights of 100, inputs up to 2: 120,000
    weight[1, :3] = torch.tensor([1.0, 2.0, -2.0])
    integers = round_weight(weight, torch.tensor(100.0), 8, 2, torch.zeros(2))
    assert integers[0].unique().item() < 100
    assert count_cut(weight, 100.0, integers, 8) == Cut(1200, clipped=2, shrunk=600)


def test_a_table_of_many_rows_is_counted_whole() -> None:
    weight = torch.linspace(-2, 2, 5001)[:, None]
    integers = (weight * 96).round().clamp(-127, 127)
    cut = count_cut(weight, 96.0, integers, 8)
    assert cut == Cut(5001, clipped=int(((weight * 96).round().abs() > 127).sum()), shrunk=0) and cut.clipped > 0


def test_every_layer_with_weights_is_named_with_its_units() -> None:
    model = quantise(small_model(), 8)
    found = {name: (weight, units) for name, weight, units in scaled_weights(model)}
    layers = {"query", "key", "value", "out", "up", "down"}
    assert set(found) == {"encoder", "readout", *(f"blocks.{i}.{name}" for i in range(2) for name in layers)}
    for name, (weight, units) in found.items():
        layer = model.get_submodule(name)
        assert weight is (layer.token if isinstance(layer, Encoder) else layer.linear).weight
        assert units == float(layer.steps if isinstance(layer, Readout) else layer.threshold)


def test_right_after_rounding_nothing_but_the_table_is_cut() -> None:
    """The units are chosen so; training with integers may move weights beyond."""
    model = quantise(small_model(), 8)
    for layer, input_max in record_one_token(model).uses().items():
        if isinstance(layer, SpikingLinear):
            weight = layer.linear.weight
            assert count_cut(weight, float(layer.threshold), layer.integers(input_max)[0], 8).clipped == 0
            weight.data[0, 0] = 300 / layer.threshold
            assert count_cut(weight, float(layer.threshold), layer.integers(input_max)[0], 8).clipped == 1
