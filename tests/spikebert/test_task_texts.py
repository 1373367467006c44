"""The texts of a recipe: which are read, which are missed, and what an epoch of stage 2 has."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_teachers import recipe_arguments, text_of_lines
from transformers import AutoTokenizer

from spikebert import stages, task_texts
from spikebert.data import UNLABELLED, TokenisedTexts, read_tsv, tokenise
from spikebert.loop import Outcome
from spikebert.recipe import Recipe, Stage2, Student
from spikebert.stage_record import handed_on, read_record
from spikebert.train_command import main


def texts_of_stage2(trained: Path, out: Path, monkeypatch, flags: list[str]) -> Callable[[int], TokenisedTexts]:
    """The texts that a recipe with `flags` would train stage 2 on, by epoch."""
    for stage in ("teacher", "stage1"):
        shutil.copytree(trained / "run" / stage, out / stage)
    given: list[Callable[[int], TokenisedTexts]] = []

    def fit(
        model: object, loss_of: object, texts_of_epoch: Callable[[int], TokenisedTexts], *rest, **options
    ) -> Outcome:
        given.append(texts_of_epoch)
        return Outcome({}, None, 0, 0.0, 0, [0], None)

    monkeypatch.setattr(stages, "fit", fit)
    assert main([*recipe_arguments(trained), f"--out={out}", *flags]) == 0
    return given[0]


def test_stage2_adds_altered_copies_and_extra_lines_that_change_with_the_epoch(trained, tmp_path, monkeypatch) -> None:
    extra = tmp_path / "extra.txt"
    extra.write_text("the film\n" + "a very long line of far too many words\n" + "the soup\n" * 60)
    flags = [
        "--stage2.altered_copies=2", f"--stage2.extra_text=[{extra}]", "--stage2.extra_lines=7",
        "--stage2.longest_words=3",
    ]  # fmt: skip
    texts_of_epoch = texts_of_stage2(trained, tmp_path / "run", monkeypatch, flags)
    first, second = texts_of_epoch(0), texts_of_epoch(1)
    own = int((first.labels != UNLABELLED).sum())
    assert len(first) == len(second) == own + 2 * own + 7
    assert (first.labels[own:] == UNLABELLED).all()
    assert first.lengths[own * 3 :].tolist() == [4] * 7, "the long line is left out"
    assert np.array_equal(first.ids[: first.offsets[own]], second.ids[: second.offsets[own]])
    assert not np.array_equal(first.lengths[own : own * 3], second.lengths[own : own * 3]), "altered anew"
    again = texts_of_epoch(0)
    assert np.array_equal(first.ids, again.ids), "a run that goes on after a stop meets the same texts"


LINES = ["the good film", "a bad soup", "very cold", "it was fun and warm", "dull", "a fine film it was"]


@pytest.mark.parametrize(("extra_lines", "first"), [(6, 6), (9, 6), (5, 0)])
def test_what_comes_in_every_epoch_comes_first_and_in_the_same_order(trained, tmp_path, extra_lines, first) -> None:
    """What is kept of the teacher goes by the number of a text in its epoch."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{line}\n" for line in LINES))
    tokenizer = AutoTokenizer.from_pretrained(trained / "teacher")
    data = read_tsv(trained / "data" / "train.tsv")
    own = tokenise(tokenizer, data.texts, 10, data.labels)
    task = task_texts.Task(own, own, None, data.texts)
    stage2 = Stage2(altered_copies=1, extra_text=[str(text)], extra_lines=extra_lines)
    recipe = Recipe(out="", student=Student(n_max=10), stage2=stage2)
    texts = task_texts.stage2_texts(recipe, tokenizer, task, 4, None, lambda message: None)
    extra = tokenise(tokenizer, LINES, 10)

    def of(epoch: TokenisedTexts, begin: int, end: int) -> list[list[int]]:
        return [epoch.ids[epoch.offsets[i] : epoch.offsets[i + 1]].tolist() for i in range(begin, end)]

    again = of(own, 0, len(own)) + of(extra, 0, first)
    assert of(texts.again, 0, len(texts.again)) == again
    counts: Counter[tuple[int, ...]] = Counter()
    for epoch in map(texts.of_epoch, range(4)):
        assert len(epoch) == 2 * len(own) + extra_lines
        assert of(epoch, 0, len(again)) == again
        assert (epoch.labels[len(own) :] == UNLABELLED).all()
        others = of(epoch, len(epoch) - extra_lines + first, len(epoch))
        counts.update(map(tuple, of(extra, 0, first) + others))
    assert set(counts) == set(map(tuple, of(extra, 0, len(LINES)))) and counts.total() == 4 * extra_lines
    assert max(counts.values()) - min(counts.values()) <= 1, "all come about as often"


def test_stage2_of_the_task_alone(trained, tmp_path, monkeypatch) -> None:
    texts = texts_of_stage2(trained, tmp_path / "run", monkeypatch, [])(0)
    assert (texts.labels != UNLABELLED).all()


def test_text_that_was_read_is_not_asked_for_again(trained, tmp_path, monkeypatch) -> None:
    """The hub may be far away when a run goes on."""
    asked: list[list[str]] = []
    monkeypatch.setattr(task_texts, "check_text_files", asked.append)
    text = tmp_path / "text.txt"
    text.write_text("the film was good\n" * 20)
    shutil.copytree(trained / "run" / "teacher", tmp_path / "run" / "teacher")
    arguments = [*recipe_arguments(trained), f"--out={tmp_path / 'run'}", f"--stage1.text=[{text}]"]
    arguments += ["--stage2.epochs=1", "--stage2.extra_lines=1", "--quantise.epochs=0"]
    assert main(arguments) == 0
    assert asked == [[str(text)], []]
    assert main(arguments) == 0 and len(asked) == 2
    for stage in ("stage1", "stage2", "integer"):
        shutil.rmtree(tmp_path / "run" / stage)
    unfinished = tmp_path / "run" / "stage1.unfinished" / "texts"
    unfinished.mkdir(parents=True)
    (unfinished / "offsets.npy").touch()  # stands for texts that are there whole; what it holds is no array
    assert main(arguments) != 0
    assert asked[2:] == [[]], "of stage 2 alone"


def test_a_stage_without_texts_is_refused(trained, tmp_path, capfd) -> None:
    """And not finished, with a student that has learnt nothing."""
    shutil.copytree(trained / "run" / "teacher", tmp_path / "run" / "teacher")
    text = text_of_lines(tmp_path)
    arguments = [*recipe_arguments(trained), f"--out={tmp_path / 'run'}"]
    assert main([*arguments, f"--stage1.text=[{text}]", "--stage1.longest_words=2"]) == 2
    assert f"stage1: {text}: every line has more words than stage1.longest_words, 2" in capfd.readouterr().err
    assert not (tmp_path / "run" / "stage1").exists()
    assert main([*arguments, f"--stage1.text=[{text}]", "--text_cache_gb=1e-7"]) == 2
    assert "its tokens take more than 1e-07 GB of the disk, 0 lines have room: read" in capfd.readouterr().err
    assert not (tmp_path / "run" / "stage1").exists()
    shutil.copytree(trained / "run" / "stage1", tmp_path / "run" / "stage1")
    arguments += [f"--stage2.extra_text=[{text}]", "--stage2.extra_lines=4", "--stage2.longest_words=3"]
    assert main(arguments) == 2
    assert f"stage2: {text}: every line has more words than stage2.longest_words, 3" in capfd.readouterr().err
    assert not (tmp_path / "run" / "stage2").exists()


def test_what_is_held_out_leaves_texts_and_is_there_for_patience(trained, tmp_path, capfd) -> None:
    shutil.copytree(trained / "run" / "teacher", tmp_path / "teacher")
    arguments = [*recipe_arguments(trained), f"--out={tmp_path}", "--until=stage1"]
    assert main([*arguments, "--stage1.held_out=200"]) == 2
    assert "stage1.held_out is 200, and there are 200 texts: leave some" in capfd.readouterr().err
    text = f"--stage1.text=[{text_of_lines(tmp_path)}]"
    assert main([*arguments, text, "--stage1.held_out=8", "--stage1.lines=8", f"--out={tmp_path / 'new'}"]) == 2
    assert "stage1.held_out is 8, and there are 8 texts: leave some" in capfd.readouterr().err
    assert not (tmp_path / "new").exists(), "known before the teacher is trained"
    assert main([*arguments, text, "--stage1.held_out=20"]) == 2, "so many lines there are"
    assert "stage1.held_out is 20, and there are 20 texts: leave some" in capfd.readouterr().err
    assert main([*arguments, "--stage1.patience=1"]) == 2
    assert "stage1.patience is 1 and stage1.held_out 0" in capfd.readouterr().err
    flags = ["--stage1.held_out=20", "--stage1.patience=1", "--stage1.epochs=9", "--stage1.learning_rate=1e-12"]
    assert main([*arguments, *flags]) == 0
    figures = read_record(tmp_path / "stage1" / "stage.json")["figures"]
    assert figures["sentences_per_second"] * figures["seconds"] == pytest.approx(180 * figures["epochs"])
    assert figures["epochs"] == figures["best_epoch"] + 1 < 9, "it was no better at some time"


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([1, 1, 1, 1], "train: all texts have label 1: there is nothing to tell apart"),
        ([0, 2, 0, 2], "labels are 0 .. 2, and 1 of these have no training text: name all classes in data.labels"),
        ([0, 1, 0, 999], "labels are 0 .. 999, and 997 of these have no training text"),
    ],
)
def test_classes_without_texts_are_noticed(trained, tmp_path, capfd, labels: list[int], said: str) -> None:
    content = "text\tlabel\n" + "".join(f"good film\t{label}\n" for label in labels)
    for split in ("train", "validation"):
        (tmp_path / f"{split}.tsv").write_text(content)
    arguments = [*recipe_arguments(trained), f"--data.folder={tmp_path}", "--data.labels=[]", f"--out={tmp_path / 'r'}"]
    assert main(arguments) == 2
    assert said in capfd.readouterr().err


def test_a_limit_that_leaves_one_class_is_noticed(trained, tmp_path, capfd) -> None:
    content = "text\tlabel\n" + "".join(f"good film\t{label}\n" for label in [0, 0, 0, 1, 1, 2])
    for split in ("train", "validation"):
        (tmp_path / f"{split}.tsv").write_text(content)
    arguments = [*recipe_arguments(trained), f"--data.folder={tmp_path}", "--data.labels=[]", f"--out={tmp_path / 'r'}"]
    assert main([*arguments, "--data.limit=3"]) == 2
    said = "all texts have label 0: there is nothing to tell apart (data.limit leaves the first 3: are they sorted by"
    assert said in capfd.readouterr().err
    assert main([*arguments, "--data.limit=5"]) == 2
    assert "1 of these have no training text (data.limit leaves the first 5" in capfd.readouterr().err


def test_a_limit_is_not_blamed_for_what_it_did_not_do(trained, tmp_path, capfd) -> None:
    for split in ("train", "validation"):
        (tmp_path / f"{split}.tsv").write_text("text\tlabel\n" + "good film\t1\n" * 4)
    arguments = [*recipe_arguments(trained), f"--data.folder={tmp_path}", "--data.labels=[]", f"--out={tmp_path / 'r'}"]
    assert main([*arguments, "--data.limit=1000"]) == 2
    assert capfd.readouterr().err.rstrip().endswith("there is nothing to tell apart")


def test_a_run_that_is_trained_goes_on_with_its_limit(trained, tmp_path, capfd) -> None:
    """Earlier versions did not look; and other labels in the recipe would be another recipe."""
    out = tmp_path / "run"
    content = "text\tlabel\n" + "".join(f"good film\t{label}\n" for label in [0, 1, 0, 1, 2])
    for split in ("train", "validation"):
        (tmp_path / f"{split}.tsv").write_text(content)
    arguments = [*recipe_arguments(trained), f"--data.folder={tmp_path}", "--data.labels=[]", f"--out={out}"]
    arguments += ["--teacher.epochs=0", "--until=teacher"]
    assert main(arguments) == 0
    path = out / "teacher" / "stage.json"
    record = json.loads(path.read_text())
    record["made_from"]["data"]["limit"] = 4
    path.write_text(json.dumps(record))
    assert main([*arguments, "--data.limit=4"]) == 0
    assert main([*arguments, "--data.limit=4", f"--out={tmp_path / 'other'}"]) == 2
    assert "1 of these have no training text (data.limit leaves the first 4" in capfd.readouterr().err


def test_three_classes_and_a_teacher_without_any(trained, tmp_path) -> None:
    content = "text\tlabel\n" + "".join(f"good film\t{label}\n" for label in (0, 1, 2))
    for split in ("train", "validation"):
        (tmp_path / f"{split}.tsv").write_text(content)
    arguments = [*recipe_arguments(trained), f"--data.folder={tmp_path}", "--data.labels=[]", f"--out={tmp_path / 'r'}"]
    assert main([*arguments, "--teacher.epochs=0", "--until=teacher"]) == 0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--stage1.lines=9000"], "stage1.lines is 9,000 and stage1.text names no text: it reads the training texts"),
        (["--stage2.extra_lines=7"], "stage2.extra_lines is 7 and stage2.extra_text names no text: it reads none"),
        (["--stage2.extra_text=[TEXT]"], "stage2.extra_lines is 0: nothing of "),
        (["--stage2.extra_text=[TEXT]", "--stage2.extra_lines=7", "--stage1.text=[TEXT]", "--stage1.lines=4"], ""),
    ],
)
def test_lines_without_text_and_text_without_lines_are_said(trained, tmp_path, capfd, flags: list, said: str) -> None:
    text = str(text_of_lines(tmp_path))
    arguments = [*recipe_arguments(trained), f"--out={tmp_path / 'run'}", "--teacher.epochs=0", "--until=teacher"]
    assert main([*arguments, *(flag.replace("TEXT", text) for flag in flags)]) == 0
    error = capfd.readouterr().err
    assert said in error and ("names no text" in error or "nothing of" in error) is bool(said)


def test_extra_text_that_is_too_short_comes_again_and_that_is_said(trained, tmp_path, monkeypatch, capfd) -> None:
    text = text_of_lines(tmp_path)  # 20 lines
    flags = [f"--stage2.extra_text=[{text}]", "--stage2.extra_lines=8"]
    texts_of_epoch = texts_of_stage2(trained, tmp_path / "run", monkeypatch, flags)
    assert len(texts_of_epoch(2)) == len(texts_of_epoch(0))
    assert "stage2.extra_text: has 20 lines, and 3 epochs take 24: some come again" in capfd.readouterr().err


def test_extra_text_may_go_once_no_stage_will_read_it(trained, tmp_path) -> None:
    text, out = text_of_lines(tmp_path), tmp_path / "run"
    for stage in ("teacher", "stage1"):
        shutil.copytree(trained / "run" / stage, out / stage)
    arguments = [*recipe_arguments(trained), f"--out={out}", f"--stage2.extra_text=[{text}]", "--stage2.extra_lines=4"]
    arguments += ["--stage2.epochs=1", "--quantise.epochs=0"]
    assert main([*arguments, "--until=stage2"]) == 0
    text.unlink()
    assert main(arguments) == 0


def test_a_student_taken_over_needs_no_text(trained, tmp_path, capfd) -> None:
    """Nor is text that was named and not read told of as one that it learnt from."""
    out = tmp_path / "run"
    shutil.copytree(trained / "run" / "teacher", out / "teacher")
    arguments = [*recipe_arguments(trained), f"--out={out}", f"--stage1.reuse={trained / 'run' / 'stage1'}"]
    arguments += ["--stage1.text=[nowhere.txt]", "--until=stage1"]
    assert main(arguments) == 0
    assert handed_on(out / "stage1")["learnt_from"] == [str(trained / "data")]
    path = out / "stage1" / "stage.json"
    record = json.loads(path.read_text())
    record["made_from"]["sha256"]["stage1.text"] = "of a text that an earlier version looked at"
    path.write_text(json.dumps(record))
    assert main(arguments) == 0
    assert "stage1: finished before" in capfd.readouterr().err


def test_text_of_which_no_line_is_wanted_need_not_be_there(trained, tmp_path) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained / "run" / "teacher", out / "teacher")
    arguments = [*recipe_arguments(trained), f"--out={out}", "--stage2.extra_text=[nowhere.txt]", "--stage2.epochs=1"]
    assert main([*arguments, "--until=stage2"]) == 0
    path = out / "stage2" / "stage.json"
    record = json.loads(path.read_text())
    record["made_from"]["sha256"]["stage2.extra_text"] = "of a text that an earlier version looked at"
    path.write_text(json.dumps(record))
    assert main([*arguments, "--until=stage2"]) == 0
