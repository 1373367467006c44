"""The neuron: its integer mode against plain Python integers, its strict threshold, its gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from converters import graph
from spikebert import neurons, rounding
from spikebert.neurons import LoihiLIF


def python_lif(currents: list[int], threshold: int, dv: int) -> list[int]:
    """The rule of the integer graph, one neuron, nothing but Python integers."""
    v, spikes = 0, []
    for a in currents:
        sign = (v > 0) - (v < 0)
        v = sign * ((abs(v) * (4096 - dv)) >> 12) + a * 128
        v = max(-(2**23 - 1), min(2**23 - 1, v))
        spikes.append(int(v > threshold * 128))
        if spikes[-1]:
            v = 0
    return spikes


def test_a_threshold_of_zero_has_one_gradient_too() -> None:
    gradients = []
    for integer in (False, True):
        x = torch.tensor([[-2.0, 0.0, 1.0, 3.0]], requires_grad=True)
        LoihiLIF(0, integer)(x, 0).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_constants_are_those_of_the_graph() -> None:
    assert neurons.SHIFT == graph.SHIFT
    assert neurons.MEMBRANE_MAX == graph.MEMBRANE_MAX
    assert rounding.ACCUMULATOR_MAX == graph.ACCUMULATOR_MAX


@settings(deadline=None, max_examples=200)
@given(
    currents=st.lists(st.integers(-65535, 65535), min_size=1, max_size=16),
    threshold=st.integers(0, 65535),
    dv=st.sampled_from([0, 1, 410, 2047, 2048, 4000, 4095]),
)
def test_integer_mode_is_the_rule(currents: list[int], threshold: int, dv: int) -> None:
    lif = LoihiLIF(dv, integer=True)
    spikes = lif(torch.tensor(currents, dtype=torch.float32)[:, None], threshold)
    assert spikes[:, 0].int().tolist() == python_lif(currents, threshold, dv)


@pytest.mark.parametrize(
    ("currents", "threshold", "dv"),
    [
        ([9141, 57309], 65535, 410),  # a decay computed in float32 rounds up and fires
        ([8161, 57376], 65535, 1),
        ([10271, 60397], 65535, 2047),
        ([-65535, -65535, 65535, 2], 0, 0),  # without saturation the membrane stays below zero
    ],
)
def test_what_sloppier_arithmetic_gets_wrong(currents: list[int], threshold: int, dv: int) -> None:
    spikes = LoihiLIF(dv, integer=True)(torch.tensor(currents, dtype=torch.float32)[:, None], threshold)
    assert spikes[:, 0].int().tolist() == python_lif(currents, threshold, dv)


@settings(deadline=None, max_examples=100)
@given(threshold=st.integers(0, 300), dv=st.sampled_from([0, 410, 2048]), steps=st.integers(1, 8))
def test_a_threshold_met_exactly_does_not_fire(threshold: int, dv: int, steps: int) -> None:
    currents = [threshold] + [-threshold, threshold] * (steps // 2)
    lif = LoihiLIF(dv, integer=True)
    spikes = lif(torch.tensor(currents, dtype=torch.float32)[:, None], threshold)
    assert spikes[:, 0].int().tolist() == python_lif(currents, threshold, dv)
    assert spikes[0] == 0


def test_float_mode_is_strict_and_decays_before_it_adds() -> None:
    lif = LoihiLIF(2048, integer=False)
    currents = torch.tensor([1.0, 0.5, 0.25, 1.0, 1.0])[:, None]  # membrane 1.0, 1.0, 0.75, 1.375 -> spike, 1.0
    assert lif(currents, 1.0)[:, 0].tolist() == [0, 0, 0, 1, 0]


def test_a_membrane_starts_every_text_at_zero() -> None:
    lif = LoihiLIF(0, integer=False)
    currents = torch.full((2, 3), 0.6)
    first, second = lif(currents, 1.0), lif(currents, 1.0)
    assert torch.equal(first, second) and first[1].all() and not first[0].any()


@pytest.mark.parametrize("units", [1, 64])
@pytest.mark.parametrize("name", ["atan", "sigmoid"])
def test_integer_and_float_mode_have_one_gradient(name: str, units: int) -> None:
    """Currents that are exact in both modes: the same spikes, and gradients that differ by the unit alone."""
    currents = torch.randint(-64, 96, (4, 50), generator=torch.Generator().manual_seed(1)).float() * 2
    gradients = []
    for integer, scale in ((False, 1 / units), (True, 1.0)):
        lif = LoihiLIF(0, integer, name)
        x = (currents * scale).requires_grad_()
        spikes = lif(x, units * scale)
        (spikes * torch.linspace(-1, 1, 50)).sum().backward()
        gradients.append((spikes.detach(), x.grad * scale))
    assert torch.equal(gradients[0][0], gradients[1][0]) and gradients[0][0].any()
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=1e-5, atol=1e-7)
    assert gradients[0][1].abs().sum() > 0
