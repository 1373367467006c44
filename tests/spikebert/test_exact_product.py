"""Products of integers in every type against int64, at the bounds and one beyond them.

What a GPU does is emulated on the CPU: factors are rounded to the significant bits of the type, then multiplied in
float64 and added in float32 one after another. On a GPU the products themselves are made too.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebert import exact_product as module
from spikebert.exact_product import (
    BF16_MAX,
    FLOAT32_MAX,
    INT8_MAX,
    TF32_MAX,
    Capabilities,
    capabilities,
    exact_matmul,
    exact_product,
    float32_products,
)

EVERYTHING = Capabilities(int8=True, bf16=True, tf32=True)
HOLDS = {"int8": INT8_MAX, "bf16": BF16_MAX, "tf32": TF32_MAX, "float32": FLOAT32_MAX}
SIGNIFICANT = {"bf16": 8, "tf32": 11, "float32": 24}  # bits
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def rounded(x: torch.Tensor, kind: str) -> torch.Tensor:
    """float64 integers as the type holds them; int8 keeps the low eight bits."""
    if kind == "int8":
        return x.to(torch.int8).double()
    mantissa, exponent = torch.frexp(x)
    bits = SIGNIFICANT[kind]
    return torch.ldexp((mantissa * 2**bits).round(), exponent - bits)


def emulated(a: torch.Tensor, b: torch.Tensor, kind: str) -> torch.Tensor:
    """a b [n, m] of a [n, k] and b [k, m], with sums in float32 from the first product to the last."""
    a, b = rounded(a.double(), kind), rounded(b.double(), kind)
    total = torch.zeros(a.shape[0], b.shape[1], dtype=torch.float32)
    for i in range(a.shape[1]):
        total = (total.double() + a[:, i : i + 1] * b[i]).float()
    return total


def draw(inputs: int, input_max: int, weight_max: int, extreme: bool, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int64: x [5, inputs] of 0 .. input_max and weight [inputs, 4] within +-weight_max; only the ends if `extreme`."""
    generator = torch.Generator().manual_seed(seed)
    if extreme:
        x = torch.randint(0, 2, (5, inputs), generator=generator) * input_max
        return x, (2 * torch.randint(0, 2, (inputs, 4), generator=generator) - 1) * weight_max
    x = torch.randint(0, input_max + 1, (5, inputs), generator=generator)
    return x, torch.randint(-weight_max, weight_max + 1, (inputs, 4), generator=generator)


def sum_bound(x: torch.Tensor, weight: torch.Tensor) -> int:
    """max(sum of positive, sum of negative products) over all rows."""
    return int(torch.maximum(x @ weight.clamp(min=0), x @ (-weight).clamp(min=0)).max())


@pytest.mark.parametrize("kind", ["int8", "bf16", "tf32"])
def test_the_choice_changes_one_beyond_the_bound(kind: str) -> None:
    can = Capabilities(**{kind: True})
    assert exact_product(HOLDS[kind], 1, 65535, can) == kind
    assert exact_product(1, HOLDS[kind], 65535, can) == kind
    assert exact_product(HOLDS[kind] + 1, 1, 65535, can) == "float32"
    assert exact_product(1, HOLDS[kind] + 1, 65535, can) == "float32"
    assert exact_product(1, 1, 65535, Capabilities()) == "float32"


def test_the_fastest_that_is_exact_is_chosen() -> None:
    chosen = [exact_product(x, 127, 65535, EVERYTHING) for x in (1, 127, 128, 256, 257, 2048, 2049)]
    assert chosen == ["int8", "int8", "bf16", "bf16", "tf32", "tf32", "float32"]


def test_sums_that_float32_cannot_hold_are_refused() -> None:
    assert exact_product(1, 1, 2**24, EVERYTHING) == "int8"
    with pytest.raises(ValueError, match="sums may reach 16777217"):
        exact_product(1, 1, 2**24 + 1, EVERYTHING)


@settings(deadline=None, max_examples=150)
@given(
    inputs=st.integers(1, 60), input_max=st.sampled_from([1, 2, 25, 127, 128, 255, 256, 257, 2047, 2048, 2049]),
    weight_max=st.sampled_from([1, 127, 256, 2048]), extreme=st.booleans(), seed=st.integers(0, 99),
    can=st.builds(Capabilities, st.booleans(), st.booleans(), st.booleans()),
)  # fmt: skip
def test_what_is_chosen_is_exact(
    inputs: int, input_max: int, weight_max: int, extreme: bool, seed: int, can: Capabilities
) -> None:
    x, weight = draw(inputs, input_max, weight_max, extreme, seed)
    bound = sum_bound(x, weight)
    if bound > FLOAT32_MAX:
        with pytest.raises(ValueError, match="float32 holds"):
            exact_product(input_max, weight_max, bound, can)
        return
    kind = exact_product(input_max, weight_max, bound, can)
    assert torch.equal(emulated(x, weight, kind).long(), x @ weight)


@pytest.mark.parametrize("kind", ["int8", "bf16", "tf32"])
def test_one_beyond_the_bound_would_be_noticed(kind: str) -> None:
    beyond = torch.tensor([[HOLDS[kind] + 1]])
    assert emulated(beyond, torch.tensor([[1]]), kind).item() != beyond.item()
    assert emulated(beyond - 1, torch.tensor([[1]]), kind).item() == beyond.item() - 1


def test_a_sum_beyond_float32_would_be_noticed() -> None:
    factors = torch.tensor([[2**12] * 2 + [1]]), torch.tensor([[2**11]] * 2 + [[1]])  # 2^23 + 2^23 + 1
    assert emulated(*factors, "float32").item() != (factors[0] @ factors[1]).item() == 2**24 + 1
    assert sum_bound(*factors) == 2**24 + 1


def test_bf16_results_would_be_noticed() -> None:
    """What `a.bfloat16() @ b.bfloat16()` gives: exact sums, rounded at the end."""
    ones = torch.ones(1, 257, dtype=torch.bfloat16)
    assert (ones @ ones.t()).item() == 256
    assert emulated(torch.ones(1, 257), torch.ones(257, 1), "bf16").item() == 257


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("kind", ["bf16", "tf32", "float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_and_gradients(monkeypatch, shape: tuple[int, ...], kind: module.Kind, dtype: torch.dtype) -> None:
    def in_float32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        assert a.dtype == b.dtype == torch.bfloat16
        return a.float() @ b.float()

    monkeypatch.setattr(module, "bf16_matmul", in_float32)  # which needs CUDA
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 200, (*shape, 5, 7), generator=generator).to(dtype)
    b = torch.randint(-127, 128, (*shape, 7, 4), generator=generator).to(dtype)
    weights = torch.randn(*shape, 5, 4, generator=generator, dtype=dtype)
    found = []
    for function in (lambda a, b: exact_matmul(a, b, kind), torch.matmul):
        tensors = [tensor.clone().requires_grad_() for tensor in (a, b)]
        product = function(*tensors)
        (product * weights).sum().backward()
        found.append((product, *(tensor.grad for tensor in tensors)))
    (ours, *our_gradients), (_, *its_gradients) = found
    assert ours.dtype == dtype and torch.equal(ours.long(), a.long() @ b.long())
    for given_one, expected in zip(our_gradients, its_gradients):
        torch.testing.assert_close(given_one, expected)


def test_gradients_in_bf16_leave_the_product_exact() -> None:
    a = torch.full((2, 300), 5.0, requires_grad=True)
    b = torch.ones(300, 3, requires_grad=True)
    product = exact_matmul(a, b, "float32", torch.bfloat16)
    assert product.unique().tolist() == [1500.0]  # bf16 would say 1504
    product.backward(torch.full((2, 3), 1 / 3))
    assert a.grad is not None and b.grad is not None and a.grad.dtype == torch.float32
    third = torch.tensor(1 / 3).bfloat16()
    assert a.grad.unique().item() == (3 * third.float()).bfloat16().item()


SWITCHES = [
    lambda: None,
    lambda: torch.set_float32_matmul_precision("medium"),
    lambda: torch.set_float32_matmul_precision("high"),
    lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
]
if hasattr(torch.backends, "fp32_precision"):
    SWITCHES.append(lambda: setattr(torch.backends, "fp32_precision", "tf32"))


def switches() -> list[str]:
    """The precision of float32 products of the CPU and of CUDA, set there or above."""
    if hasattr(torch.backends, "fp32_precision"):
        return [backend.matmul.fp32_precision for backend in (torch.backends.mkldnn, torch.backends.cuda)]
    return [torch.get_float32_matmul_precision()] * 2


@pytest.fixture
def switches_restored():
    yield
    if hasattr(torch.backends, "fp32_precision"):
        torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("tf32", [False, True])
def test_the_switch_is_as_wanted_within_and_as_before_after(switches_restored, switch, device: str, tf32: bool) -> None:
    switch()
    before = switches()
    with pytest.raises(KeyError), float32_products(torch.device(device), tf32):
        within = switches()[device == "cuda"]
        assert within in (("tf32", "high") if tf32 else ("ieee", "none", "highest"))
        raise KeyError
    assert switches() == before
    if hasattr(torch.backends, "fp32_precision"):  # what was inherited still is
        torch.backends.fp32_precision = "ieee"
        assert [now for now, then in zip(switches(), before) if then == "none"] == ["ieee"] * before.count("none")


def test_no_product_is_rounded_though_a_user_allows_it(switches_restored) -> None:
    """With AMX "medium" multiplies float32 in bf16 on the CPU; on CUDA "high" is TF32."""
    torch.set_float32_matmul_precision("medium")
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        a = torch.full((64, 64), 4097.0, device=device)
        assert exact_matmul(a, torch.eye(64, device=device), "float32").unique().tolist() == [0.0, 4097.0][1:]


def test_the_cpu_offers_no_int8_product_of_a_batch() -> None:
    assert capabilities(torch.device("cpu"), batched=True) == Capabilities()
    assert capabilities(torch.device("cpu")) == Capabilities(int8=torch.cpu._is_vnni_supported())


@pytest.mark.parametrize(
    ("version", "expected"), [((7, 5), Capabilities()), ((8, 0), Capabilities(bf16=True, tf32=True))]
)
def test_cuda_multiplies_bf16_from_ampere_on(monkeypatch, version: tuple[int, int], expected: Capabilities) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: version)
    if "dtype" not in torch.ops.aten.bmm.overloads():
        expected = Capabilities(tf32=expected.tf32)
    assert capabilities(torch.device("cuda")) == expected


@CUDA
@pytest.mark.parametrize("kind", ["bf16", "tf32", "float32"])
@pytest.mark.parametrize("shape", [(700, 1536, 384), (3, 5, 7), (1, 1, 1), (1, 16384, 8)])
@pytest.mark.parametrize("batch", [(), (6,)])
def test_products_on_a_gpu(kind: module.Kind, shape: tuple[int, int, int], batch: tuple[int, ...]) -> None:
    """(1, 16384, 8) is long and narrow: what split-K is for."""
    rows, inputs, outputs = shape
    generator = torch.Generator().manual_seed(0)
    limit = min(HOLDS[kind], 2**12)
    weight = torch.randint(-3, 4, (*batch, inputs, outputs), generator=generator)
    x = torch.randint(0, limit + 1, (*batch, rows, inputs), generator=generator)
    x = x * (torch.rand(x.shape, generator=generator) < FLOAT32_MAX / (6 * limit * inputs))
    exact = x @ weight
    given_one = exact_matmul(x.float().cuda(), weight.float().cuda(), kind)
    assert given_one.dtype == torch.float32 and torch.equal(given_one.cpu().long(), exact)


@CUDA
@pytest.mark.parametrize("kind", ["bf16", "tf32"])
def test_a_gpu_notices_one_beyond_the_bound(kind: module.Kind) -> None:
    beyond = torch.full((64, 64), float(HOLDS[kind] + 1), device="cuda")
    assert not torch.equal(exact_matmul(beyond, torch.eye(64, device="cuda"), kind), beyond)
