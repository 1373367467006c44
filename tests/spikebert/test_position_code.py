"""Spike-coded positions: the formula, what they bring to a model, and that padding stays silent."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_models import small_batch, small_config, small_model

from spikebert.config import SpikeBertConfig
from spikebert.layers import Encoder
from spikebert.position_code import position_code
from spikebert.quantisation import quantise


def test_the_formula() -> None:
    code = position_code(timesteps=3, tokens=7, features=5)
    assert code.dtype == np.uint8 and code.shape == (3, 7, 5)
    for t, n, p in np.ndindex(code.shape):
        phase = (n * 3 + t) / 10000 ** (2 * (p // 2) / 5)
        assert code[t, n, p] == ((math.cos(phase) if p % 2 else math.sin(phase)) >= 0.8)


def test_places_differ() -> None:
    code = position_code(timesteps=4, tokens=64, features=40).swapaxes(0, 1).reshape(64, -1)
    assert len(np.unique(code, axis=0)) == 64
    assert 0.1 < code.mean() < 0.5


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("spikes", [0, 6])
def test_the_order_of_words_matters_with_them_alone(spikes: int, integer: bool) -> None:
    model = small_model(positions=False, position_spikes=spikes)
    model = quantise(model) if integer else model
    ids = torch.arange(1, 7)[None]
    with torch.no_grad():
        forward, backward = model(ids).logits, model(ids.flip(1)).logits
    if spikes:
        assert not torch.allclose(forward, backward, atol=1e-4)
    else:
        torch.testing.assert_close(forward, backward)


def test_padding_is_silent() -> None:
    encoder = Encoder(20, 8, 6, timesteps=4, code=5)
    ids, mask = torch.ones(2, 6, dtype=torch.long), torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
    x = encoder(ids, mask)
    assert x.features == 13
    values = x.packing.unpack(x.values)  # [T, B, N, D + P]
    assert not values[:, ~mask.bool()].any()
    code = torch.from_numpy(position_code(4, 6, 5)).float()
    assert torch.equal(values[:, 0, :2, 8:], code[:, :2])
    assert torch.equal(values[:, 1, 3:, 8:], code[:, :3])  # places count real tokens


def test_hidden_states_have_one_width() -> None:
    model = small_model(position_spikes=3)
    states = model(**small_batch(), output_hidden_states=True).hidden_states
    assert {state.shape[-1] for state in states} == {model.config.hidden_size}


def test_the_code_is_kept_with_the_weights(tmp_path) -> None:
    model = small_model(position_spikes=3)
    with torch.no_grad():
        model.encoder.code.copy_(1 - model.encoder.code)  # as if made by another sine
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path).encoder.code, model.encoder.code)


def test_a_configuration_from_before_has_none() -> None:
    old = small_config().to_dict()
    del old["position_spikes"]
    assert SpikeBertConfig.from_dict(old).position_spikes == 0
    assert "encoder.code" not in small_model().state_dict()


def test_less_than_none_is_refused() -> None:
    with pytest.raises(ValueError, match="position_spikes is -1"):
        small_config(position_spikes=-1)
    with pytest.raises(ValueError, match="code is -1"):
        Encoder(20, 8, 6, code=-1)
