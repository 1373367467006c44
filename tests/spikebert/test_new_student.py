"""The student that a recipe asks for."""

from __future__ import annotations

import pytest
from small_teachers import recipe_arguments

from spikebert.train_command import main


@pytest.mark.parametrize(("caps", "said"), [(15, False), (255, True)])
def test_weights_without_room_are_said_before_training(trained, tmp_path, capfd, caps: int, said: bool) -> None:
    """Not after a day of it."""
    flags = [f"--student.{name}={value}" for name, value in (("spike", "graded"), ("spike_cap", caps), ("layers", 3))]
    flags += ["--student.hidden_size=64", "--student.value_cap=1", f"--student.encoder_cap={caps}"]
    assert main([*recipe_arguments(trained), *flags, f"--out={tmp_path}", "--until=teacher"]) == 0
    found = capfd.readouterr().err
    assert ("student: 'blocks.2.up' reads numbers up to 1530, and its weights have room for 1.3 units" in found) is said
    assert ("may be far from the floats" in found) is said


def test_texts_to_round_with_leave_no_such_warning(trained, tmp_path, capfd) -> None:
    flags = ["--student.spike=graded", "--student.spike_cap=255", "--student.layers=3", "--student.hidden_size=64"]
    flags += ["--student.encoder_cap=255", "--quantise.calibration_texts=64"]
    assert main([*recipe_arguments(trained), *flags, f"--out={tmp_path}", "--until=teacher"]) == 0
    assert "may be far from the floats" not in capfd.readouterr().err
