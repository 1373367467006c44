"""What one fresh process of `train.py` does: train one way for some seconds, or measure the matrix rates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median

import torch

from benchmarks.train_batches import Sentences, read_sentences
from benchmarks.train_floor import matrix_rate
from benchmarks.train_ways import WAYS, Batch, Shape, Trainer, make_model, prepare_torch

BATCHES = 2  # of each set; every way goes through them again and again
PROCESS = Path("/proc/self")  # Linux
DRAWN, EQUAL = "sentences as they come", "sentences of one length"


@dataclass(frozen=True)
class Task:
    """Sentences and a shape. `tokens`: of each text of the set EQUAL; `seconds`: to measure each set."""

    shape: Shape
    batch_size: int
    tokens: int
    seconds: float
    data: str
    tokenizer: str

    def sentences(self) -> Sentences:
        return read_sentences(self.data, self.tokenizer, self.shape.n_max)

    def sets(self, sentences: Sentences) -> dict[str, list[Batch]]:
        return {
            DRAWN: sentences.drawn(self.batch_size, BATCHES),
            EQUAL: sentences.of_length(self.tokens, self.batch_size, BATCHES),
        }


@dataclass(frozen=True)
class Result:
    """One way with one set of batches.

    seconds       the median of each batch, for as many, from the first on, as there was time for
    memory_bytes  the most main memory that the process held meanwhile; None where the system does not tell
    gpu_bytes     the most that torch held on the GPU meanwhile; None without one
    """

    seconds: list[float]
    memory_bytes: int | None
    gpu_bytes: int | None


@dataclass(frozen=True)
class Rates:
    """Operations a second of matrix products."""

    float32: float
    bf16: float

    def of(self, mixed: bool) -> float:
        return self.bf16 if mixed else self.float32


def measure_way(task: Task, name: str) -> dict[str, Result]:
    """By set of batches, each trained for `task.seconds`; every batch once before, untimed."""
    device = prepare_torch()
    sentences, way = task.sentences(), WAYS[name]
    model = make_model(way, task.shape.config(sentences.vocabulary, sentences.classes))
    trainer = Trainer(model, way.mixed(), device)
    results = {}
    for title, batches in task.sets(sentences).items():
        reset_peak_memory(device)
        for batch in batches:
            trainer.step(batch)
        seconds = timed_steps(trainer, batches, task.seconds)
        gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        results[title] = Result(seconds, peak_memory_bytes(), gpu)
    return results


def measure_rates() -> Rates:
    device = prepare_torch()
    return Rates(matrix_rate(torch.float32, device), matrix_rate(torch.bfloat16, device))


def timed_steps(trainer: Trainer, batches: Sequence[Batch], seconds: float) -> list[float]:
    """Steps on the batches in turn, until the time is up; at least one. As `Result.seconds`."""
    taken: list[list[float]] = [[] for _ in batches]
    end = time.perf_counter() + seconds
    for batch, of_batch in cycle(zip(batches, taken)):
        start = time.perf_counter()
        trainer.step(batch)
        now = time.perf_counter()
        of_batch.append(now - start)
        if now >= end:
            return [median(times) for times in taken if times]
    raise AssertionError("no batches")


def reset_peak_memory(device: torch.device) -> None:
    """From now on peaks are those of what comes."""
    if PROCESS.exists():
        (PROCESS / "clear_refs").write_text("5")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes() -> int | None:
    """The most main memory this process has held. (`getrusage` counts that of the process which started it too.)"""
    if not PROCESS.exists():
        return None
    fields = dict(line.split(":", 1) for line in (PROCESS / "status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024
