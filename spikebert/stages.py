"""The four stages of training, each a folder that the next one reads.

    teacher    fine-tune the BERT on the task
    stage1     align the student with the teacher as it came, on unlabelled text
    stage2     distil the fine-tuned teacher into the student, on the task
    integer    fold, quantise, and train on with integers in the forward pass

A stage is finished when its folder holds `stage.json` (what it was made from, and its figures): running the
recipe again passes over it. Models are chosen on validation; test is measured once, at the end.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs, set_seed
from safetensors import SafetensorError
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

from spikebert.augmentation import alter, alter_words
from spikebert.commands import UserError
from spikebert.config import SpikeBertConfig
from spikebert.data import (
    HUB,
    OFFSETS,
    SPLITS,
    LabelledTexts,
    SpecialTokens,
    TokenisedTexts,
    TooManyTokens,
    check_text_files,
    describe_unusual,
    hash_files,
    read_lines,
    read_split,
    sorted_batches,
    tokenise,
    tokenise_on_disk,
)
from spikebert.distillation import Alignment, LossWeights, embeddings_from_teacher, older_layer_map
from spikebert.evaluation import accuracy, held_out, mean_firing_rates, predict_together, validation
from spikebert.kept_outputs import GB, drop_kept
from spikebert.loop import Schedule, Score, checkpoint_names, choose_precision, fit
from spikebert.model import TOKEN_DEVIATION, SpikeBertForSequenceClassification
from spikebert.parts_of_speech import tagger_for, words_of
from spikebert.processes import each_alone
from spikebert.progress import counted, say
from spikebert.pupil import Classifier, Pupil, check_reuse, other_neurons, pupil_files, pupil_saver, reuse, weights_of
from spikebert.quantisation import folded, least_room, quantise, require_short_rows
from spikebert.recipe import STAGES, Quantise, Recipe, Stage1, Stage2, Teacher, check_recipe
from spikebert.settled_norms import settle_norms
from spikebert.stage_record import (
    FILES_OF,
    N_MAX,
    SECTIONS,
    TEACHER,
    changes,
    handed_on,
    inherited,
    read_note,
    read_record,
    write_note,
    write_through,
)
from spikebert.teacher_blocks import FIT_TEXTS, FIT_TOKENS, begin_as_teacher, check_blocks, fit_readout
from spikebert.teacher_outputs import texts_at_once
from spikebert.teachers import (
    ORIGIN,
    Origin,
    check_encoder,
    classes_of,
    decisive_files,
    load_teacher,
    longest_text,
    origin_of,
    resolve,
    told_origin,
)
from spikebert.teaching import Lesson, teaching
from spikebert.vocabulary import Vocabulary, keep_rows, most_frequent

MEND_WEIGHTS = "remove this stage's folder and those of the later stages, to train them again"
BEGUN = "made_from.json"  # what an unfinished stage is made from
TEXTS = "texts"  # the folder of stage 1's tokenised text, until it is finished
# What decides that text: with other fields it is the same, and may have taken an hour.
TOKENS_OF = {
    *("stage1.text", "stage1.lines", "stage1.longest_words", "student.n_max", TEACHER),
    *("sha256.stage1.text", f"sha256.{TEACHER}"),
}
CALIBRATION_BATCH = 64  # texts
MUCH = 0.03  # of accuracy that rounding may cost before that is said
ROOM = 5.0  # accumulator units of a weight: with 1.9 eight bits lost all, with 4.3 up to 13 points (docs/training.md)
KEPT = "teacher_outputs"  # the folder of what the teacher said; see `kept_outputs.py`
PLAIN_PROCESSES = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
# What is measured at the end: the student as trained, with BatchNorm folded, rounded, and trained on with integers.
MEASURED = ("teacher", "float student", "folded student", "quantised student", "integer student")
# What a recipe and what SpikeBertConfig call the same thing.
STUDENT_NAMES = {"layers": "num_hidden_layers", "heads": "num_attention_heads", "n_max": "max_position_embeddings"}


@dataclass(frozen=True)
class Task:
    """The labelled texts of a recipe, as read and as tokenised; test is None where there is none."""

    train: TokenisedTexts
    validation: TokenisedTexts
    test: TokenisedTexts | None
    train_texts: list[str]


class Training:
    """Runs the stages of one recipe, in order, each once.

    Making it checks all that can be known before anything is trained. Raises UserError.
    """

    def __init__(self, recipe: Recipe) -> None:
        check_recipe(recipe)
        self.recipe = recipe
        self.out = Path(recipe.out)
        splits = {split: read_split(recipe.data, split) for split in SPLITS}
        self._check_texts()
        self.tagger = tagger_for(recipe.stage2.parts_of_speech) if recipe.stage2.parts_of_speech else None
        self.accelerator = Accelerator(
            cpu=several_started(os.environ) and not torch.cuda.is_available(),  # else each would train for itself
            mixed_precision=choose_precision(recipe.precision),
            # stage 1 leaves the readout without a gradient; buffers (BatchNorm's) are the same everywhere
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False),
                # others wait while the main process tokenises, perhaps a whole Wikipedia; a launcher ends those left
                # behind by one that died
                InitProcessGroupKwargs(timeout=timedelta(days=1)),
            ],
        )
        check_processes(recipe, self.accelerator, os.environ)
        self.teacher_folder = resolve(recipe.teacher.model)
        self.teacher_config = load_teacher(AutoConfig, self.teacher_folder)
        check_encoder(self.teacher_config, self.teacher_folder)
        self.tokenizer: PreTrainedTokenizerBase = load_teacher(AutoTokenizer, self.teacher_folder)
        self.student_config = self._make_student_config(self._class_names(splits))
        self._check_classes()
        self._check_weights()
        if recipe.student.blocks_from_teacher and not recipe.stage1.reuse:
            check_blocks(self.student_config, self.teacher_config)
        if recipe.stage1.reuse and not self._finished("stage1"):
            reused = Path(recipe.stage1.reuse)
            check_reuse(self.student_config, self.teacher_config, self.tokenizer, reused, recipe.stage1.reuse_readout)
            if other := other_neurons(self.student_config, reused):
                self.say(f"stage1.reuse: the student in {reused} had {other}: its weights are taken all the same")
        self.vocabulary = self._choose_vocabulary(splits["train"])
        self.task = self._read_task(splits)
        self._check_held_out()
        self.texts_sha256 = {
            name: split.sha256() for name, split in splits.items() if split is not None and name != "train"
        }
        self.fingerprints = self._fingerprints(splits)
        self._check_out()
        self._say_unread()

    @property
    def task_tokenizer(self) -> PreTrainedTokenizerBase:
        """That of all stages but stage 1."""
        return self.vocabulary.tokenizer if self.vocabulary else self.tokenizer

    @property
    def stage1_text(self) -> list[str]:
        """What stage 1 reads beside the task: nothing where it takes over a student."""
        return [] if self.recipe.stage1.reuse else self.recipe.stage1.text

    @property
    def extra_text(self) -> list[str]:
        """What stage 2 and the integer stage read beside the task: nothing where the recipe asks for no lines of it."""
        return self.recipe.stage2.extra_text if self.recipe.stage2.extra_lines else []

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
        self._check_stages()
        with errors_name_files(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.out).close()  # may we write there?
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

    # What a stage is made from, and whether it is there

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
            "stage1.text": self._hash_of("stage1", "stage1.text", self.stage1_text),
            "stage2.extra_text": self._hash_of("stage2", "stage2.extra_text", self.extra_text),
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
        if missing and self._finished(stage):
            noted = read_record(self.out / stage / "stage.json")["made_from"].get("sha256", {}).get(name)
            if noted:
                return str(noted)
        if missing:
            raise UserError(f"{name}: {', '.join(missing)}: no such file")
        return hash_files(paths)

    def _check_out(self) -> None:
        """Raises UserError where writing a stage would delete something that is none of ours."""
        for stage in STAGES:
            folder = self.out / stage
            if folder.exists() and not self._finished(stage):
                raise UserError(f"{folder} exists and is no stage of ours (no stage.json): choose another --out")
            if Path(self.teacher_folder).resolve() == folder.resolve():
                raise UserError(f"teacher.model is {folder}, where this run writes: choose another --out")

    def _check_texts(self) -> None:
        """Raises UserError for text that cannot be read, where it is still to be read: the hub may be far away."""
        if not (self._finished("stage1") or (self.out / "stage1.unfinished" / TEXTS / OFFSETS).exists()):
            check_text_files(self.stage1_text)
        epochs = {"stage2": self.recipe.stage2.epochs, "integer": self.recipe.quantise.epochs}
        if any(epochs[stage] and not self._finished(stage) for stage in epochs):
            check_text_files(self.extra_text)

    def _say_unread(self) -> None:
        """Where the recipe asks for lines of text and names none, or the other way round."""
        stage1, stage2 = self.recipe.stage1, self.recipe.stage2
        if stage1.lines and not (stage1.text or stage1.reuse or self._finished("stage1")):
            self.say(
                f"stage 1: stage1.lines is {stage1.lines:,} and stage1.text names no text: it reads the training texts "
                "of the task"
            )
        if self._finished("stage2"):
            return
        if stage2.extra_lines and not stage2.extra_text:
            self.say(
                f"stage 2: stage2.extra_lines is {stage2.extra_lines:,} and stage2.extra_text names no text: it reads "
                "none beside the task's"
            )
        if stage2.extra_text and not stage2.extra_lines:
            self.say(f"stage 2: stage2.extra_lines is 0: nothing of {', '.join(stage2.extra_text)} is read")

    def _finished(self, stage: str) -> bool:
        return (self.out / stage / "stage.json").exists()

    def _check_stages(self) -> None:
        """Raises UserError, before anything is run, where another recipe finished a stage, or trained a part of it."""
        for stage in STAGES:
            unfinished = self._unfinished(stage)
            if self._finished(stage):
                before = read_record(self.out / stage / "stage.json")["made_from"]
                was = f"{self.out / stage} was made"
                mend = "choose another --out, or delete that folder and the later stages to train them again"
            elif (unfinished / "checkpoint.pt").exists() and (begun := read_note(unfinished / BEGUN)):
                before, was = begun, f"{unfinished} was begun"
                mend = "give that one to go on, choose another --out, or delete that folder to begin the stage again"
            else:
                continue
            if changed := changes(before, self._made_from(stage)):
                raise UserError(f"{was} with another recipe ({'; '.join(changed)}): {mend}")

    def _unfinished(self, stage: str) -> Path:
        return self.out / f"{stage}.unfinished"

    def _stage(self, stage: str, work: Callable[[Path], tuple[dict, Callable[[Path], None]]]) -> None:
        unfinished = self._unfinished(stage)
        if self._finished(stage):
            self.say(f"{stage}: finished before, in {self.out / stage}")
            if self.accelerator.is_main_process:  # of a run that was killed behind the last step
                shutil.rmtree(unfinished, ignore_errors=True)
                shutil.rmtree(self.out / f"{stage}.saving", ignore_errors=True)
            return
        set_seed(self.recipe.seed)
        with errors_name_files(self.out):
            self._drop_if_other_recipe(stage, unfinished)
            figures, save = work(unfinished)
            if self.accelerator.is_main_process:
                self._save_stage(stage, unfinished, figures, save)
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()  # it holds what it prepared: a model and an optimiser for each stage before

    def _save_stage(self, stage: str, unfinished: Path, figures: dict, save: Callable[[Path], None]) -> None:
        """Write a stage's folder under another name and rename it, so that one of its own name is finished."""
        partial = self.out / f"{stage}.saving"
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        try:
            partial.mkdir()
            save(partial)
            (self.tokenizer if stage == "stage1" else self.task_tokenizer).save_pretrained(partial)
            told = {ORIGIN: asdict(self._teacher_origin()), "licence": self.recipe.licence}
            record = {"made_from": self._made_from(stage), "figures": figures | told}
            (partial / "stage.json").write_text(json.dumps(record, indent=1) + "\n")
            logs = unfinished / "tensorboard"
            if logs.exists():
                shutil.copytree(logs, partial / "tensorboard")
            write_through(partial)
            shutil.rmtree(self.out / stage, ignore_errors=True)
            os.replace(partial, self.out / stage)
            write_through(self.out, below=False)  # before the checkpoint goes
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(unfinished, ignore_errors=True)

    def _drop_if_other_recipe(self, stage: str, unfinished: Path) -> None:
        """What another recipe left before its first checkpoint is no start for this one: it is removed, and that is
        said. Tokenised text stays where it is the same."""
        if self.accelerator.is_main_process:
            note, now = unfinished / BEGUN, self._made_from(stage)
            before = read_note(note)
            if before is not None and (changed := changes(before, now)):
                self.say(f"{stage}: begun before with another recipe ({'; '.join(changed)}): starting again")
                other_tokens = any(field.partition(" ")[0] in TOKENS_OF for field in changed)
                for path in unfinished.iterdir():
                    if path.name != TEXTS or other_tokens:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
            unfinished.mkdir(parents=True, exist_ok=True)
            write_note(note, now)
        self.accelerator.wait_for_everyone()

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
        read = self._stage1_texts(work / TEXTS)
        if options.held_out >= len(read):
            raise UserError(_all_held_out(options.held_out, len(read)))
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
        return quantise(student, options.weight_bits, texts, options.token_bits)

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
        extra = self._extra_texts(schedule.epochs)
        special, words = SpecialTokens.of(self.task_tokenizer), None
        if self.tagger and options.altered_copies and schedule.epochs:
            words = words_of(self.task_tokenizer, self.task.train_texts, self.recipe.student.n_max, self.tagger)
        weights = LossWeights(
            label=options.label_weight,
            logits=options.logits_weight,
            hidden=options.hidden_weight,
            embedding=options.embedding_weight,
            temperature=options.temperature,
            operations=options.operations_weight,
            operations_per_token=options.operations_per_token,
        )

        def texts_of_epoch(epoch: int) -> TokenisedTexts:
            texts = self.task.train
            seed, n_max = (self.recipe.seed, epoch, 1), self.recipe.student.n_max
            if options.altered_copies and words is not None:
                texts += alter_words(words, options.altered_copies, special, n_max, seed, options.alteration)
            elif options.altered_copies:
                texts += alter(self.task.train, options.altered_copies, special, n_max, seed, options.alteration)
            if extra is not None:
                own = np.arange(epoch * options.extra_lines, (epoch + 1) * options.extra_lines) % len(extra)
                texts += extra.select(own)
            return texts

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
        lesson = self._lesson(teacher, pupil, weights, self.task.train, times, self.out / KEPT)
        with teaching(lesson, work, title, self.pad_id, self.accelerator) as taught:
            outcome = fit(
                pupil,
                lambda model, batch: model(batch, *taught(batch), weights),
                texts_of_epoch,
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

    def _stage1_texts(self, folder: Path) -> TokenisedTexts:
        """Those of files are streamed to `folder`, by the main process."""
        options, n_max = self.recipe.stage1, self.recipe.student.n_max
        if not options.text:
            return tokenise(self.tokenizer, self.task.train_texts, n_max)
        lines = read_lines(options.text, options.lines, options.longest_words)
        if self.accelerator.is_main_process:
            limit = self.recipe.text_cache_gb
            try:
                tokenise_on_disk(self.tokenizer, counted(lines, "stage 1: tokenising"), n_max, folder, int(limit * GB))
            except TooManyTokens as error:
                raise UserError(
                    f"stage1.text: its tokens take more than {limit:g} GB of the disk, {error.texts:,} lines have "
                    "room: read fewer (stage1.lines), or allow more (text_cache_gb)"
                ) from None
        self.accelerator.wait_for_everyone()
        texts = tokenise_on_disk(self.tokenizer, (), n_max, folder)
        if not len(texts):
            raise UserError(_no_lines("stage1", options.text, options.longest_words))
        return texts

    def _lesson(
        self, teacher: nn.Module, pupil: Pupil, weights: LossWeights, texts: TokenisedTexts, times: int, place: Path
    ) -> Lesson:
        wanted = pupil.alignment.wanted if weights.aligns else []
        classes = self.student_config.num_labels if weights.logits else 0
        return Lesson(teacher, wanted, classes, texts, times, place, int(self.recipe.teacher_cache_gb * GB))

    def _spare_memory(self, student: SpikeBertForSequenceClassification) -> None:
        if self.recipe.gradient_checkpointing:
            student.gradient_checkpointing_enable()

    def _extra_texts(self, epochs: int) -> TokenisedTexts | None:
        """Those of all epochs, where there are so many."""
        options = self.recipe.stage2
        wanted = options.extra_lines * epochs
        if not (options.extra_text and wanted):
            return None
        lines = read_lines(options.extra_text, wanted, options.longest_words)
        texts = tokenise(self.task_tokenizer, lines, self.recipe.student.n_max)
        if not len(texts):
            raise UserError(_no_lines("stage2", options.extra_text, options.longest_words))
        if len(texts) < wanted:
            self.say(
                f"stage2.extra_text: has {len(texts):,} lines, and {epochs} epochs take {wanted:,}: some come again"
            )
        return texts

    def _common(self, work: Path) -> dict:
        return {
            "folder": work,
            "accelerator": self.accelerator,
            "pad_id": self.pad_id,
            "seed": self.recipe.seed,
            "checkpoint_seconds": self.recipe.checkpoint_seconds,
        }

    def _class_names(self, splits: dict[str, LabelledTexts | None]) -> list[str]:
        """`data.labels`, or numbers. Raises UserError where the texts have more classes, where there is one only, and
        where classes that nobody named have no training text. (Of training texts those count that `data.limit` leaves.)
        """
        train, limit, named = splits["train"], self.recipe.data.limit, self.recipe.data.labels
        assert train is not None  # read_split raises
        used = train.labels if self._finished("teacher") else train.labels[: limit or None]  # which is trained already
        taught = set(used)
        lost = taught != set(train.labels)
        cut = f" (data.limit leaves the first {limit}: are they sorted by class? shuffle them)" if lost else ""
        if len(taught) < 2:
            raise UserError(f"train: all texts have label {train.labels[0]}: there is nothing to tell apart{cut}")
        classes = max(max(split.labels) for split in splits.values() if split is not None) + 1
        missing = classes - len(taught)
        if missing > 0 and not named:
            raise UserError(
                f"labels are 0 .. {classes - 1}, and {missing} of these have no training text{cut}: name all classes "
                "in data.labels if that is meant"
            )
        names = named or [str(i) for i in range(classes)]
        if classes > len(names) or len(names) < 2:
            raise UserError(f"data.labels names {len(names)} classes, the texts have labels 0 .. {classes - 1}")
        return names

    def _choose_vocabulary(self, train: LabelledTexts | None) -> Vocabulary | None:
        size = self.recipe.data.vocabulary
        if not size or train is None or size >= len(self.tokenizer):
            return None
        texts = train.texts[: self.recipe.data.limit or None]
        chosen = most_frequent(self.tokenizer, texts, size)
        self.say(
            f"vocabulary: {len(chosen.kept):,} of {len(self.tokenizer):,} tokens; with them the training texts have "
            f"{chosen.longer_by(texts):.3f} times as many"
        )
        return chosen

    def _read_task(self, splits: dict[str, LabelledTexts | None]) -> Task:
        n_max, limit = self.recipe.student.n_max, self.recipe.data.limit
        added = self.tokenizer.num_special_tokens_to_add()

        def tokens(name: str, split: LabelledTexts) -> TokenisedTexts:
            texts = tokenise(self.task_tokenizer, split.texts, n_max, split.labels)
            for message in describe_unusual(texts, n_max, added, self.task_tokenizer.unk_token_id):
                self.say(f"{name}: {message}")
            return texts

        train, held_back = splits["train"], splits["validation"]
        assert train is not None and held_back is not None  # read_split raises for these two
        if limit:
            train = LabelledTexts(train.texts[:limit], train.labels[:limit])
        test = None if splits["test"] is None else tokens("test", splits["test"])
        return Task(tokens("train", train), tokens("validation", held_back), test, train.texts)

    def _teacher_origin(self) -> Origin:
        """As it was when the first stage was finished."""
        path = self.out / "teacher" / "stage.json"
        told = told_origin(read_record(path)) if path.exists() else None
        return told or origin_of(self.recipe.teacher.model)

    def _check_held_out(self) -> None:
        """Raises UserError where it is known before reading that stage 1 would have nothing to learn from."""
        options = self.recipe.stage1
        most = options.lines if options.text else len(self.task.train)
        if most and options.held_out >= most and not (options.reuse or self._finished("stage1")):
            raise UserError(_all_held_out(options.held_out, most))

    def _classifier(self, folder: str, whole: bool = False, **options: object) -> PreTrainedModel:
        classes = self.student_config.num_labels
        return load_teacher(AutoModelForSequenceClassification, folder, whole, num_labels=classes, **options)

    def _check_classes(self) -> None:
        """Raises UserError where the teacher, as it comes, is to teach other classes than it tells apart."""
        own, wanted = classes_of(self.teacher_config), self.student_config.num_labels
        if self.recipe.teacher.epochs:
            return
        if own not in (None, wanted):
            raise UserError(
                f"teacher.model: '{self.teacher_folder}' tells {own} classes apart, the texts have {wanted}, and "
                "teacher.epochs is 0: fine-tune it (teacher.epochs 3), or give one of this task"
            )
        theirs, ours = (
            [str(config.id2label.get(number, number)).lower() for number in range(wanted)]
            for config in (self.teacher_config, self.student_config)
        )
        if own is not None and theirs != ours and set(theirs) == set(ours) and not self._finished("teacher"):
            raise UserError(
                f"teacher.model: '{self.teacher_folder}' calls its classes {theirs} in this order, data.labels {ours}: "
                "number the labels of the texts as the teacher does, or fine-tune it (teacher.epochs 3)"
            )
        epochs = self.recipe.stage2.epochs + self.recipe.quantise.epochs
        if own is None and epochs and self.recipe.stage2.logits_weight:
            self.say(
                "teacher: it has learnt no classes and teacher.epochs is 0: its logits say nothing, in stage 2 and the "
                "integer stage (stage2.logits_weight 0 leaves them out)"
            )

    def _check_weights(self) -> None:
        """Raises UserError where a layer of the student is too wide for `quantise.weight_bits`; says where integers may
        be coarse."""
        bits = self.recipe.quantise.weight_bits
        with torch.random.fork_rng(devices=[]):  # its weights do not matter, and training draws its own
            student = SpikeBertForSequenceClassification(self.student_config)
        try:
            require_short_rows(student, bits)
        except ValueError as error:
            raise UserError(f"quantise.weight_bits is {bits}: {error}") from None
        layer, most, room = least_room(student)
        if bits > 2 and room < ROOM and not self.recipe.quantise.calibration_texts:
            self.say(
                f"student: '{layer}' reads numbers up to {most}, and its weights have room for {room:.1f} units in the "
                "mean before the accumulator is full: integers may be far from the floats. Round with texts "
                "(quantise.calibration_texts 512); fewer or narrower blocks leave more room, and so do smaller caps"
            )

    def _make_student_config(self, names: list[str]) -> SpikeBertConfig:
        """The student's configuration. Raises UserError for what cannot be made or taught."""
        options = self.recipe.student
        room = longest_text(self.teacher_config)
        if options.n_max > room:
            raise UserError(f"student.n_max is {options.n_max}, the teacher takes texts of {room} tokens at most")
        added = self.tokenizer.num_special_tokens_to_add()
        if options.n_max <= added:
            raise UserError(f"student.n_max is {options.n_max}, the special tokens alone are {added}: give more")
        try:
            return SpikeBertConfig(
                vocab_size=len(self.tokenizer),
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
                id2label=dict(enumerate(names)),
                label2id={name: i for i, name in enumerate(names)},
                pad_token_id=self.pad_id,
            )
        except ValueError as error:
            message = str(error)
            for ours, its in STUDENT_NAMES.items():
                message = message.replace(its, ours)
            raise UserError(f"student.{message}") from None

    def _new_student(self, teacher: nn.Module) -> SpikeBertForSequenceClassification:
        options, config = self.recipe.student, self.student_config
        student = SpikeBertForSequenceClassification(config)
        if options.embeddings_from_teacher:
            words = teacher.get_input_embeddings().weight[: config.vocab_size]
            student.encoder.token.weight.data.copy_(
                embeddings_from_teacher(
                    words, config.hidden_size, self.recipe.seed, TOKEN_DEVIATION * student.encoder.gain
                )
            )
        return student

    def _new_alignment(self, teacher: nn.Module) -> Alignment:
        student, config = self.recipe.student, teacher.config
        largest = self.student_config.residual_cap
        return Alignment(student.hidden_size, student.layers, config.hidden_size, config.num_hidden_layers, largest)

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
        return {stage: read_record(self.out / stage / "stage.json")["figures"] for stage in stages}

    def _measured_model(self, name: str) -> nn.Module:
        """One of `MEASURED`: those between the float and the integer student are made again from the float one."""
        if name == "folded student":
            return folded(self._trained("stage2"))
        if name == "quantised student":
            return self._rounded(self._trained("stage2"))
        return self._trained({"teacher": "teacher", "float student": "stage2", "integer student": "integer"}[name])

    def _trained(self, stage: str) -> nn.Module:
        if stage == "teacher":
            return self._classifier(str(self.out / stage), whole=True).to(self.device).eval()
        with weights_of(self.out / stage, MEND_WEIGHTS):
            return SpikeBertForSequenceClassification.from_pretrained(self.out / stage).to(self.device).eval()


def several_started(environment: Mapping[str, str]) -> bool:
    """Whether a launcher (torchrun, accelerate) started this process as one of several."""
    return int(environment.get("WORLD_SIZE", "1")) > 1


def check_processes(recipe: Recipe, accelerator: Accelerator, environment: Mapping[str, str]) -> None:
    """Raises UserError where these processes cannot train the recipe together."""
    if accelerator.num_processes == 1 and "ACCELERATE_USE_CPU" in environment and "MASTER_ADDR" in environment:
        raise UserError(
            "accelerate launch was asked for several processes and started one: on the CPU it needs MPI for more. "
            "Use torchrun --nproc_per_node NUMBER -m spikebert.train_command ..."
        )
    if accelerator.distributed_type not in PLAIN_PROCESSES:
        raise UserError(
            f"accelerate is set to {accelerator.distributed_type.value}; every process must hold the whole model: "
            "choose plain multi-CPU or multi-GPU (accelerate config)"
        )
    processes = accelerator.num_processes
    sizes = {name: getattr(recipe, name).batch_size for name in ("teacher", "stage1", "stage2", "quantise")}
    wrong = [f"{name}.batch_size is {size}" for name, size in sizes.items() if size % processes]
    if wrong:
        raise UserError(
            f"recipe: {', '.join(wrong)}: a batch is shared out among all {processes} processes, "
            f"give a multiple of {processes}, or start another number of processes"
        )


@contextmanager
def errors_name_files(folder: Path) -> Iterator[None]:
    """While the run in `folder` is read and written: what the file system refuses becomes a UserError that names it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        path = getattr(error, "filename", None) or folder
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: {reason}. Check the path, the rights and the space") from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While no other training writes to `folder`. Raises UserError where one does. (Where the file system has no locks
    nobody can tell.)"""
    place = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another training writes there: wait for it, or choose another --out") from None
        except OSError:
            pass
        yield
    finally:
        os.close(place)


def _all_held_out(held_out: int, texts: int) -> str:
    return f"stage1.held_out is {held_out}, and there are {texts} texts: leave some to learn from"


def _no_lines(stage: str, paths: Sequence[str], longest_words: int) -> str:
    """What is said of text files of which nothing is left."""
    why = (
        f"every line has more words than {stage}.longest_words, {longest_words}" if longest_words else "no line is left"
    )
    return f"{stage}: {', '.join(paths)}: {why}"
