"""The rival of equal size: a dense BERT, taught as the student of a run was, in floats and in 8-bit integers.

    python -m benchmarks.dense_student runs/screen_mr/base --out runs/screen_mr_dense
    python -m benchmarks.dense_student runs/screen_mr/base --out runs/dense_fast --learning-rate 1e-3
    python -m benchmarks.dense_student runs/late-43 --out runs/dense-43 --stage1 runs/dense_start

It has as many blocks, features, heads and features within as the student, learns from the same teacher, in the same two
stages, from the same texts, with the same losses. Where the run took over a stage 1 (`stage1.reuse`), a dense student
is taught that one first, in the folder --stage1, once for all runs that took it over. Its integers are dynamic int8 in
ONNX Runtime: every product with weights is one of integers. What spiking costs is the difference to the run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import numpy as np
import torch
from safetensors.torch import load_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertForSequenceClassification

from benchmarks.compare_runs import read_run
from benchmarks.dense_bert import Classify, onnx_classifier, random_bert
from benchmarks.timing import table
from converters.execution import TokenBatch
from spikebert.commands import UserError, output_kept_clean, run_command, write_output
from spikebert.data import TokenisedTexts, hash_files, sorted_batches
from spikebert.distillation import Alignment, embeddings_from_teacher
from spikebert.evaluation import Accuracy, accuracy
from spikebert.pupil import Pupil, aligned_states, pupil_files, pupil_saver
from spikebert.recipe import Recipe
from spikebert.stages import Training

TABLE_STD = 0.02  # of the embeddings of a new BERT
KINDS = ("float32", "int8")  # in which its validation is measured
LEARNING_RATE = 5e-4  # of a small dense BERT from the start; the student's own rate is for spikes


class DenseStudent(nn.Module):
    """A BERT in the place of a spiking student: it answers to the names that a pupil asks for."""

    def __init__(self, bert: BertForSequenceClassification) -> None:
        super().__init__()
        self.bert, self.config = bert, bert.config
        self.save_pretrained = bert.save_pretrained
        self.gradient_checkpointing_enable = bert.gradient_checkpointing_enable
        self.get_input_embeddings, self.set_input_embeddings = bert.get_input_embeddings, bert.set_input_embeddings

    @property
    def encoder(self) -> SimpleNamespace:
        return SimpleNamespace(token=self.bert.get_input_embeddings())

    def learning_rates(self, token_rate: float) -> dict[nn.Parameter, float]:
        """As `SpikeBertForSequenceClassification.learning_rates`."""
        return {self.encoder.token.weight: token_rate}

    def renew_readout(self) -> None:
        """As `SpikeBertForSequenceClassification.renew_readout`: this one reads no graded spikes."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False,
        output_operations: bool = False,
    ) -> Any:  # fmt: skip
        return self.bert(input_ids, attention_mask, output_hidden_states=output_hidden_states)


class DenseTraining(Training):
    """The stages of a run up to the second, with a dense student; its teacher is that of the run.

    stage1      folder of the run's stage 1: the dense student is aligned with the same states of the teacher
    taken_over  folder of another's stage 1 that is taken as it is, or None
    """

    def __init__(self, recipe: Recipe, stage1: Path, taken_over: Path | None = None) -> None:
        self.stage1, self.taken_over = stage1, taken_over
        super().__init__(recipe)

    def run_stage1(self) -> Path:
        """The folder of stage 1."""
        self.folder.check_recipe(self._made_from)
        self._stage("stage1", self._train_stage1)
        return self.out / "stage1"

    def run(self) -> dict:  # type: ignore[override]  # it has fewer stages
        """Validation accuracies."""
        self.run_stage1()
        self._stage("stage2", self._train_stage2)
        bert = BertForSequenceClassification.from_pretrained(self.out / "stage2").eval()
        texts = self.task.validation
        return {
            f"dense, {kind}": accuracy(
                _classes(onnx_classifier(bert, kind == "int8"), texts, self.pad_id), texts
            ).to_dict()
            for kind in KINDS
        }

    def _made_from(self, stage: str) -> dict:
        if self.taken_over is None or stage == "teacher":
            return super()._made_from(stage)
        return super()._made_from(stage) | {"taken_over": hash_files(pupil_files(str(self.taken_over)))}

    def _train_stage1(self, work: Path) -> tuple[dict, Callable[[Path], None]]:
        if self.taken_over is None:
            return super()._train_stage1(work)
        pupil = self._read_pupil(self.taken_over)
        torch.manual_seed(self.recipe.seed)
        pupil.student.bert.classifier.reset_parameters()  # stage 1 taught no readout: each seed has its own
        return {"taken_over": str(self.taken_over)}, pupil_saver(pupil)

    def _new_student(self, teacher: nn.Module) -> Any:
        options, config = self.recipe.student, self.student_config
        torch.manual_seed(self.recipe.seed)
        bert = random_bert(
            options.layers, options.hidden_size, options.heads, options.intermediate_size, config.vocab_size,
            options.n_max, config.num_labels,
        )  # fmt: skip
        if options.embeddings_from_teacher:
            words = teacher.get_input_embeddings().weight[: config.vocab_size]
            start = embeddings_from_teacher(words, options.hidden_size, self.recipe.seed, TABLE_STD)
            bert.get_input_embeddings().weight.data.copy_(start)
        return DenseStudent(bert)

    def _new_alignment(self, teacher: nn.Module) -> Alignment:
        """Whatever spikes the student of the run sends, the states here are numbers."""
        student, config = self.recipe.student, teacher.config
        alignment = Alignment(student.hidden_size, student.layers, config.hidden_size, config.num_hidden_layers)
        alignment.align_with(aligned_states(str(self.stage1), student.layers, config.num_hidden_layers))
        return alignment

    def _load_pupil(self, stage: str) -> Pupil:
        return self._read_pupil(self.out / stage)

    def _read_pupil(self, folder: Path) -> Pupil:
        bert = BertForSequenceClassification.from_pretrained(folder)
        teacher = AutoModel.from_config(AutoConfig.from_pretrained(self.out / "teacher"))
        alignment = self._new_alignment(teacher)
        load_model(alignment, str(folder / "alignment.safetensors"))
        pupil = Pupil(DenseStudent(bert), alignment)  # type: ignore[arg-type]  # it answers to the same names
        return pupil.to(self.device)


def recipe_of(values: dict, out: Path) -> Recipe:
    """The recipe that a run or a stage wrote down, in another folder `out`."""
    return _filled(Recipe, values | {"out": str(out)})


def _filled(kind: Any, values: dict) -> Any:
    """A dataclass of the values of its fields, those that are dataclasses too."""
    kinds = get_type_hints(kind)
    return kind(**{
        name: _filled(kinds[name], value) if is_dataclass(kinds[name]) else value
        for name, value in values.items() if name in kinds
    })  # fmt: skip


def dense_recipe(values: dict, out: Path, learning_rate: float) -> Recipe:
    """The same, for a dense student."""
    recipe = recipe_of(values, out)
    recipe.stage1.learning_rate = recipe.stage2.learning_rate = learning_rate
    recipe.stage1.token_rate = recipe.stage2.token_rate = 1.0
    recipe.stage1.operations_per_token = recipe.stage2.operations_per_token = 0.0  # of spikes alone
    recipe.student.blocks_from_teacher, recipe.stage2.norm_texts = False, 0  # of their layers, and of BatchNorm
    return recipe


def with_teacher(recipe: Recipe, folder: Path) -> Recipe:
    """The same, its teacher copied from `folder`. Raises UserError where that is not there."""
    here = Path(recipe.out) / "teacher"
    if not here.exists():
        if not folder.exists():
            raise UserError(f"{folder} is not there: the teacher that the dense student would learn from")
        shutil.copytree(folder, here)
    return recipe


def teach_stage1(reused: Path, out: Path, learning_rate: float) -> Path:
    """The stage 1 that a run took over from the folder `reused`, taught to a dense student in `out` where that is not
    done. Raises UserError where `reused` is no stage 1 that was trained."""
    if not (reused / "stage.json").exists():
        raise UserError(f"the run took over its stage 1 from {reused}, which is not there (no stage.json)")
    values = json.loads((reused / "stage.json").read_text())["made_from"]
    if "stage2" in values or values["stage1"]["reuse"]:
        raise UserError(f"the run took over {reused}, which is no stage 1 from its start: give another run")
    recipe = dense_recipe(values, out, learning_rate)
    return DenseTraining(with_teacher(recipe, reused.parent / "teacher"), reused).run_stage1()


def teach_beside(run: Path, out: Path, learning_rate: float, stage1: Path | None = None) -> dict:
    """Validation accuracies of the dense student, which is trained in `out` where it is not finished, after those of
    the run; `stage1` as --stage1. Raises UserError where the run is not finished, or of no use to a dense student."""
    record = read_run(run)
    measured, values = record["accuracy"], record["recipe"]
    if out.resolve() == run.resolve():
        raise UserError("--out is the run itself: choose another folder")
    taken_over, reused = None, values["stage1"]["reuse"]
    if stage1 and not reused:
        raise UserError(f"--stage1 is of runs that took one over (stage1.reuse), and {run} did not: leave it out")
    if reused:
        if values["stage1"].get("reuse_readout"):
            raise UserError(f"{run} took over a readout (stage1.reuse_readout), which a dense student has not learnt")
        taken_over = teach_stage1(Path(reused), stage1 or out / "taken_over", learning_rate)
        values = values | {"stage1": values["stage1"] | {"reuse": ""}}
    recipe = with_teacher(dense_recipe(values, out, learning_rate), run / "teacher")
    accuracies = {name: measured[name]["validation"] for name in ("teacher", "float student", "integer student")}
    return accuracies | DenseTraining(recipe, run / "stage1", taken_over).run()


def _classes(classify: Classify, texts: TokenisedTexts, pad_id: int) -> np.ndarray:
    classes = np.zeros(len(texts), np.int64)
    for indices in sorted_batches(texts.lengths, 64):
        batch = texts.batch(indices, pad_id)
        classes[indices] = classify(TokenBatch(batch["input_ids"].numpy(), batch["attention_mask"].numpy())).argmax(-1)
    return classes


def teach(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run of spikebert-train")
    parser.add_argument("--out", type=Path, required=True, help="folder of the dense student's stages")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--stage1", type=Path, help="folder of a stage 1 that the run took over (OUT/taken_over)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    arguments = parser.parse_args(argv)
    with output_kept_clean():
        accuracies = teach_beside(arguments.run, arguments.out, arguments.learning_rate, arguments.stage1)
    if arguments.json:
        write_output(json.dumps(accuracies))
        return 0
    rows = [[name, str(Accuracy(**value))] for name, value in accuracies.items()]
    write_output(table(["", "validation"], rows))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(teach, argv)


if __name__ == "__main__":
    sys.exit(main())
