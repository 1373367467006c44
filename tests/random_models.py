"""Random models for tests and for `benchmarks/campaign.py`: SpikeBERTs, modules of our layers, SpikingJelly chains.

    shape = draw_shape(rng)            or, for hypothesis, `shapes()`
    model = make_model(shape)          in integer mode
    batch = make_batch(shape, rng)

They are drawn so that they are alive: BatchNorm takes its statistics from a random batch, so that currents are about
as large as thresholds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from spikingjelly.activation_based import layer as sj
from spikingjelly.activation_based import neuron as sj_neuron
from torch import Tensor, nn

from converters.execution import TokenBatch
from spikebert import (
    Add,
    Encoder,
    Neuron,
    PositionBias,
    Readout,
    SpikeBertConfig,
    SpikeBertForSequenceClassification,
    SpikingAttention,
    SpikingLinear,
    from_spikingjelly,
    quantise,
)
from spikebert.layers import Logits
from spikebert.spikes import Spikes

KINDS = ("spikebert", "own", "chain")
VOCABULARY, CLASSES = 20, 3
# What each field of a shape is drawn from, all values equally often.
OPTIONS: dict[str, tuple] = {
    "kind": KINDS,
    "timesteps": (1, 2, 4, 8),
    "heads": tuple(range(1, 13)),
    "features_of_head": (1, 2, 3, 4),
    "n_max": tuple(range(1, 65)),
    "depth": tuple(range(1, 7)),
    "weight_bits": tuple(range(1, 9)),
    "decay": (0, 410, 2048, 4095),
    "encoder": ("lif", "sign"),
    "positions": (False, True),
    "position_spikes": (0, 0, 0, 3),
    "attention_threshold": (0, 1, 4, 16),
    "surrogate": ("atan", "sigmoid"),
    "norm": ("batch", "batch", "layer", "rms", "none", "scalar"),
    "seed": tuple(range(1000)),
    "similarity": ("and", "xnor"),
    "position": ("none", "log", "gray", "learned"),
    "reset": ("zero", "subtract"),
    "spike": ("binary", "binary", "graded", "ternary"),
    "cap": (2, 3, 15),
    "encoder_cap": (1, 1, 2, 15),
    "value_cap": (1, 1, 2, 15),
    "readout": ("sum", "membrane", "spikes"),
}


@dataclass(frozen=True)
class Shape:
    """What a random model is like; `OPTIONS` holds the values. `seed` decides weights and wiring.

    norm "scalar" is "none" with scalar_thresholds; chains have BatchNorm whatever it is, and binary spikes
    cap     of graded spikes; encoder_cap counts with an encoder "lif" alone
    readout "spikes" of a SpikeBERT alone, another model of ours sums; chains sum whatever it is
    """

    kind: str
    timesteps: int
    heads: int
    features_of_head: int
    n_max: int
    depth: int
    weight_bits: int
    decay: int
    encoder: str
    positions: bool
    position_spikes: int
    attention_threshold: int
    surrogate: str
    norm: str
    seed: int
    similarity: str
    position: str
    reset: str
    spike: str
    cap: int
    encoder_cap: int
    value_cap: int
    readout: str

    @property
    def width(self) -> int:
        return self.heads * self.features_of_head

    @property
    def threshold(self) -> int:
        """Of an attention: with "xnor" nearly all features of a head match."""
        return self.attention_threshold * (self.features_of_head if self.similarity == "xnor" else 1)

    def position_bias(self) -> PositionBias | None:
        """A new one, for one attention."""
        if self.position == "none":
            return None
        return PositionBias(self.position, self.n_max, self.heads, self.features_of_head)

    @property
    def decays(self) -> list[int]:
        """Of the encoder and of each block of a SpikeBERT: all `decay`, or for every third seed others too."""
        rng = np.random.default_rng(self.seed)
        others = rng.choice(OPTIONS["decay"], self.depth).tolist()
        return [self.decay, *(others if self.seed % 3 == 0 else [self.decay] * self.depth)]

    @property
    def neurons(self) -> dict[str, Any]:
        """As Neuron takes it."""
        cap = self.cap if self.spike == "graded" else 1
        return {"reset": self.reset, "spike": self.spike, "cap": cap}

    @property
    def sent_by_encoder(self) -> int:
        """The largest spike of the encoder."""
        return self.encoder_cap if self.encoder == "lif" else 1

    @property
    def norms(self) -> dict[str, Any]:
        """As SpikingLinear and SpikeBertConfig take it."""
        scalar = self.norm == "scalar"
        return {"norm": "none" if scalar else self.norm, "scalar_thresholds": scalar}

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in asdict(self).items())


assert tuple(OPTIONS) == tuple(field.name for field in fields(Shape))


def draw_shape(rng: np.random.Generator, **fixed: Any) -> Shape:
    """A random shape; fields in `fixed` have the value given."""
    drawn = {name: values[rng.integers(len(values))] for name, values in OPTIONS.items()}
    return Shape(**(drawn | fixed))


def shapes(**fixed: Any) -> st.SearchStrategy[Shape]:
    """The same for hypothesis, which finds the smallest shape that fails."""
    drawn = {name: st.sampled_from(values) for name, values in OPTIONS.items()}
    return st.builds(Shape, **(drawn | {name: st.just(value) for name, value in fixed.items()}))


def make_batch(shape: Shape, rng: np.random.Generator, samples: int = 3) -> TokenBatch:
    """Random ids; lengths from 1 to n_max, one text as long as the batch is wide."""
    lengths = rng.integers(1, shape.n_max + 1, samples)
    lengths[rng.integers(samples)] = shape.n_max
    mask = np.arange(shape.n_max) < lengths[:, None]
    return TokenBatch(rng.integers(0, VOCABULARY, mask.shape), mask)


def make_model(shape: Shape) -> nn.Module:
    """A model of this shape in integer mode, ready for `graph_from_model`."""
    torch.manual_seed(shape.seed)
    rng = np.random.default_rng(shape.seed)
    if shape.kind == "chain":
        return from_spikingjelly(make_chain(shape, rng), shape.timesteps, shape.n_max, shape.weight_bits)
    model = OwnModel(shape, rng) if shape.kind == "own" else make_spikebert(shape)
    for module in model.modules():
        if isinstance(module, PositionBias) and module.weight is not None:
            nn.init.uniform_(module.weight, -1.2, 1.2)  # beyond 1 too, where it is cut
    return quantise(calibrate(model, make_batch(shape, rng, samples=4)), shape.weight_bits)


def calibrate(model: nn.Module, batch: TokenBatch) -> nn.Module:
    """Take the statistics of every BatchNorm from a batch, and gains and shifts at random."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.bias, 0.2, 0.5)
    for layer in model.modules():  # what is over features alone, or learned without a norm, has no statistics
        if isinstance(layer, SpikingLinear) and not isinstance(layer.norm, nn.BatchNorm1d):
            others = [layer.log_threshold] if layer.norm is None else list(layer.norm.parameters())
            for parameter in (layer.linear.bias, *others):
                parameter.data.add_(0.3 * torch.randn_like(parameter))
    with torch.no_grad():
        model.train()(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask))
    for norm in norms:
        norm.running_var.clamp_(min=1e-2)  # of a feature that never changed
    return model.eval()


def make_spikebert(shape: Shape) -> SpikeBertForSequenceClassification:
    return SpikeBertForSequenceClassification(
        SpikeBertConfig(
            vocab_size=VOCABULARY,
            hidden_size=shape.width,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            intermediate_size=shape.width + shape.seed % 7,
            max_position_embeddings=max(shape.n_max, 2),  # [CLS] and [SEP]
            timesteps=shape.timesteps,
            decay=shape.decays,
            reset=shape.reset,
            spike=shape.spike,
            spike_cap=shape.neurons["cap"],
            encoder_cap=shape.sent_by_encoder,
            value_cap=shape.value_cap,
            graded_gain=2.0,
            encoder=shape.encoder,
            positions=shape.positions,
            position_spikes=shape.position_spikes,
            attention_threshold=shape.threshold,
            attention_similarity=shape.similarity,
            attention_position=shape.position,
            surrogate=shape.surrogate,
            readout=shape.readout,
            num_labels=CLASSES,
            **shape.norms,
        )
    )


class OwnModel(nn.Module):
    """Layers of several widths, used once or twice, additions of two to four, attentions: wired at random."""

    def __init__(self, shape: Shape, rng: np.random.Generator) -> None:
        super().__init__()
        neuron = Neuron(shape.decay, shape.surrogate, **shape.neurons)
        other = Neuron(int(rng.choice(OPTIONS["decay"])))  # not all layers alike
        self.encoder = Encoder(
            VOCABULARY,
            shape.width,
            shape.n_max,
            shape.timesteps,
            neuron.counting(shape.sent_by_encoder),
            shape.encoder,
            shape.positions,
            shape.position_spikes,
        )
        self.layers = nn.ModuleDict()
        self.plan: list[tuple[str, list[int]]] = []  # layer ("" for a plain +) and the places of its inputs
        widths, neurons = (
            [shape.width + shape.position_spikes],
            [False],
        )  # of every value so far; whether it comes from a LIF that sends bits

        def step(name: str, layer: nn.Module | None, inputs: list[int], width: int, fires: bool) -> None:
            if layer is not None:
                self.layers[name] = layer
            self.plan.append((name, inputs))
            widths.append(width)
            neurons.append(fires)

        for index in range(2 * shape.depth):
            kind = rng.choice(["linear", "linear", "add", "attention", "again"])
            alike = [place for place, width in enumerate(widths) if width == widths[-1]]
            if kind == "add":
                inputs = [int(place) for place in rng.choice(alike, size=rng.integers(2, 5))]
                named = bool(rng.integers(2)) and len(inputs) > 1
                step(f"add{index}" if named else "", Add() if named else None, inputs, widths[-1], False)
                continue
            firing = [place for place, fires in enumerate(neurons) if fires and widths[place] == shape.width]
            if kind == "attention" and firing:
                inputs = [int(place) for place in rng.choice(firing, size=3)]
                if shape.value_cap > 1:
                    value = SpikingLinear(widths[-1], shape.width, neuron.counting(shape.value_cap), **shape.norms)
                    step(f"value{index}", value, [len(widths) - 1], shape.width, False)
                    inputs[2] = len(widths) - 1
                attention = SpikingAttention(
                    shape.heads, shape.threshold, other, shape.similarity, shape.position_bias()
                )
                step(f"attention{index}", attention, inputs, shape.width, True)
                continue
            earlier = [name for name, layer in self.layers.items() if isinstance(layer, SpikingLinear)]
            fitting = [name for name in earlier if self.layers[name].linear.in_features == widths[-1]]
            if kind == "again" and fitting:
                name = str(rng.choice(fitting))
                layer = self.layers[name]
                step(name, None, [len(widths) - 1], layer.linear.out_features, layer.lif.spike == "binary")
                continue
            width = int(rng.choice([shape.width, shape.width, rng.integers(1, 2 * shape.width + 1)]))
            place = len(widths) - 1 if kind == "linear" else int(rng.choice(alike))
            layer = SpikingLinear(widths[place], width, [neuron, other][rng.integers(2)], **shape.norms)
            step(f"linear{index}", layer, [place], width, layer.lif.spike == "binary")
        self.readout = Readout(
            widths[-1], CLASSES, "membrane" if shape.readout == "membrane" else "sum", shape.decays[-1]
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Logits:
        values: list[Spikes] = [self.encoder(input_ids, attention_mask)]
        for name, inputs in self.plan:
            chosen = [values[place] for place in inputs]
            values.append(self.layers[name](*chosen) if name else sum(chosen))
        return self.readout(values[-1])


def make_chain(shape: Shape, rng: np.random.Generator) -> nn.Sequential:
    """A SpikingJelly chain of `depth` neurons, with all that `from_spikingjelly` takes."""
    width, modules = shape.width, []
    embedding = nn.Embedding(VOCABULARY, width)
    modules.append(embedding)
    for index in range(shape.depth):
        node = make_node(shape, rng)
        level = _level(node)
        new = int(rng.integers(1, 2 * shape.width + 1))
        if index == 0 and rng.integers(2):  # the embedding feeds the neuron itself
            nn.init.normal_(embedding.weight, 0.2 * level, 0.8 * level)
        else:
            kind = (nn.Linear, sj.Linear)[rng.integers(2)]
            linear = kind(width, new, bias=bool(rng.integers(2)))
            nn.init.normal_(linear.weight, 0, 1.5 * level / (1 if index == 0 else 0.3 * width) ** 0.5)
            stage: list[nn.Module] = [linear]
            if rng.integers(2):
                norm = (nn.BatchNorm1d, sj.BatchNorm1d)[rng.integers(2)](new, affine=bool(rng.integers(2)))
                norm.running_mean.normal_(0, 0.3 * level)
                norm.running_var.fill_(1.0).mul_(level**2 if norm.affine else 1.0)
                if norm.affine:
                    nn.init.normal_(norm.weight, level, 0.2 * level)
                    nn.init.normal_(norm.bias, 0.2 * level, 0.3 * level)
                stage.append(norm)
            modules += [nn.Sequential(*stage), nn.Dropout(0.2)] if rng.integers(2) else stage
            width = new
        modules.append(node)
    return nn.Sequential(*modules, nn.Linear(width, CLASSES)).eval()


def make_node(shape: Shape, rng: np.random.Generator) -> nn.Module:
    """A random SpikingJelly neuron; `decay` 0 asks for an IFNode."""
    hard = float(rng.choice([0.0, 0.0, -0.5]))
    v_reset = None if shape.reset == "subtract" else hard
    common = {"v_threshold": float(rng.uniform(0.5, 2.0)), "v_reset": v_reset, "step_mode": "s"}
    decay_input = bool(rng.integers(2))
    if shape.decay == 0:
        return sj_neuron.IFNode(**common)
    tau = float(rng.choice([4096 / shape.decay, rng.uniform(1.1, 8.0)]))
    kind: Callable = (sj_neuron.LIFNode, sj_neuron.ParametricLIFNode)[rng.integers(2)]
    if kind is sj_neuron.LIFNode:
        return kind(tau=tau, decay_input=decay_input, **common)
    return kind(init_tau=tau, decay_input=decay_input, **common)


def _level(node: nn.Module) -> float:
    """About the current at which it fires."""
    tau = 1.0
    if getattr(node, "decay_input", False):
        tau = node.tau if isinstance(node, sj_neuron.LIFNode) else 1.0 / float(node.w.detach().sigmoid())
    return (node.v_threshold - (node.v_reset or 0.0)) * min(tau, 3.0)
