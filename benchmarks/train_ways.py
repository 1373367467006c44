"""The ways to train that `train.py` compares, and one step of training."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from benchmarks.spikingjelly_model import SpikingJellyBert, missing_backend
from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification
from spikebert.commands import UserError, processors
from spikebert.loop import GRADIENT_NORM, Schedule, choose_precision, learning_rate, parameter_groups
from spikebert.pupil import Classifier
from spikebert.quantisation import quantise

Batch = dict[str, Tensor]  # input_ids, attention_mask, labels

OURS, PLAIN = "ours", "SpikingJelly"
CLIPPING = "clipping"  # its name in a profile
HEAD_SIZE = 64
LEARNING_RATE = 2e-3  # the highest of stage 2


@dataclass(frozen=True)
class Shape:
    """Of a network. Heads have 64 features, the MLP has 4 times as many features as a token."""

    depth: int
    width: int
    timesteps: int = 4
    n_max: int = 64

    def __str__(self) -> str:
        return f"{self.depth} x {self.width}"

    @classmethod
    def parse(cls, text: str) -> Shape:
        """`6x384`: depth x width. Raises UserError for another form."""
        depth, cross, width = text.partition("x")
        if not (cross and depth.isdigit() and width.isdigit() and int(depth) and int(width)):
            raise UserError(f"shape '{text}': give blocks x features, such as 6x384")
        return cls(int(depth), int(width))

    def config(self, vocabulary: int, classes: int) -> SpikeBertConfig:
        return SpikeBertConfig(
            vocab_size=vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=max(1, self.width // HEAD_SIZE),
            intermediate_size=4 * self.width,
            max_position_embeddings=self.n_max,
            timesteps=self.timesteps,
            num_labels=classes,
        )


@dataclass(frozen=True)
class Way:
    """How a network is made and trained.

    maker      "float" and "integer": ours; "spikingjelly": the same with SpikingJelly; "paper": that with LayerNorm
    precision  of `spikebert.recipe.PRECISIONS`
    backend    SpikingJelly's
    """

    maker: str
    precision: str
    backend: str = "torch"

    def mixed(self) -> bool:
        """Whether products are made in bf16 here."""
        return choose_precision(self.precision) == "bf16"

    def missing(self) -> str:
        """What this machine lacks for it; empty where it can be run."""
        return missing_backend(self.backend)


WAYS = {
    OURS: Way("float", "auto"),
    "ours, float32": Way("float", "float32"),
    "ours, integer": Way("integer", "auto"),
    PLAIN: Way("spikingjelly", "float32"),
    "SpikingJelly, bf16": Way("spikingjelly", "bf16"),
    "paper's layer": Way("paper", "float32"),
    "SpikingJelly, cupy": Way("spikingjelly", "float32", "cupy"),
    "SpikingJelly, triton": Way("spikingjelly", "float32", "triton"),
}


def make_model(way: Way, config: SpikeBertConfig) -> nn.Module:
    """A network with random weights: a dense product takes as long whatever its values are."""
    torch.manual_seed(0)
    if way.maker in ("spikingjelly", "paper"):
        norm = nn.LayerNorm if way.maker == "paper" else nn.BatchNorm1d
        return SpikingJellyBert(config, norm, way.backend)
    model = SpikeBertForSequenceClassification(config)
    return quantise(model) if way.maker == "integer" else model


class Trainer:
    """Steps of training with labels alone, as `spikebert/loop.py` makes them, in one process.

    mixed  products in bf16, as accelerate's mixed precision does it
    steps  of the whole training, for the learning rate
    """

    def __init__(self, model: nn.Module, mixed: bool, device: torch.device, steps: int = 1000) -> None:
        self.model = Classifier(model.to(device)).train()
        self.autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=mixed)
        self.device, self.steps, self.done = device, steps, 0
        self.schedule = Schedule(1, 0, LEARNING_RATE)
        groups = parameter_groups(self.model, {}, self.schedule)
        self.optimiser = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)

    def step(self, batch: Batch) -> float:
        """Forward, backward, clipping, AdamW; the loss. All is done when this returns."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.schedule, min(self.done, self.steps - 1), self.steps)
        with self.autocast():
            loss = self.model({name: value.to(self.device) for name, value in batch.items()})
        value = float(loss.detach())
        loss.backward()
        with record_function(CLIPPING):
            nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM)
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.done += 1
        return value


def prepare_torch() -> torch.device:
    """All cores, no warnings of SpikingJelly's; the device to train on."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(processors())
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
