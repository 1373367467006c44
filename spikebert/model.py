"""The spiking BERT for text classification, readable at one sitting.

Letters: T timesteps, B texts, N tokens, D features, H heads, d = D / H. Layers that look at one token at
a time work on *packed* tokens `[T, R, D]`, R the number of real tokens in the batch: padding costs nothing,
takes no part in BatchNorm, and is silent because it is not there. Only attention unpacks to `[T, B, N, D]`.

One class serves both modes. In "float" a layer is Linear, BatchNorm, LIF with threshold 1. In "integer"
BatchNorm is folded into the layer, weights are rounded in the forward pass (straight-through gradients),
and every number computed is an integer that the graph computes too.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import ModelOutput

from spikebert.config import SpikeBertConfig
from spikebert.integer_linear import integer_linear
from spikebert.neurons import LoihiLIF
from spikebert.packing import Packing, linear_in_buckets
from spikebert.rounding import round_bias, round_straight_through, round_weight

Trace = dict[str, Tensor]  # node name -> packed value [T, R, D]


@dataclass
class SpikeBertOutput(ModelOutput):
    """What the model returns.

    loss            cross entropy, if labels were given
    logits          float [B, classes], the mean over timesteps and real tokens
    integer_logits  int64 [B, classes], integer mode only: the sums a chip's host makes
    hidden_states   encoder and every block: mean over T of its spikes, float [B, N, D], padding 0
    firing_rates    node name -> spikes / (T * real tokens * features); of an Add its mean value
    trace           node name -> value [T, B, N, D] of the nodes asked for, padding 0; names as in the graph
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    integer_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    firing_rates: dict[str, Tensor] | None = None
    trace: dict[str, Tensor] | None = None


def make_lif(config: SpikeBertConfig) -> LoihiLIF:
    return LoihiLIF(config.decay, config.mode == "integer", config.surrogate, config.surrogate_alpha)


class Encoder(nn.Module):
    """Token ids to spikes: current = token + position, then a LIF, or its sign at every t."""

    def __init__(self, config: SpikeBertConfig) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size) if config.positions else None
        self.lif = make_lif(config)
        self.register_buffer("threshold", torch.tensor(1.0))  # integer mode: in units of the table

    def round_token(self, token: Tensor) -> Tensor:
        """Integer mode: rows of the table in its units, int8 held in floats; gradients pass."""
        return round_straight_through(token * self.threshold).clamp(-127, 127)

    def round_position(self, position: Tensor) -> Tensor:
        """Integer mode: rows of the position table in the same units."""
        return round_straight_through(position * self.threshold)

    def current(self, input_ids: Tensor, packing: Packing) -> Tensor:
        """[B, N] ids -> the current of each real token [R, D]"""
        ids = input_ids.flatten().index_select(0, packing.index)  # [R]
        integer = self.config.mode == "integer"
        token = self.token(ids)
        current = self.round_token(token) if integer else token
        if self.position is None:
            return current
        position = self.position(packing.places)
        return current + (self.round_position(position) if integer else position)

    def forward(self, input_ids: Tensor, packing: Packing, trace: Trace) -> Tensor:
        current = self.current(input_ids, packing)
        if self.config.encoder == "sign":
            step = self.lif.surrogate_function(current / self.threshold)  # SpikingJelly's step is >= 0
            spikes = step.expand(self.config.timesteps, -1, -1)
        else:
            spikes = self.lif(current.expand(self.config.timesteps, -1, -1), self.threshold)
        trace["encoder"] = spikes
        return spikes  # [T, R, D]


class SpikingLinear(nn.Module):
    """Linear -> BatchNorm -> LIF on packed tokens; in integer mode integer Linear -> LIF.

    input_max is the largest value an input can have: 1 for spikes, more behind residual additions.
    """

    def __init__(self, name: str, inputs: int, outputs: int, input_max: int, config: SpikeBertConfig) -> None:
        super().__init__()
        self.name = name
        self.input_max = input_max
        self.config = config
        self.linear = nn.Linear(inputs, outputs)
        self.norm = nn.BatchNorm1d(outputs) if config.mode == "float" else None
        self.lif = make_lif(config)
        self.register_buffer("threshold", torch.tensor(1.0))  # integer mode: accumulator units

    def integers(self) -> tuple[Tensor, Tensor]:
        """Integer mode: weight [out, in] and bias [out], integers held in floats, with gradients."""
        bias = round_bias(self.linear.bias, self.threshold)
        weight = round_weight(self.linear.weight, self.threshold, self.config.weight_bits, self.input_max, bias)
        return weight, bias

    def forward(self, x: Tensor, trace: Trace) -> Tensor:
        rows = x.flatten(0, 1)  # [T * R, in]
        if self.norm is None:
            current = integer_linear(rows, *self.integers(), self.input_max)
        else:
            current = self.norm(linear_in_buckets(self.linear, rows))
        current = current.unflatten(0, x.shape[:2])
        spikes = self.lif(current, self.threshold)
        trace[self.name], trace[f"{self.name}.lif"] = current, spikes
        return spikes


class SpikingAttention(nn.Module):
    """LIF((q k^T) v) for each head, on spikes: an N x N map of counts, no softmax, no scale."""

    def __init__(self, name: str, config: SpikeBertConfig) -> None:
        super().__init__()
        self.name = name
        self.heads = config.num_attention_heads
        self.threshold = config.attention_threshold
        self.lif = make_lif(config)
        # bf16 holds counts up to 256 exactly. A score is at most d; a larger sum is above such a threshold however it
        # is rounded, so the spikes are the same. An integer model keeps every number exact.
        features = config.hidden_size // config.num_attention_heads
        self.mixed_precision = config.mode == "float" and features <= 256 and self.threshold < 256

    def forward(self, q: Tensor, k: Tensor, v: Tensor, packing: Packing, trace: Trace) -> Tensor:
        def split(x: Tensor) -> Tensor:  # [T, R, D] -> [T, B, H, N, d]
            return packing.unpack(x).unflatten(-1, (self.heads, -1)).transpose(2, 3)

        enabled = self.mixed_precision and torch.is_autocast_enabled(q.device.type)
        with torch.autocast(q.device.type, enabled=enabled):
            scores = split(q) @ split(k).transpose(-1, -2)  # [T, B, H, N, N]
            mixed = (scores @ split(v)).transpose(2, 3).flatten(-2)  # [T, B, N, D]
        current = packing.pack(mixed).to(q.dtype)
        spikes = self.lif(current, self.threshold)
        trace[self.name], trace[f"{self.name}.lif"] = current, spikes
        return spikes


class Block(nn.Module):
    """Spiking attention and a spiking MLP, each followed by a residual addition of spikes."""

    def __init__(self, index: int, config: SpikeBertConfig) -> None:
        super().__init__()
        self.name = name = f"blocks.{index}"
        width, inner = config.hidden_size, config.intermediate_size
        input_max = 1 + 2 * index  # the encoder's spike, and two more for each block before
        self.query = SpikingLinear(f"{name}.query", width, width, input_max, config)
        self.key = SpikingLinear(f"{name}.key", width, width, input_max, config)
        self.value = SpikingLinear(f"{name}.value", width, width, input_max, config)
        self.attention = SpikingAttention(f"{name}.attention", config)
        self.out = SpikingLinear(f"{name}.out", width, width, 1, config)
        self.up = SpikingLinear(f"{name}.up", width, inner, input_max + 1, config)
        self.down = SpikingLinear(f"{name}.down", inner, width, 1, config)

    def forward(self, x: Tensor, packing: Packing, trace: Trace) -> Tensor:
        q, k, v = self.query(x, trace), self.key(x, trace), self.value(x, trace)
        x = x + self.out(self.attention(q, k, v, packing, trace), trace)
        trace[f"{self.name}.add_attention"] = x
        x = x + self.down(self.up(x, trace), trace)
        trace[f"{self.name}.add_mlp"] = x
        return x


class Readout(nn.Module):
    """A linear classifier of each token at each t; logits are its mean over timesteps and real tokens."""

    def __init__(self, config: SpikeBertConfig) -> None:
        super().__init__()
        self.config = config
        self.input_max = 1 + 2 * config.num_hidden_layers
        self.linear = nn.Linear(config.hidden_size, config.num_labels)
        self.register_buffer("steps", torch.tensor(1.0))  # integer mode: accumulator units per logit unit

    def integers(self) -> tuple[Tensor, Tensor]:
        bias = round_bias(self.linear.bias, self.steps)
        return round_weight(self.linear.weight, self.steps, 8, self.input_max, bias), bias

    def forward(self, x: Tensor, packing: Packing, trace: Trace) -> tuple[Tensor, Tensor | None]:
        integer = self.config.mode == "integer"
        with torch.autocast(x.device.type, enabled=False):
            current = F.linear(x, *self.integers()) if integer else self.linear(x)
        trace["readout"] = current
        summed = packing.sum_per_text(current.sum(0, dtype=torch.float64))  # exact: far below 2^53
        mean = summed / (self.config.timesteps * packing.lengths[:, None])
        if not integer:
            return mean.to(current.dtype), None
        return (mean / self.steps).to(current.dtype), summed.detach().round().long()


class SpikeBertForSequenceClassification(PreTrainedModel):
    """A spiking BERT that classifies texts. Hugging Face conventions throughout."""

    config_class = SpikeBertConfig
    base_model_prefix = ""
    main_input_name = "input_ids"

    def __init__(self, config: SpikeBertConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.blocks = nn.ModuleList(Block(index, config) for index in range(config.num_hidden_layers))
        self.readout = Readout(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.token

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.encoder.token = value

    def _init_weights(self, module: nn.Module) -> None:
        """Linear as torch does; token currents that let a few per cent of the encoder's neurons fire."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d):
            module.reset_parameters()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_firing_rates: bool = False,
        output_trace: Collection[str] = (),
        return_dict: bool | None = None,
        token_type_ids: Tensor | None = None,
    ) -> SpikeBertOutput | tuple:
        """input_ids [B, N] and attention_mask [B, N] (1 real, 0 padding; all real where it is None).

        Padding never changes a result, on whichever side it stands: positions count real tokens. What
        tokenizers add as `token_type_ids` is not used. Raises ValueError for a text longer than
        `max_position_embeddings` or with no real token, and for an integer model in less than float32.
        """
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"{input_ids.shape[1]} tokens, the model takes {self.config.max_position_embeddings}: truncate the text"
            )
        if self.config.mode == "integer" and self.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"an integer model in {self.dtype} would lose integers: load it in float32")
        packing = Packing(torch.ones_like(input_ids) if attention_mask is None else attention_mask)
        if not bool(packing.lengths.all()):
            raise ValueError("a text with an all-zero attention_mask: every text has at least [CLS] and [SEP]")
        trace: Trace = {}
        x = self.encoder(input_ids, packing, trace)  # [T, R, D]
        hidden = [x]
        for block in self.blocks:
            x = block(x, packing, trace)
            hidden.append(x)
        logits, integer_logits = self.readout(x, packing, trace)
        wants_hidden = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output = SpikeBertOutput(
            loss=None if labels is None else F.cross_entropy(logits.float(), labels),
            logits=logits,
            integer_logits=integer_logits,
            hidden_states=tuple(packing.unpack(x.mean(0)) for x in hidden) if wants_hidden else None,
            firing_rates=firing_rates(trace) if output_firing_rates else None,
            trace={name: packing.unpack(trace[name]) for name in output_trace} if output_trace else None,
        )
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return output if wants_dict else output.to_tuple()


def firing_rates(trace: Trace) -> dict[str, Tensor]:
    """The mean value of every spiking node: spikes / (T * real tokens * features)."""
    spiking = [name for name in trace if name == "encoder" or name.endswith(".lif") or ".add_" in name]
    return {name: trace[name].detach().mean() for name in spiking}


AutoConfig.register(SpikeBertConfig.model_type, SpikeBertConfig)
AutoModelForSequenceClassification.register(SpikeBertConfig, SpikeBertForSequenceClassification)
