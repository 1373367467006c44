"""The model keeps Hugging Face's conventions, and padding never changes a result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import small_batch, small_config, small_model
from torch import nn
from transformers import AutoModelForSequenceClassification

from spikebert.layers import SpikingAttention, SpikingLinear
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.neurons import LoihiLIF
from spikebert.packing import Packing
from spikebert.quantisation import quantise
from spikebert.spikes import Spikes


def padded(inputs: dict[str, torch.Tensor], extra: int, fill: int) -> dict[str, torch.Tensor]:
    """The same texts with `extra` more padding, all padding holding the token `fill`."""
    ids = nn.functional.pad(inputs["input_ids"], (0, extra))
    mask = nn.functional.pad(inputs["attention_mask"], (0, extra))
    return {"input_ids": torch.where(mask.bool(), ids, fill), "attention_mask": mask}


@pytest.mark.parametrize("integer", [False, True])
def test_padding_never_changes_a_result(integer: bool) -> None:
    model = small_model(max_position_embeddings=12)
    model = quantise(model) if integer else model
    inputs = small_batch(tokens=7)
    with torch.no_grad():
        short, long = model(**padded(inputs, 0, 3)), model(**padded(inputs, 5, 17))
    assert torch.equal(short.logits, long.logits)
    if integer:
        assert torch.equal(short.integer_logits, long.integer_logits)


def test_padding_on_the_left_is_padding_too() -> None:
    model, inputs = quantise(small_model()), small_batch()
    flipped = {}
    for name, value in inputs.items():
        rows = [torch.cat([row[n:], row[:n]]) for row, n in zip(value, inputs["attention_mask"].sum(1))]
        flipped[name] = torch.stack(rows)
    assert not torch.equal(flipped["attention_mask"], inputs["attention_mask"])
    with torch.no_grad():
        assert torch.equal(model(**inputs).integer_logits, model(**flipped).integer_logits)


def test_an_integer_model_in_half_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="would lose integers"):
        quantise(small_model()).to(torch.bfloat16)(**small_batch())


def test_padding_takes_no_part_in_batch_norm() -> None:
    statistics = []
    for extra, fill in ((0, 0), (4, 9)):
        model = small_model(max_position_embeddings=12).train()
        model(**padded(small_batch(tokens=8), extra, fill))
        statistics.append(model.blocks[1].down.norm.running_mean.clone())
    assert torch.equal(*statistics)


def test_no_mask_means_all_tokens_are_real() -> None:
    model, ids = small_model(), small_batch()["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids, torch.ones_like(ids)).logits)


def test_a_text_alone_and_in_a_batch_is_the_same() -> None:
    model, inputs = quantise(small_model()), small_batch()
    with torch.no_grad():
        together = model(**inputs).integer_logits
        alone = [model(**{k: v[i : i + 1] for k, v in inputs.items()}).integer_logits[0] for i in range(5)]
    assert torch.equal(together, torch.stack(alone))


def test_outputs_on_request() -> None:
    model, inputs = small_model(), small_batch()
    labels = torch.tensor([0, 1, 2, 1, 0])
    with torch.no_grad():
        plain = model(**inputs)
        full = model(**inputs, labels=labels, output_hidden_states=True, output_firing_rates=True)
        as_tuple = model(**inputs, return_dict=False)
        with pytest.raises(TypeError):
            model(**inputs, output_hidden_state=True)  # a slip of the pen is not swallowed
    assert plain.loss is None and plain.hidden_states is None and plain.firing_rates is None
    assert plain.integer_logits is None, "a float model has no integers"
    torch.testing.assert_close(full.loss, nn.functional.cross_entropy(plain.logits, labels))
    assert [tuple(state.shape) for state in full.hidden_states] == [(5, 9, 16)] * 3
    assert not full.hidden_states[2][~inputs["attention_mask"].bool()].any(), "padding has no hidden state"
    assert all(0 <= float(rate) <= 5 for rate in full.firing_rates.values())
    assert torch.equal(as_tuple[0], plain.logits)


def test_spikes_are_spikes_and_residuals_are_their_sums() -> None:
    model, inputs = small_model(), small_batch()
    names = ["encoder", "blocks.0.out.lif", "blocks.0.add_attention"]
    with torch.no_grad():
        trace = model(**inputs, output_trace=names).trace
    encoder, out, total = (trace[name].numpy() for name in names)
    assert set(np.unique(encoder)) == {0, 1} and np.array_equal(encoder + out, total)
    assert encoder.shape == (4, 5, 9, 16)


def test_save_and_load_round_trip_without_pickle(tmp_path) -> None:
    model, inputs = quantise(small_model()), small_batch()
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert "model.safetensors" in names and not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    for kind in (SpikeBertForSequenceClassification, AutoModelForSequenceClassification):
        again = kind.from_pretrained(tmp_path).eval()
        assert again.config.mode == "integer"
        with torch.no_grad():
            assert torch.equal(again(**inputs).integer_logits, model(**inputs).integer_logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decay": 4096}, "decay is 4096"),
        ({"decay": [0, 410, 4096]}, r"decay is \[0, 410, 4096\], it must be 0 .. 4095"),
        ({"decay": [0, 410]}, r"decay is \[0, 410\], it must be one number, or 3: of the encoder and of 2 blocks"),
        ({"hidden_size": 8192, "num_attention_heads": 1}, "attention may count to 73728"),
        ({"timesteps": 0}, "timesteps is 0"),
        ({"hidden_size": 10, "num_attention_heads": 4}, "does not divide into 4 heads"),
        ({"encoder": "poisson"}, "encoder is 'poisson'"),
        ({"weight_bits": 0}, "weight_bits is 0"),
        ({"token_bits": 1}, "token_bits is 1, it must be 2 .. 8"),
        ({"surrogate": "box"}, "surrogate is 'box'"),
    ],
)
def test_a_wrong_configuration_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**changes)


def test_a_decay_for_each_block_reaches_its_neurons(tmp_path) -> None:
    model = small_model(decay=[0, 410, 4095], position_spikes=3)
    decays = {name: module.decay for name, module in model.named_modules() if isinstance(module, LoihiLIF)}
    assert (decays.pop("encoder.lif"), decays.pop("mix.lif")) == (0, 0)
    assert {decays[name] for name in decays if name.startswith("blocks.0.")} == {410}
    assert {decays[name] for name in decays if name.startswith("blocks.1.")} == {4095}
    quantise(model).save_pretrained(tmp_path)
    again = SpikeBertForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.decay == [0, 410, 4095] and again.blocks[1].up.lif.decay == 4095


def test_too_long_and_empty_texts_are_refused() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="10 tokens, the model takes 9"):
        model(torch.zeros(1, 10, dtype=torch.long))
    with pytest.raises(ValueError, match="all-zero attention_mask"):
        model(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long))


def test_gradients_reach_every_parameter() -> None:
    model = small_model().train()
    model(**small_batch(), labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
    missing = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    # a bias before BatchNorm is cancelled by it; folding uses it all the same
    assert [name for name in missing if not name.endswith("linear.bias")] == []


def test_packing_is_undone_by_unpacking() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    packing, x = Packing(mask), torch.randn(2, 3, 3, 4)
    packed = packing.pack(x)
    assert packed.shape == (2, 6, 4)
    assert torch.equal(packing.unpack(packed), x * mask[:, :, None])
    assert torch.equal(packing.sum_per_text(torch.ones(6, 1)), torch.tensor([[2.0], [1], [3]]))


@pytest.mark.parametrize("threshold", [0, 4, 255, 256])
def test_mixed_precision_does_not_change_the_spikes_of_attention(threshold: int) -> None:
    """Counts beyond 256 round in bf16, up to and over a threshold of 256, which is why that one stays in float32."""
    attention, neurons = SpikingAttention(heads=1, threshold=threshold), SpikingLinear(64, 64)
    generator = torch.Generator().manual_seed(0)
    packing = Packing(torch.ones(2, 16))
    rates = torch.linspace(0.1, 0.95, 32)[None, :, None]
    values = ((torch.rand(4, 32, 64, generator=generator) < rates).float() for _ in range(3))
    q, k, v = (Spikes(x, packing, maker=neurons) for x in values)
    exact = attention(q, k, v)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention(q, k, v)
    assert exact.current.max() > 256
    assert 0 < exact.values.mean() < 1 or threshold < 255
    assert mixed.values.dtype == torch.float32
    assert torch.equal(mixed.values, exact.values)
    rounded = not torch.equal(exact.current, mixed.current)
    assert rounded == (threshold < 256)


@pytest.mark.parametrize("changes", [{}, {"encoder": "sign"}, {"decay": 410}])
def test_the_first_timesteps_are_the_same_however_many_follow(changes: dict) -> None:
    model, inputs = quantise(small_model(**changes)), small_batch()
    names = ["encoder", "blocks.0.query", "blocks.1.down.lif", "readout"]
    with torch.no_grad():
        trained = model(**inputs, output_trace=names).trace
        for timesteps in (1, 2, 8):
            model.set_timesteps(timesteps)
            other = model(**inputs, output_trace=names)
            both = min(timesteps, 4)
            assert model.config.timesteps == timesteps
            for name in names:
                assert other.trace[name].shape[0] == timesteps
                assert torch.equal(other.trace[name][:both], trained[name][:both])
            sums = other.trace["readout"].sum((0, 2)).long()
            assert torch.equal(other.integer_logits, sums)


def test_spike_coded_positions_can_run_shorter_but_not_longer() -> None:
    model = quantise(small_model(position_spikes=3))
    with pytest.raises(ValueError, match="timesteps is 5, the spike-coded positions are those of 4"):
        model.set_timesteps(5)
    with pytest.raises(ValueError, match="timesteps is 0"):
        model.set_timesteps(0)
    with torch.no_grad():
        long = model(**small_batch(), output_trace=["mix"]).trace["mix"]
        model.set_timesteps(2)
        assert torch.equal(model(**small_batch(), output_trace=["mix"]).trace["mix"], long[:2])
