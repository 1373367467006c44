"""The texts of a recipe, tokenised: those of the task, those of stage 1, and those of each epoch of stage 2."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from spikebert.augmentation import alter, alter_words
from spikebert.commands import UserError
from spikebert.data import (
    OFFSETS,
    LabelledTexts,
    SpecialTokens,
    TokenisedTexts,
    TooManyTokens,
    check_text_files,
    describe_unusual,
    read_lines,
    tokenise,
    tokenise_on_disk,
)
from spikebert.kept_outputs import GB
from spikebert.parts_of_speech import Tagger, words_of
from spikebert.progress import counted
from spikebert.recipe import Data, Recipe, Stage2
from spikebert.run_folder import TEXTS, RunFolder
from spikebert.vocabulary import Vocabulary, most_frequent

Say = Callable[[str], None]  # one line for the user
Splits = Mapping[str, LabelledTexts | None]  # "train" and "validation" are there, "test" where there is one


@dataclass(frozen=True)
class Task:
    """The labelled texts of a recipe, as read and as tokenised; test is None where there is none."""

    train: TokenisedTexts
    validation: TokenisedTexts
    test: TokenisedTexts | None
    train_texts: list[str]


def text_of_stage1(recipe: Recipe) -> list[str]:
    """What stage 1 reads beside the task, files and datasets: nothing where it takes over a student."""
    return [] if recipe.stage1.reuse else recipe.stage1.text


def text_of_stage2(recipe: Recipe) -> list[str]:
    """What stage 2 and the integer stage read beside the task: nothing where the recipe asks for no lines of it."""
    return recipe.stage2.extra_text if recipe.stage2.extra_lines else []


def check_readable(recipe: Recipe, folder: RunFolder) -> None:
    """Raises UserError for text that cannot be read, where it is still to be read: the hub may be far away."""
    if not (folder.finished("stage1") or (folder.unfinished("stage1") / TEXTS / OFFSETS).exists()):
        check_text_files(text_of_stage1(recipe))
    epochs = {"stage2": recipe.stage2.epochs, "integer": recipe.quantise.epochs}
    if any(epochs[stage] and not folder.finished(stage) for stage in epochs):
        check_text_files(text_of_stage2(recipe))


def say_unread(recipe: Recipe, folder: RunFolder, say: Say) -> None:
    """Where the recipe asks for lines of text and names none, or the other way round."""
    stage1, stage2 = recipe.stage1, recipe.stage2
    if stage1.lines and not (stage1.text or stage1.reuse or folder.finished("stage1")):
        say(
            f"stage 1: stage1.lines is {stage1.lines:,} and stage1.text names no text: it reads the training texts of "
            "the task"
        )
    if folder.finished("stage2"):
        return
    if stage2.extra_lines and not stage2.extra_text:
        say(
            f"stage 2: stage2.extra_lines is {stage2.extra_lines:,} and stage2.extra_text names no text: it reads none "
            "beside the task's"
        )
    if stage2.extra_text and not stage2.extra_lines:
        say(f"stage 2: stage2.extra_lines is 0: nothing of {', '.join(stage2.extra_text)} is read")


def check_held_out(recipe: Recipe, task_texts: int, folder: RunFolder) -> None:
    """Raises UserError where it is known before reading that stage 1 would have nothing to learn from; the task has so
    many training texts."""
    options = recipe.stage1
    most = options.lines if options.text else task_texts
    if most and options.held_out >= most and not (options.reuse or folder.finished("stage1")):
        raise UserError(all_held_out(options.held_out, most))


def all_held_out(held_out: int, texts: int) -> str:
    """What is said of a stage 1 that holds out all its texts."""
    return f"stage1.held_out is {held_out}, and there are {texts} texts: leave some to learn from"


def class_names(splits: Splits, data: Data, is_taught: bool) -> list[str]:
    """`data.labels`, or numbers. `is_taught`: the teacher has learnt these classes already, whatever is left of them.

    Raises UserError where the texts have more classes, where there is one only, and where classes that nobody named
    have no training text. (Of training texts those count that `data.limit` leaves.)
    """
    train, limit, named = splits["train"], data.limit, data.labels
    assert train is not None  # read_split raises
    used = train.labels if is_taught else train.labels[: limit or None]
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


def choose_vocabulary(
    data: Data, tokenizer: PreTrainedTokenizerBase, train: LabelledTexts | None, say: Say
) -> Vocabulary | None:
    """`data.vocabulary` tokens of the teacher's; None for all of them."""
    if not data.vocabulary or train is None or data.vocabulary >= len(tokenizer):
        return None
    texts = train.texts[: data.limit or None]
    chosen = most_frequent(tokenizer, texts, data.vocabulary)
    say(
        f"vocabulary: {len(chosen.kept):,} of {len(tokenizer):,} tokens; with them the training texts have "
        f"{chosen.longer_by(texts):.3f} times as many"
    )
    return chosen


def read_task(splits: Splits, limit: int, tokenizer: PreTrainedTokenizerBase, n_max: int, say: Say) -> Task:
    """The task's texts, cut to `n_max` tokens, of the training texts the first `limit` (0: all). What is unusual about
    them is said."""
    added = tokenizer.num_special_tokens_to_add()

    def tokens(name: str, split: LabelledTexts) -> TokenisedTexts:
        texts = tokenise(tokenizer, split.texts, n_max, split.labels)
        for message in describe_unusual(texts, n_max, added, tokenizer.unk_token_id):
            say(f"{name}: {message}")
        return texts

    train, held_back = splits["train"], splits["validation"]
    assert train is not None and held_back is not None  # read_split raises for these two
    if limit:
        train = LabelledTexts(train.texts[:limit], train.labels[:limit])
    test = None if splits["test"] is None else tokens("test", splits["test"])
    return Task(tokens("train", train), tokens("validation", held_back), test, train.texts)


def stage1_texts(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, task: Task, folder: Path, writes: bool, wait: Callable[[], None]
) -> TokenisedTexts:
    """Those of files are streamed to `folder`, by the process that `writes`, for which the others `wait`.

    Raises UserError where no text is left, or more than the disk may hold.
    """
    options, n_max = recipe.stage1, recipe.student.n_max
    if not options.text:
        return tokenise(tokenizer, task.train_texts, n_max)
    lines = read_lines(options.text, options.lines, options.longest_words)
    if writes:
        limit = recipe.text_cache_gb
        try:
            tokenise_on_disk(tokenizer, counted(lines, "stage 1: tokenising"), n_max, folder, int(limit * GB))
        except TooManyTokens as error:
            raise UserError(
                f"stage1.text: its tokens take more than {limit:g} GB of the disk, {error.texts:,} lines have "
                "room: read fewer (stage1.lines), or allow more (text_cache_gb)"
            ) from None
    wait()
    texts = tokenise_on_disk(tokenizer, (), n_max, folder)
    if not len(texts):
        raise UserError(_no_lines("stage1", options.text, options.longest_words))
    return texts


@dataclass(frozen=True)
class Stage2Texts:
    """What stage 2 and the integer stage train on.

    again     the first texts of every epoch, the same in each
    of_epoch  all texts of an epoch, by its number
    """

    again: TokenisedTexts
    of_epoch: Callable[[int], TokenisedTexts]


def stage2_texts(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, task: Task, epochs: int, tagger: Tagger | None, say: Say
) -> Stage2Texts:
    """Those of `epochs` epochs: the task's, altered copies of them that are new in each epoch, and lines of other text,
    others in each epoch while there are more. Where each epoch takes all there are, these come right after the task's.

    tagger  of words, which altered copies exchange by their part of speech; None: tokens are exchanged
    Raises UserError where other text is wanted and no line of it is left.
    """
    options, n_max = recipe.stage2, recipe.student.n_max
    extra = _extra_texts(options, tokenizer, n_max, epochs, say)
    again, others = task.train, options.extra_lines
    if extra is not None and len(extra) <= others:
        again += extra
        others -= len(extra)
    special, words = SpecialTokens.of(tokenizer), None
    if tagger and options.altered_copies and epochs:
        words = words_of(tokenizer, task.train_texts, n_max, tagger)

    def texts_of_epoch(epoch: int) -> TokenisedTexts:
        texts, seed = again, (recipe.seed, epoch, 1)
        if options.altered_copies and words is not None:
            texts += alter_words(words, options.altered_copies, special, n_max, seed, options.alteration)
        elif options.altered_copies:
            texts += alter(task.train, options.altered_copies, special, n_max, seed, options.alteration)
        if extra is not None and others:
            texts += extra.select(np.arange(epoch * others, (epoch + 1) * others) % len(extra))
        return texts

    return Stage2Texts(again, texts_of_epoch)


def _extra_texts(
    options: Stage2, tokenizer: PreTrainedTokenizerBase, n_max: int, epochs: int, say: Say
) -> TokenisedTexts | None:
    """Those of all epochs, where there are so many, and always more than one epoch takes, where there are."""
    wanted = options.extra_lines * epochs
    if not (options.extra_text and wanted):
        return None
    lines = read_lines(options.extra_text, max(wanted, options.extra_lines + 1), options.longest_words)
    texts = tokenise(tokenizer, lines, n_max)
    if not len(texts):
        raise UserError(_no_lines("stage2", options.extra_text, options.longest_words))
    if len(texts) < wanted:
        say(f"stage2.extra_text: has {len(texts):,} lines, and {epochs} epochs take {wanted:,}: some come again")
    return texts


def _no_lines(stage: str, paths: Sequence[str], longest_words: int) -> str:
    """What is said of text files of which nothing is left."""
    why = (
        f"every line has more words than {stage}.longest_words, {longest_words}" if longest_words else "no line is left"
    )
    return f"{stage}: {', '.join(paths)}: {why}"
