"""What a teacher says of texts, in the form that distillation wants it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikebert.packing import multiple, side_on

CHUNK = 8  # texts that a CPU's teacher is asked about at a time
TRAINED_CHUNK = 16  # that a CPU trains it with at a time: each part adds up the gradients of all weights
GPU_CHUNK = 512  # those of a GPU's: fewer are told slower than computed, more are padded more (docs/training.md)


class TeacherOutputs(NamedTuple):
    """Of B texts with R real tokens.

    logits  float32 [B, classes]; None of a teacher without a head
    states  float32 [S, R, D]: hidden states, layer-normalised so that every layer counts alike, of real tokens alone,
            text after text; None where none is wanted
    """

    logits: Tensor | None
    states: Tensor | None


def normalised(states: Sequence[Tensor], mask: Tensor) -> Tensor:
    """S hidden states [B, N, D] and their mask [B, N] -> float32 [S, R, D], see `TeacherOutputs`."""
    real = mask.flatten().nonzero().flatten()  # once for all states: a GPU is waited for here
    own = (state.flatten(0, 1).index_select(0, real).float() for state in states)
    return torch.stack([F.layer_norm(state, state.shape[-1:]) for state in own])


@torch.no_grad()
def ask_teacher(
    teacher: nn.Module, ids: Tensor, mask: Tensor, wanted: Sequence[int], chunk: int | None = None
) -> TeacherOutputs:
    """Run the teacher on ids [B, N] with mask [B, N] (1 real, 0 padding on the right).

    wanted  which of its hidden states, 0 the embedding; none where empty

    Texts go in from short to long, `chunk` at a time, so that a batch of mixed lengths costs little padding. None: as
    many as suit the device.
    """
    lengths = mask.sum(1)
    begins = lengths.cumsum(0) - lengths  # [B]: the place of each text's first token among the real ones
    order, parts = short_to_long(mask, chunk or texts_at_once(ids.device))
    logits: list[Tensor] = []
    states = torch.empty(len(wanted), int(lengths.sum()), teacher.config.hidden_size, device=ids.device)
    for rows, width in parts:
        part = mask[rows, :width]
        taught = teacher(input_ids=ids[rows, :width], attention_mask=part, output_hidden_states=bool(wanted))
        if "logits" in taught:
            logits.append(taught.logits.float())
        if wanted:
            places = begins[rows, None] + torch.arange(width, device=ids.device)
            states[:, places[part.bool()]] = normalised([taught.hidden_states[i] for i in wanted], part)
    return TeacherOutputs(torch.cat(logits)[order.argsort()] if logits else None, states if wanted else None)


def short_to_long(mask: Tensor, chunk: int) -> tuple[Tensor, list[tuple[Tensor, int]]]:
    """The texts of a batch with mask [B, N] in parts of `chunk`, so that texts of mixed lengths cost little padding.

    Returns int64 [B], the order from short to long, and of each part its rows of the batch and the tokens of its
    longest text, on a GPU the next multiple of 8 where the batch is as wide.
    """
    lengths, side = mask.sum(1), side_on(mask.device)
    order = lengths.argsort(stable=True)
    return order, [(rows, min(multiple(int(lengths[rows].max()), side), mask.shape[1])) for rows in order.split(chunk)]


def texts_at_once(device: torch.device, trained: bool = False) -> int:
    """How many texts of a batch a teacher is asked about, or trained with, at a time."""
    on_cpu = TRAINED_CHUNK if trained else CHUNK
    return on_cpu if device.type == "cpu" else GPU_CHUNK


def merged(first: TeacherOutputs, second: TeacherOutputs, is_first: Tensor, lengths: Tensor) -> TeacherOutputs:
    """Outputs of the texts of a batch, some of which are in `first` and the others in `second`, each in their order.

    is_first  bool [B]
    lengths   int64 [B], their tokens
    """
    return TeacherOutputs(
        _merged(first.logits, second.logits, is_first, 0),
        _merged(first.states, second.states, is_first.repeat_interleave(lengths), 1),
    )


def _merged(first: Tensor | None, second: Tensor | None, is_first: Tensor, dim: int) -> Tensor | None:
    if first is None or second is None:
        return None
    came_from = torch.cat([is_first.nonzero(), (~is_first).nonzero()]).flatten()
    return torch.cat([first, second], dim).index_select(dim, came_from.argsort())
