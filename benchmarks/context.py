"""How much of what a teacher's states owe to the context is in a student's?

    python -m benchmarks.context runs/mr/stage1 --teacher registry:all-MiniLM-L6-v2 --text FILMS
    python -m benchmarks.context runs/mr/stage1 runs/mr/stage2 --teacher runs/mr/teacher --text FILMS --count 3000

A teacher's state of a token is in large part a matter of which token that is: a table with the mean state of each comes
near to it, and reads nothing around it. So a student's distance from its teacher says little of what it has read. Told
here is, for each student state and the teacher's that it is aligned with (layer-normalised, as training has them):

    variance         of the teacher's state, about its mean
    a token table    what is left of it about the mean state of the same token: all that is owed to the context
    the student      what is left of it about the best linear map of the student's state
    of the context   how much of what the table leaves a linear map finds in the student, both less their token's mean

Three quarters of the texts give means and maps, the others are measured: the tokens that came often enough before.
Students are folders of classifiers as transformers keeps them, spiking or dense, with all tokens of the teacher.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import spikebert.model  # noqa: F401  # so that transformers knows a SpikeBERT
from benchmarks.timing import table
from converters.float_student import BATCH, fit_linear, with_ones
from spikebert.commands import UserError, note, progress, run_command, write_output
from spikebert.data import TokenisedTexts, check_text_files, read_lines, sorted_batches, tokenise
from spikebert.distillation import layer_map
from spikebert.teacher_outputs import ask_teacher
from spikebert.teachers import load_teacher, resolve

HEADER = ("", "teacher's layer", "variance", "a token table", "the student", "of the context")
FITTED = 0.75  # of the texts
OFTEN = 10  # times that a token must come among these to be measured
LONGEST = 64  # tokens of a text


@dataclass(frozen=True)
class Share:
    """Of one state, see the head of this file: mean squares over features, and the part of the context."""

    variance: float
    token_table: float
    student: float
    of_context: float


def share(ids: Tensor, own: Tensor, theirs: Tensor, fitted: int) -> Share:
    """Of R tokens, the first `fitted` of which give means and maps.

    ids     int64 [R]
    own     float [R, D], the student's states
    theirs  float [R, D_teacher], the teacher's

    Raises ValueError where no token after these came `OFTEN` times among them.
    """
    counts = torch.bincount(ids[:fitted], minlength=int(ids.max()) + 1)
    often = counts[ids] >= OFTEN
    known, new = often.clone(), often.clone()
    known[fitted:], new[:fitted] = False, False
    if not bool(new.any()):
        raise ValueError(f"no token comes {OFTEN} times: more texts are needed")

    def less_its_token(x: Tensor) -> Tensor:
        sums = x.new_zeros(len(counts), x.shape[1]).index_add_(0, ids[:fitted], x[:fitted])
        return x - (sums / counts.clamp(min=1)[:, None])[ids]

    def left(x: Tensor, y: Tensor) -> float:
        """Of y about the best linear map of x: that of the tokens that are known, measured on new ones."""
        found = with_ones(x[new]) @ fit_linear(x[known].double(), y[known].double()).to(x.dtype)
        return float((y[new] - found).square().mean())

    contexts = less_its_token(theirs)
    owed = float(contexts[new].square().mean())
    return Share(
        variance=float((theirs[new] - theirs[known].mean(0)).square().mean()),
        token_table=owed,
        student=left(own, theirs),
        of_context=1 - left(less_its_token(own), contexts) / owed if owed else 0.0,
    )


@torch.no_grad()
def states_of(
    student: nn.Module, teacher: nn.Module, texts: TokenisedTexts, pad_id: int
) -> tuple[Tensor, list[Tensor], list[Tensor], list[int], int]:
    """ids [R], the student's states and the teacher's beside them (float16, [R, ..] each), the teacher's layers, and
    how many of the R tokens are of the texts that fit. Those come first."""
    count = int(FITTED * len(texts))
    halves = [np.arange(count), np.arange(count, len(texts))]
    batches = [half[some] for half in halves for some in sorted_batches(texts.lengths_of(half), BATCH)]
    ids: list[Tensor] = []
    own: list[list[Tensor]] = []
    theirs: list[Tensor] = []
    layers: list[int] = []
    for indices in progress(batches, "states"):
        batch = texts.batch(indices, pad_id)
        real = batch["attention_mask"].bool()
        states = student(batch["input_ids"], batch["attention_mask"], output_hidden_states=True).hidden_states
        layers = layer_map(len(states) - 1, teacher.config.num_hidden_layers)
        asked = ask_teacher(teacher, batch["input_ids"], batch["attention_mask"], layers).states
        assert asked is not None
        ids.append(batch["input_ids"][real])
        own.append([state[real].half() for state in states])
        theirs.append(asked.half())
    both = [torch.cat(found) for found in zip(*own, strict=True)], list(torch.cat(theirs, 1))
    return torch.cat(ids), *both, layers, int(texts.lengths[:count].sum())


def rows_of(folder: str, teacher_folder: str, lines: Sequence[str]) -> list[list[str]]:
    """Of the table, one for each state of a student. Raises UserError for a folder that will not do."""
    note(f"{folder} ...")
    student, teacher = load_teacher(AutoModelForSequenceClassification, folder), load_teacher(AutoModel, teacher_folder)
    tokenizer = load_teacher(AutoTokenizer, teacher_folder)
    if load_teacher(AutoTokenizer, folder).get_vocab() != tokenizer.get_vocab():
        raise UserError(f"{folder}: its tokens are not those of the teacher {teacher_folder}")
    n_max = min(LONGEST, student.config.max_position_embeddings)
    texts = tokenise(tokenizer, lines, n_max)
    ids, own, theirs, layers, fitted = states_of(student.eval(), teacher.eval(), texts, tokenizer.pad_token_id or 0)
    rows = []
    for number, (x, y, layer) in enumerate(zip(own, theirs, layers, strict=True)):
        try:
            found = share(ids, x.float(), y.float(), fitted)
        except ValueError as error:
            raise UserError(f"--text: {error}") from None
        rows.append(
            [
                f"{folder}, {f'block {number}' if number else 'embedding'}", str(layer), f"{found.variance:.3f}",
                f"{found.token_table:.3f}", f"{found.student:.3f}", f"{found.of_context:.0%}",
            ]
        )  # fmt: skip
    return rows


def run(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", metavar="FOLDER", help="such as the stages of a run")
    parser.add_argument("--teacher", required=True, help="as teacher.model of a recipe, or the teacher of a run")
    parser.add_argument("--text", nargs="+", required=True, help="one sentence a line, as stage1.text")
    parser.add_argument("--count", type=int, default=3000, help="so many lines of it (3,000)")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    options = parser.parse_args(argv)
    if options.count < 8:
        raise UserError(f"--count {options.count}: 8 is the least")
    for folder in options.students:
        if not (Path(folder) / "config.json").is_file():
            raise UserError(f"{folder}: no folder of a model (no config.json)")
    check_text_files(options.text)
    lines = list(read_lines(options.text, options.count, 0))
    teacher = resolve(options.teacher)
    rows = [row for folder in options.students for row in rows_of(folder, teacher, lines)]
    write_output(table(HEADER, rows))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(run, argv)


if __name__ == "__main__":
    sys.exit(main())
