"""Trainings side by side end when who started them is stopped. Here a program that sleeps stands for a training."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.training_programs import TrainingPrograms
from spikebert.commands import UserError


@pytest.fixture
def sleeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "sleeps"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr("benchmarks.training_programs.sys.executable", str(program))


@pytest.mark.usefixtures("sleeps")
def test_an_interrupt_ends_what_runs_and_starts_no_more(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(KeyboardInterrupt), TrainingPrograms(threads=1) as programs:
            run = pool.submit(programs.train, tmp_path / "run", [])
            while not programs.running:
                time.sleep(0.01)
            raise KeyboardInterrupt
        with pytest.raises(UserError, match="spikebert-train ended with -15"):
            run.result(60)
        assert not programs.running
    with pytest.raises(UserError, match="stopped"):
        programs.train(tmp_path / "another", [])


def test_another_error_lets_what_runs_go_on() -> None:
    with pytest.raises(UserError), TrainingPrograms(threads=1) as programs:
        raise UserError("one of them failed")
    assert not programs.stopped
