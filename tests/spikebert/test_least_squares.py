"""Linear maps that are fitted, and norms that are told what to expect."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from spikebert.least_squares import fit_linear, set_norm, solve, with_ones


def test_a_linear_map_is_found() -> None:
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([[1.0, -2.0], [0.5, 0.0], [3.0, 1.0], [-4.0, 7.0]], dtype=torch.float64)
    found = fit_linear(x, x @ weights[:-1] + weights[-1])
    torch.testing.assert_close(found, weights, rtol=0, atol=1e-2)


def test_inputs_that_never_vary_do_no_harm() -> None:
    x = torch.cat([torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(50, 2)], 1).double()
    found = fit_linear(x, x[:, :1])
    assert bool(found.isfinite().all())
    torch.testing.assert_close(with_ones(x) @ found, x[:, :1], rtol=0, atol=1e-2)


def test_parts_may_be_added_up() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 3, generator=generator).double(), torch.randn(40, 2, generator=generator).double()
    parts = [(with_ones(a).T @ with_ones(a), with_ones(a).T @ b) for a, b in zip(x.split(10), y.split(10))]
    found = solve(sum(moments for moments, _ in parts), sum(products for _, products in parts))
    torch.testing.assert_close(found, fit_linear(x, y))


@pytest.mark.parametrize("offset", [0.0, 2.5])
def test_a_norm_passes_what_it_expects(offset: float) -> None:
    """In evaluation whatever comes, in training what has the mean and the variance that it was told of."""
    x = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)) * 3 - 7
    norm = nn.BatchNorm1d(4)
    set_norm(norm, torch.full((4,), offset), x.mean(0), x.var(0, unbiased=False))
    torch.testing.assert_close(norm.eval()(x * 2), x * 2 + offset, rtol=0, atol=1e-3)
    torch.testing.assert_close(norm.train()(x), x + offset, rtol=0, atol=1e-3)
    assert not torch.allclose(norm(x * 2), x * 2 + offset)  # of its own mean and variance
