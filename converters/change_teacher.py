"""A float student goes on to another teacher: of another width or depth, with tokens in another order, or more of them.

    python -m converters.change_teacher runs/small/stage1 --teacher MPNET --texts MR/train.tsv --out runs/start
    spikebert-train --recipe mr --data.folder MR --teacher.model MPNET --stage1.reuse runs/start

A small teacher is several times as fast, so it can have a student read far more text in stage 1; a large one knows more
of a task. The student stays as it is: each row of its token table moves to where the new teacher has the same token (of
special ones: the token of the same use), tokens that it lacks are given rows by the linear map from the teacher's
embedding that fits the others best, and the maps that align hidden states with the teacher's are fitted to some texts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from converters.float_student import (
    COMPARED,
    arguments,
    batches_of,
    extended_table,
    new_folder,
    token_table,
    write_stage,
)
from spikebert.commands import UserError, note, run_command
from spikebert.data import read_texts
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.stage_record import handed_on
from spikebert.teachers import load_teacher, longest_text, resolve

ROLES = ("pad_token_id", "unk_token_id", "cls_token_id", "sep_token_id", "mask_token_id")


def same_tokens(own: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
    """int64 [v] each, v tokens that both have: ids of `own`, and which id of the teacher's means the same, each once.

    A special token means what it is for ([CLS] and <s> begin a text), any other what it spells. (MPNet's tokenizer has
    a [CLS] too, which no text comes to have.)
    """
    theirs = teacher.get_vocab()
    pairs = [(getattr(own, role), getattr(teacher, role)) for role in ROLES]
    special = {number: other for number, other in pairs if number is not None and other is not None}
    taken = set(special.values())
    spelled = {number: theirs[token] for token, number in own.get_vocab().items() if token in theirs}
    meant = {number: other for number, other in spelled.items() if other not in taken} | special
    ids = np.array(sorted(meant.items()), np.int64).reshape(-1, 2)
    return ids[:, 0], ids[:, 1]


def check_tokenizers(
    own: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, ids: tuple[np.ndarray, np.ndarray],
    texts: Sequence[str],
) -> None:  # fmt: skip
    """Raises UserError where the two take a text apart otherwise, though the student knows all of its tokens, and where
    there is no such text."""
    meant = dict(zip(ids[0].tolist(), ids[1].tolist(), strict=True))
    known = set(meant.values())
    compared = 0
    for text in texts[:COMPARED]:
        wanted = teacher(text)["input_ids"]
        if known.issuperset(wanted):
            compared += 1
            if [meant.get(number) for number in own(text)["input_ids"]] != wanted:
                raise UserError(f"--teacher: its tokenizer takes '{text}' apart otherwise than that of the student")
    if not compared:
        raise UserError(f"--teacher: of the first {COMPARED} --texts none is of tokens that the student knows")


def load_student(folder: Path) -> SpikeBertForSequenceClassification:
    """Raises UserError where `folder` is no finished stage of a float student."""
    if not (folder / "alignment.safetensors").exists():
        raise UserError(f"{folder} is no finished stage 1 or 2 of a run (no alignment.safetensors)")
    try:
        student = SpikeBertForSequenceClassification.from_pretrained(folder).eval()
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be read: {str(error).splitlines()[0]}") from None
    if student.config.mode != "float":
        raise UserError(f"{folder} holds an integer model: give the stage1 or stage2 folder beside it")
    return student


@torch.no_grad()
def with_tokens_of(
    student: SpikeBertForSequenceClassification, own: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase,
    embedding: torch.Tensor, texts: Sequence[str],
) -> None:  # fmt: skip
    """Give the student a row for each token of `tokenizer`, the teacher's.

    embedding  float [V, D_teacher], the teacher's token table, a row for each token of `tokenizer`

    Raises UserError for a tokenizer that takes `texts` apart otherwise.
    """
    ids = same_tokens(own, tokenizer)
    check_tokenizers(own, tokenizer, ids, texts)
    rows = student.encoder.token.weight[torch.from_numpy(ids[0])]
    table, explained = extended_table(rows, ids[1], embedding)
    missing = len(table) - len(ids[1])
    note(
        f"tokens: {len(table) - missing:,} of the student's {len(own):,}, {missing:,} by the teacher's embedding, "
        f"which explains {explained:.0%} of the variance of those"
    )
    student.encoder.token = nn.Embedding.from_pretrained(table, freeze=False)
    student.config.vocab_size, student.config.pad_token_id = len(table), tokenizer.pad_token_id


def record_of(folder: Path) -> dict:
    """A `stage.json`: what the student in `folder` had learnt from, and from whom."""
    made_from = {
        "student": str(folder),
        "data": {"folder": "", "hub": ""},
        "stage1": {"text": [], "reuse": str(folder)},
    }
    return {"made_from": made_from, "figures": handed_on(folder)}


def make(folder: Path, teacher: str, texts: Sequence[str], count: int, seed: int, out: Path) -> None:
    """Write the student of `folder` for the new teacher into the new folder `out`, as a finished stage that
    `stage1.reuse` takes.

    Raises UserError for a student or a teacher that will not do.
    """
    tokenizer, alone = load_teacher(AutoTokenizer, teacher), load_teacher(AutoModel, teacher).eval()
    student, own = load_student(folder), load_teacher(AutoTokenizer, str(folder))
    n_max, room = student.config.max_position_embeddings, longest_text(alone.config)
    if room < n_max:
        raise UserError(f"--teacher: it takes {room} tokens at most, the student in {folder} {n_max}")
    embedding = token_table(alone, tokenizer, teacher)
    with_tokens_of(student, own, tokenizer, embedding, texts)
    batches = batches_of(texts, tokenizer, n_max, count, seed)
    write_stage(student, alone, tokenizer, batches, record_of(folder), out)


def run(argv: Sequence[str] | None) -> int:
    options = arguments(__doc__, "a stage1 or stage2 folder of a run").parse_args(argv)
    texts, teacher = read_texts(options.texts), resolve(options.teacher)
    with new_folder(options) as out:
        make(options.source, teacher, texts, options.count, options.seed, out)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(run, argv)


if __name__ == "__main__":
    sys.exit(main())
