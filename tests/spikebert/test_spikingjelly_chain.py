"""SpikingJelly chains become our layers: exactly where that can be, within the stated bound elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from random_models import CLASSES, VOCABULARY, Shape, make_chain, make_node, shapes
from spikingjelly.activation_based import functional
from spikingjelly.activation_based import layer as sj
from spikingjelly.activation_based import neuron as sj_neuron
from torch import Tensor, nn

from spikebert import from_spikingjelly, record
from spikebert.commands import UserError
from spikebert.spikingjelly_chain import Dynamics

N_MAX = 16


@torch.no_grad()
def run_chain(chain: nn.Sequential, ids: Tensor, timesteps: int) -> tuple[list[Tensor], Tensor]:
    """The spikes [T, R, D] of every neuron of a single-step chain, and its summed outputs [R, classes]."""
    spikes: dict[nn.Module, list[Tensor]] = {}
    handles = [
        module.register_forward_hook(lambda module, _, out: spikes.setdefault(module, []).append(out))
        for module in chain.modules()
        if isinstance(module, sj_neuron.BaseNode)
    ]
    functional.reset_net(chain)
    total = sum(chain(ids) for _ in range(timesteps))
    functional.reset_net(chain)
    for handle in handles:
        handle.remove()
    return [torch.stack(each) for each in spikes.values()], total


def run_twin(chain: nn.Sequential, ids: Tensor, timesteps: int, weight_bits: int = 8) -> tuple[list[Tensor], Tensor]:
    """The same of its integer twin: each id is a text of one token."""
    recording = record(
        from_spikingjelly(chain, timesteps, N_MAX, weight_bits), ids[:, None], torch.ones_like(ids)[:, None]
    )
    return [step.spikes.values for step in recording.steps], recording.logits.logits * timesteps


ENCODER_LEVEL, LEVEL = 126.0, 64.0


def whole_chain(node) -> nn.Sequential:
    """Whole numbers everywhere, the thresholds too, so that these are met exactly; and the largest weight is one of
    which 8 bits hold the LEVEL-th part in LEVEL units: then the integers are the weights themselves."""
    torch.manual_seed(0)
    chain = nn.Sequential(
        nn.Embedding(VOCABULARY, 12), node(ENCODER_LEVEL),
        layer_of(12, 20), node(LEVEL), layer_of(20, 9), node(LEVEL), nn.Linear(9, CLASSES),
    )  # fmt: skip
    chain[0].weight.data = 63.0 * torch.randint(-2, 4, chain[0].weight.shape)
    for linear in (module for module in chain if isinstance(module, nn.Linear)):
        linear.weight.data = 16.0 * torch.randint(-3, 5, linear.weight.shape)
        linear.weight.data[0, 0] = 127.0
        linear.bias.data = 16.0 * torch.randint(-1, 3, linear.bias.shape)
    return chain


def layer_of(inputs: int, outputs: int) -> nn.Linear:
    return sj.Linear(inputs, outputs, step_mode="s")


@pytest.mark.parametrize(
    ("node", "timesteps"),
    [
        (lambda level: sj_neuron.IFNode(v_threshold=level), 1),
        (lambda level: sj_neuron.IFNode(v_threshold=level), 8),
        (lambda level: sj_neuron.IFNode(v_threshold=level - 2, v_reset=-2.0), 8),
        (lambda level: sj_neuron.LIFNode(tau=2.0, v_threshold=level / 2), 1),
        (lambda level: sj_neuron.LIFNode(tau=4.0, decay_input=False, v_threshold=level), 1),
        (lambda level: sj_neuron.IFNode(v_threshold=level, v_reset=None), 1),
    ],
)
def test_whole_numbers_are_reproduced_exactly(node, timesteps: int) -> None:
    """`>=` against `>` would show here: sums meet the thresholds all the time."""
    chain, ids = whole_chain(node), torch.arange(VOCABULARY)
    theirs, total = run_chain(chain, ids, timesteps)
    ours, logits = run_twin(chain, ids, timesteps)
    assert len(theirs) == len(ours) == 3
    for a, b in zip(theirs, ours):
        assert torch.equal(a, b)
        assert 0 < a.mean() < 1
    assert np.array_equal(total.round().numpy(), logits.round().numpy())


def test_a_leaky_neuron_differs_only_where_its_threshold_is_met_exactly() -> None:
    """Halves of whole numbers are whole in our membrane too (8 steps of a decay of 2048): nothing else can differ."""
    chain = whole_chain(lambda level: sj_neuron.LIFNode(tau=2.0, decay_input=False, v_threshold=level))
    theirs, ours = (run(chain, torch.arange(VOCABULARY), 8)[0][0] for run in (run_chain, run_twin))
    membrane, same, met = torch.zeros_like(theirs[0]), torch.ones_like(theirs[0], dtype=torch.bool), 0
    for their, our in zip(theirs, ours):
        membrane = membrane / 2 + chain[0].weight
        exactly = same & (membrane == ENCODER_LEVEL)
        assert torch.equal(same & (their != our), exactly)
        met += int(exactly.sum())
        same &= ~exactly
        membrane = torch.where(their > 0, 0.0, membrane)
    assert met > 0 and same.any()


@settings(max_examples=40, deadline=None)
@given(shapes(kind="chain", weight_bits=8))
@torch.no_grad()
def test_the_first_difference_of_a_neuron_lies_within_the_stated_bound(shape: Shape) -> None:
    """One layer with random input: where a neuron first differs, its original's membrane is that near to threshold."""
    torch.manual_seed(shape.seed)
    linear, norm, node = layer_with_norm(shape)
    chain = nn.Sequential(nn.Embedding(1, shape.width), sj_neuron.IFNode(), linear, norm, node, nn.Linear(9, CLASSES))
    twin = from_spikingjelly(chain.eval(), shape.timesteps, N_MAX).layers[0]
    weight, bias = twin.integers(1)
    dynamics = Dynamics.of(node, shape.timesteps)
    threshold, keep = float(twin.threshold), (4096 - dynamics.decay) / 4096
    units = threshold + 1 if dynamics.whole else threshold
    assert dynamics.reset == shape.reset
    exact_keep = 1.0 if isinstance(node, sj_neuron.IFNode) else 1.0 - 1.0 / tau_of(node)
    # in accumulator units: the original's membrane, ours, and how far apart they may be
    theirs, ours, error = (torch.zeros(40, 9, dtype=torch.double) for _ in range(3))
    same = torch.ones(40, 9, dtype=torch.bool)  # neurons that have not differed yet
    for x in (torch.rand(shape.timesteps, 40, shape.width) < 0.3).float():
        error = exact_keep * error + (x.sum(1, keepdim=True) + 1) / 2 + theirs.abs() / 4096 + 1 / 128
        theirs = exact_keep * theirs + norm(linear(x)).double() / dynamics.level * units
        ours = torch.trunc(ours * keep * 128) / 128 + (x @ weight.T + bias).double()
        slack = 1e-4 * units  # float32 of the original
        assert bool(((theirs - ours).abs() <= error + slack)[same].all())
        fired = theirs >= units
        differs = same & (fired != (ours > threshold))
        assert bool(((theirs - units).abs() <= error + slack)[differs].all())
        same &= ~differs
        if dynamics.reset == "subtract":
            theirs, ours = theirs - fired * units, ours - fired * threshold
        else:
            theirs, ours, error = (torch.where(fired, 0.0, value) for value in (theirs, ours, error))
    assert same.any()


def layer_with_norm(shape: Shape) -> tuple[nn.Linear, nn.BatchNorm1d, nn.Module]:
    """Linear, BatchNorm and a random neuron, with weights that let it fire."""
    node = make_node(shape, np.random.default_rng(shape.seed))
    level = Dynamics.of(node, shape.timesteps).level
    linear, norm = nn.Linear(shape.width, 9), nn.BatchNorm1d(9)
    nn.init.normal_(linear.weight, 0, level / shape.width**0.5)
    norm.running_mean.normal_(0, 0.2 * level)
    norm.running_var.uniform_(0.5, 2)
    return linear, norm, node


def tau_of(node: nn.Module) -> float:
    return 1 / float(node.w.detach().sigmoid()) if isinstance(node, sj_neuron.ParametricLIFNode) else node.tau


@settings(max_examples=30, deadline=None)
@given(shapes(kind="chain", weight_bits=8, depth=2))
def test_most_spikes_of_a_whole_chain_agree(shape: Shape) -> None:
    """Eight bits: of every layer of eight neurons or more at least nine tenths of the spikes are the original's.

    (Of few neurons all may be near their threshold.)
    """
    torch.manual_seed(shape.seed)
    chain = make_chain(shape, np.random.default_rng(shape.seed))
    ids = torch.arange(VOCABULARY)
    for a, b in zip(run_chain(chain, ids, shape.timesteps)[0], run_twin(chain, ids, shape.timesteps)[0]):
        assert a.shape[-1] < 8 or float((a == b).float().mean()) > 0.9


def test_multi_step_modules_and_nesting_are_the_same_chain() -> None:
    torch.manual_seed(0)
    linear, norm, last = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
    embedding = nn.Embedding(5, 8)
    single = nn.Sequential(embedding, sj_neuron.LIFNode(), linear, norm, sj_neuron.LIFNode(), last)
    inner, multi = sj.Linear(8, 6), sj.Linear(6, 2, step_mode="m")
    inner.load_state_dict(linear.state_dict())
    multi.load_state_dict(last.state_dict())
    nested = nn.Sequential(
        nn.Sequential(embedding, nn.Identity(), sj_neuron.LIFNode(step_mode="m")),
        sj.SeqToANNContainer(inner, norm),
        nn.Sequential(nn.Sequential(sj.Dropout(0.5, step_mode="m")), sj_neuron.LIFNode(step_mode="m")),
        multi,
    )
    a, b = (from_spikingjelly(chain, 4, N_MAX).state_dict() for chain in (single, nested))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_the_chain_is_left_alone() -> None:
    chain = whole_chain(lambda level: sj_neuron.IFNode(v_threshold=level)).train()
    before = {name: value.clone() for name, value in chain.state_dict().items()}
    from_spikingjelly(chain, 4, N_MAX)
    assert chain.training and all(torch.equal(value, before[name]) for name, value in chain.state_dict().items())


# What is refused


def refused(*modules: nn.Module) -> str:
    with pytest.raises(UserError) as error:
        from_spikingjelly(nn.Sequential(*modules), 4, N_MAX)
    message = str(error.value)
    assert "accepted are, in an nn.Sequential" in message
    return message


def test_every_module_that_cannot_be_taken_is_named_at_once() -> None:
    message = refused(
        nn.Embedding(5, 8, max_norm=1.0),
        sj_neuron.LIFNode(v_threshold=-0.5, v_reset=None),
        nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, track_running_stats=False)),
        sj_neuron.KLIFNode(),
        nn.Conv1d(8, 8, 3),
        sj_neuron.IFNode(v_threshold=-1.0),
        nn.MaxPool1d(2),
        nn.ReLU(),
        nn.Linear(8, 2),
    )
    for said in (
        "'0' (Embedding): max_norm changes rows",
        "'1' (LIFNode): v_threshold -0.5 is not above v_reset 0.0",
        "'2.1' (BatchNorm1d): it has no running statistics: make it with track_running_stats=True",
        "'3' (KLIFNode): no such module is taken",
        "'4' (Conv1d): no such module is taken",
        "'5' (IFNode): v_threshold -1.0 is not above v_reset 0.0",
        "'6' (MaxPool1d): no such module is taken",
        "'7' (ReLU): no such module is taken",
    ):
        assert said in message


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ((nn.Linear(8, 2),), "'0' (Linear) stands after the beginning, where Embedding may stand"),
        ((nn.Embedding(5, 8), sj_neuron.IFNode()), "the chain ends with '1' (IFNode): it must end with a Linear"),
        ((nn.Embedding(5, 8), nn.Linear(8, 2)), "the chain has no neuron"),
        ((), "the chain ends with nothing"),
        (
            (nn.Embedding(5, 8), sj_neuron.IFNode(), sj_neuron.IFNode(), nn.Linear(8, 2)),
            "'2' (IFNode) stands after neuron, where Linear may stand",
        ),
        (
            (nn.Embedding(5, 8), sj_neuron.IFNode(), nn.Linear(8, 8), nn.Linear(8, 2)),
            "'3' (Linear) stands after Linear, where BatchNorm1d or neuron or the end may stand",
        ),
        (
            (nn.Embedding(5, 8), sj_neuron.IFNode(), nn.BatchNorm1d(8), nn.Linear(8, 2)),
            "'2' (BatchNorm1d) stands after neuron, where Linear may stand",
        ),
    ],
)
def test_a_module_at_a_wrong_place_is_named_with_what_may_stand_there(modules, said: str) -> None:
    assert said in refused(*modules)


def test_a_subclass_with_a_forward_of_its_own_is_refused() -> None:
    class Mine(sj_neuron.LIFNode):
        pass

    assert "'1' (Mine): no such module is taken" in refused(nn.Embedding(5, 8), Mine(), nn.Linear(8, 2))
    infinite = nn.Linear(8, 2)
    infinite.weight.data[0, 0] = float("inf")
    message = refused(nn.Embedding(5, 8), sj_neuron.IFNode(), infinite)
    assert "'2' (Linear): it has weights that are infinite or no numbers" in message
    with pytest.raises(UserError, match="'the chain' \\(ReLU\\)"):
        from_spikingjelly(nn.ReLU(), 4, N_MAX)
