"""What is lost by what goes wrong with the folder of a run: nothing that could be kept."""

from __future__ import annotations

import shutil
from pathlib import Path

from small_teachers import recipe_arguments, text_of_lines

from spikebert import stages
from spikebert.distillation import Alignment
from spikebert.run_folder import alone_in
from spikebert.stage_record import read_record
from spikebert.train_command import main


def stopped_in_stage_1(trained: Path, out: Path, monkeypatch, *flags: str) -> list[str]:
    """Arguments of a run that was interrupted in the fourth step of stage 1, a checkpoint behind it."""
    shutil.copytree(trained / "run" / "teacher", out / "teacher")
    arguments = [*recipe_arguments(trained), f"--out={out}", "--until=stage1", "--checkpoint_seconds=0"]
    arguments += ["--stage1.batch_size=20", *flags]
    forward, steps = Alignment.forward, iter(range(100))

    def stopping(self, *inputs):
        if next(steps) == 4:
            raise KeyboardInterrupt
        return forward(self, *inputs)

    with monkeypatch.context() as patched:
        patched.setattr(Alignment, "forward", stopping)
        assert main(arguments) == 130
    return arguments


def test_an_unfinished_stage_is_not_dropped_for_another_flag(trained, tmp_path, monkeypatch, capfd) -> None:
    out = tmp_path / "run"
    arguments = stopped_in_stage_1(trained, out, monkeypatch)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capfd.readouterr()
    assert main([*arguments, "--stage1.learning_rate=1e-3"]) == 2
    said = "stage1.unfinished was begun with another recipe (stage1.learning_rate 0.002 -> 0.001): give that one to go"
    assert said in capfd.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert main(arguments) == 0


def test_a_stage_that_could_not_be_kept_is_not_trained_again(trained, tmp_path, monkeypatch, capfd) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained / "run" / "teacher", out / "teacher")
    arguments = [*recipe_arguments(trained), f"--out={out}", "--until=stage1", "--checkpoint_seconds=0"]
    forward, steps = Alignment.forward, []
    monkeypatch.setattr(Alignment, "forward", lambda self, *inputs: steps.append(0) or forward(self, *inputs))

    def full(pupil):
        def save(folder: Path) -> None:
            raise OSError(28, "No space left on device", str(folder / "model.safetensors"))

        return save

    with monkeypatch.context() as patched:
        patched.setattr(stages, "pupil_saver", full)
        assert main(arguments) == 2
    assert (
        "model.safetensors: No space left on device. Check the path, the rights and the space" in capfd.readouterr().err
    )
    trained_steps = len(steps)
    assert trained_steps > 0
    assert main(arguments) == 0 and len(steps) == trained_steps
    assert [path.name for path in sorted(out.iterdir())] == ["stage1", "teacher"], "nothing is left of it"


def test_what_a_killed_run_left_beside_a_finished_stage_goes(trained, tmp_path) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained / "run" / "teacher", out / "teacher")
    for name in ("teacher.unfinished", "teacher.saving"):
        (out / name).mkdir()
        (out / name / "large").write_text("x")
    assert main([*recipe_arguments(trained), f"--out={out}", "--until=teacher"]) == 0
    assert [path.name for path in out.iterdir()] == ["teacher"]


def test_two_trainings_do_not_share_a_folder(trained, tmp_path, capfd) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained / "run" / "teacher", out / "teacher")
    arguments = [*recipe_arguments(trained), f"--out={out}", "--until=teacher"]
    with alone_in(out):
        assert main(arguments) == 2
        assert f"{out}: another training writes there: wait for it, or choose" in capfd.readouterr().err
    assert main(arguments) == 0


def test_text_is_not_tokenised_again_for_another_learning_rate(trained, tmp_path, monkeypatch, capfd) -> None:
    """Where stage 1 had no checkpoint yet; for other lines it is."""
    out, text = tmp_path / "run", text_of_lines(tmp_path)
    shutil.copytree(trained / "run" / "teacher", out / "teacher")
    arguments = [*recipe_arguments(trained), f"--out={out}", "--until=stage1", f"--stage1.text=[{text}]"]

    def begun(*flags: str) -> int:
        """When the tokens were written."""
        with monkeypatch.context() as patched:
            patched.setattr(Alignment, "forward", lambda self, *inputs: (_ for _ in ()).throw(KeyboardInterrupt))
            assert main([*arguments, *flags]) == 130
        (out / "stage1.unfinished" / "checkpoint.pt").unlink(missing_ok=True)  # as if killed
        return (out / "stage1.unfinished" / "texts" / "ids.int32").stat().st_mtime_ns

    first = begun()
    assert begun("--stage1.learning_rate=1e-3") == first
    assert "starting again" in capfd.readouterr().err
    assert begun("--stage1.learning_rate=1e-3", "--stage1.lines=12") > first
    assert main([*arguments, "--stage1.learning_rate=1e-3", "--stage1.lines=12"]) == 0
    assert read_record(out / "stage1" / "stage.json")["figures"]["texts"] == 12
