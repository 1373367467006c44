"""Rounding that is made up for: currents change less than by rounding to the nearest, and no bound is passed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import small_batch, small_model
from torch import Tensor, nn

from spikebert import Encoder, Readout, SpikingLinear
from spikebert.calibration import add_moments, compensated, input_moments, layers_within_reach
from spikebert.quantisation import choose_units, quantise
from spikebert.recording import record
from spikebert.rounding import ACCUMULATOR_MAX, largest_weight, nearest_weight, row_reach


def correlated_spikes(rows: int, inputs: int, seed: int = 0) -> Tensor:
    """[1, rows, inputs] of 0 and 1; neighbours fire together, and the first seldom."""
    random = np.random.default_rng(seed)
    hidden = random.standard_normal((rows, inputs)).cumsum(1) / np.sqrt(np.arange(1, inputs + 1))
    return torch.from_numpy((hidden > np.linspace(1.5, 0.3, inputs)).astype(np.float32))[None]


def change(weight: Tensor, bias: Tensor, integers: Tensor, integer_bias: Tensor, units: int, x: Tensor) -> float:
    """The mean square of what rounding adds to the currents, in float units."""
    exact = x.double() @ weight.double().T + bias.double()
    rounded = (x.double() @ integers.double().T + integer_bias.double()) / units
    return float((exact - rounded).square().mean())


def round_both(weight: Tensor, bias: Tensor, units: int, bits: int) -> tuple[Tensor, Tensor]:
    return nearest_weight(weight * units, bits), (bias * units).round()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_currents_change_less_than_by_rounding_to_the_nearest(bits: int) -> None:
    torch.manual_seed(bits)
    weight, bias = torch.randn(24, 40) * 0.2, torch.randn(24) * 0.3
    units = choose_units(weight, bias, bits, 1)
    moved = compensated(weight, bias, units, bits, input_moments(correlated_spikes(600, 40)), 1)
    nearest, made_up = round_both(weight, bias, units, bits), round_both(*moved, units, bits)
    unseen = correlated_spikes(600, 40, seed=1)
    assert change(weight, bias, *made_up, units, unseen) < 0.6 * change(weight, bias, *nearest, units, unseen)
    assert torch.equal(made_up[0], (moved[0] * units).round()), "integers already, none beyond the bits"


def test_it_is_the_best_of_all_integers_where_these_can_be_tried() -> None:
    """Two weights and a bias, of which all near integers are tried: none is better than what was found by a tenth."""
    x = correlated_spikes(400, 2)
    for seed in range(20):
        torch.manual_seed(seed)
        weight, bias = torch.randn(1, 2), torch.randn(1)
        moved = compensated(weight, bias, 3, 4, input_moments(x), 1)
        found = change(weight, bias, *round_both(*moved, 3, 4), 3, x)
        near = [torch.arange(-2, 3) + (value * 3).round() for value in (*weight[0], bias[0])]
        tried = (
            change(weight, bias, torch.tensor([[a, b]]).clamp(-7, 7), torch.tensor([c]), 3, x)
            for a, b, c in itertools.product(*near)
        )
        assert found <= 1.1 * min(tried) + 0.02


def test_a_bias_takes_back_what_the_mean_current_would_lose() -> None:
    """Weights of a third of a unit all become 0; the mean of what they brought does not go."""
    x = torch.ones(1, 10, 30)
    weight, bias = torch.full((2, 30), 1 / 3), torch.zeros(2)
    moved, moved_bias = compensated(weight, bias, 1, 2, input_moments(x), 1)
    assert float((x[0, 0] @ moved.round().T + moved_bias.round())[0]) == pytest.approx(10, abs=1)


@pytest.mark.parametrize("fires", ["never", "always", "one"])
def test_inputs_that_tell_nothing(fires: str) -> None:
    x = torch.ones(2, 5, 8) if fires == "always" else torch.zeros(2, 5, 8)
    x[0, 0, 3] = fires != "never"
    weight, bias = torch.linspace(-1, 1, 32).view(4, 8), torch.linspace(-1, 1, 4)
    moved, moved_bias = compensated(weight, bias, 7, 4, input_moments(x), 1)
    assert torch.isfinite(moved).all() and torch.isfinite(moved_bias).all()
    if fires == "never":  # each weight as near as it gets, the bias too
        assert torch.equal((moved * 7).round(), (weight * 7).round())
        assert torch.equal((moved_bias * 7).round(), (bias * 7).round())


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000), bits=st.integers(1, 8), input_max=st.sampled_from([1, 9, 255]), signed=st.booleans(),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
)  # fmt: skip
def test_no_accumulator_overflows(seed: int, bits: int, input_max: int, signed: bool, scale: float) -> None:
    torch.manual_seed(seed)
    weight, bias = torch.randn(6, 20) * scale, torch.randn(6) * scale
    units = choose_units(weight, bias, bits, input_max, signed)
    moments = input_moments(correlated_spikes(50, 20, seed) * input_max)
    moved = compensated(weight, bias, units, bits, moments, input_max, signed)
    rounded, rounded_bias = round_both(*moved, units, bits)
    reach = row_reach(rounded, signed) * input_max + rounded_bias.abs()
    as_it_was = (moved[0] == weight).all(1) & (moved[1] == bias)  # such a row is `round_weight`'s to shrink
    assert bool((as_it_was | (reach <= ACCUMULATOR_MAX)).all())


def test_a_row_that_would_overflow_stays_as_it_was() -> None:
    weight, bias = torch.tensor([[0.5, 0.5], [1.0, 1.0]]), torch.zeros(2)
    x = torch.ones(1, 4, 2)
    moved, _ = compensated(weight, bias, 30000, 17, input_moments(x), 2)
    assert torch.equal(moved[1], weight[1]), "60000 * 2 is beyond the accumulator"
    assert torch.equal((moved[0] * 30000).round(), torch.tensor([15000.0, 15000.0]))


# A whole model


def texts() -> list[tuple[Tensor, Tensor]]:
    batch = small_batch()
    return [(batch["input_ids"], batch["attention_mask"])]


@pytest.mark.parametrize("norm", ["batch", "layer", "rms", "none"])
def test_layers_are_rounded_in_turn_and_each_once(norm: str) -> None:
    model = small_model(norm=norm)
    recording = record(model, *texts()[0])
    rounded: list[nn.Module] = []
    while ready := layers_within_reach(recording, rounded):
        assert not set(ready) & set(rounded)
        rounded += ready
    assert rounded == list(recording.uses())
    first = layers_within_reach(recording, ())
    assert first == [model.blocks[0].query, model.blocks[0].key, model.blocks[0].value]


@pytest.mark.parametrize("norm", ["batch", "layer", "rms", "none"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_model_is_rounded_with_texts(norm: str, bits: int) -> None:
    model = small_model(norm=norm)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    told: list[tuple[int, int]] = []
    integer = quantise(model, bits, texts(), tell=lambda *layers: told.append(layers))
    assert told == sorted(told) and told[-1] == (len(record(model, *texts()[0]).uses()),) * 2
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for layer in (layer for layer in integer.modules() if isinstance(layer, SpikingLinear)):
        weight, bias = layer.integers(1)
        assert weight.abs().max() <= largest_weight(bits) and torch.equal(weight, weight.round())
        assert torch.equal(bias, bias.round()) and layer.integer
    output = integer(**{name: small_batch()[name] for name in ("input_ids", "attention_mask")})
    assert output.integer_logits is not None
    again = quantise(model, bits, texts())
    assert all(torch.equal(a, b) for a, b in zip(integer.state_dict().values(), again.state_dict().values()))


def test_other_texts_give_other_integers_and_none_gives_the_nearest() -> None:
    model = small_model()
    nearest, with_texts = quantise(model, 3), quantise(model, 3, texts())
    own, other = (twin.blocks[0].up.integers(2)[0] for twin in (nearest, with_texts))
    assert not torch.equal(own, other)
    assert torch.equal(own, quantise(model, 3, ()).blocks[0].up.integers(2)[0])


class UsedTwice(nn.Module):
    """One layer twice, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.layer, self.readout = Encoder(50, 8, 12), SpikingLinear(8, 8), Readout(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> object:
        x = self.encoder(input_ids, attention_mask)
        return self.readout(self.layer(self.layer(x)))


def test_moments_of_a_layer_used_twice_are_those_of_both_uses() -> None:
    torch.manual_seed(0)
    model = UsedTwice().eval()
    ids = torch.arange(20).view(2, 10)
    recording = record(model, ids, torch.ones_like(ids))
    assert recording.calls == {model.layer: (0, 1), model.readout: (0,)}
    moments: dict = {}
    add_moments(moments, model, ids, torch.ones_like(ids), {model.layer: (0, 1)})
    given = [recording.steps[0].spikes.values, recording.steps[1].spikes.values]
    assert torch.equal(moments[model.layer], sum(input_moments(values) for values in given))
    assert quantise(model, 4, [(ids, torch.ones_like(ids))]).layer.integer


class Probing(nn.Module):
    """Runs a layer once more, or not, before its turn; nothing reads what that gives."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.readout = Encoder(50, 8, 12), Readout(8, 2)
        self.first, self.second = SpikingLinear(8, 8), SpikingLinear(8, 8)
        self.probes = False

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> object:
        x = self.encoder(input_ids, attention_mask)
        y = self.first(x)
        if self.probes:
            self.second(x)
        return self.readout(self.second(y) + y)


def test_a_call_that_nothing_reads_changes_no_integer() -> None:
    torch.manual_seed(0)
    model = Probing().eval()
    ids = torch.arange(20).view(2, 10)
    batch = (ids, torch.ones_like(ids))
    integers = []
    for model.probes in (False, True):
        assert record(model, *batch).calls[model.second] == ((1,) if model.probes else (0,))
        integers.append(quantise(model, 3, [batch]).second.integers(1))
    assert all(torch.equal(*pair) for pair in zip(*integers))


def test_a_model_is_run_no_further_than_to_the_layers_asked_about(monkeypatch) -> None:
    model = small_model()
    ids, mask = texts()[0]
    recording, moments, run = record(model, ids, mask), {}, []
    block = model.blocks[0]
    for layer in (block.query, block.out, block.up, model.readout):
        layer.register_forward_hook(lambda layer, inputs, output: run.append(layer))
    add_moments(moments, model, ids, mask, {block.query: (0,), block.key: (0,), block.out: (0,)})
    assert run == [block.query] and set(moments) == {block.query, block.key, block.out}
    steps = {step.layer: step for step in recording.steps}
    values = {step.output: step.spikes.values for step in recording.steps}
    for layer, found in moments.items():
        assert torch.equal(found, input_moments(values[steps[layer].inputs[0]]))
    model(ids, mask)
    assert run == [block.query, block.query, block.out, block.up, model.readout], "and in whole again"
