"""Rows in buckets, and the linear layer of mixed precision that needs them. (Groups: test_attention_order.py.)"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spikebert.packing import bucket, linear_in_buckets, rows_in_bucket


def test_buckets_are_few_and_waste_little() -> None:
    for rows in range(1, 5000):
        assert rows <= bucket(rows) < rows + max(16, rows / 16) + 1 and bucket(rows) % 16 == 0
        assert bucket(bucket(rows)) == bucket(rows)
    assert len({bucket(rows) for rows in range(2048, 4097)}) == 17


def test_a_bucket_is_filled_with_zeros() -> None:
    x = torch.randn(19, 3)
    padded = rows_in_bucket(x, torch.bfloat16)
    assert torch.equal(padded[:19], x.bfloat16()) and padded.shape == (32, 3) and not padded[19:].any()


@pytest.mark.parametrize("rows, bias", [(1, True), (19, True), (33, False), (600, True)])
def test_a_linear_layer_in_buckets_is_the_one_of_autocast(rows: int, bias: bool) -> None:
    torch.manual_seed(rows)
    linear = nn.Linear(24, 40, bias=bias)
    x = torch.randint(0, 4, (rows, 24)).float().requires_grad_()
    weights = torch.randn(rows, 40)

    def values_and_gradients(layer: object) -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            result = layer(x)  # type: ignore[operator]
        assert result.dtype == torch.float32
        inputs = [x, *linear.parameters()]
        return [result, *torch.autograd.grad((result * weights).sum(), inputs)]

    def by_autograd(x: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x.bfloat16(), (0, 0, 0, bucket(rows) - rows))
        return linear(padded)[:rows].float()

    ours, expected = values_and_gradients(lambda x: linear_in_buckets(linear, x)), values_and_gradients(by_autograd)
    for name, got, want in zip(("result", "x", "weight"), ours, expected):
        assert torch.equal(got, want), name
    if bias:  # autograd sums it in bf16
        torch.testing.assert_close(ours[3], expected[3], rtol=2**-7, atol=2**-7 * rows)


def test_what_needs_no_gradient_gets_none() -> None:
    linear = nn.Linear(4, 3)
    linear.weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        linear_in_buckets(linear, torch.ones(2, 4)).sum().backward()
    assert linear.weight.grad is None and torch.equal(linear.bias.grad, torch.full((3,), 2.0))
