"""The release models of six tasks, trained side by side: on one GPU, whose time they share, in minutes.

    python -m benchmarks.release --data DATA --corpus CORPUS --out runs
    python -m benchmarks.release --data DATA --corpus CORPUS --out runs --only mr waimai

DATA has a folder with train.tsv and validation.tsv for each task (sst2, mr, subj, sst5, chnsenti, waimai), CORPUS the
unlabelled text: en_imdb_unsup.txt.xz, zh_shopping_reviews.txt.xz, zh_wikipedia.txt.xz. Each task is the recipe of its
name. The English ones share stage 1, the recipe `english` or `english_wide`: while it is trained, they train their
teachers. What is finished is not trained again, and a run that was stopped goes on. Flags that are not this script's
own are spikebert-train's, for every run. The last lines are a table; a run's log stands beside its folder. The English
tasks need the folder of `mr` too, whichever are chosen. (What is shipped of sst2 went on from here, with the recipe
sst2_t2.)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from benchmarks.timing import table
from benchmarks.training_programs import TrainingPrograms
from spikebert.commands import CheckFailed, UserError, note, run_command, write_output

# The recipe whose stage 1 an English task shares with the others of its width.
SHARED = {"mr": "english", "sst2": "english_wide", "subj": "english_wide", "sst5": "english"}
ENGLISH = tuple(SHARED)
TASKS = (*ENGLISH, "chnsenti", "waimai")
FILMS, REVIEWS, WIKIPEDIA = "en_imdb_unsup.txt.xz", "zh_shopping_reviews.txt.xz", "zh_wikipedia.txt.xz"
OWN = (
    "--recipe",
    "--out",
    "--until",
    "--json",
    "--data.folder",
    "--stage1.reuse",
    "--stage1.text",
    "--stage2.extra_text",
)
THREADS = 2  # of each run


@dataclass(frozen=True)
class Places:
    """Folders: of the tasks' texts, of the unlabelled text, and of the runs."""

    data: Path
    corpus: Path
    out: Path


def flags_of(recipe: str, places: Places) -> list[str]:
    """What a run reads and writes, beside its own recipe; stage 1 of English tasks left out."""
    films, reviews, wikipedia = (str(places.corpus / name) for name in (FILMS, REVIEWS, WIKIPEDIA))
    flags = ["--recipe", recipe]
    if recipe in SHARED.values():  # of the task it needs the number of classes alone, and trains on nothing of it
        return [*flags, "--data.folder", str(places.data / ENGLISH[0]), f"--stage1.text=[{films}]"]
    flags += ["--data.folder", str(places.data / recipe)]
    if recipe in ENGLISH:
        return [*flags, f"--stage2.extra_text=[{films}]"]
    return [*flags, f"--stage1.text=[{reviews},{wikipedia}]", f"--stage2.extra_text=[{reviews}]"]


def train_shared(recipe: str, programs: TrainingPrograms, places: Places, common: Sequence[str], done: Event) -> None:
    try:
        programs.train(places.out / recipe, [*flags_of(recipe, places), *common, "--until", "stage1"])
    finally:
        done.set()  # where it failed, those that wait find no stage 1 and say so


def train_task(
    task: str, programs: TrainingPrograms, places: Places, common: Sequence[str], done: Mapping[str, Event]
) -> None:
    """All stages of a task; an English one waits until its shared stage 1 is done, after its teacher."""
    flags = [*flags_of(task, places), *common]
    if task in ENGLISH:
        if not (places.out / task / "teacher" / "stage.json").is_file():
            programs.train(places.out / task, [*flags, "--until", "teacher"])
        done[SHARED[task]].wait()
        flags += ["--stage1.reuse", str(places.out / SHARED[task] / "stage1")]
    programs.train(places.out / task, flags)


def refuse_own(flags: Sequence[str]) -> None:
    """Raises UserError for a flag of spikebert-train that every run is given anyway."""
    for flag in flags:
        if flag.split("=")[0] in OWN:
            raise UserError(f"{flag}: this script gives it to every run itself")


def row(task: str, out: Path) -> list[str]:
    """Of `results.json`; seconds without those of the shared stage 1."""
    results: dict[str, Any] = json.loads((out / task / "results.json").read_text())
    accuracy = {name: found["validation"]["value"] for name, found in results["accuracy"].items()}
    stages = results["stages"].values()
    seconds = sum(stage.get("seconds", 0.0) for stage in stages)
    return [
        task, f"{accuracy['teacher']:.2%}", f"{accuracy['float student']:.2%}", f"{accuracy['integer student']:.2%}",
        f"{results['mean_firing_rate']:.2%}", f"{seconds:.0f}",
    ]  # fmt: skip


def release(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each task")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of the unlabelled text")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=TASKS, metavar="TASK")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    arguments, common = parser.parse_known_args(argv)
    refuse_own(common)
    places = Places(arguments.data, arguments.corpus, arguments.out)
    done, wrong = {SHARED[task]: Event() for task in arguments.only if task in SHARED}, []
    with ThreadPoolExecutor(len(done) + len(arguments.only)) as pool, TrainingPrograms(THREADS) as programs:
        runs = {task: pool.submit(train_task, task, programs, places, common, done) for task in arguments.only}
        for recipe, event in done.items():
            runs[recipe] = pool.submit(train_shared, recipe, programs, places, common, event)
        for name, run in runs.items():
            try:
                run.result()
            except UserError as error:
                note(str(error))
                wrong.append(name)
    header = ["", "teacher", "float student", "integer student", "mean rate of layers", "seconds of steps"]
    write_output(table(header, [row(task, places.out) for task in arguments.only if task not in wrong]))
    if wrong:
        raise CheckFailed(f"not trained: {', '.join(wrong)}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(release, argv)


if __name__ == "__main__":
    sys.exit(main())
