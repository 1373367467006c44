"""What a release model would be without a teacher: its student, and a dense BERT of its size, taught by labels alone.

    python -m benchmarks.baselines --data DATA --out runs/baselines
    python -m benchmarks.baselines --data DATA --out runs/baselines --only sst2 --stage2.epochs 1

DATA has a folder with train.tsv and validation.tsv for each task (sst2, mr, subj, sst5, chnsenti, waimai). A student is
that of the recipe of the task's name: size, tokens, budget of operations, bits. It reads the task's own training texts
and nothing else, its token table starts from noise, and the teacher named there lends its tokenizer only. The best
of at most five epochs by validation counts. What is finished is not trained again, and a run that was stopped goes on.
Flags that are not this script's own are spikebert-train's, for every run. An hour or two on two cores.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.compare_runs import measure
from benchmarks.compare_runs import row as spiking_row
from benchmarks.dense_student import KINDS, LEARNING_RATE, teach_beside
from benchmarks.release import TASKS
from benchmarks.screen_options import OPTIONS
from benchmarks.timing import table
from benchmarks.training_programs import TrainingPrograms
from spikebert.commands import note, output_kept_clean, processors, run_command, write_output

ALONE = (  # beside the recipe of a task
    f"{OPTIONS['direct']} --teacher.epochs 0 --stage2.altered_copies 0 --stage2.extra_lines 0 --stage2.label_weight 1 "
    "--stage2.epochs 5 --stage2.patience 2 --stage2.batch_size 64 --stage2.learning_rate 2e-3 "
    "--quantise.calibration_texts 512 --quantise.epochs 0"
)
HEADER = (
    "", "spiking, integers", "firing rate", "operations a token", "of dense (45nm)", "dense, float32", "dense, int8",
)  # fmt: skip


def train(programs: TrainingPrograms, task: str, data: Path, out: Path, common: Sequence[str]) -> None:
    """The spiking student, if it is not finished. Raises UserError where it fails."""
    if not (out / task / "results.json").is_file():
        note(f"{out / task}: training ({out / task}.log)")
        programs.train(out / task, ["--recipe", task, "--data.folder", str(data / task), *shlex.split(ALONE), *common])


def row(task: str, out: Path, learning_rate: float) -> list[str]:
    """Of the table; the dense student is trained for it, if it is not finished."""
    dense = teach_beside(out / task, out / f"{task}_dense", learning_rate)
    spiking, _ = measure(out / task)
    accuracy, _, rate, operations, of_dense, _ = spiking_row(task, [spiking], [spiking])[1:]
    return [task, accuracy, rate, operations, of_dense, *(f"{dense[f'dense, {kind}']['value']:.1%}" for kind in KINDS)]


def baselines(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each task")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=TASKS, metavar="TASK")
    parser.add_argument("--at-once", type=int, default=processors(), metavar="N", help="spiking students side by side")
    parser.add_argument("--dense-learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    arguments, common = parser.parse_known_args(argv)
    with ThreadPoolExecutor(arguments.at_once) as pool, TrainingPrograms(threads=1) as programs:
        runs = [pool.submit(train, programs, task, arguments.data, arguments.out, common) for task in arguments.only]
        for run in runs:
            run.result()
    with output_kept_clean():
        rows = [row(task, arguments.out, arguments.dense_learning_rate) for task in arguments.only]
    write_output(table(HEADER, rows))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(baselines, argv)


if __name__ == "__main__":
    sys.exit(main())
