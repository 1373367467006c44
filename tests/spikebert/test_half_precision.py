"""Spikes and currents in bf16 between layers, as a GPU has them in mixed precision; here a CPU is told to."""

from __future__ import annotations

import pytest
import torch
from small_models import small_batch, small_model
from torch import Tensor
from torch.nn import functional as F

from spikebert import layers
from spikebert.layers import SpikingAttention, SpikingLinear, type_between_layers
from spikebert.neurons import LoihiLIF
from spikebert.packing import Packing
from spikebert.spikes import Spikes
from spikebert.synchronised_norm import _Normalise
from spikebert.teaching import held_in_bf16

NORMS = ["batch", "layer", "rms", "none"]


@pytest.fixture
def halved(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_the_cpu_too(x: Tensor) -> torch.dtype:
        return torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype

    monkeypatch.setattr(layers, "type_between_layers", on_the_cpu_too)


def test_a_cpu_keeps_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert type_between_layers(torch.ones(1)) == torch.float32


def test_a_gpus_teacher_is_in_bf16_where_training_is() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [held_in_bf16(device, kind) for device in (cpu, gpu) for kind in ("bf16", "no")] == [
        False,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_of_training(halved: None, norm: str) -> None:
    model = small_model(norm=norm).train()
    seen: list[torch.dtype] = []
    for layer in model.modules():
        if isinstance(layer, SpikingLinear):
            layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].values.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**small_batch(), output_hidden_states=True, output_operations=True)
    assert seen[0] == torch.bfloat16 and (norm in ("layer", "rms", "none") or set(seen) == {torch.bfloat16})
    assert output.logits.dtype == output.operations.dtype == torch.float32
    (output.logits.sum() + output.hidden_states[-1].float().sum() + output.operations / 1e6).backward()
    gradients = [value.grad for value in model.parameters() if value.grad is not None]
    assert len(gradients) > 10 and all(torch.isfinite(grad).all() and grad.dtype == torch.float32 for grad in gradients)


def test_it_is_about_the_network_in_float32(halved: None) -> None:
    """The encoder's spikes are the same; of the later ones a few turn, for currents are rounded."""
    model, batch = small_model().eval(), small_batch()
    names = ("encoder", "blocks.0.query.lif", "blocks.0.down.lif")
    with torch.no_grad():
        exact = model(**batch, output_trace=names).trace
        with torch.autocast("cpu", torch.bfloat16):
            half = model(**batch, output_trace=names).trace
    assert torch.equal(half["encoder"].float(), exact["encoder"])
    for name in names:
        assert (half[name].float() != exact[name]).float().mean() < 0.02, name
        assert exact[name].any()


@pytest.mark.parametrize("threshold", [16, 255, 256, 1000, 2999])
def test_attention_counts_exactly_where_bf16_would_not(threshold: int) -> None:
    """2,999 matches are 3,000 in bf16: above a threshold they are not above."""
    mask = torch.ones(1, 50, dtype=torch.long)
    packing, attention = Packing(mask), SpikingAttention(1, threshold)
    torch.manual_seed(threshold)

    def spikes(dtype: torch.dtype) -> list[Spikes]:
        torch.manual_seed(threshold)
        made = [(torch.rand(3, 50, 64) < 0.97).to(dtype) for _ in "qkv"]
        return [Spikes(values, packing, maker=SpikingLinear(4, 64)) for values in made]

    exact = attention(*spikes(torch.float32)).values
    with torch.autocast("cpu", torch.bfloat16):
        half = attention(*spikes(torch.bfloat16))
    assert half.values.dtype == torch.bfloat16 and torch.equal(half.values.float(), exact)
    assert half.current is not None and (half.current.dtype == torch.float32) == (threshold >= 256)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("path", ["plain", "auto"])
def test_membranes_are_in_float32(dtype: torch.dtype, path: str) -> None:
    """In bf16 a membrane of 256 and a current of 0.75 would stay 256."""
    torch.manual_seed(0)
    current = torch.randn(6, 500).to(dtype)
    lif = LoihiLIF(410, integer=False)
    lif.path = path
    spikes = lif(current, 0.3)
    assert spikes.dtype == dtype and torch.equal(spikes.float(), lif(current.float(), 0.3))
    slow = LoihiLIF(0, integer=False)
    slow.path = path
    assert slow(torch.tensor([256.0, 0.75, 0.75], dtype=dtype)[:, None], 257.0).flatten().tolist() == [0, 0, 1]


@pytest.mark.parametrize("decay", [410, 2048])
def test_integers_that_came_in_float16(decay: int) -> None:
    """A membrane of 2,000 * 128 is beyond float16."""
    lif = LoihiLIF(decay, integer=True)
    current = torch.tensor([2000.0, 1500.0, -2000.0, 2000.0])[:, None]
    assert torch.equal(lif(current.half(), 2400).float(), lif(current, 2400))
    assert lif(current, 2400).any()


def test_statistics_of_several_processes_are_not_rounded() -> None:
    x = (torch.randn(64, 5) + torch.tensor([0, 1, 3, -2, 0.1])).bfloat16().requires_grad_()
    weight, bias = torch.rand(5).requires_grad_(), torch.zeros(5).requires_grad_()
    variance, mean = torch.var_mean(x.detach().float(), 0, correction=0)
    y = _Normalise.apply(x, weight, bias, mean, variance, torch.tensor(64.0), 1e-5)
    wanted = F.batch_norm(x.detach().float(), None, None, weight, bias, training=True)
    torch.testing.assert_close(y.float(), wanted, rtol=2**-7, atol=2**-7)
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32
