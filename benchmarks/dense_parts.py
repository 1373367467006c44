"""Which part of a spiking block keeps the context out? Some are made dense, and stage 1 is taught again.

    spikebert-train --recipe mr_small ... --until stage1 --out runs/mr
    python -m benchmarks.dense_parts runs/mr --parts attention residual attention+residual --text FILMS --out runs/parts

For each choice a student like that of RUN, with that much of it dense, learns the same stage 1 from the same teacher:

    encoder      a token is its current, not the spikes of a neuron
    attention    query, key and value are currents, and attention is a softmax over scaled products, as BERT's
    residual     what attention and the MLP add to a token are currents, of any size and sign
    activation   GELU in the place of the neurons within the MLP

Norms stay, and what is left of time is T steps alike where nothing fires. Then `benchmarks.context` is asked what each
has of the teacher's context. Such a student is no network of a chip: what it has more is what those spikes take away.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.context import HEADER, count_of_texts, load_students, rows
from benchmarks.dense_student import recipe_of, with_teacher
from benchmarks.timing import table
from spikebert.commands import UserError, run_command, write_output
from spikebert.data import check_text_files, read_lines
from spikebert.layers import Block
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.recipe import Recipe
from spikebert.spikes import Spikes, check_spikes
from spikebert.stages import Training

PARTS = ("encoder", "attention", "residual", "activation")
TOGETHER = "+"


class Passing(nn.Module):
    """In the place of a LIF: what it is given, or a function of it, goes on."""

    cap, spike = 1, "binary"  # which it is not: nobody asks but who counts matches

    def __init__(self, function: nn.Module | None = None) -> None:
        super().__init__()
        self.function = function or nn.Identity()

    def forward(self, current: Tensor, threshold: float | Tensor) -> Tensor:
        passed: Tensor = self.function(current)
        return passed


class SoftmaxAttention(nn.Module):
    """BERT's, in the place of a SpikingAttention: softmax(q k^T / sqrt(d)) v of each timestep."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, q: Spikes, k: Spikes, v: Spikes) -> Spikes:
        packing, steps = check_spikes((q, k, v), "SoftmaxAttention").packing, len(q.values)

        def by_head(x: Spikes) -> Tensor:
            """[T * B, H, N, d]"""
            return packing.unpack(x.values).unflatten(-1, (self.heads, -1)).transpose(2, 3).flatten(0, 1)

        keys = packing.mask[:, None, None].repeat(steps, 1, 1, 1)
        mixed = F.scaled_dot_product_attention(by_head(q), by_head(k), by_head(v), attn_mask=keys)
        values = packing.pack(mixed.unflatten(0, (steps, -1)).transpose(2, 3).flatten(-2))
        return Spikes(values.to(q.values.dtype), packing, maker=self, inputs=(q, k, v))


def make_dense(student: SpikeBertForSequenceClassification, parts: Sequence[str]) -> None:
    """Make these of PARTS dense, in place. Parameters stay what they were."""
    if "encoder" in parts:
        student.encoder.lif = Passing()  # type: ignore[assignment]  # it answers to the same names, as those below
    for block in student.blocks:
        assert isinstance(block, Block)
        if "attention" in parts:
            for layer in (block.query, block.key, block.value):
                layer.lif = Passing()  # type: ignore[assignment]
            block.attention = SoftmaxAttention(block.attention.heads)  # type: ignore[assignment]
        if "residual" in parts:
            block.out.lif = block.down.lif = Passing()  # type: ignore[assignment]
        if "activation" in parts:
            block.up.lif = Passing(nn.GELU())  # type: ignore[assignment]


class PartlyDense(Training):
    """A stage 1, with a student of which `parts` are dense."""

    def __init__(self, recipe: Recipe, parts: Sequence[str]) -> None:
        self.parts = tuple(parts)
        super().__init__(recipe)

    def _made_from(self, stage: str) -> dict:
        made_from = super()._made_from(stage)
        return made_from if stage == "teacher" else made_from | {"dense": list(self.parts)}

    def _new_student(self, teacher: nn.Module) -> SpikeBertForSequenceClassification:
        student = super()._new_student(teacher)
        make_dense(student, self.parts)
        return student


def stage1_recipe(run: Path, out: Path) -> Recipe:
    """That of the stage 1 of a run, in `out`. Raises UserError where it cannot be repeated with dense parts."""
    if not (run / "stage1" / "stage.json").exists():
        raise UserError(f"{run} has no finished stage 1 (no stage1/stage.json): train one with --until stage1")
    recipe = recipe_of(json.loads((run / "stage1" / "stage.json").read_text())["made_from"], out)
    stage1, student = recipe.stage1, recipe.student
    if stage1.reuse:
        raise UserError(f"{run} took its stage 1 over from {stage1.reuse}: give the run that trained it")
    if stage1.operations_per_token:
        raise UserError(f"the stage 1 of {run} had a budget of operations, which dense parts do not have: give another")
    for name, known in (
        ("encoder", "lif"), ("attention_similarity", "and"), ("attention_position", "none"), ("position_spikes", 0),
    ):  # fmt: skip
        if (own := getattr(student, name)) != known:
            raise UserError(f"the student of {run} has {name} '{own}', dense parts are made of '{known}' alone")
    return recipe


def chosen(text: str) -> tuple[str, ...]:
    """`attention+residual` -> its parts, in the order of PARTS. Raises ArgumentTypeError for what is none of them."""
    parts = text.split(TOGETHER)
    for part in parts:
        if part not in PARTS:
            raise argparse.ArgumentTypeError(f"'{part}' is no part: {', '.join(PARTS)}, or several with {TOGETHER}")
    return tuple(part for part in PARTS if part in parts)


def teach(run: Path, out: Path, choices: Sequence[tuple[str, ...]]) -> dict[str, nn.Module]:
    """The students by the folders of their stages 1, that of the run first. What is finished is not taught again."""
    recipe = stage1_recipe(run, out)
    folders: dict[str, tuple[str, ...]] = {str(run / "stage1"): ()}
    for parts in choices:
        own = with_teacher(replace(recipe, out=str(out / TOGETHER.join(parts))), run / "teacher")
        PartlyDense(own, parts).run(until="stage1")
        folders[str(Path(own.out) / "stage1")] = parts
    students = load_students(list(folders))
    for folder, parts in folders.items():
        make_dense(students[folder], parts)  # type: ignore[arg-type]  # it is a spiking student
    return students


def measure(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of spikebert-train whose stage 1 is finished")
    parser.add_argument("--parts", nargs="+", type=chosen, metavar="PARTS", default=[(part,) for part in PARTS],
                        help="what is dense, such as attention or attention+residual (each part alone)")  # fmt: skip
    parser.add_argument("--text", nargs="+", required=True, help="of the context: one sentence a line, as stage1.text")
    parser.add_argument("--count", type=count_of_texts, default=3000, help="so many lines of it (3,000)")
    parser.add_argument("--out", type=Path, required=True, help="a folder, in which each choice has one")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    options = parser.parse_args(argv)
    check_text_files(options.text)
    lines = list(read_lines(options.text, options.count, 0))
    students = teach(options.run, options.out, options.parts)
    write_output(table(HEADER, rows(students, str(options.run / "teacher"), lines)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(measure, argv)


if __name__ == "__main__":
    sys.exit(main())
