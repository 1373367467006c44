"""Our float network as one writes it with SpikingJelly alone: multi-step neurons, whole padded batches.

It is here to be timed: its weights are random, its neuron is SpikingJelly's own (threshold `>=`, no integers).
"""

from __future__ import annotations

from types import SimpleNamespace

from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

from spikebert.config import SpikeBertConfig


def lif(threshold: float = 1.0) -> neuron.LIFNode:
    """v = v / 2 + a; fires at the threshold; hard reset to 0."""
    return neuron.LIFNode(
        tau=2.0, decay_input=False, v_threshold=threshold, v_reset=0.0, step_mode="m", backend="torch"
    )


class Layer(nn.Module):
    """Linear, BatchNorm, LIF on [T, B, N, in]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.norm, self.lif = nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), lif()

    def forward(self, x: Tensor) -> Tensor:
        current = self.linear(x)
        return self.lif(self.norm(current.flatten(0, 2)).view_as(current))


class Block(nn.Module):
    """Spiking attention and a spiking MLP, each with a residual."""

    def __init__(self, config: SpikeBertConfig) -> None:
        super().__init__()
        width, inner, self.heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
        self.query, self.key, self.value = Layer(width, width), Layer(width, width), Layer(width, width)
        self.attention_lif, self.out = lif(float(config.attention_threshold)), Layer(width, width)
        self.up, self.down = Layer(width, inner), Layer(inner, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:  # [T, B, N, D] -> [T, B, H, N, d]
            return y.unflatten(-1, (self.heads, -1)).transpose(2, 3)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x) * mask)
        mixed = (q @ k.transpose(-1, -2) @ v).transpose(2, 3).flatten(-2)
        x = x + self.out(self.attention_lif(mixed))
        return x + self.down(self.up(x))


class SpikingJellyBert(nn.Module):
    """Of the shape that `config` says. Logits are the mean over timesteps and real tokens."""

    def __init__(self, config: SpikeBertConfig) -> None:
        super().__init__()
        self.timesteps = config.timesteps
        self.token = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.lif = lif()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.readout = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        functional.reset_net(self)
        mask = attention_mask[:, :, None].float()  # [B, N, 1]
        current = self.token(input_ids) + self.position.weight[: input_ids.shape[1]]
        x = self.lif((current * mask).expand(self.timesteps, -1, -1, -1))
        for block in self.blocks:
            x = block(x, mask)
        logits = (self.readout(x).mean(0) * mask).sum(1) / mask.sum(1)
        return SimpleNamespace(logits=logits)
