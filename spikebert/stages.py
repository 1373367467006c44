"""The four stages of training, each a folder that the next one reads.

    teacher    fine-tune the BERT on the task
    stage1     align the student with the teacher as it came, on unlabelled text
    stage2     distil the fine-tuned teacher into the student, on the task
    integer    fold, quantise, and train on with integers in the forward pass

A stage is finished when its folder holds `stage.json` (what it was made from, and its figures): running the
recipe again passes over it. Models are chosen on validation; test is measured once, at the end.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from spikebert.commands import UserError
from spikebert.data import (
    HUB,
    SPLITS,
    LabelledTexts,
    TokenisedTexts,
    hash_files,
    read_split,
    sorted_batches,
)
from spikebert.distillation import Alignment, LossWeights, older_layer_map
from spikebert.evaluation import accuracy, held_out, mean_firing_rates, predict_together, validation
from spikebert.kept_outputs import GB, drop_kept
from spikebert.launch import make_accelerator
from spikebert.loop import Schedule, Score, checkpoint_names, fit
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.new_student import check_rounding, new_alignment, new_student, student_config
from spikebert.parts_of_speech import tagger_for
from spikebert.processes import each_alone
from spikebert.progress import say, telling
from spikebert.pupil import Classifier, Pupil, check_reuse, other_neurons, pupil_files, pupil_saver, reuse, weights_of
from spikebert.quantisation import folded, quantise
from spikebert.recipe import STAGES, Quantise, Recipe, Stage1, Stage2, Teacher, check_recipe
from spikebert.run_folder import TEXTS, RunFolder, alone_in, errors_name_files
from spikebert.settled_norms import settle_norms
from spikebert.stage_record import FILES_OF, N_MAX, SECTIONS, TEACHER, handed_on, inherited
from spikebert.task_texts import (
    all_held_out,
    check_held_out,
    check_readable,
    choose_vocabulary,
    class_names,
    read_task,
    say_unread,
    stage1_texts,
    stage2_texts,
    text_of_stage1,
    text_of_stage2,
)
from spikebert.teacher_blocks import FIT_TEXTS, FIT_TOKENS, begin_as_teacher, check_blocks, fit_readout
from spikebert.teacher_outputs import texts_at_once
from spikebert.teachers import (
    ORIGIN,
    Origin,
    check_classes,
    check_encoder,
    classes_of,
    decisive_files,
    load_teacher,
    origin_of,
    resolve,
    told_origin,
)
from spikebert.teaching import Lesson, teaching
from spikebert.vocabulary import keep_rows

MEND_WEIGHTS = "remove this stage's folder and those of the later stages, to train them again"
CALIBRATION_BATCH = 64  # texts
MUCH = 0.03  # of accuracy that rounding may cost before that is said
KEPT = "teacher_outputs"  # the folder of what the teacher said; see `kept_outputs.py`
# What is measured at the end: the student as trained, with BatchNorm folded, rounded, and trained on with integers.
MEASURED = ("teacher", "float student", "folded student", "quantised student", "integer student")


class Training:
    """Runs the stages of one recipe, in order, each once.

    Making it checks all that can be known before anything is trained. Raises UserError.
    """

    def __init__(self, recipe: Recipe) -> None:
        check_recipe(recipe)
        self.recipe = recipe
        self.out = Path(recipe.out)
        self.folder = RunFolder(self.out)
        splits = {split: read_split(recipe.data, split) for split in SPLITS}
        check_readable(recipe, self.folder)
        self.tagger = tagger_for(recipe.stage2.parts_of_speech) if recipe.stage2.parts_of_speech else None
        self.accelerator = make_accelerator(recipe)
        self.teacher_folder = resolve(recipe.teacher.model)
        self.teacher_config = load_teacher(AutoConfig, self.teacher_folder)
        check_encoder(self.teacher_config, self.teacher_folder)
        self.tokenizer: PreTrainedTokenizerBase = load_teacher(AutoTokenizer, self.teacher_folder)
        names = class_names(splits, recipe.data, is_taught=self.folder.finished("teacher"))
        self.student_config = student_config(recipe.student, names, self.teacher_config, self.tokenizer)
        self._check_classes(names)
        check_rounding(self.student_config, recipe.quantise, self.say)
        if recipe.student.blocks_from_teacher and not recipe.stage1.reuse:
            check_blocks(self.student_config, self.teacher_config)
        if recipe.stage1.reuse and not self.folder.finished("stage1"):
            reused = Path(recipe.stage1.reuse)
            check_reuse(self.student_config, self.teacher_config, self.tokenizer, reused, recipe.stage1.reuse_readout)
            if other := other_neurons(self.student_config, reused):
                self.say(f"stage1.reuse: the student in {reused} had {other}: its weights are taken all the same")
        self.vocabulary = choose_vocabulary(recipe.data, self.tokenizer, splits["train"], self.say)
        self.task = read_task(splits, recipe.data.limit, self.task_tokenizer, recipe.student.n_max, self.say)
        check_held_out(recipe, len(self.task.train), self.folder)
        self.texts_sha256 = {
            name: split.sha256() for name, split in splits.items() if split is not None and name != "train"
        }
        self.fingerprints = self._fingerprints(splits)
        self.rounded: SpikeBertForSequenceClassification | None = None
        self.folder.check_free(self.teacher_folder)
        say_unread(recipe, self.folder, self.say)

    @property
    def task_tokenizer(self) -> PreTrainedTokenizerBase:
        """That of all stages but stage 1."""
        return self.vocabulary.tokenizer if self.vocabulary else self.tokenizer

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_token_id or 0

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def say(self, message: str) -> None:
        """One line on standard error, from the main process alone."""
        if self.accelerator.is_main_process:
            say(message)

    def run(self, until: str = STAGES[-1]) -> dict:
        """All stages, then the final measurement; returns what `results.json` holds.

        Where `until` is a stage before the last, that one ends it: nothing is measured or written after it, and only
        "stages" is returned, the figures of those that are finished.
        """
        self.folder.check_recipe(self._made_from)
        with errors_name_files(self.out):
            self.folder.make()
        with alone_in(self.out) if self.accelerator.is_main_process else nullcontext():
            return self._run(until)

    def _run(self, until: str) -> dict:
        work = dict(
            zip(STAGES, (self._train_teacher, self._train_stage1, self._train_stage2, self._train_integer), strict=True)
        )
        wanted = STAGES[: STAGES.index(until) + 1]
        for stage in wanted:
            self._stage(stage, work[stage])
        if until != STAGES[-1]:
            return {"stages": self._stage_figures(wanted)}
        if self.accelerator.is_main_process:
            drop_kept(self.out / KEPT)  # large, and soon made again
        return self._measure()

    # What a stage is made from

    def _made_from(self, stage: str) -> dict:
        """All that decides what a stage gives: parts of the recipe, and what the files named there hold."""
        full = asdict(self.recipe)
        sections = {section: full[section] for section in SECTIONS[stage]}
        files = {name: self.fingerprints[name] for name in FILES_OF[stage] if name in self.fingerprints}
        cut = {N_MAX: self.recipe.student.n_max} if stage == "teacher" else {}  # the others have all of the student
        return sections | cut | {"sha256": files}

    def _fingerprints(self, splits: dict[str, LabelledTexts | None]) -> dict[str, str]:
        """sha256 of the labelled texts (train and validation), of a teacher that is a folder, of the text files of
        either stage, and of a pupil that stage 1 takes over."""
        labelled = json.dumps([asdict(split) for name, split in splits.items() if split and name != "test"])
        fingerprints = {
            "data": hashlib.sha256(labelled.encode()).hexdigest(),
            "stage1.text": self._hash_of("stage1", "stage1.text", text_of_stage1(self.recipe)),
            "stage2.extra_text": self._hash_of("stage2", "stage2.extra_text", text_of_stage2(self.recipe)),
        }
        if teacher := decisive_files(self.recipe.teacher.model):
            fingerprints[TEACHER] = hash_files(teacher)
        if self.recipe.stage1.reuse:
            fingerprints["stage1.reuse"] = self._hash_of(
                "stage1", "stage1.reuse", pupil_files(self.recipe.stage1.reuse)
            )
        return fingerprints

    def _hash_of(self, stage: str, name: str, paths: list[str]) -> str:
        """sha256 of files that are named in the recipe. Once a finished stage has read them they may go: what that
        noted of them stands for them. Raises UserError where they are missing otherwise."""
        missing = [path for path in paths if not (path.startswith(HUB) or Path(path).exists())]
        if missing and self.folder.finished(stage):
            noted = self.folder.record(stage)["made_from"].get("sha256", {}).get(name)
            if noted:
                return str(noted)
        if missing:
            raise UserError(f"{name}: {', '.join(missing)}: no such file")
        return hash_files(paths)

    def _stage(self, stage: str, work: Callable[[Path], tuple[dict, Callable[[Path], None]]]) -> None:
        """Run one that is not finished. `work`: the folder for what it needs until then -> its figures, and what saves
        all that it trained in a folder."""
        is_main = self.accelerator.is_main_process
        if self.folder.finished(stage):
            self.say(f"{stage}: finished before, in {self.folder.of(stage)}")
            if is_main:
                self.folder.let_go(stage)
            return
        set_seed(self.recipe.seed)
        with errors_name_files(self.out):
            if is_main:
                self.folder.begin(stage, self._made_from(stage), self.say)
            self.accelerator.wait_for_everyone()
            figures, save = work(self.folder.unfinished(stage))
            if is_main:
                told = {ORIGIN: asdict(self._teacher_origin()), "licence": self.recipe.licence}
                record = {"made_from": self._made_from(stage), "figures": figures | told}
                tokenizer = self.tokenizer if stage == "stage1" else self.task_tokenizer
                self.folder.finish(stage, record, save, tokenizer)
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()  # it holds what it prepared: a model and an optimiser for each stage before

    # The stages

    def _train_teacher(self, work: Path) -> tuple[dict, Callable[[Path], None]]:
        options = self.recipe.teacher
        own_classes = classes_of(self.teacher_config)
        renewed = own_classes not in (None, self.student_config.num_labels)
        if renewed:
            self.say(f"teacher: its head for {own_classes} classes is left, a new one begins")
        taught = own_classes == self.student_config.num_labels and not options.epochs
        teacher = self._classifier(self.teacher_folder, ignore_mismatched_sizes=renewed, whole=taught)
        if self.vocabulary:
            keep_rows(teacher, self.vocabulary.kept)
        teacher.to(self.device)
        measure = validation(teacher, self.task.validation, self.pad_id, self.device)
        outcome = fit(
            Classifier(teacher, texts_at_once(self.device, trained=True)),
            lambda model, batch: {"loss": model(batch)},
            lambda epoch: self.task.train,
            self._schedule(options),
            evaluate=measure,
            title="teacher",
            **self._common(work),
        )
        if options.epochs or own_classes != self.student_config.num_labels:
            return outcome.figures(), teacher.save_pretrained
        as_it_comes = measure()  # before anything learns from it
        self.say(f"teacher: {as_it_comes.text}")
        return as_it_comes.figures | outcome.figures(), teacher.save_pretrained

    def _train_stage1(self, work: Path) -> tuple[dict, Callable[[Path], None]]:
        options = self.recipe.stage1
        teacher = load_teacher(AutoModel, self.teacher_folder).to(self.device).eval()
        student = self._new_student(teacher)
        pupil = Pupil(student, self._new_alignment(teacher)).to(self.device)
        if options.reuse:
            reuse(pupil, Path(options.reuse), options.reuse_readout)
            earlier = handed_on(Path(options.reuse), self.recipe.teacher.model, self.recipe.licence)
            figures = {"reused": options.reuse} | earlier
            return figures, pupil_saver(pupil)
        begun_before = checkpoint_names(work)
        if begun_before and "alignment.aligned_with" not in begun_before:
            pupil.alignment.align_with(older_layer_map(self.recipe.student.layers, teacher.config.num_hidden_layers))
        is_main, wait = self.accelerator.is_main_process, self.accelerator.wait_for_everyone
        read = stage1_texts(self.recipe, self.tokenizer, self.task, work / TEXTS, is_main, wait)
        if options.held_out >= len(read):
            raise UserError(all_held_out(options.held_out, len(read)))
        texts = read.first(len(read) - options.held_out)
        begun = self._begin_as_teacher(pupil, teacher, texts) if self.recipe.student.blocks_from_teacher else {}
        weights = LossWeights(
            hidden=options.hidden_weight,
            embedding=options.embedding_weight,
            operations=options.operations_weight,
            operations_per_token=options.operations_per_token,
        )
        self._spare_memory(student)
        lesson = self._lesson(teacher, pupil, weights, texts, options.epochs, work / KEPT)
        with teaching(lesson, work, "stage 1", self.pad_id, self.accelerator) as taught:
            outcome = fit(
                pupil,
                lambda model, batch: model(batch, *taught(batch), weights),
                lambda epoch: texts,
                self._schedule(options),
                evaluate=held_out(pupil, taught, read, len(texts), self.pad_id, self.device, weights)
                if options.held_out
                else None,
                rates=student.learning_rates(options.token_rate),
                title="stage 1",
                **self._common(work),
            )
        figures = begun | {"texts": len(texts)} | outcome.figures()
        return figures, pupil_saver(pupil)

    def _train_stage2(self, work: Path) -> tuple[dict, Callable[[Path], None]]:
        options = self.recipe.stage2
        pupil = self._load_pupil("stage1")
        if self.vocabulary:
            keep_rows(pupil.student, self.vocabulary.kept)
        if not self.recipe.stage1.reuse_readout:
            pupil.student.renew_readout()
        if self._readout_begins_fitted:
            teacher = self._classifier(str(self.out / "teacher"), whole=True).to(self.device).eval()
            fit_readout(pupil.student, teacher, self._batches_of(self.task.train, self._some_texts(FIT_TEXTS)))
        schedule = self._schedule(options)
        rates = pupil.student.learning_rates(options.token_rate)
        figures = self._distil_task(pupil, schedule, rates, work, "stage 2")
        return figures | inherited(self.out / "stage1"), pupil_saver(pupil)

    def _train_integer(self, work: Path) -> tuple[dict, Callable[[Path], None]]:
        options = self.recipe.quantise
        pupil = self._load_pupil("stage2")
        float_student = pupil.student
        pupil.student = self._rounded(float_student)
        self.rounded = copy.deepcopy(pupil.student)  # as it is before it learns
        texts = self.task.validation
        float_classes = predict_together(float_student, texts, self.pad_id, self.device)
        rounded_classes = predict_together(pupil.student, texts, self.pad_id, self.device)
        as_float, rounded = accuracy(float_classes, texts), accuracy(rounded_classes, texts)
        figures = {
            "float_validation": as_float.to_dict(),
            "rounded_validation": rounded.to_dict(),
            "rounded_changed_predictions": int((float_classes != rounded_classes).sum()),
        }
        self.say(f"integer: validation {as_float} as float")
        self.say(f"integer: validation {rounded} folded and rounded")
        if not options.calibration_texts and as_float.value - rounded.value > MUCH:
            lost = 100 * (as_float.value - rounded.value)
            self.say(
                f"integer: rounding to the nearest cost {lost:.1f} points of accuracy; with "
                "--quantise.calibration_texts 512 it costs less as a rule"
            )
        schedule = self._schedule(options)
        rates = pupil.student.learning_rates(1.0)
        figures |= self._distil_task(pupil, schedule, rates, work, "integer", keep_start=True)
        return figures, pupil_saver(pupil)

    # Pieces

    def _schedule(self, options: Teacher | Stage1 | Stage2 | Quantise) -> Schedule:
        return Schedule(
            options.epochs, options.batch_size, options.learning_rate, options.weight_decay, options.patience
        )

    def _rounded(self, student: SpikeBertForSequenceClassification) -> SpikeBertForSequenceClassification:
        """`quantise` as the recipe has it; always with the same training texts."""
        options = self.recipe.quantise
        texts = self._batches_of(self.task.train, self._some_texts(options.calibration_texts))
        tell = telling("rounding with texts", "layers") if texts and self.accelerator.is_main_process else None
        return quantise(student, options.weight_bits, texts, options.token_bits, tell)

    def _some_texts(self, count: int) -> np.ndarray:
        """So many training texts of the task at most, always the same: their numbers."""
        return np.random.default_rng(self.recipe.seed).permutation(len(self.task.train))[:count]

    def _batches_of(self, texts: TokenisedTexts, chosen: np.ndarray) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """ids and mask [B, N] of the chosen ones, those of like length together."""
        parts = sorted_batches(texts.lengths_of(chosen), CALIBRATION_BATCH)
        return list(self._on_device(texts, [chosen[some] for some in parts]))

    def _on_device(
        self, texts: TokenisedTexts, parts: Sequence[np.ndarray]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """ids and mask [B, N] of each part of the texts."""
        for part in parts:
            batch = texts.batch(part, self.pad_id)
            yield batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)

    @property
    def _readout_begins_fitted(self) -> bool:
        """A readout of sums of a student that begins as its teacher, unless it is taken over."""
        student = self.recipe.student
        return student.blocks_from_teacher and student.readout != "spikes" and not self.recipe.stage1.reuse_readout

    def _distil_task(
        self, pupil: Pupil, schedule: Schedule, rates: Mapping[nn.Parameter, float], work: Path, title: str,
        keep_start: bool = False,
    ) -> dict:  # fmt: skip
        options = self.recipe.stage2
        teacher = self._classifier(str(self.out / "teacher"), whole=True).to(self.device).eval()
        texts = stage2_texts(self.recipe, self.task_tokenizer, self.task, schedule.epochs, self.tagger, self.say)
        weights = LossWeights(
            label=options.label_weight,
            logits=options.logits_weight,
            hidden=options.hidden_weight,
            embedding=options.embedding_weight,
            temperature=options.temperature,
            operations=options.operations_weight,
            operations_per_token=options.operations_per_token,
        )

        measure = validation(pupil.student, self.task.validation, self.pad_id, self.device, weights)
        settling = self._some_texts(options.norm_texts)
        # about as in training; each counts alike, so none may be a small rest
        mixed = np.array_split(settling, max(1, round(len(settling) / options.batch_size))) if len(settling) else []

        def evaluate() -> Score:
            with each_alone():  # every process runs all of them
                settle_norms(pupil.student, self._on_device(self.task.train, mixed))
            return measure()

        self._spare_memory(pupil.student)
        # stage 2 and the integer stage ask the same about the same texts
        times = options.epochs + self.recipe.quantise.epochs if schedule.epochs else 0
        lesson = self._lesson(teacher, pupil, weights, texts.again, times, self.out / KEPT, len(self.task.train))
        with teaching(lesson, work, title, self.pad_id, self.accelerator) as taught:
            outcome = fit(
                pupil,
                lambda model, batch: model(batch, *taught(batch), weights),
                texts.of_epoch,
                schedule,
                rates=rates,
                evaluate=evaluate,
                keep_start=keep_start,
                title=title,
                **self._common(work),
            )
        return outcome.figures()

    def _begin_as_teacher(self, pupil: Pupil, teacher: nn.Module, texts: TokenisedTexts) -> dict:
        """Fit the student to its teacher with some of the texts, always the same."""
        drawn = np.random.default_rng(self.recipe.seed).permutation(len(texts))
        chosen = drawn[: 1 + int(np.searchsorted(texts.lengths[drawn].cumsum(), FIT_TOKENS))]
        batches = self._batches_of(texts, chosen)
        explained = begin_as_teacher(pupil.student, pupil.alignment, teacher, batches, self.recipe.seed)
        shares = ", ".join(f"{share:.0%}" for share in explained)
        self.say(f"stage 1: blocks from the teacher, {shares} of the variance of its states")
        return {"blocks_from_teacher": {"texts": len(chosen), "explained": explained}}

    def _lesson(
        self, teacher: nn.Module, pupil: Pupil, weights: LossWeights, texts: TokenisedTexts, times: int, place: Path,
        at_least: int | None = None,
    ) -> Lesson:  # fmt: skip
        wanted = pupil.alignment.wanted if weights.aligns else []
        classes = self.student_config.num_labels if weights.logits else 0
        limit = int(self.recipe.teacher_cache_gb * GB)
        return Lesson(teacher, wanted, classes, texts, times, place, limit, at_least)

    def _spare_memory(self, student: SpikeBertForSequenceClassification) -> None:
        if self.recipe.gradient_checkpointing:
            student.gradient_checkpointing_enable()

    def _common(self, work: Path) -> dict:
        return {
            "folder": work,
            "accelerator": self.accelerator,
            "pad_id": self.pad_id,
            "seed": self.recipe.seed,
            "checkpoint_seconds": self.recipe.checkpoint_seconds,
        }

    def _teacher_origin(self) -> Origin:
        """As it was when the first stage was finished."""
        told = told_origin(self.folder.record("teacher")) if self.folder.finished("teacher") else None
        return told or origin_of(self.recipe.teacher.model)

    def _classifier(self, folder: str, whole: bool = False, **options: object) -> PreTrainedModel:
        classes = self.student_config.num_labels
        return load_teacher(AutoModelForSequenceClassification, folder, whole, num_labels=classes, **options)

    def _check_classes(self, names: Sequence[str]) -> None:
        """Raises UserError where the teacher, as it comes, is to teach other classes than it tells apart."""
        if self.recipe.teacher.epochs:
            return
        check_classes(self.teacher_config, self.teacher_folder, names, is_taken=self.folder.finished("teacher"))
        epochs = self.recipe.stage2.epochs + self.recipe.quantise.epochs
        if classes_of(self.teacher_config) is None and epochs and self.recipe.stage2.logits_weight:
            self.say(
                "teacher: it has learnt no classes and teacher.epochs is 0: its logits say nothing, in stage 2 and the "
                "integer stage (stage2.logits_weight 0 leaves them out)"
            )

    def _new_student(self, teacher: nn.Module) -> SpikeBertForSequenceClassification:
        from_teacher = self.recipe.student.embeddings_from_teacher
        return new_student(self.student_config, teacher, self.recipe.seed, from_teacher)

    def _new_alignment(self, teacher: nn.Module) -> Alignment:
        return new_alignment(self.student_config, teacher.config)

    def _load_pupil(self, stage: str) -> Pupil:
        teacher = AutoModel.from_config(AutoConfig.from_pretrained(self.out / "teacher"))
        alignment = self._new_alignment(teacher)
        with weights_of(self.out / stage, MEND_WEIGHTS):
            student = SpikeBertForSequenceClassification.from_pretrained(self.out / stage)
            load_model(alignment, str(self.out / stage / "alignment.safetensors"))
        return Pupil(student, alignment).to(self.device)

    # The end

    def _measure(self) -> dict:
        """Accuracy of teacher and student, at every step from floats to integers, on validation and, where there is
        one, on test."""
        results: dict = {"recipe": asdict(self.recipe), "accuracy": {}, "changed_predictions": {}}
        results["stages"] = self._stage_figures(STAGES)
        origin = asdict(self._teacher_origin())
        results["teacher_licence"] = origin.pop("licence")
        results["teacher_origin"] = origin
        results["integer_stage_sha256"] = hash_files(
            [str(self.out / "integer" / "stage.json")]
        )  # that of these figures
        results["texts_sha256"] = {}
        for split, texts in {"validation": self.task.validation, "test": self.task.test}.items():
            if texts is None:
                continue
            results["texts_sha256"][split] = self.texts_sha256[split]
            classes = {}
            for name in MEASURED:
                model = self._measured_model(name)
                classes[name] = predict_together(model, texts, self.pad_id, self.device)
                measured = accuracy(classes[name], texts)
                results["accuracy"].setdefault(name, {})[split] = measured.to_dict()
                self.say(f"{split}: {name} {measured}")
            changed = int((classes["float student"] != classes["integer student"]).sum())
            results["changed_predictions"][split] = {"changed": changed, "texts": len(texts)}
        rates = mean_firing_rates(self._trained("integer"), self.task.validation, self.pad_id)
        results["firing_rates"] = rates
        lif = [rate for name, rate in rates.items() if ".add_" not in name]
        results["mean_firing_rate"] = sum(lif) / len(lif)
        if self.accelerator.is_main_process:
            with errors_name_files(self.out):
                (self.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        return results

    def _stage_figures(self, stages: Sequence[str]) -> dict[str, dict]:
        return {stage: self.folder.record(stage)["figures"] for stage in stages}

    def _measured_model(self, name: str) -> nn.Module:
        """One of `MEASURED`: those between the float and the integer student are made again from the float one, unless
        this run has just rounded it."""
        if name == "folded student":
            return folded(self._trained("stage2"))
        if name == "quantised student":
            self.rounded = self.rounded or self._rounded(self._trained("stage2"))
            return self.rounded
        return self._trained({"teacher": "teacher", "float student": "stage2", "integer student": "integer"}[name])

    def _trained(self, stage: str) -> nn.Module:
        if stage == "teacher":
            return self._classifier(str(self.out / stage), whole=True).to(self.device).eval()
        with weights_of(self.out / stage, MEND_WEIGHTS):
            return SpikeBertForSequenceClassification.from_pretrained(self.out / stage).to(self.device).eval()
