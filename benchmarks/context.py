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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import spikebert.model  # noqa: F401  # so that transformers knows a SpikeBERT
from benchmarks.timing import table
from benchmarks.word_order import require_model
from converters.float_student import BATCH
from spikebert.commands import UserError, note, run_command, write_output
from spikebert.data import check_text_files, read_lines, sorted_batches, tokenise
from spikebert.least_squares import fit_linear, with_ones
from spikebert.progress import parts_done
from spikebert.pupil import aligned_states
from spikebert.teacher_outputs import ask_teacher
from spikebert.teachers import load_teacher, resolve

HEADER = ("", "teacher's layer", "variance", "a token table", "the student", "of the context")
FITTED = 0.75  # of the texts
OFTEN = 10  # times that a token must come among these to be measured
LONGEST = 64  # tokens of a text
LEAST = 8  # texts


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
def student_states(student: nn.Module, batches: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """Its hidden states of the real tokens of all batches, float16 [R, D] each, the embedding first."""
    found = []
    for batch in parts_done(batches, "student"):
        ids, mask = batch["input_ids"], batch["attention_mask"]
        states = student(ids, mask, output_hidden_states=True).hidden_states
        found.append([state[mask.bool()].half() for state in states])
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def teacher_states(teacher: nn.Module, batches: Sequence[dict[str, Tensor]], layers: Sequence[int]) -> Tensor:
    """The same of the teacher's `layers`, layer-normalised: float16 [S, R, D]."""
    found = []
    for batch in parts_done(batches, "teacher"):
        states = ask_teacher(teacher, batch["input_ids"], batch["attention_mask"], layers).states
        assert states is not None
        found.append(states.half())
    return torch.cat(found, 1)


def count_of_texts(text: str) -> int:
    """--count. Raises ArgumentTypeError for so few that nothing can be told."""
    if not text.isdecimal() or int(text) < LEAST:
        raise argparse.ArgumentTypeError(f"{text}: {LEAST} is the least")
    return int(text)


def load_students(folders: Sequence[str]) -> dict[str, nn.Module]:
    """The classifiers that `folders` keep."""
    return {folder: load_teacher(AutoModelForSequenceClassification, folder).eval() for folder in folders}


def rows(students: Mapping[str, nn.Module], teacher_folder: str, lines: Sequence[str]) -> list[list[str]]:
    """Of the table, one for each state of each student; all are asked about the same tokens.

    students  by their folders, which have their tokenizers too

    Raises UserError for a folder that will not do, and for too few texts.
    """
    teacher, tokenizer = load_teacher(AutoModel, teacher_folder).eval(), load_teacher(AutoTokenizer, teacher_folder)
    for folder in students:
        if load_teacher(AutoTokenizer, folder).get_vocab() != tokenizer.get_vocab():
            raise UserError(f"{folder}: its tokens are not those of the teacher {teacher_folder}")
    configs = {folder: student.config for folder, student in students.items()}
    longest = min(LONGEST, *(config.max_position_embeddings for config in (teacher.config, *configs.values())))
    texts = tokenise(tokenizer, lines, longest)
    count = int(FITTED * len(texts))
    batches = [
        texts.batch(part[some], tokenizer.pad_token_id or 0)
        for part in (np.arange(count), np.arange(count, len(texts)))  # those that fit come first
        for some in sorted_batches(texts.lengths_of(part), BATCH)
    ]
    ids = torch.cat([batch["input_ids"][batch["attention_mask"].bool()] for batch in batches])
    fitted = int(texts.lengths[:count].sum())
    depth = teacher.config.num_hidden_layers
    maps = {folder: aligned_states(folder, config.num_hidden_layers, depth) for folder, config in configs.items()}
    wanted = sorted({layer for layers in maps.values() for layer in layers})
    theirs = teacher_states(teacher, batches, wanted)
    found = []
    for folder, student in students.items():
        note(f"{folder} ...")
        own = student_states(student, batches)
        for number, (state, layer) in enumerate(zip(own, maps[folder], strict=True)):
            try:
                of_state = share(ids, state.float(), theirs[wanted.index(layer)].float(), fitted)
            except ValueError as error:
                raise UserError(f"--text: {error}") from None
            found.append(
                [
                    f"{folder}, {f'block {number}' if number else 'embedding'}", str(layer),
                    f"{of_state.variance:.3f}", f"{of_state.token_table:.3f}", f"{of_state.student:.3f}",
                    f"{of_state.of_context:.0%}",
                ]
            )  # fmt: skip
    return found


def run(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", metavar="FOLDER", help="such as the stages of a run")
    parser.add_argument("--teacher", required=True, help="as teacher.model of a recipe, or the teacher of a run")
    parser.add_argument("--text", nargs="+", required=True, help="one sentence a line, as stage1.text")
    parser.add_argument("--count", type=count_of_texts, default=3000, help="so many lines of it (3,000)")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    options = parser.parse_args(argv)
    for folder in options.students:
        require_model(folder)
    check_text_files(options.text)
    lines = list(read_lines(options.text, options.count, 0))
    write_output(table(HEADER, rows(load_students(options.students), resolve(options.teacher), lines)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(run, argv)


if __name__ == "__main__":
    sys.exit(main())
