"""Soft reset, graded and ternary spikes in PyTorch: the rule, its gradients, and models made of such neurons."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neuron_cases import KINDS, Kind, drives, naive_neuron
from small_models import GRADED, small_batch, small_config, small_model
from torch import nn

from converters import graph
from spikebert import Encoder, Neuron, Readout, SpikingAttention, SpikingChain, SpikingLinear, config
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.neurons import LoihiLIF
from spikebert.quantisation import choose_units, quantise
from spikebert.recording import record_one_token
from spikebert.rounding import round_weight, row_reach


def neuron(kind: Kind, decay: int = 2048, integer: bool = False, path: str = "auto") -> LoihiLIF:
    reset, spike, cap = kind
    lif = LoihiLIF(decay, integer, reset=reset, spike=spike, cap=cap)
    lif.path = path
    return lif


def test_choices_are_those_of_the_graph() -> None:
    assert (config.RESETS, config.SPIKES, config.CAP_MAX) == (graph.RESETS, graph.SPIKES, graph.CAP_MAX)


@settings(deadline=None, max_examples=100)
@given(drives(), st.sampled_from(KINDS), st.sampled_from(["auto", "plain"]))
def test_integer_mode_is_the_rule(drive: tuple[list[int], int, int], kind: Kind, path: str) -> None:
    currents, threshold, dv = drive
    spikes = neuron(kind, dv, True, path)(torch.tensor(currents, dtype=torch.float32)[:, None], threshold)
    assert spikes[:, 0].int().tolist() == naive_neuron(currents, threshold, dv, kind)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_threshold_for_each_feature(kind: Kind) -> None:
    currents = torch.randint(-300, 400, (8, 5, 3), generator=torch.Generator().manual_seed(0)).float()
    thresholds = torch.tensor([20.0, 77.0, 150.0])
    spikes = neuron(kind, 410, True)(currents, thresholds)
    for feature, threshold in enumerate([20, 77, 150]):
        alone = neuron(kind, 410, True)(currents[..., feature], threshold)
        assert torch.equal(spikes[..., feature], alone)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_float_mode_is_the_rule_without_rounding(kind: Kind) -> None:
    """Numbers of few bits: floats are exact."""
    currents = torch.randint(-40, 60, (6, 50), generator=torch.Generator().manual_seed(1)).double() / 8
    expected = [naive_neuron([int(8 * a) for a in column], 8, 2048, kind) for column in currents.T.tolist()]
    assert neuron(kind)(currents, 1.0).T.int().tolist() == expected


# Gradients


def slope(x: float) -> float:
    """Of SpikingJelly's ATan, alpha 2."""
    return 1 / (1 + (torch.pi * x) ** 2)


@pytest.mark.parametrize(
    ("kind", "a", "expected"),
    [
        (("zero", "binary", 1), 1.3, slope(0.3)),
        (("zero", "graded", 3), 1.3, slope(0.3) + slope(-0.7) + slope(-1.7)),
        (("zero", "graded", 3), -0.4, slope(-1.4) + slope(-2.4) + slope(-3.4)),
        (("zero", "ternary", 1), 1.3, slope(0.3) + slope(2.3)),
        (("zero", "ternary", 1), -0.2, slope(-1.2) + slope(0.8)),
    ],
    ids=str,
)
@pytest.mark.parametrize("integer", [False, True])
def test_a_gradient_is_that_of_every_level(kind: Kind, a: float, expected: float, integer: bool) -> None:
    """By hand, of one timestep; in integer mode in units of a threshold of 100."""
    units = 100.0 if integer else 1.0
    current = torch.tensor([[a * units]], dtype=torch.float64, requires_grad=True)
    neuron(kind, integer=integer)(current, units).sum().backward()
    assert current.grad is not None
    torch.testing.assert_close(current.grad.item() * units, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("spike", [("binary", 1), ("graded", 2), ("ternary", 1)])
def test_a_gradient_passes_a_soft_reset_and_no_hard_one(spike: tuple[str, int]) -> None:
    """The first step fires; what it was charged with is still there in the second, or not."""
    gradients = {}
    for reset in ("zero", "subtract"):
        current = torch.tensor([[1.5], [0.2]], dtype=torch.float64, requires_grad=True)
        neuron((reset, *spike), decay=2048)(current, 1.0)[1].sum().backward()
        assert current.grad is not None
        gradients[reset] = current.grad.flatten().tolist()
    assert gradients["zero"][0] == 0
    assert gradients["subtract"][0] == pytest.approx(0.5 * gradients["subtract"][1])


def test_a_learned_threshold_has_a_gradient() -> None:
    for kind in KINDS:
        threshold = torch.tensor([100.0, 150.0], requires_grad=True)
        current = torch.full((3, 4, 2), 180.0)
        neuron(kind, 0, True)(current, threshold).sum().backward()
        assert threshold.grad is not None and bool((threshold.grad < 0).all()), kind


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reset": "half"}, "reset is 'half', it must be one of"),
        ({"spike": "real"}, "spike is 'real', it must be one of"),
        ({"spike": "graded"}, "cap is 1, of graded spikes it must be 2 .. 255"),
        ({"spike": "graded", "cap": 256}, "cap is 256"),
        ({"cap": 4}, "cap is 4, of binary spikes it must be 1 .. 1"),
    ],
)
def test_a_wrong_neuron_or_configuration_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Neuron(**options)
    with pytest.raises(ValueError, match=message):
        small_config(**{"spike_cap" if key == "cap" else key: value for key, value in options.items()})


class Attended(nn.Module):
    def __init__(self, own: Neuron) -> None:
        super().__init__()
        self.encoder, self.up = Encoder(9, 8, 3), SpikingLinear(8, 8, own)
        self.attention, self.readout = SpikingAttention(2, 0), Readout(8, 2)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None):
        x = self.up(self.encoder(ids, mask))
        return self.readout(self.attention(x, x, x))


# Models


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_which_neurons_of_a_model_are_which(kind: Kind, tmp_path) -> None:
    reset, spike, cap = kind
    model = small_model(reset=reset, spike=spike, spike_cap=cap, position_spikes=2)
    kinds = {name: (m.resets_to, m.spike, m.cap) for name, m in model.named_modules() if isinstance(m, LoihiLIF)}
    for name, own in kinds.items():
        bits = name.startswith("encoder") or any(f".{part}." in name for part in ("query", "key", "value"))
        assert own == ((reset, "binary", 1) if bits else kind), name
    integer = quantise(model)
    integer.save_pretrained(tmp_path)
    again = SpikeBertForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**small_batch()).integer_logits, integer(**small_batch()).integer_logits)


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize(
    "changes", [{"reset": "subtract"}, {"spike": "graded", "spike_cap": 3}, {"spike": "ternary"}, GRADED], ids=str
)
def test_padding_never_changes_a_result(changes: dict, integer: bool) -> None:
    model = small_model(**changes, max_position_embeddings=12)
    model = quantise(model) if integer else model
    inputs = small_batch(tokens=7)
    longer = {name: nn.functional.pad(x, (0, 3)) for name, x in inputs.items()}
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, model(**longer).logits)


def test_sums_know_how_large_they_are_and_whether_they_may_be_negative() -> None:
    for kind, largest in ((("zero", "binary", 1), 5), (("zero", "graded", 7), 29), (("zero", "ternary", 1), 5)):
        model = small_model(reset=kind[0], spike=kind[1], spike_cap=kind[2])
        recording = record_one_token(model)
        assert recording.uses()[recording.readout] == largest
        signed = recording.signed_uses()
        assert (recording.readout in signed) == (kind[1] == "ternary")
        assert model.blocks[0].query not in signed and (model.blocks[1].query in signed) == (kind[1] == "ternary")


def test_weights_of_signed_inputs_keep_to_the_accumulator() -> None:
    weight = torch.tensor([[1.0, -1.0, 0.5], [1.0, 1.0, 1.0]])
    assert row_reach(weight).tolist() == [1.5, 3.0] and row_reach(weight, signed=True).tolist() == [2.5, 3.0]
    one, zero = torch.tensor(127.0), torch.zeros(1)
    wide = torch.cat([torch.ones(1, 400), -torch.ones(1, 400)], 1)
    plain, signed = (round_weight(wide, one, 8, 1, zero, signed) for signed in (False, True))
    assert plain.abs().sum() == 800 * 127 and plain.abs().sum() > 65535 >= signed.abs().sum()
    assert choose_units(wide, zero, 8, 1, signed=True) < choose_units(wide, zero, 8, 1)


def test_a_firing_rate_counts_spikes_and_not_their_size() -> None:
    for kind in (("subtract", "graded", 3), ("zero", "ternary", 1)):
        model = small_model(reset=kind[0], spike=kind[1], spike_cap=kind[2])
        with torch.no_grad():
            output = model(**small_batch(), output_firing_rates=True, output_trace=("blocks.0.up.lif",))
        sites = int(small_batch()["attention_mask"].sum()) * 4 * 32
        fired = int((output.trace["blocks.0.up.lif"] != 0).sum())
        assert float(output.firing_rates["blocks.0.up.lif"]) == pytest.approx(fired / sites)


@pytest.mark.parametrize(
    "changes", [{"spike": "graded", "spike_cap": 2}, {"reset": "subtract", "spike": "ternary"}, GRADED], ids=str
)
@pytest.mark.parametrize("integer", [False, True])
def test_training_with_checkpoints_gives_the_same_gradients(changes: dict, integer: bool) -> None:
    found = []
    for checkpointing in (False, True):
        model = small_model(**changes)
        model = (quantise(model) if integer else model).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        loss = model(**small_batch(), labels=torch.tensor([0, 1, 2, 1, 0])).loss
        loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"loss": loss})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 20
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    for name in ("encoder.token.weight", "blocks.0.value.linear.weight", "blocks.0.up.linear.weight"):
        assert float(found[0][name].abs().sum()) > 0, name


def test_mixed_precision_keeps_what_a_soft_reset_keeps() -> None:
    """Under mixed precision attention may round counts that are far above the threshold: not where the rest counts."""
    for kind in (("subtract", "binary", 1), ("zero", "graded", 15)):
        attention = SpikingAttention(2, 0, Neuron(0, reset=kind[0], spike=kind[1], cap=kind[2]))
        model = Attended(Neuron())
        x = model.up(model.encoder(torch.ones(1, 2, dtype=torch.long)))
        with torch.autocast("cpu", torch.bfloat16):
            assert attention._type_of_products(x, 1) == torch.float32
            assert SpikingAttention(2, 0)._type_of_products(x, 1) == torch.bfloat16


def test_a_chain_of_own_layers() -> None:
    chain = SpikingChain(
        Encoder(9, 8, 3, neuron=Neuron(reset="subtract")),
        [SpikingLinear(8, 6, Neuron(spike="graded", cap=3)), SpikingLinear(6, 5, Neuron(0, spike="ternary"))],
        Readout(5, 2),
    ).eval()
    assert quantise(chain)(torch.ones(1, 2, dtype=torch.long)).integer_logits.shape == (1, 2)
