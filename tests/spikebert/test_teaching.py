"""When a stage keeps its teacher's outputs and when it asks instead, and that a run that was killed goes on alike."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_teachers import recipe_arguments, text_of_lines

from spikebert import kept_outputs, teaching
from spikebert.kept_outputs import KeptOutputs
from spikebert.train_command import main

ROOT = Path(__file__).parents[2]


ALONE = ("--stage2.logits_weight=0", "--stage2.hidden_weight=0", "--stage2.embedding_weight=0")


def taught(trained: Path, run: Path, *flags: str, finished: tuple[str, ...] = ("teacher", "stage1")) -> list[str]:
    """The arguments of the finished run, but for flags, in a folder where the stages `finished` are copied to."""
    for stage in finished:
        shutil.copytree(trained / "run" / stage, run / stage)
    return [*recipe_arguments(trained), f"--out={run}", *flags]


@pytest.fixture
def written(monkeypatch) -> list[Path]:
    """Where outputs were written, in order."""
    places: list[Path] = []
    original = KeptOutputs.write

    def write(kept: KeptOutputs, part: int, *rest: object) -> None:
        places.append(kept.folder.parent)
        original(kept, part, *rest)

    monkeypatch.setattr(KeptOutputs, "write", write)
    return places


def same_weights(run: Path, other: Path, stage: str) -> None:
    for name in ("model.safetensors", "alignment.safetensors"):
        got, expected = load_file(run / stage / name), load_file(other / stage / name)
        assert got.keys() == expected.keys()
        assert all(np.array_equal(got[key], expected[key]) for key in expected), name


def test_stage2_and_the_integer_stage_share_what_stage2_wrote(
    trained: Path, tmp_path: Path, written: list[Path], capfd
) -> None:
    run = tmp_path / "run"
    assert main(taught(trained, run)) == 0
    assert written == [run / "teacher_outputs"]
    assert "stage 2: asking the teacher once for all epochs, 0.00 GB go to" in capfd.readouterr().err
    assert not (run / "teacher_outputs").exists(), "the run is finished"
    for stage in ("stage2", "integer"):
        same_weights(run, trained / "run", stage)


@pytest.mark.parametrize(
    ("lines", "room", "asked_once", "in_a_step", "said"),
    [
        (20, 10**9, 220, 0, ""),  # each epoch takes the whole file, in stage 2 and in the integer stage
        (30, 10**9, 220, 10 * 4, ""),  # and some of it twice
        (19, 10**9, 200, 19 * 4, ""),  # other lines in every epoch
        (
            20,
            1700,
            200,
            20 * 4,
            "in each step about all but 200 texts: ",
        ),  # the task's logits are 1,600 bytes, the file's 160
        (20, 1500, 0, 220 * 4, "in each step: "),
    ],
)
@pytest.mark.parametrize("of_the_disk", [False, True])
def test_extra_text_that_comes_whole_is_asked_about_once(
    trained: Path, tmp_path: Path, monkeypatch, capfd, lines: int, room: int, asked_once: int, in_a_step: int,
    said: str, of_the_disk: bool,
) -> None:  # fmt: skip
    """Where it has no room beside the task's, those are still kept."""
    limit = 1 if of_the_disk else room / 10**9
    if of_the_disk:
        usage = shutil.disk_usage(tmp_path)._replace(free=kept_outputs.ROOM + room)
        monkeypatch.setattr(kept_outputs.shutil, "disk_usage", lambda path: usage)
    asked: dict[bool, int] = {True: 0, False: 0}
    original, write, writing = teaching.ask_teacher, KeptOutputs.write, []

    def ask(teacher: object, ids: np.ndarray, *rest: object) -> object:
        asked[bool(writing)] += len(ids)
        return original(teacher, ids, *rest)

    def watched(*arguments: object) -> None:
        writing.append(1)
        write(*arguments)
        writing.pop()

    monkeypatch.setattr(teaching, "ask_teacher", ask)
    monkeypatch.setattr(KeptOutputs, "write", watched)
    text = text_of_lines(tmp_path)
    flags = [f"--stage2.extra_text=[{text}]", f"--stage2.extra_lines={lines}", "--stage2.epochs=3"]
    flags += ["--quantise.epochs=1", f"--teacher_cache_gb={limit}", *ALONE[1:]]
    assert main(taught(trained, tmp_path / "run", *flags)) == 0
    assert asked == {True: asked_once, False: in_a_step}
    error = capfd.readouterr().err
    assert said in error and ("the teacher is asked in each step" in error) is bool(said)


def test_stage1_keeps_its_own_where_it_has_several_epochs(trained: Path, tmp_path: Path, written: list[Path]) -> None:
    run = tmp_path / "run"
    flags = ("--stage1.epochs=2", "--stage2.epochs=0", "--quantise.epochs=0")
    assert main(taught(trained, run, *flags, finished=("teacher",))) == 0
    assert written == [run / "stage1.unfinished" / "teacher_outputs"]
    assert not (run / "stage1.unfinished").exists()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--stage2.epochs=1", "--quantise.epochs=0"), ""),  # nothing comes twice
        (("--stage2.epochs=0", "--quantise.epochs=1"), ""),
        (("--teacher_cache_gb=0",), ""),
        (("--teacher_cache_gb=0.00001",), "stage 2: the teacher is asked in each step: its outputs would take 0.00 GB"),
    ],
)
def test_nothing_is_written_where_nothing_is_gained_or_allowed(
    trained: Path, tmp_path: Path, written: list[Path], capfd, flags: tuple[str, ...], line: str
) -> None:
    assert main(taught(trained, tmp_path / "run", *flags)) == 0
    assert written == []
    lines = [line for line in capfd.readouterr().err.splitlines() if "teacher is asked" in line]
    assert line in "".join(lines) and len(lines) == (2 if line else 0), "stage 2 and the integer stage"


def test_a_full_disk_has_the_teacher_asked(
    trained: Path, tmp_path: Path, written: list[Path], capfd, monkeypatch
) -> None:
    monkeypatch.setattr(kept_outputs, "ROOM", 10**18)
    assert main(taught(trained, tmp_path / "run", "--quantise.epochs=0")) == 0
    assert written == []
    assert "GB free and" in capfd.readouterr().err


@pytest.mark.parametrize("parts", [ALONE, ALONE[1:]], ids=["labels alone", "and logits"])
def test_a_teacher_of_whom_nothing_is_wanted_is_not_asked(trained, tmp_path, monkeypatch, parts) -> None:
    """And the student learns what it would learn beside one who talks to no purpose."""
    asked, original = [], teaching.ask_teacher

    def ask(*arguments: object) -> object:
        asked.append(1)
        return original(*arguments)

    monkeypatch.setattr(teaching, "ask_teacher", ask)
    run = tmp_path / "run"
    assert main(taught(trained, run, *parts)) == 0
    assert bool(asked) == (parts != ALONE)
    if parts == ALONE:
        talking = tmp_path / "talking"  # a weight that is not 0 has it asked, and adds nothing that a float32 can hold
        assert main(taught(trained, talking, "--stage2.logits_weight=1e-45", *ALONE[1:])) == 0
        assert asked
        for stage in ("stage2", "integer"):
            same_weights(run, talking, stage)


def test_a_negative_limit_is_refused(trained: Path, tmp_path: Path, capfd) -> None:
    assert main(taught(trained, tmp_path / "run", "--teacher_cache_gb=-1", finished=())) == 2
    assert "teacher_cache_gb is -1.0, it must be 0 or more" in capfd.readouterr().err


def test_a_stopped_stage_goes_on_with_what_it_began_with(
    trained: Path, tmp_path: Path, written: list[Path], capfd, monkeypatch
) -> None:
    """The teacher was asked for lack of room; now there is room."""
    run = tmp_path / "run"
    arguments = taught(trained, run, "--quantise.epochs=0", "--checkpoint_seconds=0")
    with monkeypatch.context() as first:
        first.setattr(kept_outputs, "ROOM", 10**18)
        interrupt_at(first, 20)
        assert main(arguments) == 130
    assert json.loads((run / "stage2.unfinished" / "teacher_outputs.json").read_text())["kept"] is False
    capfd.readouterr()
    assert main(arguments) == 0
    assert not written and "teacher is asked" not in capfd.readouterr().err
    asked = tmp_path / "asked"
    assert main(taught(trained, asked, "--quantise.epochs=0", "--teacher_cache_gb=0")) == 0
    same_weights(run, asked, "stage2")


def interrupt_at(monkeypatch, call: int) -> None:
    """Ctrl-C as the teacher is asked for the so-manieth time."""
    original, calls = teaching.ask_teacher, iter(range(call))

    def stop(*arguments: object) -> object:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(teaching, "ask_teacher", stop)


def test_outputs_of_another_teacher_are_not_taken(trained: Path, tmp_path: Path, written: list[Path]) -> None:
    run = tmp_path / "run"
    arguments = taught(trained, run)
    other = run / "teacher_outputs" / ("0" * 64)
    (other / "000").mkdir(parents=True)
    assert main(arguments) == 0
    assert len(written) == 1
    same_weights(run, trained / "run", "stage2")


KILLED = """
import os, signal, sys
from spikebert.{module} import {owner}
from spikebert.train_command import main
original, calls = {owner}.{name}, iter(range({call}))
def kill(*arguments, **options):
    if next(calls, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
{owner}.{name} = kill
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "name", "call"), [("os", "fsync", 3), ("KeptOutputs", "read", 20)])
def test_a_run_that_was_killed_goes_on_to_the_bit(
    trained: Path, tmp_path: Path, written: list[Path], owner: str, name: str, call: int
) -> None:
    """Killed as the outputs are written, two notes and the logits before them, and as they are read in the second
    epoch."""
    run = tmp_path / "run"
    arguments = taught(trained, run, "--checkpoint_seconds=0")
    program = KILLED.format(module="kept_outputs", owner=owner, name=name, call=call)
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (run / "stage2.unfinished").exists()
    (place,) = (run / "teacher_outputs").iterdir()
    assert [path.name for path in place.iterdir()] == (["000.partial"] if owner == "os" else ["000"])
    assert main(arguments) == 0
    assert len(written) == (1 if owner == "os" else 0)
    for stage in ("stage2", "integer"):
        same_weights(run, trained / "run", stage)
