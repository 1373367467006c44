"""The integer layer against int64, its gradients against those of PyTorch's own layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from spikebert import exact_product
from spikebert import integer_linear as module
from spikebert.exact_product import Capabilities
from spikebert.integer_linear import integer_linear


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
    monkeypatch.setattr(module, "_Int8Product", None)
    assert torch.equal(integer_linear(x, weight, bias, 3).long(), exact(x, weight, bias))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("input_max", "kind"), [(25, "bf16"), (256, "bf16"), (257, "tf32"), (2049, "float32")])
def test_the_layer_of_a_gpu(monkeypatch, input_max: int, kind: str, mixed: bool) -> None:
    """Its bf16 product is emulated: float32 sums of bf16 factors."""
    made = []

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        made.append("bf16")
        assert a.dtype == b.dtype == torch.bfloat16
        return a.float() @ b.float()

    def float32_products(device: torch.device, tf32: bool):
        made.append("tf32" if tf32 else "float32")
        return exact_product.float32_products(device, False)

    monkeypatch.setattr(module, "capabilities", lambda device: Capabilities(bf16=True, tf32=True))
    monkeypatch.setattr(exact_product, "bf16_matmul", product)
    monkeypatch.setattr(module, "float32_products", float32_products)
    tensors = [tensor.requires_grad_() for tensor in draw(9, 13, 7, input_max, seed=0)]
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        current = integer_linear(*tensors, input_max)
    assert made == [kind] and current.dtype == torch.float32
    assert torch.equal(current.long(), exact(*tensors))
    current.square().mean().backward()
    gradients = [tensor.grad for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    F.linear(*tensors).square().mean().backward()
    error = 0.02 if mixed else 1e-5
    for gradient, tensor in zip(gradients, tensors):
        assert gradient is not None and gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, tensor.grad, rtol=error, atol=error * float(tensor.grad.abs().max()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("input_max", [1, 25, 256, 257, 2049])
def test_any_shape_is_exact_on_a_gpu(input_max: int, mixed: bool) -> None:
    for rows, inputs, outputs in [(1, 1, 1), (3, 2, 5), (700, 24, 33), (2784, 24, 1536)]:
        x, weight, bias = (tensor.cuda() for tensor in draw(rows, inputs, outputs, input_max, seed=rows))
        with torch.autocast("cuda", torch.bfloat16, enabled=mixed):
            current = integer_linear(x, weight, bias, input_max)
        assert torch.equal(current.cpu().long(), exact(x.cpu(), weight.cpu(), bias.cpu()))
