"""A chain of SpikingJelly modules as a chain of our layers in integer mode.

    chain = nn.Sequential(nn.Embedding(1000, 64), neuron.LIFNode(),
                          layer.Linear(64, 128), layer.BatchNorm1d(128), neuron.LIFNode(),
                          layer.Linear(128, 2))
    integer = from_spikingjelly(chain, timesteps=4, n_max=32)

The chain sees one token at a time: its input at every one of T timesteps is a token's id, its output one value for
each class, summed over timesteps and tokens. Whether its modules are single-step or multi-step changes nothing.

SpikingJelly's neurons charge, fire at `v >= v_threshold`, and are reset to `v_reset`; where that is None, what fires
loses `v_threshold` (a soft reset, here reset "subtract"), and `v_reset` below is 0. With `u = v - v_reset`:

    IFNode                        u = u + x                              fires at u >= v_threshold - v_reset
    LIFNode, decay_input=False    u = (1 - 1/tau) u + x                  fires at u >= v_threshold - v_reset
    LIFNode, decay_input=True     u = (1 - 1/tau) u + x / tau, that is, with u' = tau u
                                  u' = (1 - 1/tau) u' + x                fires at u' >= tau (v_threshold - v_reset)
    ParametricLIFNode             as LIFNode, tau = 1 / sigmoid(w)

So each is a `LoihiLIF` of threshold `level` (the right side), which is absorbed by the weights (`W / level`), of
`decay = round(4096 / tau)` (at most 4095; none for IFNode). What is lost, in accumulator units, `U` of which are the
threshold, for a layer that gets the spikes `x` of its original, whose weights were not cut (`|W / level| U` fits the
weight bits, 2 or more: of 1 bit each is cut) and whose membrane stays within 65535: the two membranes differ after a
step by at most

    error = keep * error_before + (sum(x) + 1) / 2 + |membrane_before| / 4096 + 1 / 128

(rounded weights and bias; rounded decay; membranes truncated to 1/128; none after a hard reset of both), and no spike
differs before the original's membrane is within `error` of its threshold. The strict threshold (`>`) matters only where
an integer threshold is met exactly. Where membranes are whole units (an IFNode, or a single timestep) `>= U` is
`> U - 1`, which is used: then a chain of weights that are integers in these units is reproduced exactly. Not so with a
soft reset and several timesteps, for it takes off the same number that is compared with.

The token table is int8. An encoder's current is the same at every timestep, so a current above the threshold fires at
each of them, one below 0 at none: what int8 cuts is never missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from spikebert.commands import UserError
from spikebert.layers import Encoder, Neuron, Readout, SpikingChain, SpikingLinear
from spikebert.quantisation import THRESHOLD_MAX, apply_norm, choose_units, fold
from spikebert.rounding import round_bias, round_weight
from spikebert.spikingjelly_alone import spikingjelly_alone

with spikingjelly_alone():
    from spikingjelly.activation_based import layer as sj
    from spikingjelly.activation_based import neuron as sj_neuron

CONTAINERS = (nn.Sequential, sj.MultiStepContainer, sj.SeqToANNContainer, sj.StepModeContainer)
PASSED_OVER = (nn.Identity, nn.Dropout, sj.Dropout)  # nothing in evaluation
LINEAR = (nn.Linear, sj.Linear)
NORM = (nn.BatchNorm1d, sj.BatchNorm1d)
NEURONS = (sj_neuron.IFNode, sj_neuron.LIFNode, sj_neuron.ParametricLIFNode)
KINDS = {"Embedding": (nn.Embedding,), "Linear": LINEAR, "BatchNorm1d": NORM, "neuron": NEURONS}
END = "the end"
# What may stand after what.
FOLLOWS = {
    "the beginning": ("Embedding",),
    "Embedding": ("Linear", "BatchNorm1d", "neuron"),
    "Linear": ("BatchNorm1d", "neuron", END),
    "BatchNorm1d": ("neuron", END),
    "neuron": ("Linear",),
}
ACCEPTED = (
    "accepted are, in an nn.Sequential (nested or not): nn.Embedding, [Linear], [BatchNorm1d], neuron; then Linear, "
    "[BatchNorm1d], neuron as often as you like; a last Linear. Linear and BatchNorm1d are torch.nn or SpikingJelly, "
    "as neuron IFNode, LIFNode or ParametricLIFNode; Dropout and Identity may stand anywhere"
)


@dataclass(frozen=True)
class Dynamics:
    """A SpikingJelly neuron as one of ours: `level` is its threshold where inputs are added undiminished.

    whole  `>= U` may be `> U - 1`: its membrane is a sum of currents, whole accumulator units, and its reset a hard one
    """

    level: float
    decay: int
    whole: bool
    reset: str

    @classmethod
    def of(cls, node: nn.Module, timesteps: int) -> Dynamics:
        soft = node.v_reset is None
        rise = node.v_threshold if soft else node.v_threshold - node.v_reset
        reset = "subtract" if soft else "zero"
        if isinstance(node, sj_neuron.IFNode):
            return cls(rise, 0, not soft or timesteps == 1, reset)
        tau = _tau(node)
        return cls(rise * tau if node.decay_input else rise, min(round(4096 / tau), 4095), timesteps == 1, reset)

    @property
    def neuron(self) -> Neuron:
        return Neuron(self.decay, reset=self.reset)


@dataclass(frozen=True, eq=False)
class Stage:
    """Some modules of the chain that become one layer. node: the neuron at its end, None for the last stage."""

    linear: nn.Linear | None
    norm: nn.BatchNorm1d | None
    node: nn.Module | None


@torch.no_grad()
def from_spikingjelly(chain: nn.Module, timesteps: int, n_max: int, weight_bits: int = 8) -> SpikingChain:
    """The integer twin of a chain of SpikingJelly modules, in evaluation; the chain stays as it is.

    timesteps    T, for how many the chain is run
    n_max        the most tokens of a text
    weight_bits  1 .. 8, of every layer but the last, which has 8

    Raises UserError with every module that cannot be taken, why, and what can.
    """
    modules = list(_flatten(chain))
    problems = [f"'{name}' ({type(module).__name__}): {why}" for name, module in modules for why in _problems(module)]
    problems += _out_of_order([(name, module) for name, module in modules if _kind(module)])
    if problems:
        raise UserError("the chain cannot be taken:" + "".join(f"\n  {line}" for line in problems) + f"\n{ACCEPTED}")
    embedding, *others = (module for _, module in modules if _kind(module))
    first, *middle, last = _stages(others)
    return SpikingChain(
        _encoder(embedding, first, timesteps, n_max),
        [_layer(stage, timesteps, weight_bits) for stage in middle],
        _readout(last),
    ).eval()


# What is refused


def _flatten(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Qualified name and module, containers opened."""
    if type(module) in CONTAINERS:
        for key, child in module.named_children():
            yield from _flatten(child, f"{name}.{key}" if name else key)
    else:
        yield name or "the chain", module


def _kind(module: nn.Module) -> str | None:
    return next((kind for kind, types in KINDS.items() if type(module) in types), None)


def _problems(module: nn.Module) -> Iterator[str]:
    """What is wrong with a module wherever it stands."""
    kind = _kind(module)
    if kind is None and type(module) not in PASSED_OVER:
        yield "no such module is taken"
    if kind == "neuron":
        rest = module.v_reset or 0.0  # None is a soft reset
        if not module.v_threshold > rest:
            yield f"v_threshold {module.v_threshold} is not above v_reset {rest}: it must be"
    if kind == "BatchNorm1d" and (module.running_mean is None or module.running_var is None):
        yield "it has no running statistics: make it with track_running_stats=True and train so"
    if kind == "Embedding" and module.max_norm is not None:
        yield "max_norm changes rows while they are read: make it with max_norm=None"
    if not all(bool(torch.isfinite(value).all()) for value in module.state_dict().values()):
        yield "it has weights that are infinite or no numbers"


def _out_of_order(modules: Sequence[tuple[str, nn.Module]]) -> Iterator[str]:
    """What stands where it may not."""
    before = "the beginning"
    for name, module in modules:
        kind = _kind(module)
        assert kind is not None
        if kind not in FOLLOWS[before]:
            fitting = " or ".join(FOLLOWS[before])
            yield f"'{name}' ({type(module).__name__}) stands after {before}, where {fitting} may stand"
        before = kind
    if END not in FOLLOWS[before]:
        last = f"'{modules[-1][0]}' ({type(modules[-1][1]).__name__})" if modules else "nothing"
        yield f"the chain ends with {last}: it must end with a Linear, whose sums over time and tokens are the logits"
    elif not any(_kind(module) == "neuron" for _, module in modules):
        yield "the chain has no neuron: one must stand after the Embedding, or after the Linear that follows it"


# What becomes of the rest


def _stages(modules: Sequence[nn.Module]) -> list[Stage]:
    """What follows the embedding. The first stage has no `linear` where the embedding feeds a neuron itself."""
    stages: list[Stage] = []
    parts: dict[str | None, nn.Module] = {}
    for place, module in enumerate(modules, start=1):
        parts[_kind(module)] = module
        if "neuron" in parts or place == len(modules):
            stages.append(Stage(parts.get("Linear"), parts.get("BatchNorm1d"), parts.get("neuron")))
            parts = {}
    return stages


def _tau(node: nn.Module) -> float:
    return 1.0 / float(node.w.detach().sigmoid()) if isinstance(node, sj_neuron.ParametricLIFNode) else float(node.tau)


def _encoder(embedding: nn.Embedding, stage: Stage, timesteps: int, n_max: int) -> Encoder:
    """What stands before the first neuron is the same for every use of a token: a row of a table."""
    dynamics = Dynamics.of(stage.node, timesteps)
    table = embedding.weight if stage.linear is None else stage.linear(embedding.weight)
    table = (table if stage.norm is None else apply_norm(stage.norm, table)) / dynamics.level
    finest = 127 / max(float(table.max()), 1e-12)
    units = int(min(max(finest, 126), THRESHOLD_MAX))  # from 126 on a current of 127 is above the threshold
    vocabulary, features = table.shape
    encoder = Encoder(vocabulary, features, n_max, timesteps, dynamics.neuron, positions=False).to(table)
    encoder.use_integers(8)
    encoder.threshold.fill_(_threshold(units, dynamics))
    encoder.token.weight.copy_((table * units).round().clamp(-127, 127) / encoder.threshold)
    return encoder


def _layer(stage: Stage, timesteps: int, weight_bits: int) -> SpikingLinear:
    dynamics = Dynamics.of(stage.node, timesteps)
    weight, bias = (value / dynamics.level for value in fold(stage.linear, stage.norm))
    try:
        units = max(choose_units(weight, bias, weight_bits, 1), 2 if dynamics.whole else 1)
    except ValueError as error:
        raise UserError(f"a Linear of {weight.shape[1]:,} inputs: {error}") from None
    scale = torch.tensor(float(units)).to(weight)
    whole_bias = round_bias(bias, scale)
    whole_weight = round_weight(weight, scale, weight_bits, 1, whole_bias)
    layer = SpikingLinear(weight.shape[1], weight.shape[0], dynamics.neuron).to(weight)
    layer.use_integers(weight_bits)
    layer.threshold.fill_(_threshold(units, dynamics))
    layer.linear.weight.copy_(whole_weight / layer.threshold)  # what the layer makes integers of again
    layer.linear.bias.copy_(whole_bias / layer.threshold)
    return layer


def _threshold(units: int, dynamics: Dynamics) -> int:
    """`>= units` as `> threshold`: exact for whole numbers."""
    return units - 1 if dynamics.whole else units


def _readout(stage: Stage) -> Readout:
    weight, bias = fold(stage.linear, stage.norm)
    readout = Readout(weight.shape[1], weight.shape[0]).to(weight)
    readout.use_integers(8)
    readout.linear.weight.copy_(weight)
    readout.linear.bias.copy_(bias)
    readout.steps.fill_(choose_units(weight, bias, 8, 1))
    return readout
