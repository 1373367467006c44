"""How fast we train, side by side with the same network written with SpikingJelly, and how near to the floor.

    python -m benchmarks.train                                        2 x 128, 6 x 384 and 12 x 768
    python -m benchmarks.train --shapes 6x384 --profile 6x384 --plot docs/img/train_scaling.png

One step is forward, cross entropy with the labels, backward, clipping, AdamW, as `spikebert-train` makes it. All ways
are given the same batches: sentences as they come, in the order of training, and sentences of one length. Each way is
measured in a fresh process, one after another; that is a round. Medians are taken over rounds, and ratios are made
within a round. With a GPU all of it runs there. What each way is stands in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import ParamSpec, TypeVar

import torch

from benchmarks.timing import Usage, machine, table
from benchmarks.train_batches import REVIEWS, TOKENIZER, Sentences, describe, lengths
from benchmarks.train_floor import operations
from benchmarks.train_profile import profile_steps
from benchmarks.train_profile import report as profile_report
from benchmarks.train_ways import OURS, PLAIN, WAYS, Batch, Shape, Trainer, make_model, prepare_torch
from benchmarks.train_worker import DRAWN, Rates, Result, Task, measure_rates, measure_way
from spikebert import SpikeBertConfig
from spikebert.commands import UserError, note, output_kept_clean, run_command, write_output

SHAPES = ("2x128", "6x384", "12x768")
BATCH, LARGE_BATCH, LARGE = 64, 8, 768  # sentences; the fewer on a CPU from LARGE features on, else minutes a step
PROFILED = (PLAIN, "ours, float32", OURS, "ours, integer")

Given = ParamSpec("Given")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Goal:
    """What ours is to reach with a shape on a kind of device: times plain SpikingJelly, and share of the floor."""

    shape: str
    times: float
    share: float


GOALS = {"cpu": Goal("6 x 384", 3.0, 0.4), "cuda": Goal("12 x 768", 5.0, 0.4)}


@dataclass
class Round:
    """One round: the rates of the machine, and of each way its results by set of batches."""

    rates: Rates
    ways: dict[str, dict[str, Result]] = field(default_factory=dict)


@dataclass(frozen=True)
class Figures:
    """Of one way with one set of batches, medians over rounds.

    rate      sentences a second
    times     this, as a multiple of plain SpikingJelly's on the same batches
    seconds   of a step
    share     seconds of the matrix products at the machine's rate / seconds of a step
    memory    bytes of main memory; None where the system does not tell
    gpu       bytes of the GPU's memory; None without one
    """

    rate: float
    times: float
    seconds: float
    share: float
    memory: int | None
    gpu: int | None


def in_fresh_process(work: Callable[Given, Found], *arguments: Given.args, **named: Given.kwargs) -> Found:
    """What `work` returns. Raises what it raises, and BrokenProcessPool where its process was killed."""
    with output_kept_clean(), ProcessPoolExecutor(1, get_context("spawn")) as pool:  # what libraries print is no result
        return pool.submit(work, *arguments, **named).result()


def measure(task: Task, names: Sequence[str], rounds: int) -> list[Round]:
    """Every way in every round, forwards and backwards by turns, so that a drift of the clock meets all alike."""
    found = []
    for number in range(rounds):
        found.append(Round(in_fresh_process(measure_rates)))
        for name in names if number % 2 == 0 else names[::-1]:
            note(f"  round {number + 1} of {rounds}, {name} ...")
            found[-1].ways[name] = in_fresh_process(measure_way, task, name)
    return found


def figures(
    rounds: Sequence[Round], name: str, title: str, batches: Sequence[Batch], config: SpikeBertConfig
) -> Figures:
    """Of the way `name` with the batches of the set `title`."""
    work = [operations(config, lengths(batch)) for batch in batches]
    size = len(batches[0]["labels"])
    own = [each.ways[name][title] for each in rounds]
    plain = [each.ways[PLAIN][title] for each in rounds]
    shares = [
        sum(work[: len(result.seconds)]) / each.rates.of(WAYS[name].mixed()) / sum(result.seconds)
        for each, result in zip(rounds, own)
    ]
    memory = [result.memory_bytes for result in own if result.memory_bytes is not None]
    gpu = [result.gpu_bytes for result in own if result.gpu_bytes is not None]
    return Figures(
        rate=median(size * len(result.seconds) / sum(result.seconds) for result in own),
        times=median(times_as_fast(result, other) for result, other in zip(own, plain)),
        seconds=median(sum(result.seconds) / len(result.seconds) for result in own),
        share=median(shares),
        memory=int(median(memory)) if memory else None,
        gpu=int(median(gpu)) if gpu else None,
    )


def times_as_fast(result: Result, plain: Result) -> float:
    """On the batches that both were timed with."""
    shared = min(len(result.seconds), len(plain.seconds))
    return sum(plain.seconds[:shared]) / sum(result.seconds[:shared])


def report(title: str, found: Mapping[str, Figures], missing: Mapping[str, str]) -> str:
    """A table of one set of batches; the ways that could not be run stand below."""
    on_gpu = any(of.gpu is not None for of in found.values())
    header = ["", "products in", "sentences/s", f"times {PLAIN}", "s a step", "share of the floor", "memory, MB"]
    header += ["GPU memory, MB"] if on_gpu else []
    rows = []
    for name, of in found.items():
        row = [name, "bf16" if WAYS[name].mixed() else "float32", f"{of.rate:,.1f}", f"{of.times:.2f}"]
        row += [f"{of.seconds:.3f}", f"{of.share:.0%}", megabytes(of.memory)]
        rows.append(row + ([megabytes(of.gpu)] if on_gpu else []))
    lines = [f"**{title}**", "", table(header, rows), *(f"not run: {name}, {why}" for name, why in missing.items())]
    return "\n".join(lines) + "\n"


def megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.0f}"


def judge(shape: Shape, device: str, ours: Figures) -> str | None:
    """Whether the goal is met; None where there is none for this shape."""
    goal = GOALS[device]
    if str(shape) != goal.shape:
        return None
    met = ours.times >= goal.times and ours.share >= goal.share
    return (
        f"goal of '{OURS}' on the {'GPU' if device == 'cuda' else 'CPU'}: {goal.times:g} times {PLAIN} and "
        f"{goal.share:.0%} of the floor; {'met' if met else 'missed'}: {ours.times:.2f} times and {ours.share:.0%}"
    )


def compare(task: Task, names: Sequence[str], rounds: int, device: str) -> None:
    """Measures a shape and writes its two tables."""
    missing = {name: WAYS[name].missing() for name in names if WAYS[name].missing()}
    present = [name for name in names if name not in missing]
    note(f"{task.shape} ...")
    measured = measure(task, present, rounds)
    sentences = task.sentences()
    config = task.shape.config(sentences.vocabulary, sentences.classes)
    for title, batches in task.sets(sentences).items():
        found = {name: figures(measured, name, title, batches, config) for name in present}
        write_output(report(f"{task.shape}, {title}: {describe(batches)}", found, missing))
        if title == DRAWN and OURS in found and (verdict := judge(task.shape, device, found[OURS])):
            write_output(verdict + "\n")
    rates = [median(getattr(each.rates, name) for each in measured) / 1e9 for name in ("float32", "bf16")]
    write_output(f"matrix products: {rates[0]:,.0f} 10^9 operations a second in float32, {rates[1]:,.0f} in bf16\n")


def profile_way(task: Task, name: str) -> dict[str, float]:
    """Seconds of a step by kind of work, on sentences as they come. For a fresh process."""
    device, sentences, way = prepare_torch(), task.sentences(), WAYS[name]
    model = make_model(way, task.shape.config(sentences.vocabulary, sentences.classes))
    return profile_steps(Trainer(model, way.mixed(), device), task.sets(sentences)[DRAWN])


def profile_all(task: Task) -> None:
    found = {}
    for name in PROFILED:
        note(f"profile of {task.shape}, {name} ...")
        found[name] = in_fresh_process(profile_way, task, name)
    write_output(f"**where the time goes, {task.shape}, {DRAWN}, batches of {task.batch_size}**\n")
    write_output(profile_report(found) + "\n")


def plot(out: Path, sentences: Sentences, seconds: float) -> None:
    from benchmarks import train_scaling  # needs matplotlib

    note("cost against T, N, D and depth ...")
    panels = train_scaling.measure_all(sentences, seconds)
    write_output(train_scaling.report(panels) + "\n")
    train_scaling.draw(panels, out)
    write_output(f"wrote {out}\n")


def body(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shapes", nargs="*", default=SHAPES, help="blocks x features; none: only the profile, the plot"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help=f"beside {PLAIN}; default: all")
    parser.add_argument(
        "--batch", type=int, help=f"sentences (default: {BATCH}; on a CPU {LARGE_BATCH} from {LARGE} features)"
    )
    parser.add_argument("--tokens", type=int, default=32, help="of each sentence of one length (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=5, help="of each way with each set in a round, after two steps"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default=REVIEWS, help="folder with train.tsv (default: %(default)s)")
    parser.add_argument("--tokenizer", default=TOKENIZER, help="its folder (default: the shipped bundle's)")
    parser.add_argument("--profile", metavar="SHAPE", help="where the time goes with this shape")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the cost of a step against T, N, D and depth")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    arguments = parser.parse_args(argv)
    n_max = Shape(1, 1).n_max
    if (arguments.batch is not None and arguments.batch < 1) or arguments.rounds < 1:
        raise UserError("--batch and --rounds must be 1 or more")
    if not 1 <= arguments.tokens <= n_max:
        raise UserError(f"--tokens is {arguments.tokens}, it must be 1 .. {n_max}")
    device = prepare_torch().type

    def task(text: str) -> Task:
        shape = Shape.parse(text)
        size = arguments.batch or (LARGE_BATCH if device == "cpu" and shape.width >= LARGE else BATCH)
        return Task(shape, size, arguments.tokens, arguments.seconds, arguments.data, arguments.tokenizer)

    tasks = [task(text) for text in arguments.shapes]
    profiled = task(arguments.profile) if arguments.profile else None
    start = Usage.now()
    sentences = (tasks or [task("1x1")])[0].sentences()  # a wrong file is told now
    for each in tasks:
        compare(each, list(dict.fromkeys([*arguments.ways, PLAIN])), arguments.rounds, device)
    if profiled:
        profile_all(profiled)
    if arguments.plot:
        plot(arguments.plot, sentences, arguments.seconds / 2)
    write_output(machine(start))
    if device == "cuda":
        write_output(f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(body))
