"""The fused neuron against the plain one: spikes in every bit, gradients to rounding."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebert import fused_lif
from spikebert.commands import UserError, processors
from spikebert.fused_lif import PIECE, serves
from spikebert.neurons import LoihiLIF


def both(
    current: torch.Tensor,
    threshold: float,
    dv: int,
    integer: bool,
    surrogate: str = "atan",
    alpha: float = 2.0,
    reset: str = "zero",
    spike: str = "binary",
    cap: int = 1,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(spikes, gradient of the current) of the plain and of the fused path."""
    results = []
    weights = torch.randn(current.shape, generator=torch.Generator().manual_seed(1)).to(current.dtype)
    for path in ("plain", "fused"):
        lif = LoihiLIF(dv, integer, surrogate, alpha, reset, spike, cap)
        lif.path = path
        x = current.clone().requires_grad_()
        spikes = lif(x, threshold)
        (spikes * weights).sum().backward()
        assert x.grad is not None
        results.append((spikes.detach(), x.grad))
    return results


def assert_same(results: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    (plain, plain_gradient), (fused, fused_gradient) = results
    assert fused.dtype == plain.dtype
    assert torch.equal(plain, fused)
    torch.testing.assert_close(plain_gradient, fused_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("surrogate", ["atan", "sigmoid"])
@pytest.mark.parametrize("dv", [0, 410, 2048, 4095])
@pytest.mark.parametrize("steps", [1, 4, 8, 16])
def test_float_mode(steps: int, dv: int, surrogate: str) -> None:
    current = torch.randn(steps, 3, 33, generator=torch.Generator().manual_seed(steps)) + 0.3
    for dtype in (torch.float32, torch.float64):
        results = both(current.to(dtype), 1.0, dv, False, surrogate, alpha=3.0)
        assert 0 < results[0][0].mean() < 1
        assert_same(results)


@pytest.mark.parametrize("surrogate", ["atan", "sigmoid"])
@pytest.mark.parametrize("dv", [0, 410, 2048, 4095])
@pytest.mark.parametrize("steps", [1, 4, 8, 16])
def test_integer_mode(steps: int, dv: int, surrogate: str) -> None:
    current = (torch.randn(steps, 3, 33, generator=torch.Generator().manual_seed(steps)) * 200 + 50).round()
    for threshold in (0, 1, 150):
        assert_same(both(current, threshold, dv, True, surrogate))


@pytest.mark.parametrize("surrogate", ["atan", "sigmoid"])
@pytest.mark.parametrize("dv", [0, 410, 2048, 4095])
@pytest.mark.parametrize("steps", [1, 4, 16])
def test_a_soft_reset(steps: int, dv: int, surrogate: str) -> None:
    current = torch.randn(steps, 3, 33, generator=torch.Generator().manual_seed(steps)) + 0.6
    for dtype in (torch.float32, torch.float64):
        assert_same(both(current.to(dtype), 1.0, dv, False, surrogate, 3.0, "subtract"))
    for threshold in (0, 1, 50):
        assert_same(both((current * 100).round(), threshold, dv, True, surrogate, 2.0, "subtract"))
    hard, soft = (both(current, 0.4, dv, False, surrogate, 2.0, reset)[1] for reset in ("zero", "subtract"))
    assert steps == 1 or dv == 4095 or not torch.equal(hard[0], soft[0])


@pytest.mark.parametrize("surrogate", ["atan", "sigmoid"])
@pytest.mark.parametrize("reset", ["zero", "subtract"])
@pytest.mark.parametrize(("spike", "cap"), [("graded", 2), ("graded", 5), ("graded", 32), ("ternary", 1)])
def test_more_than_bits(spike: str, cap: int, reset: str, surrogate: str) -> None:
    for steps, dv in ((1, 0), (4, 410), (16, 2048)):
        current = 2 * torch.randn(steps, 3, 33, generator=torch.Generator().manual_seed(steps)) + 0.3
        for dtype in (torch.float32, torch.float64):
            results = both(current.to(dtype), 0.7, dv, False, surrogate, 3.0, reset, spike, cap)
            assert_same(results)
            spikes = results[0][0]
            assert spikes.max() == cap or cap == 32
            assert spikes.min() == (-1 if spike == "ternary" else 0)
        for threshold in (0, 1, 90):
            assert_same(both((200 * current).round(), threshold, dv, True, surrogate, 2.0, reset, spike, cap))


@pytest.mark.parametrize("path", ["fused", "triton"])
def test_too_many_levels_are_made_step_by_step(path: str) -> None:
    lif, current = LoihiLIF(0, False, spike="graded", cap=255), torch.tensor([[3.5, 300.0, -1.0]])
    assert lif(current, 1.0).tolist() == [[3.0, 255.0, 0.0]]
    lif.path = path
    with pytest.raises(UserError, match=rf"'{path}', which takes a cap of at most 32, and this one is 255: set it to"):
        lif(current, 1.0)


def test_a_membrane_that_saturates() -> None:
    """Where the membrane was clipped no gradient passes, in either path."""
    current = torch.tensor([[-65535.0, 65535.0, 65535.0], [-65535.0, 65535.0, -3.0], [65535.0, 1.0, 65535.0]])
    results = both(current, 65535, 0, True)
    assert_same(results)
    assert results[0][1][1, 0] == 0


@pytest.mark.parametrize("neurons", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5])
def test_sizes_around_a_piece(neurons: int) -> None:
    assert_same(both(torch.randn(4, neurons), 1.0, 2048, False))


def test_currents_that_are_not_contiguous() -> None:
    assert_same(both(torch.randn(6, 5, 4).permute(2, 0, 1), 1.0, 2048, False))
    assert_same(both(torch.randn(1, 5).expand(4, 5), 1.0, 2048, False))


@settings(deadline=None, max_examples=100)
@given(
    currents=st.lists(st.integers(-65535, 65535), min_size=1, max_size=16),
    threshold=st.integers(0, 65535),
    dv=st.integers(0, 4095),
    kind=st.tuples(
        st.sampled_from(["zero", "subtract"]), st.sampled_from([("binary", 1), ("graded", 3), ("ternary", 1)])
    ),
)
def test_any_integers(currents: list[int], threshold: int, dv: int, kind: tuple[str, tuple[str, int]]) -> None:
    current = torch.tensor(currents, dtype=torch.float32)[:, None]
    results = both(current, threshold, dv, True, "atan", 2.0, kind[0], *kind[1])
    assert torch.equal(results[0][0], results[1][0])


def test_the_plain_path_serves_where_the_fused_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    current = torch.randn(4, 8)
    assert serves(current)
    assert not serves(current.to(torch.bfloat16))
    assert not serves(current.to("meta"))
    expected = LoihiLIF(2048, False)(current, 1.0)
    monkeypatch.setitem(sys.modules, "numba", None)
    fused_lif._numba_is_there.cache_clear()
    try:
        with pytest.warns(UserWarning, match="numba"):
            assert torch.equal(LoihiLIF(2048, False)(current, 1.0), expected)
    finally:
        fused_lif._numba_is_there.cache_clear()


@pytest.mark.skipif(processors() < 2, reason="one processor: no number of threads but 1")
def test_the_threads_of_pytorch_stay_as_they_are() -> None:
    """numba starts its threads at the first call of a process, and asks OpenMP, which is PyTorch's too, for all."""
    code = """
import torch
from spikebert.neurons import LoihiLIF
before = torch.get_num_threads()
LoihiLIF(2048, False)(torch.ones(4, 5000, requires_grad=True), 1.0).sum().backward()
print(before, torch.get_num_threads())
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split()[-2:] == ["1", "1"], ended.stderr
