"""Graded spikes of the encoder and of value: the layers, a model's settings, how it begins and how it is rounded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_model, save_file, save_model
from small_models import GRADED, small_batch, small_config, small_model
from torch import nn

from converters.execution import TokenBatch
from converters.from_torch import graph_from_model
from sim.reference import ReferenceEngine
from spikebert import Encoder, Neuron, Readout, SpikingAttention, SpikingLinear
from spikebert.distillation import Alignment
from spikebert.layers import biased_matches, first_threshold, matches
from spikebert.model import TOKEN_DEVIATION, SpikeBertForSequenceClassification
from spikebert.neurons import LoihiLIF
from spikebert.quantisation import UNITS_OF_BITS, encoder_units, quantise
from spikebert.recording import record_one_token
from spikebert.spikes import SpikeOperationError


@pytest.mark.parametrize("spike", ["binary", "graded", "ternary"])
def test_encoder_and_value_send_what_their_caps_say(spike: str) -> None:
    cap = 15 if spike == "graded" else 1
    model = small_model(spike=spike, spike_cap=cap, encoder_cap=7, value_cap=3)
    for name, lif in model.named_modules():
        if isinstance(lif, LoihiLIF):
            own = (lif.spike, lif.cap)
            if name.startswith("encoder"):
                assert own == ("graded", 7)
            elif ".value." in name:
                assert own == ("graded", 3)
            elif ".query." in name or ".key." in name:
                assert own == ("binary", 1)
            else:
                assert own == (spike, cap), name
    assert record_one_token(model).uses()[model.blocks[0].query] == 7
    assert record_one_token(model).uses()[model.blocks[0].up] == 7 + cap


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_cap": 0}, "encoder_cap is 0, it must be 1 .. 255"),
        ({"value_cap": 256}, "value_cap is 256, it must be 1 .. 255"),
        ({"encoder_cap": 2, "encoder": "sign"}, "encoder_cap is 2, an encoder of signs sends bits: it must be 1"),
        ({"graded_gain": 0.0}, "graded_gain is 0.0, it must be above 0"),
        ({"graded_gain": float("nan")}, "graded_gain is nan, it must be above 0"),
    ],
)
def test_a_wrong_setting_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**options)


def test_values_that_may_pass_the_accumulator_are_refused() -> None:
    """Heads of 64 features and 68 tokens: 15 times 4352 is 65280, 16 times is 69632."""
    sizes = {"hidden_size": 64, "num_attention_heads": 1, "max_position_embeddings": 68}
    small_config(**sizes, value_cap=15)
    with pytest.raises(ValueError, match=r"attention may count to 69632, more than 65535 \(value_cap is 16\)"):
        small_config(**sizes, value_cap=16)


@pytest.mark.parametrize("position", ["learned", "neighbours"])
def test_a_learned_bias_at_its_largest_can_be_exported(position: str) -> None:
    model = small_model(**(GRADED | {"value_cap": 100}), attention_position=position, max_position_embeddings=64)
    for block in model.blocks:
        nn.init.ones_(block.attention.position_bias.weight)
    graph = graph_from_model(quantise(model))
    size = model.config.hidden_size // model.config.num_attention_heads
    most = model.blocks[0].attention.position_bias.most
    assert graph.value_max["blocks.0.attention"] == 64 * (size + most) * 100 <= 65535


def test_an_encoder_sends_bits_or_graded_spikes() -> None:
    with pytest.raises(ValueError, match="neurons of an Encoder send 'ternary' spikes, of kind 'lif' they must be one"):
        Encoder(9, 4, 3, neuron=Neuron(spike="ternary"))
    with pytest.raises(ValueError, match="of kind 'sign' they must be one of"):
        Encoder(9, 4, 3, neuron=Neuron().counting(3), kind="sign")
    with pytest.raises(ValueError, match=r"gain is 0\.0, it must be above 0"):
        Encoder(9, 4, 3, gain=0.0)


class Attended(nn.Module):
    """Attention of q, k and v of the given neurons."""

    def __init__(self, *neurons: Neuron) -> None:
        super().__init__()
        self.encoder, self.attention, self.readout = Encoder(9, 8, 3), SpikingAttention(2, 0), Readout(8, 2)
        self.parts = nn.ModuleList(SpikingLinear(8, 8, neuron) for neuron in neurons)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None):
        x = self.encoder(ids, mask)
        return self.readout(self.attention(*(part(x) for part in self.parts)))


def test_attention_takes_a_graded_v_and_neither_a_graded_q_nor_a_ternary_v() -> None:
    bits, graded, ternary = Neuron(), Neuron().counting(4), Neuron(spike="ternary")
    ids = torch.ones(1, 2, dtype=torch.long)
    Attended(bits, bits, graded)(ids)
    for neurons in ((graded, bits, bits), (bits, graded, bits), (bits, ternary, bits)):
        with pytest.raises(SpikeOperationError, match="q and k must be binary spikes, for attention counts matches"):
            Attended(*neurons)(ids)
    with pytest.raises(SpikeOperationError, match="v must be binary or graded spikes, not ternary ones"):
        Attended(bits, bits, ternary)(ids)


@pytest.mark.parametrize("tokens", [3, 40])
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_told_how_large_their_numbers_are(tokens: int, biased: bool) -> None:
    """Either order of the products; an exact one that trusts what it is told finds all numbers within it."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randint(0, 2, (2, tokens, 8), generator=generator).float() for _ in range(2))
    v = torch.randint(0, 16, (2, tokens, 8), generator=generator).float()
    bias = torch.randint(-3, 4, (2, tokens, tokens), generator=generator).float()
    told = []

    def product(a: torch.Tensor, b: torch.Tensor, a_max: int, b_max: int) -> torch.Tensor:
        assert float(a.abs().max()) <= a_max and float(b.abs().max()) <= b_max
        told.append((a_max, b_max))
        return a @ b

    scores = q @ k.transpose(1, 2)
    if biased:
        assert torch.equal(biased_matches(q, k, v, bias, 3, 2, product, 15), (scores + bias) @ v)
        assert told == [(1, 1), (11, 15)]
    else:
        assert torch.equal(matches(q, k, v, product, 15), scores @ v)
        assert told == ([(1, 1), (8, 15)] if tokens == 3 else [(1, 15), (1, 15 * tokens)])


def test_half_precision_is_left_where_a_graded_v_passes_its_range() -> None:
    x = Attended(*[Neuron()] * 3).encoder(torch.ones(1, 2, dtype=torch.long))
    attention = SpikingAttention(2, 0)
    with torch.autocast("cpu", torch.float16):
        most = 65504 // (x.features // 2 * 2)
        assert attention._type_of_products(x, most) == torch.float16
        assert attention._type_of_products(x, most + 1) == torch.float32


# How a model begins


def test_currents_of_graded_spikes_begin_larger() -> None:
    torch.manual_seed(0)
    wide = {"vocab_size": 2000, "hidden_size": 64}
    model = SpikeBertForSequenceClassification(small_config(**(GRADED | {"graded_gain": 4.0} | wide)))
    assert float(model.encoder.token.weight.detach().std()) == pytest.approx(4 * TOKEN_DEVIATION, rel=0.01)
    assert float(model.encoder.position.weight.detach().std()) == pytest.approx(TOKEN_DEVIATION, rel=0.1)
    for block in model.blocks:
        assert all(bool((each.norm.weight == 4).all()) for each in (block.value, block.out, block.up, block.down))
        assert all(bool((each.norm.weight == 1).all()) for each in (block.query, block.key))
    bits = SpikeBertForSequenceClassification(small_config(graded_gain=4.0, **wide))
    assert float(bits.encoder.token.weight.detach().std()) == pytest.approx(TOKEN_DEVIATION, rel=0.01)
    assert bool((bits.blocks[0].up.norm.weight == 1).all())


def test_without_a_norm_thresholds_begin_lower() -> None:
    layer = SpikingLinear(8, 4, Neuron().counting(15), norm="none", gain=4.0)
    assert layer.log_threshold is not None
    torch.testing.assert_close(layer.log_threshold.exp(), torch.full((4,), first_threshold(1) / 4))
    with pytest.raises(ValueError, match=r"gain is 0\.0, it must be above 0"):
        SpikingLinear(8, 4, gain=0.0)


def test_what_was_learnt_is_loaded_and_does_not_begin_again(tmp_path: Path) -> None:
    model = small_model(**(GRADED | {"graded_gain": 4.0}))
    model.save_pretrained(tmp_path)
    again = SpikeBertForSequenceClassification.from_pretrained(tmp_path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    assert again.config.encoder_cap == 7 and again.config.graded_gain == 4.0


def test_the_residual_cap_is_that_of_what_is_added_up() -> None:
    assert small_config().residual_cap == small_config(value_cap=9).residual_cap == 1
    assert small_config(encoder_cap=7).residual_cap == 7
    assert small_config(encoder_cap=7, position_spikes=3).residual_cap == 1, "the encoder's are mixed first"
    assert small_config(**GRADED).residual_cap == small_config(spike="graded", spike_cap=15).residual_cap == 15


def test_states_are_aligned_in_units_of_the_largest_spike() -> None:
    torch.manual_seed(0)
    bits, graded = Alignment(8, 1, 6, 1), Alignment(8, 1, 6, 1, largest_spike=15)
    graded.maps.load_state_dict(bits.maps.state_dict())
    states, teacher, mask = [torch.randn(2, 3, 8) for _ in range(2)], torch.randn(2, 6, 6), torch.ones(2, 3)
    wanted = bits(tuple(states), teacher, mask)
    found = graded(tuple(15 * state for state in states), teacher, mask)
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted))


def test_the_unit_of_states_is_kept_with_the_maps(tmp_path: Path) -> None:
    """What goes on from a stage has its unit, whatever its own spikes; maps of older files have none: they were 1."""
    file = str(tmp_path / "alignment.safetensors")
    save_model(Alignment(8, 1, 6, 1, largest_spike=15), file)
    again = Alignment(8, 1, 6, 1)
    load_model(again, file)
    assert float(again.largest_spike) == 15
    save_file({name: value for name, value in again.state_dict().items() if name != "largest_spike"}, file)
    older = Alignment(8, 1, 6, 1, largest_spike=15)
    load_model(older, file)
    assert float(older.largest_spike) == 1 and torch.equal(older.maps[0].weight, again.maps[0].weight)


# Rounding


def held(table: torch.Tensor, units: int, bits: int) -> torch.Tensor:
    """The table as an encoder of an integer model holds it, in floats."""
    encoder = Encoder(*table.shape, 4, neuron=Neuron().counting(15))
    encoder.use_integers(8)
    encoder.token_bits = bits
    encoder.threshold.fill_(units)
    return encoder.round_token(table).detach() / units


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_units_of_a_graded_table_err_least(bits: int) -> None:
    table = 2 * torch.randn(500, 16, generator=torch.Generator().manual_seed(1))
    units = encoder_units("lif", table, cap=15, bits=bits)
    error = {each: float((held(table, each, bits) - table).square().sum()) for each in range(8, UNITS_OF_BITS + 1)}
    assert units == min(error, key=error.__getitem__)
    assert units >= int(127 / table.abs().max()), "none so fine that the largest has room"


def test_units_do_not_follow_currents_beyond_the_cap() -> None:
    """A token far above the last level fires no more than one just above it."""
    above = 2 * torch.randn(500, 16, generator=torch.Generator().manual_seed(1))
    above[0, 0] = 16.0
    far = above.clone()
    far[0, 0] = 1000.0
    assert encoder_units("lif", far, cap=15) == encoder_units("lif", above, cap=15)
    assert encoder_units("lif", torch.full((3, 3), 900.0), cap=255) == 1
    assert encoder_units("lif", far) == UNITS_OF_BITS, "of bits it is what it was"


@pytest.mark.parametrize(
    "changes", [{"timesteps": 1}, {"position_spikes": 3}, {"attention_similarity": "xnor"}, {"timesteps": 3}]
)
@pytest.mark.parametrize("bits", [8, 4])
def test_an_integer_model_is_its_graph(changes: dict, bits: int) -> None:
    model = quantise(small_model(**(GRADED | changes)), bits, token_bits=bits)
    graph = graph_from_model(model)
    assert (graph.source.spike, graph.source.cap, graph.value_max["blocks.1.value.lif"]) == ("graded", 7, 3)
    inputs, names = small_batch(), [node.name for node in graph]
    batch = TokenBatch(inputs["input_ids"].numpy(), inputs["attention_mask"].numpy())
    expected = ReferenceEngine(graph).run(batch, names)
    with torch.no_grad():
        output = model(**inputs, output_trace=names)
    assert np.array_equal(output.integer_logits.numpy(), expected.logits)
    for name in names:
        assert np.array_equal(output.trace[name].numpy(), expected.values[name]), name
    assert expected.values["encoder"].max() > 1 and expected.values["blocks.0.value.lif"].max() > 1


def test_a_new_readout_says_little_however_large_the_states_are() -> None:
    """And learns no faster than that of bits: what it reads is never below 0, so all of its weights' steps add up."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "intermediate_size": 128}
    spread = {}
    for name, options in (("bits", {}), ("graded", GRADED | {"encoder_cap": 15, "graded_gain": 4.0})):
        torch.manual_seed(0)
        model = SpikeBertForSequenceClassification(small_config(**sizes, **options)).train()
        batch = small_batch(texts=32)
        before = model(**batch).logits
        rates = model.learning_rates(5.0)
        with torch.no_grad():  # a step of Adam is about the learning rate, the same way for all weights of a class
            model.readout.linear.weight.add_(2e-3 * rates.get(model.readout.linear.weight, 1.0))
        jump = (model(**batch).logits - before).abs().mean()
        spread[name] = before.std().item(), jump.item()
    (bits, bits_jump), (graded, graded_jump) = spread["bits"], spread["graded"]
    assert graded < 2 * bits and graded_jump < 2 * bits_jump, spread
    spikes = small_config(**GRADED, readout="spikes")
    assert SpikeBertForSequenceClassification(spikes).readout.linear.weight.max() == 8, (
        "those of classes are bits' votes"
    )


def test_a_readout_of_an_earlier_version_begins_anew(tmp_path: Path) -> None:
    """Stage 1 left it as it was drawn, as large as that of bits; that of bits, and a head's, stay."""
    for options, renewed in ((GRADED, True), ({}, False), (GRADED | {"readout": "spikes"}, False)):
        model = SpikeBertForSequenceClassification(small_config(**options))
        with torch.no_grad():
            model.readout.linear.weight.fill_(0.25)
        model.save_pretrained(tmp_path)
        model = SpikeBertForSequenceClassification.from_pretrained(tmp_path)
        assert bool((model.readout.linear.weight == 0.25).all())
        model.renew_readout()
        assert bool((model.readout.linear.weight != 0.25).all()) is renewed
        assert not renewed or model.readout.linear.weight.abs().max() <= 1 / 15 / 16**0.5


def test_what_begins_larger_learns_faster() -> None:
    """Else a budget, or anything, would take as many more steps to move a threshold's worth of it."""
    model = SpikeBertForSequenceClassification(small_config(**(GRADED | {"graded_gain": 4.0})))
    rates = model.learning_rates(token_rate=5.0)
    assert rates.pop(model.encoder.token.weight) == 5 and rates.pop(model.encoder.position.weight) == 4
    graded = [layer for layer in model.modules() if isinstance(layer, SpikingLinear) and layer.lif.cap > 1]
    norms = [parameter for layer in graded for parameter in layer.norm.parameters()]
    assert len(norms) == 2 * 4 * model.config.num_hidden_layers, "all but query and key"
    assert rates.pop(model.readout.linear.weight) == 1 / 15
    assert set(rates) == set(norms) and set(rates.values()) == {4.0}
    bits = SpikeBertForSequenceClassification(small_config(graded_gain=4.0))
    assert bits.learning_rates(5.0) == {bits.encoder.token.weight: 5.0}, "a gain is of graded spikes"
