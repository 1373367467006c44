"""Our float network as one writes it with SpikingJelly alone: multi-step neurons, whole padded batches.

It is here to be timed, and to be trained beside ours. Its neuron is SpikingJelly's own (it fires at `>=`, no integers)
with our decay of a half and our surrogate gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn
from torch.nn import functional as F

from spikebert.config import SpikeBertConfig
from spikebert.model import SpikeBertForSequenceClassification

Norm = Callable[[int], nn.Module]  # features -> a module of rows [rows, features]


def lif(threshold: float = 1.0, backend: str = "torch") -> neuron.LIFNode:
    """v = v / 2 + a; fires at the threshold; hard reset to 0, detached. Its surrogate is that of v / threshold - 1."""
    alpha = 2.0 / max(threshold, 1.0)
    return neuron.LIFNode(
        tau=2.0, decay_input=False, v_threshold=threshold, v_reset=0.0, surrogate_function=surrogate.ATan(alpha),
        detach_reset=True, step_mode="m", backend=backend,
    )  # fmt: skip


def missing_backend(backend: str) -> str:
    """What this machine lacks for a backend of SpikingJelly's neuron; empty where it can be used."""
    if backend == "torch":
        return ""
    if not torch.cuda.is_available():
        return "needs a GPU"
    if backend not in neuron.LIFNode(step_mode="m").supported_backends:
        return f"SpikingJelly {version('spikingjelly')} has no such backend"
    if find_spec(backend) is None:
        return f"{backend} is not installed"
    if backend == "cupy" and not hasattr(np, "int"):
        return f"SpikingJelly {version('spikingjelly')} asks for np.int, which NumPy {np.__version__} does not have"
    return ""


class Layer(nn.Module):
    """Linear, norm, LIF on [T, B, N, in]."""

    def __init__(self, inputs: int, outputs: int, norm: Norm, backend: str) -> None:
        super().__init__()
        self.linear, self.norm, self.lif = nn.Linear(inputs, outputs), norm(outputs), lif(backend=backend)

    def forward(self, x: Tensor) -> Tensor:
        current = self.linear(x)
        return self.lif(self.norm(current.flatten(0, 2)).view_as(current))


class Attention(nn.Module):
    """LIF((q k^T) v) for each head, on [T, B, N, D]."""

    def __init__(self, heads: int, threshold: float, backend: str) -> None:
        super().__init__()
        self.heads, self.lif = heads, lif(threshold, backend)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:  # [T, B, N, D] -> [T, B, H, N, d]
            return y.unflatten(-1, (self.heads, -1)).transpose(2, 3)

        mixed = split(q) @ split(k).transpose(-1, -2) @ split(v)
        return self.lif(mixed.transpose(2, 3).flatten(-2))


class Block(nn.Module):
    """Spiking attention and a spiking MLP, each with a residual."""

    def __init__(self, config: SpikeBertConfig, norm: Norm, backend: str) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        if (config.attention_similarity, config.attention_position) != ("and", "none"):
            raise ValueError(
                "this attends as the paper's model does: attention_similarity and, attention_position none"
            )
        self.query, self.key, self.value = (Layer(width, width, norm, backend) for _ in range(3))
        # counts often meet a threshold, where ours does not fire: it is the next float above
        threshold = float(np.nextafter(np.float32(config.attention_threshold), np.float32(np.inf)))
        self.attention = Attention(config.num_attention_heads, threshold, backend)
        self.out = Layer(width, width, norm, backend)
        self.up, self.down = Layer(width, inner, norm, backend), Layer(inner, width, norm, backend)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.out(self.attention(self.query(x), self.key(x), self.value(x) * mask))
        return x + self.down(self.up(x))


class SpikingJellyBert(nn.Module):
    """Of the shape that `config` says. Logits are the mean over timesteps and real tokens.

    norm     between a linear layer and its neurons: BatchNorm as ours, or nn.LayerNorm as the paper's
    backend  SpikingJelly's, of all neurons: "torch", and on a GPU "cupy"
    """

    def __init__(self, config: SpikeBertConfig, norm: Norm = nn.BatchNorm1d, backend: str = "torch") -> None:
        super().__init__()
        self.timesteps = config.timesteps
        self.token = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.lif = lif(backend=backend)
        self.blocks = nn.ModuleList(Block(config, norm, backend) for _ in range(config.num_hidden_layers))
        self.readout = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        """input_ids and attention_mask [B, N], padding on the right, labels [B] -> logits [B, classes], and loss."""
        functional.reset_net(self)
        mask = attention_mask[:, :, None].float()  # [B, N, 1]
        current = self.token(input_ids) + self.position.weight[: input_ids.shape[1]]
        x = self.lif((current * mask).expand(self.timesteps, -1, -1, -1))
        for block in self.blocks:
            x = block(x, mask)
        logits = (self.readout(x).mean(0) * mask).sum(1) / mask.sum(1)
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return SimpleNamespace(logits=logits, loss=loss)


def with_weights_of(ours: SpikeBertForSequenceClassification) -> SpikingJellyBert:
    """The network with SpikingJelly that has the weights of our float model, name by name."""
    model = SpikingJellyBert(ours.config)
    renamed = {
        name.removeprefix("encoder.").replace("readout.linear.", "readout."): value
        for name, value in ours.state_dict().items()
        if not name.endswith((".threshold", ".steps"))  # ours in integer mode
    }
    model.load_state_dict(renamed)
    return model
