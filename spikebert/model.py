"""The spiking BERT for text classification: Spikformer blocks between an encoder and a readout (`layers.py`).

One class serves both modes. In "float" a layer is Linear, norm, LIF with threshold 1. In "integer" BatchNorm is folded
into the layer, a norm over features computes with integers, weights are rounded in the forward pass (straight-through
gradients), and every number computed is an integer that the graph computes too.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import ModelOutput

from spikebert.config import SpikeBertConfig
from spikebert.gradient_checkpointing import checkpointed
from spikebert.layers import Block, Encoder, Neuron, Readout, SpikingLayer, SpikingLinear
from spikebert.operations import forget, operations_to, readout_operations
from spikebert.positions import PositionBias
from spikebert.recording import Step, packed_values, qualified_names, steps_to
from spikebert.spikes import Spikes

TOKEN_DEVIATION = 0.5  # of new token currents: a few per cent of the encoder's neurons fire
VOTE = 8.0  # logits of a class whose neurons fire at every timestep, before training


@dataclass
class SpikeBertOutput(ModelOutput):
    """What the model returns.

    loss            cross entropy, if labels were given
    logits          float [B, classes], the mean over timesteps and real tokens
    integer_logits  int64 [B, classes], integer mode only: the sums a chip's host makes
    hidden_states   encoder (mixed with its spike-coded positions, if it has some) and every block: mean over T of its
                    spikes, float [B, N, D], padding 0
    firing_rates    node name -> spikes / (T * real tokens * features), whatever their size; of an Add its mean value
    trace           node name -> value [T, B, N, D] of the nodes asked for, padding 0; names as in the graph
    operations      float [], synaptic operations of linear layers and readout, all tokens and timesteps together;
                    see `spikebert.operations`
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    integer_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    firing_rates: dict[str, Tensor] | None = None
    trace: dict[str, Tensor] | None = None
    operations: Tensor | None = None


class SpikeBertForSequenceClassification(PreTrainedModel):
    """A spiking BERT that classifies texts. Hugging Face conventions throughout."""

    config_class = SpikeBertConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    gradient_checkpointing = False  # see `gradient_checkpointing_enable`; it sets `_gradient_checkpointing_func` too

    def __init__(self, config: SpikeBertConfig) -> None:
        super().__init__(config)
        neuron, *neurons = (
            Neuron(decay, config.surrogate, config.surrogate_alpha, config.reset, config.spike, config.spike_cap)
            for decay in config.decays
        )
        width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
        self.encoder = Encoder(
            config.vocab_size, width, config.max_position_embeddings, config.timesteps,
            neuron.counting(config.encoder_cap), config.encoder, config.positions, config.position_spikes,
            config.graded_gain,
        )  # fmt: skip
        norm, scalar = config.norm, config.scalar_thresholds
        first = 3 if config.encoder == "sign" else 1  # constant spikes, half of them 1, are about as many as three
        self.mix: SpikingLinear | None = None
        if config.position_spikes:
            inputs = width + config.position_spikes
            self.mix = SpikingLinear(inputs, width, neuron, norm, scalar, first, config.graded_gain)
            first = 1
        self.blocks = nn.ModuleList(
            Block(
                width,
                inner,
                heads,
                config.attention_threshold,
                own,
                config.attention_similarity,
                position_bias_of(config),
                norm,
                scalar,
                spikes_in=first + 2 * number,
                value_cap=config.value_cap,
                gain=config.graded_gain,
            )
            for number, own in enumerate(neurons)
        )
        classes, kind = config.num_labels, "membrane" if config.readout == "membrane" else "sum"
        self.head: SpikingLinear | None = None
        if config.readout == "spikes":
            spikes_in = first + 2 * config.num_hidden_layers
            self.head = SpikingLinear(width, classes, neurons[-1], norm, scalar, spikes_in)
        self.readout = Readout(width if self.head is None else classes, classes, kind, config.decays[-1])
        self.encoder.token_bits = config.token_bits
        if config.mode == "integer":
            for layer in self.modules():
                if isinstance(layer, SpikingLayer):
                    layer.use_integers(config.weight_bits)
        self.post_init()

    def set_timesteps(self, timesteps: int) -> None:
        """Run for another number of timesteps than it was trained for. Raises ValueError as `Encoder.set_timesteps`.

        What happens at a timestep does not depend on how many follow: the values of the first ones stay as they are,
        and the logits are means over more or fewer.
        """
        self.encoder.set_timesteps(timesteps)
        self.config.timesteps = timesteps

    @property
    def _readout_scale(self) -> float:
        """Of weights that read sums of spikes, not of bits: how large they begin, and how fast they learn."""
        return 1 / self.config.residual_cap

    def renew_readout(self) -> None:
        """Begin anew with the readout of graded spikes, which earlier versions began with as large weights as that of
        bits; another one is left as it is."""
        if self.head is None and self._readout_scale != 1:
            self._init_weights(self.readout)

    def learning_rates(self, token_rate: float) -> dict[nn.Parameter, float]:
        """How many times as fast as all others some parameters are to learn.

        The token table `token_rate` times, for a batch holds few of its rows. Where graded spikes are sent norms and
        places `gain` times: a step of Adam is as long as the learning rate whatever it moves, and currents that are
        spread over so many thresholds would take as many times the steps to leave one. And the readout the less, the
        larger the spikes are that its states are sums of, as the maps of `Alignment`: none is below 0, so its steps add
        up, and logits would jump.
        """
        rates = {self.encoder.token.weight: token_rate}
        if self.head is None and self._readout_scale != 1:
            rates[self.readout.linear.weight] = self._readout_scale
        for layer in self.modules():
            if isinstance(layer, (Encoder, SpikingLinear)) and layer.gain != 1:
                rates |= dict.fromkeys(layer.scaled, layer.gain)
        return rates

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.token

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.encoder.token = value

    def _init_weights(self, module: nn.Module) -> None:
        """Linear as torch does; token currents that let a few per cent of the encoder's neurons fire; spikes of a class
        vote for it."""
        if isinstance(module, nn.Embedding):
            gain = self.encoder.gain if module is self.encoder.token else 1.0
            nn.init.normal_(module.weight, std=TOKEN_DEVIATION * gain)
        elif isinstance(module, SpikingLinear):
            module.set_gain()  # after its own norm
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm)):
            module.reset_parameters()
        elif isinstance(module, Readout) and self.head is not None:
            nn.init.eye_(module.linear.weight).mul_(VOTE)  # after its own Linear
        elif isinstance(module, Readout) and self._readout_scale != 1:
            bound = self._readout_scale / module.linear.in_features**0.5  # torch's, but for the scale
            nn.init.uniform_(module.linear.weight, -bound, bound)  # after its own Linear
        elif isinstance(module, PositionBias):
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
        output_operations: bool = False,
    ) -> SpikeBertOutput | tuple:
        """input_ids [B, N] and attention_mask [B, N] (1 real, 0 padding; all real where it is None).

        What tokenizers add as `token_type_ids` is not used. With gradient checkpointing a training step keeps of each
        block its input alone; asked for firing rates or a trace, it keeps all.

        Raises ValueError as `Encoder` does.
        """
        records = output_firing_rates or bool(output_trace)
        x = self.encoder(input_ids, attention_mask)
        if self.mix is not None:
            x = self._run(self.mix, x, records, output_operations)
        states = [x]
        for block in self.blocks:
            x = self._run(block, x, records, output_operations)
            states.append(x)
        if self.head is not None:
            x = self._run(self.head, x, records, output_operations)
        logits, integer_logits, current = self.readout(x)
        wants_hidden = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        steps = steps_to(x, qualified_names(self)) if records else ()
        values = packed_values(steps) | {"readout": current}
        output = SpikeBertOutput(
            loss=None if labels is None else F.cross_entropy(logits.float(), labels),
            logits=logits,
            integer_logits=integer_logits,
            hidden_states=tuple(x.packing.unpack(x.values.mean(0)) for x in states) if wants_hidden else None,
            firing_rates=firing_rates(steps) if output_firing_rates else None,
            trace={name: x.packing.unpack(values[name]) for name in output_trace} if output_trace else None,
            operations=operations_to(x) + readout_operations(self.readout, x) if output_operations else None,
        )
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return output if wants_dict else output.to_tuple()

    def _run(self, block: nn.Module, x: Spikes, records: bool, counts_operations: bool) -> Spikes:
        """`block(x)`, in training without the history that nobody reads: it would be kept until the readout."""
        if records or not self.training:
            return block(x)
        if self.gradient_checkpointing:
            return checkpointed(
                block, x, self._gradient_checkpointing_func, operations_to if counts_operations else None
            )
        return forget(block(x), counts_operations)


def position_bias_of(config: SpikeBertConfig) -> PositionBias | None:
    """A new one, for one attention."""
    if config.attention_position == "none":
        return None
    heads = config.num_attention_heads
    size, tokens = config.hidden_size // heads, config.max_position_embeddings
    return PositionBias(config.attention_position, tokens, heads, size, config.value_cap)


def firing_rates(steps: tuple[Step, ...]) -> dict[str, Tensor]:
    """Spikes / (T * real tokens * features) of all neurons, and the mean value of additions."""
    values = {step: step.spikes.values.detach() for step in steps}
    neurons = {step for step in steps if isinstance(step.layer, SpikingLayer)}
    return {step.output: ((x != 0).to(x) if step in neurons else x).mean() for step, x in values.items()}


AutoConfig.register(SpikeBertConfig.model_type, SpikeBertConfig)
AutoModelForSequenceClassification.register(SpikeBertConfig, SpikeBertForSequenceClassification)
