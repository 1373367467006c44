"""What a finished stage tells of itself: what it was made from, and what it hands on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from small_teachers import recipe_arguments

from spikebert.commands import UserError
from spikebert.stage_record import (
    ADDED,
    EARLIER,
    EARLIER_TERMS,
    N_MAX,
    changes,
    handed_on,
    learnt_from,
    read_note,
    write_note,
    write_through,
)
from spikebert.train_command import main


def record(folder: Path, **made_from: object) -> Path:
    figures = made_from.pop("figures", {})
    folder.mkdir()
    parts = {"data": {"folder": "data/films", "hub": ""}, "stage1": {"text": [], "reuse": ""}} | made_from
    (folder / "stage.json").write_text(json.dumps({"made_from": parts, "figures": figures}))
    return folder


def test_what_a_reused_student_learnt_from_is_known(tmp_path: Path) -> None:
    """A model card names these, so a text that is for research alone is not lost on the way."""
    own = record(tmp_path / "own")
    assert learnt_from(own) == ["data/films"], "stage 1 of no text of its own reads the task's"
    read = record(tmp_path / "read", stage1={"text": ["a.txt", "b.txt"], "reuse": ""})
    assert learnt_from(read) == ["a.txt", "b.txt"]
    task = {"stage1": {"text": ["a.txt"], "reuse": ""}, "stage2": {"extra_text": ["c.txt"], "extra_lines": 5}}
    assert learnt_from(record(tmp_path / "task", **task)) == ["a.txt", "data/films", "c.txt"]
    unread = task | {"stage2": {"extra_text": ["c.txt"], "extra_lines": 0}}
    assert learnt_from(record(tmp_path / "unread", **unread)) == ["a.txt", "data/films"]
    by = record(
        tmp_path / "teacher", data={"folder": "data/secret", "hub": ""}, teacher={"model": "a-bert", "epochs": 2}
    )
    taught = {"teacher": {"model": str(by), "epochs": 0}, **task}
    texts = ["a.txt", "data/films", "c.txt", "data/secret"]
    assert learnt_from(record(tmp_path / "taught", **taught)) == texts, "of its teacher too"
    handed = {"learnt_from": texts, "licences": {EARLIER: "a-bert"}}
    assert handed_on(tmp_path / "taught") == handed_on(tmp_path / "taught", "another") == handed
    assert handed_on(tmp_path / "taught", "a-bert") == {"learnt_from": texts}, "the same one is told once"
    shutil.rmtree(by)
    assert handed_on(tmp_path / "taught")["licences"] == {EARLIER: str(by)}, "a run of old does not know it any more"
    origin = {"model": "a-bert", "licence": "free", "texts": ["data/secret"], "terms": ["for research"]}
    told = record(tmp_path / "told", **taught, figures={"teacher_origin": origin, "licence": "of films"})
    terms = {EARLIER: "a-bert (free)", EARLIER_TERMS: "of films; for research"}
    assert handed_on(told) == {"learnt_from": texts, "licences": terms}
    assert handed_on(told, "a-bert", "of films") == {
        "learnt_from": texts, "licences": {EARLIER_TERMS: "for research"},
    }  # fmt: skip
    later = record(tmp_path / "later", **task, figures={"licences": terms, "licence": "of food"})
    assert handed_on(later)["licences"] == {EARLIER: "a-bert (free)", EARLIER_TERMS: "of films; for research; of food"}
    again = {"stage1": {"text": [], "reuse": "x"}, "figures": {"learnt_from": ["d.txt", "a.txt"]}}
    assert learnt_from(record(tmp_path / "again", **again)) == ["d.txt", "a.txt"]
    with pytest.raises(UserError, match=r"stage.json is damaged"):
        learnt_from(tmp_path)


def test_what_differs_is_named_and_what_older_runs_did_not_note_is_not() -> None:
    now = {"seed": 42, "stage2": {"epochs": 3, **ADDED["stage2"]}, "sha256": {"data": "a", "teacher.model": "b"}}
    assert changes(now, now) == []
    older = {"seed": 42, "stage2": {"epochs": 3}, "sha256": {"data": "a"}}
    assert changes(older, now) == []
    other = now | {"stage2": now["stage2"] | {"alteration": ADDED["stage2"]["alteration"] | {"join": 0.0}}}
    assert changes(older, other) == ["stage2.alteration.join 0.3 -> 0.0"]
    assert changes(now, now | {"sha256": {"data": "a", "teacher.model": "c"}}) == ["sha256.teacher.model b -> c"]
    assert changes(older, now | {"seed": 43}) == ["seed 42 -> 43"]
    of_a_teacher = {"seed": 42, "sha256": {}, N_MAX: 64}
    assert changes(of_a_teacher, of_a_teacher | {N_MAX: 32}) == ["student.n_max 64 -> 32"]
    assert changes({"seed": 42, "sha256": {}}, of_a_teacher) == [], "none was noted of old"
    took_over = {"stage1": {**ADDED["stage1"], "reuse": "runs/a/stage1"}, "sha256": {"stage1.text": "a"}}
    nothing_read = took_over | {"sha256": {"stage1.text": "b"}}
    assert changes(took_over, nothing_read) == [], "older runs noted a text that they did not read"
    assert changes(took_over, nothing_read | {"stage1": took_over["stage1"] | {"reuse": ""}}) != []
    made_of_a_student = {"student": "runs/other/stage2", "data": {"folder": "", "hub": ""}}
    assert "student runs/other/stage2 -> None" in changes(made_of_a_student, now), "a program's, not a training's"


def test_a_teacher_that_changed_in_its_folder_is_noticed(trained, tmp_path, capfd) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(trained / "teacher", teacher)
    arguments = [*recipe_arguments(trained), f"--out={tmp_path / 'run'}", f"--teacher.model={teacher}"]
    arguments += ["--teacher.epochs=1"]
    assert main([*arguments, "--until=stage1"]) == 0
    assert main([*arguments, "--until=stage1"]) == 0, "the same one is taken for the same"
    weights = {name: value + 0.01 for name, value in load_file(teacher / "model.safetensors").items()}
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})
    capfd.readouterr()
    assert main([*arguments, "--until=stage1"]) == 2
    assert "was made with another recipe (sha256.teacher.model" in capfd.readouterr().err
    for stage in ("teacher", "stage1"):  # as earlier versions left them: they did not look
        path = tmp_path / "run" / stage / "stage.json"
        made = json.loads(path.read_text())
        assert made["made_from"]["sha256"].pop("teacher.model")
        path.write_text(json.dumps(made))
    assert main([*arguments, "--until=stage1"]) == 0


def test_a_note_is_whole_or_named(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    assert read_note(path) is None
    write_note(path, {"a": [1]})
    write_note(path, {"a": [2]})
    assert read_note(path) == {"a": [2]} and [file.name for file in tmp_path.iterdir()] == ["note.json"]
    for spoilt in ("", "[1]", '{"a": '):
        path.write_text(spoilt)
        with pytest.raises(UserError, match=r"note\.json is damaged: delete .* to begin that stage again"):
            read_note(path)


def test_a_run_of_before_goes_on_without_calibration(trained, tmp_path) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained / "run", out)
    path = out / "integer" / "stage.json"
    made = json.loads(path.read_text())
    del made["made_from"]["quantise"]["calibration_texts"], made["made_from"]["quantise"]["token_bits"]
    path.write_text(json.dumps(made))
    assert main([*recipe_arguments(trained), f"--out={out}"]) == 0


def test_a_folder_is_written_through(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda place: synced.append(os.fstat(place).st_ino))
    write_through(tmp_path / "a")
    every = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "file"]
    assert sorted(synced) == sorted(path.stat().st_ino for path in every)

    def cannot(place: int, number: int = errno.EINVAL) -> None:
        if stat.S_ISDIR(os.fstat(place).st_mode) or number != errno.EINVAL:
            raise OSError(number, "cannot")

    monkeypatch.setattr(os, "fsync", cannot)
    write_through(tmp_path)  # a file system that knows it of files alone
    monkeypatch.setattr(os, "fsync", lambda place: cannot(place, errno.EIO))
    with pytest.raises(OSError, match="cannot"):
        write_through(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda place: synced.append(os.fstat(place).st_ino))
    synced.clear()
    write_through(tmp_path, below=False)
    assert synced == [tmp_path.stat().st_ino]
