"""Models of other people, made of our layers: names, values, and what is refused and how."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_models import calibrate
from torch import nn

import spikebert
from converters.execution import TokenBatch
from converters.from_torch import graph_from_model
from converters.graph import LIF, Add, Attention, GraphError, Synapses
from converters.torch_engine import TorchEngine
from sim.fast.engine import FastEngine
from sim.reference import ReferenceEngine
from sim.verify import compare
from spikebert import Add as AddLayer
from spikebert import (
    Block,
    Encoder,
    Neuron,
    Readout,
    SpikingAttention,
    SpikingChain,
    SpikingLinear,
    quantise,
    record,
)
from spikebert.spikes import Spikes

WORDS, WIDTH, N_MAX = 12, 15, 5
IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])


class Model(nn.Module):
    """The frame of the models here: `body` is what lies between encoder and readout."""

    def __init__(self, width: int = WIDTH, seed: int = 0, timesteps: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = Encoder(WORDS, WIDTH, N_MAX, timesteps)
        self.readout = Readout(width, 2)

    def body(self, x: Spikes) -> Spikes:
        return x

    def forward(self, input_ids, attention_mask=None):
        return self.readout(self.body(self.encoder(input_ids, attention_mask)))


def assert_equal_everywhere(model: nn.Module) -> dict[str, np.ndarray]:
    """torch, reference and fast agree in every value; the values, by node."""
    graph = graph_from_model(model)
    names, batch = [node.name for node in graph], TokenBatch(IDS.numpy(), MASK.numpy())
    expected = ReferenceEngine(graph).run(batch, names)
    for engine in (TorchEngine(graph, model), FastEngine(graph)):
        comparison = compare(graph, expected, engine.run(batch, names))
        assert comparison.mismatches == 0, comparison.first_mismatch
        assert comparison.values_compared > 0
        engine.close()
    return expected.values


class Residual(Model):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = SpikingLinear(WIDTH, 8, Neuron(decay=410)), SpikingLinear(8, WIDTH)
        self.join = AddLayer()

    def body(self, x: Spikes) -> Spikes:
        return self.join(x, self.down(self.up(x)))


def test_a_residual_has_the_names_of_the_modules() -> None:
    graph = graph_from_model(quantise(Residual()))
    assert [node.name for node in graph] == [
        "encoder", "up", "up.lif", "down", "down.lif", "join", "readout",
    ]  # fmt: skip
    assert graph["join"].inputs == ("encoder", "down.lif") and graph["readout"].inputs == ("join",)
    assert graph["up.lif"].dv == 410 and graph["down.lif"].dv == 2048
    assert graph.timesteps == 3 and graph.n_max == N_MAX
    assert graph.value_max["join"] == 2
    assert_equal_everywhere(quantise(Residual()))


class OddHeads(Model):
    """Five heads of three features, a value of another attention, an input used several times, a plain `+` and sum."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: SpikingLinear(WIDTH, WIDTH) for name in "qkv"})
        self.first, self.second = SpikingAttention(5, threshold=0), SpikingAttention(1, threshold=3)

    def body(self, x: Spikes) -> Spikes:
        q, k, v = (self.parts[name](x) for name in "qkv")
        first = self.first(q, k, v)
        return sum([x, first, self.second(q, first, q), x + x])


def test_attentions_with_odd_heads_and_sums() -> None:
    torch.manual_seed(1)
    model = quantise(calibrate(OddHeads(), TokenBatch(IDS.numpy(), MASK.numpy())))
    graph = graph_from_model(model)
    assert isinstance(graph["first"], Attention) and graph["first"].heads == 5
    assert graph["second"].inputs == ("parts.q.lif", "first.lif", "parts.q.lif")
    assert graph["add"].inputs == ("encoder", "encoder"), "x + x is done before the sum begins"
    assert graph["readout"].inputs == ("add_4",) and graph.value_max["add_4"] == 5
    values = assert_equal_everywhere(model)
    assert all(values[name].any() for name in graph.spiking), "a silent network would prove little"


class Nested(Model):
    """Dropout, Identity and Sequential pass; a layer used twice has two nodes, a list has numbers for names."""

    def __init__(self) -> None:
        super().__init__(width=7)
        again = SpikingLinear(WIDTH, WIDTH)
        self.steps = nn.ModuleList([nn.Sequential(again, nn.Dropout(0.3)), nn.Identity(), again])
        self.narrow = SpikingLinear(WIDTH, 7)
        self.unused = SpikingLinear(3, 4)

    def body(self, x: Spikes) -> Spikes:
        for step in self.steps:
            x = step(x)
        return self.narrow(x)


def test_nested_modules_and_a_layer_used_twice() -> None:
    model = quantise(Nested())
    graph = graph_from_model(model)
    layers = [node.name for node in graph if isinstance(node, Synapses)]
    assert layers == ["steps.0.0", "steps.0.0_2", "narrow"], "what is not used is not there"
    assert np.array_equal(graph["steps.0.0"].weight, graph["steps.0.0_2"].weight)
    assert_equal_everywhere(model)


def test_a_layer_used_with_spikes_and_with_sums() -> None:
    class Shared(Model):
        def __init__(self) -> None:
            super().__init__()
            self.layer = SpikingLinear(WIDTH, WIDTH)

        def body(self, x: Spikes) -> Spikes:
            return self.layer(self.layer(x) + x + x)

    assert_equal_everywhere(quantise(Shared()))


def test_a_chain_and_a_model_whose_names_begin_with_a_digit() -> None:
    chain = SpikingChain(Encoder(WORDS, WIDTH, N_MAX), [Block(WIDTH, 20, 3), nn.Dropout(0.1)], Readout(WIDTH, 2))
    names = [node.name for node in graph_from_model(quantise(chain)) if isinstance(node, (LIF, Add))]
    assert names[:1] == ["layers.0.query.lif"] and names[-1] == "layers.0.add_mlp"

    class Numbered(nn.Sequential):
        def forward(self, input_ids, attention_mask):
            return self[2](self[1](self[0](input_ids, attention_mask=attention_mask)))

    numbered = quantise(Numbered(Encoder(WORDS, WIDTH, N_MAX), SpikingLinear(WIDTH, 4), Readout(4, 2)))
    assert [node.name for node in graph_from_model(numbered)] == ["model.0", "model.1", "model.1.lif", "model.2"]
    assert_equal_everywhere(numbered)


@pytest.mark.parametrize("returns", ["logits", "tuple", "mapping"])
def test_what_a_readout_gave_may_be_returned_in_several_ways(returns: str) -> None:
    class Returning(Model):
        def forward(self, input_ids, attention_mask=None):
            given = super().forward(input_ids, attention_mask)
            return {"logits": given.logits, "tuple": (1, given.logits), "mapping": {"logits": given.logits}}[returns]

    assert_equal_everywhere(quantise(Returning()))


def test_recording_changes_nothing_in_the_model() -> None:
    model = Residual().train()
    model.down.eval()
    modes = [module.training for module in model.modules()]
    statistics = model.up.norm.running_mean.clone()
    record(model, IDS, MASK)
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(model.up.norm.running_mean, statistics)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_own_models_train() -> None:
    model = Residual().train()
    integer = quantise(model).train()
    for each in (model, integer):
        nn.functional.cross_entropy(each(IDS, MASK).logits, torch.tensor([0, 1])).backward()
        assert each.up.linear.weight.grad.any() and each.encoder.token.weight.grad.any()


def test_everything_public_is_there() -> None:
    assert all(getattr(spikebert, name) for name in spikebert.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = spikebert.Nothing


# What is refused


def refused(model: nn.Module) -> str:
    with pytest.raises(GraphError) as error:
        graph_from_model(model)
    return str(error.value)


class Doing(Model):
    def __init__(self, operation) -> None:
        super().__init__()
        self.inner = Inner(operation)

    def body(self, x: Spikes) -> Spikes:
        return self.inner(x)


class Inner(nn.Module):
    def __init__(self, operation) -> None:
        super().__init__()
        self.layer = SpikingLinear(WIDTH, WIDTH)
        self.operation = operation

    def forward(self, x: Spikes) -> Spikes:
        return self.operation(self.layer(x))


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (torch.relu, "'relu'"),
        (nn.functional.gelu, "'gelu'"),
        (lambda x: x * 2, "'mul'"),
        (lambda x: 2.0 * x, "'rmul'"),
        (lambda x: x - x, "'sub'"),
        (lambda x: x + 1, "'adding a int'"),
        (lambda x: x + torch.ones(WIDTH), "'adding a Tensor'"),
        (lambda x: torch.ones(WIDTH) + x, "'adding a Tensor'"),
        (lambda x: x.reshape(1, -1), "'reshape'"),
        (lambda x: x.mean(0), "'mean'"),
        (lambda x: x[0], "'getitem'"),
        (lambda x: torch.cat([x, x]), "'cat'"),
        (lambda x: x.shape, "'shape'"),
        (lambda x: x > 0, "'gt'"),
        (lambda x: torch.add(x, x, alpha=2), "'add'"),
        (lambda x: x @ x, "'matmul'"),
    ],
)
def test_an_operation_on_spikes_is_refused_with_module_and_remedy(operation, said: str) -> None:
    message = refused(Doing(operation))
    assert message.startswith(f"'inner' (Inner): {said} cannot be done with spikes: spikes may go into SpikingLinear")


@pytest.mark.parametrize("module", [nn.ReLU(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3), nn.Softmax(-1), nn.GELU()])
def test_a_foreign_module_is_refused_by_name(module: nn.Module) -> None:
    model = SpikingChain(Encoder(WORDS, WIDTH, N_MAX), [SpikingLinear(WIDTH, WIDTH), module], Readout(WIDTH, 2))
    message = refused(model)
    assert message.startswith(f"'layers.1' ({type(module).__name__}): ") and "may go into" in message
    with pytest.raises(TypeError, match="cannot be done with spikes"):
        model(IDS, MASK)  # already where it is trained


def test_other_refusals_name_what_is_wrong() -> None:
    class NotItsOwn(Model):
        def forward(self, input_ids, attention_mask=None):
            return self.readout(self.encoder(input_ids + 1, attention_mask))

    class Unmasked(Model):
        def forward(self, input_ids, attention_mask=None):
            return self.readout(self.encoder(input_ids))

    class Twice(Model):
        def forward(self, input_ids, attention_mask=None):
            return self.readout(self.encoder(input_ids, attention_mask) + self.encoder(input_ids, attention_mask))

    class Scaled(Model):
        def forward(self, input_ids, attention_mask=None):
            return -self.readout(self.encoder(input_ids, attention_mask)).logits

    class Unread(Model):
        def forward(self, input_ids, attention_mask=None):
            return self.encoder(input_ids, attention_mask)

    class Hidden(Model):
        def body(self, x: Spikes) -> Spikes:
            return SpikingLinear(WIDTH, WIDTH)(x)

    class Early(Model):
        def body(self, x: Spikes) -> Spikes:
            return SpikingAttention(1)(x, x, x)

    class Uneven(Model):
        def body(self, x: Spikes) -> Spikes:
            return SpikingLinear(WIDTH, 4)(x) + x

    for kind in (NotItsOwn, Unmasked):
        assert "'encoder' (Encoder): an Encoder takes the model's own input_ids and attention_mask" in refused(kind())
    assert "call one encoder once and use its spikes twice" in refused(Twice())
    assert "must return what 'readout' gave, unchanged" in refused(Scaled())
    assert "0 readouts were run, a model has one `Readout`" in refused(Unread())
    assert "a SpikingLinear was run that is no part of the model: keep it as an attribute" in refused(Hidden())
    assert "must each come straight from a SpikingLinear" in refused(Early())
    assert "an addition of 4 and of 15 features" in refused(Uneven())
    assert "'readout' (Readout): Readout takes 3 features and was given 15" in refused(Model(width=3))
    assert "make a spikebert.SpikingChain" in refused(nn.Sequential(Encoder(WORDS, WIDTH, N_MAX)))


def test_layers_still_in_float_mode_are_named() -> None:
    assert "float mode ('encoder', 'up', 'down' and 1 more): spikebert.quantise" in refused(Residual())
    model = quantise(Residual())
    model.up = SpikingLinear(WIDTH, 8)
    assert "float mode ('up'): spikebert.quantise" in refused(model)
    with pytest.raises(ValueError, match="integer mode already"):
        quantise(model)


def test_weights_that_are_no_numbers_are_named() -> None:
    model = Residual()
    model.down.linear.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="'down' has weights that are infinite or no numbers"):
        quantise(model)


def test_a_wrong_layer_is_refused_when_it_is_made() -> None:
    for make, said in (
        (lambda: Encoder(WORDS, WIDTH, N_MAX, kind="poisson"), "kind is 'poisson'"),
        (lambda: Encoder(0, WIDTH, N_MAX), "vocabulary is 0"),
        (lambda: SpikingAttention(0), "heads is 0"),
        (lambda: SpikingAttention(2, threshold=65536), "threshold is 65536"),
        (lambda: Neuron(decay=4096), "decay is 4096"),
        (lambda: Neuron(surrogate="box"), "surrogate is 'box'"),
    ):
        with pytest.raises(ValueError, match=said):
            make()
