"""The integer layer against int64, its gradients against those of PyTorch's own layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from spikebert import integer_linear as module
from spikebert.integer_linear import integer_linear, multiplies_int8


def draw(rows: int, inputs: int, outputs: int, input_max: int, seed: int) -> tuple[torch.Tensor, ...]:
    """x, weight, bias: integers held in floats."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, input_max + 1, (rows, inputs), generator=generator).float()
    weight = torch.randint(-127, 128, (outputs, inputs), generator=generator).float()
    return x, weight, torch.randint(-32767, 32768, (outputs,), generator=generator).float()


def exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return x.long() @ weight.long().T + bias.long()


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(0, 70), inputs=st.integers(1, 70), outputs=st.integers(1, 40),
    input_max=st.sampled_from([1, 3, 25, 127, 128, 300]), seed=st.integers(0, 99), mixed=st.booleans(),
)  # fmt: skip
def test_any_shape_is_exact(rows: int, inputs: int, outputs: int, input_max: int, seed: int, mixed: bool) -> None:
    x, weight, bias = draw(rows, inputs, outputs, input_max, seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        given = integer_linear(x, weight, bias, input_max)
    assert given.dtype == torch.float32
    assert torch.equal(given.long(), exact(x, weight, bias))


@pytest.mark.parametrize("inputs", [1, 2, 3])
@pytest.mark.parametrize("outputs", [1, 2, 40])
def test_few_inputs_are_exact_in_memory_that_was_used_before(inputs: int, outputs: int) -> None:
    del [torch.full((512, outputs), 77_777, dtype=torch.int32) for _ in range(20)][:]
    x, weight, bias = draw(3, inputs, outputs, 1, seed=0)
    assert torch.equal(integer_linear(x, weight, bias, 1).long(), exact(x, weight, bias))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_products_do_not_saturate(sign: int) -> None:
    """Processors without VNNI add pairs of int8 products in 16 bits: 2 * 127 * 127 would not fit."""
    x, weight, bias = torch.full((3, 512), 127.0), torch.full((5, 512), 127.0 * sign), torch.zeros(5)
    assert torch.equal(integer_linear(x, weight, bias, 127).long(), exact(x, weight, bias))


def test_gradients_are_those_of_a_linear_layer() -> None:
    gradients = []
    weights = torch.randn(9, 7, generator=torch.Generator().manual_seed(1))
    for function in (lambda *a: integer_linear(*a, 3), F.linear):
        tensors = [tensor.requires_grad_() for tensor in draw(9, 13, 7, 3, seed=0)]
        (function(*tensors) * weights).sum().backward()
        gradients.append([tensor.grad for tensor in tensors])
    for ours, its in zip(*gradients):
        torch.testing.assert_close(ours, its)


def test_mixed_precision_rounds_gradients_only() -> None:
    x, weight, bias = (tensor.requires_grad_() for tensor in draw(9, 13, 7, 3, seed=0))
    with torch.autocast("cpu", torch.bfloat16):
        integer_linear(x, weight, bias, 3).square().mean().backward()
    rounded = [tensor.grad for tensor in (x, weight, bias)]
    for tensor in (x, weight, bias):
        tensor.grad = None
    F.linear(x, weight, bias).square().mean().backward()
    for gradient, tensor in zip(rounded, (x, weight, bias)):
        assert gradient is not None and gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, tensor.grad, rtol=0.05, atol=0.05 * float(tensor.grad.abs().max()))


def test_a_processor_without_int8_products_uses_floats(monkeypatch) -> None:
    x, weight, bias = draw(9, 13, 7, 3, seed=0)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert not multiplies_int8(x.device)
    monkeypatch.setattr(module, "_Int8Product", None)
    assert torch.equal(integer_linear(x, weight, bias, 3).long(), exact(x, weight, bias))
