"""Rounding: integers in the forward pass, straight-through gradients, rows that fit the accumulator."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebert import Encoder
from spikebert.rounding import (
    ACCUMULATOR_MAX,
    held_within,
    largest_weight,
    round_bias,
    round_straight_through,
    round_weight,
    row_reach,
)


def test_straight_through_rounds_and_passes_the_gradient() -> None:
    x = torch.tensor([0.4, 0.5, 1.5, -2.6], requires_grad=True)
    rounded = round_straight_through(x)
    assert rounded.tolist() == [0, 0, 2, -3]
    (rounded * torch.tensor([1.0, 2, 3, 4])).sum().backward()
    assert x.grad.tolist() == [1, 2, 3, 4]


@settings(deadline=None, max_examples=60)
@given(
    bits=st.integers(1, 8),
    input_max=st.integers(1, 40),
    columns=st.integers(1, 600),
    units=st.integers(1, 5000),
    seed=st.integers(0, 1000),
)
def test_rows_fit_the_accumulator_whatever_the_weights(bits, input_max, columns, units, seed) -> None:
    torch.manual_seed(seed)
    scale = torch.tensor(float(units))
    bias = round_bias(torch.randn(5) * 10, scale)
    weight = round_weight(torch.randn(5, columns), scale, bits, input_max, bias)
    assert torch.equal(weight, weight.round()) and torch.equal(bias, bias.round())
    assert weight.abs().max() <= largest_weight(bits)
    whole = weight.long()
    reach = torch.maximum(whole.clamp(min=0).sum(1), -whole.clamp(max=0).sum(1))
    assert torch.equal(row_reach(weight).long(), reach)
    assert (reach * input_max + bias.long().abs()).max() <= ACCUMULATOR_MAX


def test_a_row_that_fits_is_only_rounded() -> None:
    weight = torch.tensor([[1.2, -3.7, 0.5]])
    assert round_weight(weight, torch.tensor(1.0), 8, 1, torch.zeros(1)).tolist() == [[1, -4, 0]]


def test_one_bit_has_the_gradient_of_the_float() -> None:
    weight = torch.tensor([[0.5, -9.0, 0.0]], requires_grad=True)
    rounded = round_weight(weight, torch.tensor(2.0), 1, 1, torch.zeros(1))
    rounded.sum().backward()
    assert rounded.tolist() == [[1, -1, 1]] and weight.grad.tolist() == [[2, 2, 2]]


def test_weights_out_of_range_get_no_gradient_outwards() -> None:
    weight = torch.tensor([[0.5, 9.0]], requires_grad=True)
    round_weight(weight, torch.tensor(1.0), 3, 1, torch.zeros(1)).sum().backward()
    assert weight.grad.tolist() == [[1, 0]]


def test_what_is_held_at_an_end_can_come_back() -> None:
    """`clamp` alone has no gradient at its ends (PyTorch 2.14)."""
    x = torch.tensor([-2.0, -1.0, 0.5, 1.0, 3.0], requires_grad=True)
    held = held_within(x, -1, 1)
    held.sum().backward()
    assert held.tolist() == [-1.0, -1.0, 0.5, 1.0, 1.0] and x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_tokens_at_the_ends_of_a_table_learn(bits: int) -> None:
    encoder = Encoder(3, 1, 4)
    encoder.use_integers(8)
    encoder.token_bits = bits
    encoder.threshold.fill_(96.0)
    step = 2 ** (8 - bits)
    end = 127 // step * step / 96  # the largest that is held, in floats
    token = torch.tensor([[end], [0.0], [2 * end]], requires_grad=True)
    encoder.round_token(token).sum().backward()
    assert token.grad is not None and (token.grad.flatten() != 0).tolist() == [True, True, False]
