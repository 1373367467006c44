"""What each option of a student is worth: one run of spikebert-train for each, all of one budget, then a table.

    python -m benchmarks.screen_options --data MR --out runs/screen_mr
    python -m benchmarks.screen_options --data MR --out runs/screen_mr --only rms xnor-log --seeds 42 43 44
    python -m benchmarks.screen_options --data MR --out runs/screen_mr --at-once 1 --student.hidden_size 128

MR is a folder with train.tsv and validation.tsv. All students of a seed learn from the teacher of its `base`, but for
those of a smaller vocabulary, who have their own. What is finished is not run again, and a run that was stopped goes
on, so the same command may be given again and again. Flags that are not this script's own are spikebert-train's, for
every run. About 20 minutes a run on one core, so all of them take a night on two.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.compare_runs import compare
from benchmarks.training_programs import TrainingPrograms
from converters.on_texts import ENGINE
from sim.engines import require_engine
from spikebert.commands import note, processors, run_command
from spikebert.parts_of_speech import tagger_for

BASE = "base"
BUDGET = (  # of every run, beside what the recipe `mr_small` says
    "--student.hidden_size 256 --student.heads 4 --student.intermediate_size 1024 --stage1.epochs 2 --stage2.epochs 4 "
    "--stage2.extra_lines 0 --quantise.epochs 1"
)
OPTIONS = {
    BASE: "",
    "log": "--student.attention_position log",
    "gray": "--student.attention_position gray",
    "learned": "--student.attention_position learned",
    "neighbours": "--student.attention_position neighbours",
    "xnor": "--student.attention_similarity xnor",
    "xnor-log": "--student.attention_similarity xnor --student.attention_position log",
    "code": "--student.position_spikes 32",
    "no-positions": "--student.positions false",
    "layer": "--student.norm layer",
    "rms": "--student.norm rms",
    "no-norm": "--student.norm none",
    "membrane": "--student.readout membrane",
    "spikes": "--student.readout spikes",
    "subtract": "--student.reset subtract",
    "graded": "--student.spike graded --student.spike_cap 3",
    "ternary": "--student.spike ternary",
    "graded-t1": "--student.timesteps 1 --student.spike graded --student.spike_cap 15 --student.encoder_cap 15 "
    "--student.value_cap 15 --student.graded_gain 4",
    "t2": "--student.timesteps 2",
    "t8": "--student.timesteps 8",
    "operations-800k": "--stage2.operations_per_token 800000",
    "operations-400k": "--stage2.operations_per_token 400000",
    "operations-200k": "--stage2.operations_per_token 200000",
    "decay-0": "--student.decay 0",  # membranes forget nothing
    "decay-all": "--student.decay 4095",  # they forget nearly all: no memory between timesteps
    "sigmoid": "--student.surrogate sigmoid --student.surrogate_alpha 4.0",
    "bits-4": "--quantise.weight_bits 4",
    "bits-2": "--quantise.weight_bits 2",
    "bits-1": "--quantise.weight_bits 1",
    "token-bits-4": "--quantise.token_bits 4",
    "token-bits-2": "--quantise.token_bits 2",
    "vocabulary-8k": "--data.vocabulary 8000",
    "wide": "--student.hidden_size 384 --student.heads 6 --student.intermediate_size 1536",
    "deep": "--student.layers 4",
    # what each part of the teaching is worth, as the paper asks
    "no-stage1": "--stage1.epochs 0",
    "no-logits": "--stage2.logits_weight 0",
    "no-hidden": "--stage2.hidden_weight 0",
    "no-embedding": "--stage2.embedding_weight 0",
    "no-stage2": "--stage2.logits_weight 0 --stage2.hidden_weight 0 --stage2.embedding_weight 0",  # labels alone
    "random-table": "--student.embeddings_from_teacher false",
    "temperature-1": "--stage2.temperature 1",
    "temperature-4": "--stage2.temperature 4",
    "altered": "--stage2.altered_copies 1",
    "altered-words": "--stage2.altered_copies 1 --stage2.parts_of_speech en",
    "altered-tang": "--stage2.altered_copies 1 --stage2.parts_of_speech en --stage2.alteration.join 0 "  # theirs
    "--stage2.alteration.run 0.25 --stage2.alteration.longest_run 5",
    "direct": "--stage1.epochs 0 --stage2.logits_weight 0 --stage2.hidden_weight 0 --stage2.embedding_weight 0 "
    "--student.embeddings_from_teacher false",  # no teacher at all
}
TEACHERS_OWN = ("--data.", "--teacher.")  # with such flags the teacher is another one than that of `base`


def folder_of(out: Path, name: str, seed: int) -> Path:
    return out / (name if seed == 42 else f"{name}-{seed}")  # 42 is the seed of a recipe that names none


def train(programs: TrainingPrograms, out: Path, name: str, seed: int, common: Sequence[str]) -> None:
    """One run, if it is not finished. Raises UserError where it fails."""
    folder = folder_of(out, name, seed)
    if (folder / "results.json").is_file():
        return
    teacher = folder_of(out, BASE, seed) / "teacher"
    if teacher.is_dir() and not (folder / "teacher").exists() and not OPTIONS[name].startswith(TEACHERS_OWN):
        shutil.copytree(teacher, folder / "teacher")
    note(f"{folder}: training ({folder}.log)")
    programs.train(folder, ["--recipe", "mr_small", *common, *shlex.split(OPTIONS[name]), "--seed", str(seed)])


def screen(argv: Sequence[str] | None) -> int:
    others_than_base = [name for name in OPTIONS if name != BASE]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.tsv and validation.tsv")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument(
        "--only", nargs="+", choices=others_than_base, default=others_than_base, metavar="OPTION",
        help=f"of {', '.join(others_than_base)}",
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[42])
    parser.add_argument("--at-once", type=int, default=processors(), metavar="N", help="runs side by side")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="accuracy against operations")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    arguments, others = parser.parse_known_args(argv)
    names = [BASE, *arguments.only]
    if any("parts_of_speech" in OPTIONS[name] for name in names):
        tagger_for("en")  # said now, not after a night
    require_engine(ENGINE)  # as this is
    common = ["--data.folder", str(arguments.data), *shlex.split(BUDGET), *others]
    with ThreadPoolExecutor(arguments.at_once) as pool, TrainingPrograms(threads=1) as programs:
        for wave in ([BASE], arguments.only):  # the others need its teacher
            runs = [
                pool.submit(train, programs, arguments.out, name, seed, common)
                for seed in arguments.seeds
                for name in wave
            ]
            for run in runs:
                run.result()
    table = [
        f"{name}={','.join(str(folder_of(arguments.out, name, seed)) for seed in arguments.seeds)}" for name in names
    ]
    return compare([*table, *(["--plot", str(arguments.plot)] if arguments.plot else [])])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(screen, argv)


if __name__ == "__main__":
    sys.exit(main())
