"""The student that a recipe asks for, before it has learnt anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from spikebert.commands import UserError
from spikebert.config import SpikeBertConfig
from spikebert.distillation import Alignment, embeddings_from_teacher
from spikebert.model import TOKEN_DEVIATION, SpikeBertForSequenceClassification
from spikebert.quantisation import least_room, require_short_rows
from spikebert.recipe import Quantise, Student
from spikebert.teachers import longest_text

# What a recipe and what SpikeBertConfig call the same thing.
STUDENT_NAMES = {"layers": "num_hidden_layers", "heads": "num_attention_heads", "n_max": "max_position_embeddings"}
ROOM = 5.0  # accumulator units of a weight: with 1.9 eight bits lost all, with 4.3 up to 13 points (docs/training.md)


def student_config(
    options: Student, class_names: Sequence[str], teacher_config: Any, tokenizer: PreTrainedTokenizerBase
) -> SpikeBertConfig:
    """Its configuration, with all tokens of the teacher. Raises UserError for what cannot be made or taught."""
    room = longest_text(teacher_config)
    if options.n_max > room:
        raise UserError(f"student.n_max is {options.n_max}, the teacher takes texts of {room} tokens at most")
    added = tokenizer.num_special_tokens_to_add()
    if options.n_max <= added:
        raise UserError(f"student.n_max is {options.n_max}, the special tokens alone are {added}: give more")
    try:
        return SpikeBertConfig(
            vocab_size=len(tokenizer),
            hidden_size=options.hidden_size,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            intermediate_size=options.intermediate_size,
            max_position_embeddings=options.n_max,
            timesteps=options.timesteps,
            decay=options.decay,
            reset=options.reset,
            spike=options.spike,
            spike_cap=options.spike_cap,
            encoder_cap=options.encoder_cap,
            value_cap=options.value_cap,
            graded_gain=options.graded_gain,
            encoder=options.encoder,
            positions=options.positions,
            position_spikes=options.position_spikes,
            attention_threshold=options.attention_threshold,
            attention_similarity=options.attention_similarity,
            attention_position=options.attention_position,
            surrogate=options.surrogate,
            norm=options.norm,
            scalar_thresholds=options.scalar_thresholds,
            readout=options.readout,
            surrogate_alpha=options.surrogate_alpha,
            id2label=dict(enumerate(class_names)),
            label2id={name: i for i, name in enumerate(class_names)},
            pad_token_id=tokenizer.pad_token_id or 0,
        )
    except ValueError as error:
        message = str(error)
        for ours, its in STUDENT_NAMES.items():
            message = message.replace(its, ours)
        raise UserError(f"student.{message}") from None


def check_rounding(config: SpikeBertConfig, options: Quantise, say: Callable[[str], None]) -> None:
    """Raises UserError where a layer of the student is too wide for `quantise.weight_bits`; says where integers may be
    coarse."""
    bits = options.weight_bits
    with torch.random.fork_rng(devices=[]):  # its weights do not matter, and training draws its own
        student = SpikeBertForSequenceClassification(config)
    try:
        require_short_rows(student, bits)
    except ValueError as error:
        raise UserError(f"quantise.weight_bits is {bits}: {error}") from None
    layer, most, room = least_room(student)
    if bits > 2 and room < ROOM and not options.calibration_texts:
        say(
            f"student: '{layer}' reads numbers up to {most}, and its weights have room for {room:.1f} units in the "
            "mean before the accumulator is full: integers may be far from the floats. Round with texts "
            "(quantise.calibration_texts 512); fewer or narrower blocks leave more room, and so do smaller caps"
        )


def new_student(
    config: SpikeBertConfig, teacher: nn.Module, seed: int, from_teacher: bool
) -> SpikeBertForSequenceClassification:
    """At random, but for its token table where it has that from the teacher (`student.embeddings_from_teacher`)."""
    student = SpikeBertForSequenceClassification(config)
    if from_teacher:
        words = teacher.get_input_embeddings().weight[: config.vocab_size]
        deviation = TOKEN_DEVIATION * student.encoder.gain
        student.encoder.token.weight.data.copy_(embeddings_from_teacher(words, config.hidden_size, seed, deviation))
    return student


def new_alignment(config: SpikeBertConfig, teacher_config: Any) -> Alignment:
    """The maps from its states to those of the teacher."""
    return Alignment(
        config.hidden_size,
        config.num_hidden_layers,
        teacher_config.hidden_size,
        teacher_config.num_hidden_layers,
        config.residual_cap,
    )
