"""Norms over features in training: integers of the graph, gradients of the float norm; and layers without a norm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_cases import Case, cases
from small_models import small_batch, small_config
from torch import nn
from torch.nn import functional as F

from converters import graph as ir
from converters.execution import TokenBatch
from converters.from_torch import graph_from_model, roundings
from converters.torch_engine import TorchEngine
from sim.fast.engine import FastEngine
from sim.reference import ReferenceEngine
from sim.verify import compare
from spikebert import config, integer_norm
from spikebert.commands import UserError
from spikebert.config import SpikeBertConfig
from spikebert.integer_norm import NormIntegers, choose_norm_units, make_norm, norm_integers, normalised
from spikebert.layers import Neuron, SpikingLinear, first_threshold
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.neurons import LoihiLIF
from spikebert.quantisation import folded, quantise

NORMS = ["layer", "rms", "none"]


def test_its_constants_are_the_graphs() -> None:
    for name in ("EPS_MAX", "GAMMA_FRACTION", "GAMMA_MAX", "NORMED_FRACTION", "RECIPROCAL_BITS", "ROOT_BITS"):
        own = getattr(integer_norm, name)
        assert own == getattr(ir, "NORM_EPS_MAX" if name == "EPS_MAX" else name), name
    assert config.NORM_FEATURES_MAX == ir.NORM_FEATURES_MAX
    for kind in ir.NORM_KINDS:
        for width in (1, 2, 384, 2**14):
            assert integer_norm.normed_max(kind, width) == ir.normed_max(kind, width)


@settings(deadline=None)
@given(cases())
def test_it_obeys_the_equations(case: Case) -> None:
    gamma, beta = torch.from_numpy(case.gamma), torch.from_numpy(case.beta)
    a = torch.from_numpy(case.a).float()
    y = normalised(a, NormIntegers(gamma, beta, case.eps, case.kind))
    assert y.dtype == a.dtype and np.array_equal(y.long().numpy(), case.expected())


def test_rows_are_normalised_in_pieces_alike() -> None:
    torch.manual_seed(0)
    a = torch.randint(-900, 900, (2, 1500, 6)).float()
    integers = NormIntegers(torch.arange(6) * 9999, torch.arange(6), 77, "layer")
    whole = normalised(a, integers)
    assert torch.equal(whole[1, 900:], normalised(a[1, 900:], integers)) and whole.shape == a.shape


@settings(deadline=None)
@given(
    st.sampled_from(["layer", "rms"]), st.sampled_from([1, 2, 9, 300]), st.floats(1e-6, 1e4), st.floats(0, 1e4),
    st.integers(0, 999),
)  # fmt: skip
def test_no_value_passes_the_accumulator_whatever_was_learned(kind, width, gain, shift, seed) -> None:
    torch.manual_seed(seed)
    norm = make_norm(kind, width)
    with torch.no_grad():
        norm.weight.normal_(0, gain)
        if kind == "layer":
            norm.bias.normal_(0, shift)
    threshold = torch.tensor(float(choose_norm_units(norm)))
    for grown in (1, 50):  # in training on, after the units were chosen
        with torch.no_grad():
            norm.weight.mul_(grown)
        gamma, beta, eps, _ = norm_integers(norm, torch.tensor(3.0), threshold)
        node = ir.Norm("n", ("a",), gamma.numpy(), beta.numpy(), eps, kind)
        assert node.reach.max() <= ir.ACCUMULATOR_MAX


def test_gradients_are_those_of_the_float_norm() -> None:
    torch.manual_seed(0)
    for kind in ("layer", "rms"):
        norm = make_norm(kind, 12)
        nn.init.uniform_(norm.weight, 0.5, 2)
        units, threshold = torch.tensor(80.0), torch.tensor(500.0)
        a = torch.randint(-300, 300, (5, 12)).float().requires_grad_()
        y = integer_norm.integer_norm(a, norm, units, threshold)
        assert torch.equal(y, y.round())
        y.square().sum().backward()
        own = [a.grad, *(parameter.grad for parameter in norm.parameters())]
        twin = a.detach().clone().requires_grad_()
        parameters = [parameter.detach().clone().requires_grad_() for parameter in norm.parameters()]
        weight, *bias = parameters
        if kind == "layer":
            smooth = F.layer_norm(twin / units, (12,), weight, bias[0], norm.eps) * threshold
        else:
            smooth = F.rms_norm(twin / units, (12,), weight, norm.eps) * threshold
        assert (smooth - y).abs().max() < 1.5
        smooth.backward(2 * y.detach())
        for one, other in zip(own, [twin.grad, *(parameter.grad for parameter in parameters)]):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def model_of(norm: str, seed: int = 0, **changes) -> SpikeBertForSequenceClassification:
    """A float model with gains, shifts and thresholds of its own, as after training."""
    torch.manual_seed(seed)
    model = SpikeBertForSequenceClassification(small_config(norm=norm, **changes))
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "log_threshold")):
            with torch.no_grad():
                parameter.add_(0.3 * torch.randn_like(parameter))
        elif name.endswith(("norm.bias", "linear.bias")):
            nn.init.normal_(parameter, 0.1, 0.2)
    return model.eval()


@pytest.mark.parametrize("decay", [0, 410, 2048])
@pytest.mark.parametrize("norm", [*NORMS, "scalar"])
def test_the_integer_model_is_its_graph(norm: str, decay: int) -> None:
    scalar = norm == "scalar"
    model = quantise(model_of("none" if scalar else norm, decay=decay, scalar_thresholds=scalar), 8)
    graph = graph_from_model(model)
    kinds = {node.op for node in graph}
    assert ("norm" in kinds) == (norm in ("layer", "rms"))
    vectors = [node for node in graph if isinstance(node, ir.LIF) and np.ndim(node.threshold)]
    assert len(vectors) == (12 if norm == "none" else 0)
    batch = small_batch()
    batch = TokenBatch(batch["input_ids"].numpy(), batch["attention_mask"].numpy())
    names = [node.name for node in graph]
    expected = ReferenceEngine(graph).run(batch, names)
    for engine in (TorchEngine(graph, model), FastEngine(graph)):
        comparison = compare(graph, expected, engine.run(batch, names))
        assert comparison.mismatches == 0, comparison.first_mismatch
        engine.close()
    rates = {node.name: expected.values[node.name].mean() for node in graph if isinstance(node, ir.LIF)}
    assert max(rates.values()) > 0.02, rates
    assert set(roundings(model, graph)) >= {"encoder", "blocks.0.query", "readout"}


@pytest.mark.parametrize("norm", ["batch", *NORMS])
def test_a_trained_layer_is_found_again_on_disk(norm: str, tmp_path) -> None:
    model = quantise(model_of(norm), 4)
    model.save_pretrained(tmp_path)
    again = SpikeBertForSequenceClassification.from_pretrained(tmp_path).eval()
    assert again.config.norm == norm
    batch = small_batch()
    with torch.no_grad():
        assert torch.equal(again(**batch).integer_logits, model(**batch).integer_logits)


def test_a_config_of_before_means_batch(tmp_path) -> None:
    model = model_of("batch")
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    lines = [line for line in path.read_text().splitlines() if '"norm"' not in line and "scalar_thresholds" not in line]
    path.write_text("\n".join(lines))
    assert SpikeBertConfig.from_pretrained(tmp_path).norm == "batch"
    again = SpikeBertForSequenceClassification.from_pretrained(tmp_path).eval()
    assert set(again.state_dict()) == set(model.state_dict())
    assert not any("units" in name or "log_threshold" in name for name in again.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "group"}, r"norm is 'group', it must be one of \('batch', 'layer', 'rms', 'none'\)"),
        ({"norm": "layer", "scalar_thresholds": True}, "scalar_thresholds with norm 'layer'"),
        ({"norm": "rms", "intermediate_size": 20000}, "norm 'rms' over 20000 features, an integer norm takes 16384"),
    ],
)
def test_a_config_says_what_it_cannot_be(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**changes)


def test_a_layer_says_what_it_cannot_be() -> None:
    with pytest.raises(ValueError, match="norm is 'x'"):
        SpikingLinear(2, 2, norm="x")
    with pytest.raises(ValueError, match="scalar_thresholds with norm 'batch'"):
        SpikingLinear(2, 2, scalar_thresholds=True)
    with pytest.raises(ValueError, match="spikes_in is 0"):
        SpikingLinear(2, 2, norm="none", spikes_in=0)
    with pytest.raises(ValueError, match="norm 'layer' over 16385 features: an integer norm takes 16384"):
        make_norm("layer", 16385)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("integer", [False, True])
def test_everything_learns(norm: str, integer: bool) -> None:
    """Each parameter has a gradient, gains, shifts and thresholds too; after a step the model is still its graph."""
    model = model_of(norm)
    model = (quantise(model, 8) if integer else model).train()
    batch = small_batch()
    loss = model(**batch, labels=torch.tensor([0, 1, 2, 0, 1])).loss
    loss.backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            parameter.sub_(parameter.grad, alpha=0.5)
    moved = [p.grad for name, p in model.named_parameters() if name.endswith(("norm.weight", "log_threshold"))]
    assert all(grad.abs().max() > 0 for grad in moved) and len(moved) == 12
    if integer:
        graph = graph_from_model(model.eval())
        tokens = TokenBatch(batch["input_ids"].numpy(), batch["attention_mask"].numpy())
        with torch.no_grad():
            logits = model(**batch).integer_logits.numpy()
        assert np.array_equal(ReferenceEngine(graph).run(tokens).logits, logits)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("integer", [False, True])
def test_gradient_checkpointing_changes_nothing(norm: str, integer: bool) -> None:
    gradients = []
    for spared in (False, True):
        model = model_of(norm)
        model = (quantise(model, 8) if integer else model).train()
        if spared:
            model.gradient_checkpointing_enable()
        model(**small_batch(), labels=torch.tensor([0, 1, 2, 0, 1])).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients))


def test_thresholds_fold_into_the_weights() -> None:
    """A float model whose layers are to have one threshold fires the same once they are folded."""
    model = model_of("none", scalar_thresholds=True)
    batch, twin = small_batch(), folded(model)
    assert all(layer.log_threshold is None for layer in twin.modules() if isinstance(layer, SpikingLinear))
    with torch.no_grad():
        one, other = (each(**batch, output_hidden_states=True).hidden_states[-1] for each in (model, twin))
    assert (one != other).float().mean() < 0.01  # but for a rounding at a threshold
    assert model.blocks[0].query.log_threshold is not None


def test_a_learned_threshold_stays_above_0() -> None:
    layer = SpikingLinear(3, 4, norm="none")
    with torch.no_grad():
        layer.log_threshold.fill_(-50.0)
        layer.use_integers(8)
        layer.threshold.fill_(9.0)
        assert layer.thresholds.tolist() == [1.0] * 4
        layer.log_threshold.fill_(50.0)
        assert layer.thresholds.tolist() == [65535.0] * 4


def test_thresholds_by_feature_are_those_of_single_neurons() -> None:
    torch.manual_seed(0)
    for decay in (0, 410, 2048):
        lif, alone = LoihiLIF(decay, True), LoihiLIF(decay, True)
        alone.path = "plain"
        current = torch.randint(-90, 200, (5, 7, 3)).float()
        thresholds = torch.tensor([1.0, 90.0, 300.0])
        spikes = lif(current, thresholds)
        for feature, threshold in enumerate(thresholds):
            assert torch.equal(spikes[..., feature], alone(current[..., feature], threshold))
        assert spikes.mean() > 0.1


@pytest.mark.parametrize("path", ["fused", "triton"])
def test_a_path_that_takes_one_threshold_says_so(path: str) -> None:
    lif = LoihiLIF(2048, True)
    lif.path = path
    with pytest.raises(UserError, match=rf"path is '{path}', which takes one threshold"):
        lif(torch.zeros(2, 3), torch.ones(3))


def test_thresholds_begin_where_some_neurons_fire() -> None:
    """A layer of the widths of a BERT on spikes of the rate that is expected, and on sums of nine."""
    torch.manual_seed(0)
    for spikes_in in (1, 9):
        layer = SpikingLinear(384, 400, norm="none", spikes_in=spikes_in)
        x = (torch.rand(spikes_in, 4, 200, 384) < 0.15).float().sum(0)
        current = layer.linear(x) / layer.log_threshold.exp()
        rate = layer.lif(current, torch.tensor(1.0)).mean()
        assert 0.08 < rate < 0.25, (spikes_in, rate)
    assert first_threshold(9) > first_threshold(1) > 0
    assert SpikingLinear(4, 4, Neuron(0), "none").norm is None
