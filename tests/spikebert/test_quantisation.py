"""Folding is exact to float rounding, and the rounded model is close to the float one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import small_batch, small_model
from torch import nn

from spikebert.layers import SpikingLinear
from spikebert.quantisation import choose_units, encoder_units, fold, folded, least_room, quantise
from spikebert.recording import record_one_token
from spikebert.rounding import ACCUMULATOR_MAX, round_bias, round_weight, row_reach


def test_fold_equals_norm_after_linear() -> None:
    torch.manual_seed(0)
    linear, norm = nn.Linear(7, 5).double(), nn.BatchNorm1d(5).double().eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(20, 7, dtype=torch.double)
    weight, bias = fold(linear, norm)
    torch.testing.assert_close(x @ weight.T + bias, norm(linear(x)))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_units_use_the_bits_and_respect_the_accumulator(bits: int) -> None:
    torch.manual_seed(bits)
    weight, bias = torch.randn(8, 64) * 0.1, torch.randn(8)
    units = choose_units(weight, bias, bits, input_max=3)
    limit = 2 ** (bits - 1) - 1
    assert limit * 0.9 < (weight * units).abs().max() <= limit or bits < 8
    rounded = (weight * units).round().clamp(-limit, limit)
    assert (row_reach(rounded) * 3 + (bias * units).abs()).max() <= ACCUMULATOR_MAX


@pytest.mark.parametrize("bits", [2, 3, 4, 7])
def test_few_bits_get_the_units_of_the_least_error(bits: int) -> None:
    torch.manual_seed(bits)
    weight = torch.randn(32, 64) * 0.02
    weight[0, 0] = 0.5  # a single large one decides nothing
    limit = 2 ** (bits - 1) - 1

    def error(units: float) -> float:
        return float(((weight * units).round().clamp(-limit, limit) / units - weight).square().sum())

    units = choose_units(weight, torch.zeros(32), bits, input_max=1)
    assert all(error(units) <= error(other) * 1.02 for other in torch.logspace(-0.7, 0.7, 30) * units)
    assert bits > 4 or error(units) < 0.8 * error(limit / 0.5), "the units by the largest weight"


@pytest.mark.parametrize("weight", [torch.zeros(2, 3), torch.full((2, 3), 0.25), torch.eye(3)])
def test_units_of_odd_weights(weight: torch.Tensor) -> None:
    for bits in range(2, 9):
        units, limit = choose_units(weight, torch.zeros(len(weight)), bits, 1), 2 ** (bits - 1) - 1
        assert 1 <= units <= 65535
        assert torch.isfinite((weight * units).round().clamp(-limit, limit)).all()


def test_a_large_bias_is_not_clipped() -> None:
    weight, bias = torch.full((2, 4), 1e-4), torch.tensor([6.0, -4.0])
    units = torch.tensor(float(choose_units(weight, bias, 8, input_max=1)))
    assert torch.equal(round_bias(bias, units), (bias * units).round())


@pytest.mark.parametrize("bits", [0, 9, 16])
def test_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"weight_bits is {bits}"):
        quantise(small_model(), bits)


@pytest.mark.parametrize("bits", [1, 9])
def test_token_bits_out_of_range_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"token_bits is {bits}, it must be 2 .. 8"):
        quantise(small_model(), token_bits=bits)


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_token_table_of_few_bits_has_few_levels_as_near_as_they_come(bits: int, tmp_path: Path) -> None:
    model = small_model()
    with torch.no_grad():
        model.encoder.token.weight.mul_(3)  # some rows are cut
    integer = quantise(model, token_bits=bits)
    table, step, most = integer.encoder.round_token(model.encoder.token.weight), 2 ** (8 - bits), 2 ** (bits - 1) - 1
    levels = step * torch.arange(-most, most + 1.0)
    wanted = 96 * model.encoder.token.weight
    nearest = (wanted[..., None] - levels).abs().min(-1).values
    torch.testing.assert_close((table - wanted).abs(), nearest)
    assert torch.isin(table, levels).all() and table.max() == -table.min() == levels.max()
    integer.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.token_bits == bits and torch.equal(again.encoder.round_token(again.encoder.token.weight), table)


def test_one_bit_is_the_sign_and_its_unit_the_mean() -> None:
    """No other units have less error for weights of -1 and 1."""
    torch.manual_seed(0)
    weight, bias = torch.randn(16, 30) * 0.02, torch.zeros(16)
    units = choose_units(weight, bias, 1, input_max=1)
    assert abs(units - 1 / weight.abs().mean()) < 1
    integers = round_weight(weight, torch.tensor(float(units)), 1, 1, bias)
    assert torch.equal(integers, torch.where(weight < 0, -1.0, 1.0))
    model = quantise(small_model(), 1)
    for layer in model.modules():
        if isinstance(layer, SpikingLinear):
            assert layer.integers(1)[0].abs().eq(1).all()


@pytest.mark.parametrize("mean", [0.05, 0.18, 0.26, 0.55, 0.6, 0.9])
def test_units_of_one_bit_have_the_least_error_of_all_whole_ones(mean: float) -> None:
    torch.manual_seed(int(100 * mean))
    weight = torch.randn(16, 30)
    weight *= mean / weight.abs().mean()

    def error(units: int) -> float:
        return float((torch.where(weight < 0, -1.0, 1.0) / units - weight).square().sum())

    units = choose_units(weight, torch.zeros(16), 1, input_max=1)
    assert all(error(units) <= error(other) for other in range(1, 3 * units + 3))


def test_rows_of_one_bit_that_are_too_long_are_refused() -> None:
    weight = torch.ones(2, 3000)
    choose_units(weight, torch.zeros(2), 1, input_max=10)
    with pytest.raises(ValueError, match=r"3,000 of them with inputs of up to 11 may pass the accumulator.*2,978"):
        choose_units(weight, torch.zeros(2), 1, input_max=11)
    wide = small_model(hidden_size=256, spike="graded", spike_cap=255)
    with pytest.raises(ValueError, match=r"'blocks\.0\.out': weights of 1 bit cannot be 0"):
        quantise(wide, 1)
    quantise(wide, 2)


def test_wide_rows_with_graded_inputs_get_coarser_units() -> None:
    weight, bias = torch.full((4, 3072), 0.5), torch.zeros(4)
    units = choose_units(weight, bias, 8, input_max=25)
    assert row_reach((weight * units).round()).max() * 25 <= ACCUMULATOR_MAX
    assert units < 127 / 0.5


def test_every_layer_of_a_quantised_model_is_integer_and_proven() -> None:
    for layer, input_max in record_one_token(quantise(small_model(), 4)).uses().items():
        weight, bias = layer.integers(input_max)
        assert torch.equal(weight, weight.round()) and weight.abs().max() <= 127
        assert (row_reach(weight) * input_max + bias.abs()).max() <= ACCUMULATOR_MAX
        if isinstance(layer, SpikingLinear):
            assert weight.abs().max() <= 7 and layer.threshold >= 1 and layer.norm is None


def test_eight_bits_stay_close_to_the_float_model() -> None:
    model = small_model(hidden_size=64, intermediate_size=128)
    twin = quantise(model, 8)
    inputs = small_batch(texts=40)
    with torch.no_grad():
        as_float = model(**inputs, output_firing_rates=True)
        as_integers = twin(**inputs, output_firing_rates=True)
    for name, rate in as_float.firing_rates.items():
        assert abs(float(rate - as_integers.firing_rates[name])) < 0.05, name
    agreement = (as_float.logits.argmax(-1) == as_integers.logits.argmax(-1)).float().mean()
    assert agreement > 0.8


def test_the_float_model_is_left_alone_and_cannot_be_quantised_twice() -> None:
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin = quantise(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="integer mode already"):
        quantise(twin)


def test_a_sign_encoder_keeps_the_range_of_its_table() -> None:
    table = torch.tensor([[0.5, -4.0]])
    assert encoder_units("sign", table) == 31
    assert encoder_units("lif", table) == 96


def test_a_folded_model_computes_the_same_and_leaves_the_first_as_it_is() -> None:
    model = small_model().double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin = folded(model)
    assert not [module for module in twin.modules() if isinstance(module, nn.BatchNorm1d)]
    batch = small_batch()
    torch.testing.assert_close(twin(**batch).logits, model(**batch).logits)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(twin.blocks[0].up.linear.weight, model.blocks[0].up.linear.weight)


def test_the_fullest_accumulator_is_that_of_the_last_sum() -> None:
    """Of 2 blocks `up` of the last one reads the encoder's spikes and those of three layers."""
    layer, most, room = least_room(small_model())
    assert (layer, most, room) == ("blocks.1.up", 4, 2 * 65535 / (4 * 16))
    caps = {"spike": "graded", "spike_cap": 15, "encoder_cap": 7, "value_cap": 3}
    assert least_room(small_model(**caps))[:2] == ("blocks.1.up", 7 + 3 * 15)
    assert least_room(small_model(**caps, intermediate_size=128))[:2] == ("blocks.0.down", 15)
    without = [least_room(model) for model in (small_model(), small_model(norm="rms"))]
    assert without[0] == without[1]


def test_weights_have_no_more_room_than_that() -> None:
    """Rounded to many bits, a row of equal weights of both signs fills the accumulator with this many units each."""
    model = small_model(spike="graded", spike_cap=15, encoder_cap=15, value_cap=9, num_hidden_layers=4)
    name, most, room = least_room(model)
    linear = model.get_submodule(name).linear
    units = choose_units(
        torch.ones(1, linear.in_features) * torch.tensor([1.0, -1.0]).repeat(8), torch.zeros(1), 8, most
    )
    assert units == pytest.approx(room, rel=0.05)  # but for what rounding may add
