"""What a running training says: a line now and then, with what the machine tells."""

from __future__ import annotations

import pytest
import torch

from spikebert import machine_use, progress
from spikebert.machine_use import MachineUse
from spikebert.progress import Progress, duration, parts_done


def test_a_duration_is_said_in_two_words() -> None:
    said = [duration(seconds) for seconds in (0, 59, 60, 150, 3599, 3600, 11_100)]
    assert said == ["0 s", "59 s", "1 min", "2 min", "1 h 00 min", "1 h 00 min", "3 h 05 min"]


def test_a_line_tells_speed_and_time_left(monkeypatch, capsys) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    now = [0.0]
    with Progress("stage 2", total=100, done=50, machine=lambda: ", GPU 93 % busy") as bar:
        for _ in range(9):
            now[0] = next(clock)
            bar.advance(loss=0.5, speed=46.4)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2, "one every 30 seconds and more, no bar without a terminal"
    # five steps in 40 seconds, 45 to do
    assert lines[0] == "stage 2: step 55 of 100, loss 0.5000, 46 sentences/s, GPU 93 % busy, 6 min left"


def test_of_a_long_work_it_is_told_how_much_is_done(monkeypatch, capsys) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for part in parts_done(range(5), "stage 2: asking the teacher"):
        now[0] += 20 if part else 60
    assert capsys.readouterr().err.splitlines() == [
        "stage 2: asking the teacher: 1 of 5 parts, 4 min left",
        "stage 2: asking the teacher: 3 of 5 parts, 1 min left",  # 100 seconds for three
    ]


def test_what_is_soon_done_is_not_told_of(capsys) -> None:
    assert list(parts_done([1, 2, 3], "counting")) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


def test_other_processes_say_nothing(monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", -1)
    with Progress("stage 2", total=2, enabled=False) as bar:
        bar.advance(0.5, 1.0)
        bar.say("done")
    assert capsys.readouterr().err == ""


def test_without_a_gpu_only_main_memory_is_told() -> None:
    machine = MachineUse(torch.device("cpu"))
    assert machine.describe() == "" and machine.gpu_peak_bytes() is None
    assert machine.figures() == {"peak_memory_bytes": machine.peak_memory_bytes()}


@pytest.mark.parametrize("pynvml", [True, False])
def test_a_gpu_is_told_of_as_far_as_it_can_be_asked(monkeypatch, pynvml: bool) -> None:
    """A GPU of which torch tells these numbers; its utilisation needs pynvml."""
    monkeypatch.setattr(machine_use.importlib.util, "find_spec", lambda name: object() if pynvml else None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**29)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 93)
    machine = MachineUse(torch.device("cuda"))
    assert machine.gpu_peak_bytes() == 3 * 2**29
    assert machine.describe() == (", GPU 93 % busy" if pynvml else "") + ", GPU memory 1.5 GiB"
    assert ("gpu_utilisation_percent" in machine.figures()) == pynvml
