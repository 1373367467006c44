"""A distillation of a few steps by `fit`, as one process of one or more; a program of its own, and a function.

    python small_training.py FOLDER --mode float --dropout 0.5 --stop-at 9

Every process writes into FOLDER `losses-P.txt` (its part of the loss of each step), `weights-P.pt`, and
`steps-P.pt`: of each step the gradients, and the spikes of each of its texts. All is in float64, so that rounding
cannot turn a spike.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.nn import functional as F

from spikebert.config import SpikeBertConfig
from spikebert.data import UNLABELLED, TokenisedTexts
from spikebert.distillation import Alignment, LossWeights
from spikebert.loop import Schedule, fit
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.neurons import LoihiLIF
from spikebert.packing import Packing
from spikebert.pupil import Pupil
from spikebert.quantisation import quantise
from spikebert.teacher_outputs import normalised

VOCABULARY, N_MAX, WIDTH, TEACHER_WIDTH = 30, 9, 16, 12
BATCH = 6


def make_texts(count: int = 13) -> TokenisedTexts:
    """Texts of 2 .. 9 tokens, each with a first token of its own; some have no label. 13: the third batch has one."""
    rng = np.random.default_rng(0)
    ids = [[i, *rng.integers(VOCABULARY, size=rng.integers(1, N_MAX)).tolist()] for i in range(count)]
    return TokenisedTexts(ids, [UNLABELLED if i % 3 == 0 else i % 2 for i in range(count)])


def make_pupil(mode: str, options: Mapping[str, object]) -> Pupil:
    torch.manual_seed(1)
    student = SpikeBertForSequenceClassification(
        SpikeBertConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=N_MAX, **{"attention_threshold": 2, **options},
        )
    )  # fmt: skip
    for module in student.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.LayerNorm)):
            nn.init.normal_(module.bias, 0.5, 0.3)  # so that neurons fire
    student = student if mode == "float" else quantise(student)
    return Pupil(student, Alignment(WIDTH, 1, TEACHER_WIDTH, 1)).double()


class SmallTeacher(nn.Module):
    """Hidden states and logits that depend on the token alone."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.states = torch.randn(2, VOCABULARY, TEACHER_WIDTH, generator=generator, dtype=torch.float64)
        self.logits = torch.randn(VOCABULARY, 2, generator=generator, dtype=torch.float64)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits[ids[:, 0]], normalised([table[ids] for table in self.states], mask)


def train(
    folder: Path,
    mode: str,
    epochs: int = 1,
    dropout: float = 0.0,
    stop_at: int = -1,
    checkpointing: bool = False,
    options: Mapping[str, object] | None = None,
) -> None:
    """`dropout` is of the teacher's logits; at step `stop_at` the process does nothing any more; `checkpointing` is of
    gradients; `options` are the student's."""
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(
        cpu=True,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
    )
    me = accelerator.process_index
    pupil, teacher, texts = make_pupil(mode, options or {}), SmallTeacher(), make_texts()
    if checkpointing:
        pupil.student.gradient_checkpointing_enable()
    weights = LossWeights(
        label=1.0, logits=0.7, hidden=0.3, embedding=0.2, temperature=2.0, operations=0.01, operations_per_token=100.0
    )
    steps: list[dict] = []
    packing: list[Packing] = []  # of the present step

    def watch(name: str):
        def hook(module: nn.Module, inputs: tuple, spikes: Tensor) -> None:
            if module.training:
                steps[-1]["spikes"][name] = list(packing[0].unpack(spikes.detach()).unbind(1))  # of each text [T, N, D]

        return hook

    for name, module in pupil.student.named_modules():
        if isinstance(module, LoihiLIF):
            module.register_forward_hook(watch(name))

    def loss_of(wrapped: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if len(steps) == stop_at:
            (folder / f"stopped-{me}").touch()
            time.sleep(3600)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        packing[:] = [Packing(mask)]
        steps.append({"texts": ids[:, 0].tolist(), "spikes": {}})
        logits, states = teacher(ids, mask)
        logits = F.dropout(logits, dropout)
        steps[-1]["dropped"] = (logits == 0).tolist()
        losses = wrapped(batch, logits, states, weights)
        with open(folder / f"losses-{me}.txt", "a") as file:
            file.write(f"{float(losses['loss'].detach())!r}\n")
        return losses

    def clip(parameters: object, limit: float, original=accelerator.clip_grad_norm_) -> Tensor:
        gradients = {name: value.grad for name, value in pupil.named_parameters() if value.grad is not None}
        steps[-1]["gradients"] = {name: value.clone() for name, value in gradients.items()}
        norm = original(parameters, limit)
        steps[-1]["clipped_norm"] = torch.stack([value.norm() for value in gradients.values()]).norm()
        return norm

    accelerator.clip_grad_norm_ = clip
    schedule = Schedule(epochs, BATCH, learning_rate=1e-2)
    fit(
        pupil, loss_of, lambda epoch: texts, schedule, folder, accelerator, pad_id=0, seed=3, checkpoint_seconds=0,
        rates=pupil.student.learning_rates(5.0),
    )  # fmt: skip
    torch.save(pupil.state_dict(), folder / f"weights-{me}.pt")
    torch.save(steps, folder / f"steps-{me}.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mode", default="float")
    parser.add_argument("--options", type=json.loads)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--stop-at", type=int, default=-1)
    parser.add_argument("--checkpointing", action="store_true")
    train(**vars(parser.parse_args()))
    Accelerator(cpu=True).end_training()
