"""What is run on a GPU: every program in turn, whether one before failed or not; and all of it can be rehearsed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import PROGRAMS, Program, main

WRONG = Program("wrong", "nothing", ("no_such_module",), ("no_such_module",), 60)
ENDLESS = Program("endless", "nothing", ("http.server", "0"), ("http.server", "0"), 1)
RIGHT = Program("right", "what Python is", ("this",), ("this",), 60)


def test_one_that_fails_does_not_stop_the_next(tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(gpu, "PROGRAMS", (WRONG, ENDLESS, RIGHT))
    assert main([str(tmp_path), "--rehearse"]) == 1
    printed = capfd.readouterr()
    assert "failed, exit code 1" in printed.out and "took too long" in printed.out
    assert "did not end well: wrong, endless; see" in printed.err
    assert "No module named no_such_module" in (tmp_path / "wrong.txt").read_text()
    assert "Beautiful is better than ugly" in (tmp_path / "right.txt").read_text()
    assert main([str(tmp_path), "--rehearse", "--only", "right"]) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path / "out")]) == 2
    assert "--rehearse runs all of it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", [program.name for program in PROGRAMS])
def test_a_rehearsal(tmp_path: Path, name: str, capfd) -> None:
    pytest.importorskip("triton")
    assert main([str(tmp_path), "--rehearse", "--only", name]) == 0, (tmp_path / f"{name}.txt").read_text()
    assert sys.getsizeof((tmp_path / f"{name}.txt").read_text()) > 100
