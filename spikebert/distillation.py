"""What the student learns from the teacher: the losses of SpikeBERT (Lv et al. 2023, arXiv 2308.15122).

Student features are the mean over T of its spikes. A linear map takes them to the teacher's width; the
teacher's are layer-normalised (`teacher_outputs.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikebert.data import UNLABELLED
from spikebert.packing import linear_in_buckets
from spikebert.processes import mean_over_processes, process_count, summed


def layer_map(student_layers: int, teacher_layers: int) -> list[int]:
    """For student states 0 (embedding) .. L: the teacher state each is aligned with, evenly spread, halves up."""
    return [(2 * i * teacher_layers + student_layers) // (2 * student_layers) for i in range(student_layers + 1)]


def older_layer_map(student_layers: int, teacher_layers: int) -> list[int]:
    """`layer_map` as it once was, halves to the even state: that of alignments which do not tell theirs."""
    return [round(i * teacher_layers / student_layers) for i in range(student_layers + 1)]


def states_kept(kept: list[int] | None, student_layers: int, teacher_layers: int) -> list[int]:
    """The teacher's states that a kept alignment is of, by what its file tells: nothing (None) in older ones, and no
    more that counts where it had a teacher of another depth."""
    if kept is None:
        return older_layer_map(student_layers, teacher_layers)
    return kept if kept[-1] == teacher_layers else layer_map(student_layers, teacher_layers)


class Alignment(nn.Module):
    """One linear map from student to teacher width for the embedding and for each block.

    largest_spike  that the student adds up (`SpikeBertConfig.residual_cap`): its states are divided by it, for maps
                   from larger ones are learnt too fast. Kept with the maps; those of older files are from whole states

    Which state of the teacher each is aligned with (`teacher_state`) is kept with the maps too, and holds for teachers
    of as many layers. In older files halves were rounded to the even state, and stay so.
    """

    def __init__(
        self, student_width: int, student_layers: int, teacher_width: int, teacher_layers: int, largest_spike: int = 1
    ) -> None:
        super().__init__()
        self.register_buffer("largest_spike", torch.tensor(float(largest_spike)))
        self.teacher_layers = teacher_layers
        self.align_with(layer_map(student_layers, teacher_layers))
        self.maps = nn.ModuleList(nn.Linear(student_width, teacher_width) for _ in self.teacher_state)

    def align_with(self, teacher_state: list[int]) -> None:
        """Of the student's states 0 .. L, the teacher's state that each is aligned with."""
        self.teacher_state = teacher_state
        self.wanted = sorted(set(teacher_state))  # a deep student has several states aligned with one
        self.register_buffer("aligned_with", torch.tensor(teacher_state))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        state_dict.setdefault(f"{prefix}largest_spike", torch.tensor(1.0))
        blocks, kept = len(self.maps) - 1, state_dict.get(f"{prefix}aligned_with")
        self.align_with(states_kept(None if kept is None else kept.tolist(), blocks, self.teacher_layers))
        state_dict[f"{prefix}aligned_with"] = self.aligned_with
        super()._load_from_state_dict(state_dict, prefix, *others)

    def forward(self, student: tuple[Tensor, ...], teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The student's hidden states [B, N, D] and mask [B, N], the teacher's states that are `wanted`, [S, R, D] as
        `TeacherOutputs` has them -> embedding loss and mean hidden-state loss.

        Each is the mean squared error over real tokens and features: this process's part of it, see
        `mean_over_processes`.
        """
        real = mask.flatten().nonzero().flatten()  # once for all states: a GPU is waited for here
        if len(teacher) != len(self.wanted):
            raise ValueError(f"{len(teacher)} states of the teacher were given, {len(self.wanted)} are wanted")
        losses = []
        for state, teacher_state, to_teacher in zip(student, self.teacher_state, self.maps):
            target = teacher[self.wanted.index(teacher_state)]
            own = state.flatten(0, 1).index_select(0, real) / self.largest_spike
            losses.append(F.mse_loss(linear_in_buckets(to_teacher, own), target))
        both = torch.stack([losses[0], torch.stack(losses[1:]).mean()])
        embedding, hidden = mean_over_processes(both, len(real))
        return embedding, hidden


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of logits [B, classes] with labels [B], over the texts that have one; 0 where none has."""
    labelled = int((labels != UNLABELLED).sum())
    reduction = "mean" if labelled else "sum"  # a mean of none is no number; the sum keeps its (zero) gradient
    loss = F.cross_entropy(logits.float(), labels, ignore_index=UNLABELLED, reduction=reduction)
    return mean_over_processes(loss, labelled)


@dataclass(frozen=True)
class LossWeights:
    """How much each part of the loss counts; 0 switches it off."""

    label: float = 0.0
    logits: float = 0.0
    hidden: float = 0.0
    embedding: float = 0.0
    temperature: float = 1.0
    operations: float = 0.0
    operations_per_token: float = 0.0
    """what is free; see `operations_loss`"""

    @property
    def aligns(self) -> bool:
        """Whether hidden states count."""
        return bool(self.hidden or self.embedding)

    @property
    def limits_operations(self) -> bool:
        """Whether synaptic operations count; with a budget of 0 all are free."""
        return bool(self.operations and self.operations_per_token)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of softened logits [B, classes], times temperature^2 (Hinton et al. 2015)."""
    student_log = F.log_softmax(student.float() / temperature, dim=-1)
    teacher_log = F.log_softmax(teacher.float() / temperature, dim=-1)
    divergence = F.kl_div(student_log, teacher_log, log_target=True, reduction="batchmean")
    return mean_over_processes(divergence * temperature**2, len(student))


def operations_loss(operations: Tensor, tokens: int, free: float) -> Tensor:
    """operations per token / free - 1 where it is above 0, else 0: the farther from what is free, the harder it pulls.

    operations  float [], the synaptic operations of this process's texts, which have so many real tokens
    free        operations per token that cost nothing

    This process's part of it, see `mean_over_processes`.
    """
    own = mean_over_processes(operations / tokens, tokens)
    mean = summed(own) / process_count()
    return own / free - 1 if mean > free else 0 * own


def loss_parts(
    weights: LossWeights, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor,
    embedding: Tensor | None, hidden: Tensor | None,
) -> dict[str, Tensor]:  # fmt: skip
    """Those that count, by the names of their weights and not yet weighted: this process's part of each
    (`mean_over_processes`); embedding and hidden are such parts already.

    Texts labelled `UNLABELLED` take no part in the label loss.
    """
    parts = {}
    if weights.label:
        parts["label"] = label_loss(student_logits, labels)
    if weights.logits and teacher_logits is not None:
        parts["logits"] = soft_cross_entropy(student_logits, teacher_logits, weights.temperature)
    if weights.embedding and embedding is not None:
        parts["embedding"] = embedding
    if weights.hidden and hidden is not None:
        parts["hidden"] = hidden
    return parts


def distillation_loss(weights: LossWeights, parts: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """The weighted sum of `loss_parts`: float32 []."""
    total = torch.zeros((), dtype=torch.float32, device=device)
    for name, part in parts.items():
        total = total + getattr(weights, name) * part
    return total


@torch.no_grad()
def main_directions(table: Tensor, features: int, seed: int) -> Tensor:
    """Of rows [V, D] the directions of most variance, rotated at random: float [D, features], on the CPU.

    So no feature of `table @ directions` is idle, and rows that are alike stay so. Where more features are wanted than
    there are directions, the others are random mixtures of them.
    """
    generator = torch.Generator().manual_seed(seed)
    centred = table.float().cpu() - table.float().cpu().mean(0)
    variance, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
    kept = directions[:, variance.argsort(descending=True)[:features]]
    rotation = torch.linalg.qr(torch.randn(features, features, generator=generator)).Q[: kept.shape[1]]
    return kept @ rotation


@torch.no_grad()
def embeddings_from_teacher(table: Tensor, features: int, seed: int, std: float) -> Tensor:
    """The teacher's word embeddings [V, D_teacher] turned into [V, features] by their `main_directions`, each feature
    of deviation `std`: the spike code of a token keeps the teacher's notion of which tokens are alike."""
    centred = table.float().cpu() - table.float().cpu().mean(0)
    mixed = centred @ main_directions(table, features, seed)
    return mixed / mixed.std(0).clamp(min=1e-6) * std
