"""What a release model would be without a teacher: its student, and a dense BERT of its size, taught by labels alone.

    python -m benchmarks.baselines --data DATA --out runs/baselines
    python -m benchmarks.baselines --data DATA --out runs/baselines_short --only mr sst5 --stage2.epochs 2

DATA has a folder with train.tsv and validation.tsv for each task (sst2, mr, subj, sst5, chnsenti, waimai). A student is
that of the recipe of the task's name, size, tokens and bits, but has no budget of operations. It reads the task's own
training texts and nothing else, its token table starts from noise, and the teacher named there lends its tokenizer
only. The best of at most five epochs by validation counts. What is finished is not trained again, and a run that was
stopped goes on. Flags that are not this script's own are spikebert-train's, for every run. Hours on two cores.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.compare_runs import accuracy_cell, measure
from benchmarks.dense_student import KINDS, LEARNING_RATE, teach_beside
from benchmarks.release import TASKS, refuse_own
from benchmarks.screen_options import OPTIONS
from benchmarks.timing import table
from benchmarks.training_programs import TrainingPrograms
from converters.on_texts import ENGINE
from sim.engines import require_engine
from spikebert.commands import CheckFailed, UserError, note, output_kept_clean, processors, run_command, write_output
from spikebert.evaluation import Accuracy

ALONE = (  # beside the recipe of a task
    f"{OPTIONS['direct']} --teacher.epochs 0 --stage2.altered_copies 0 --stage2.extra_lines 0 --stage2.label_weight 1 "
    "--stage2.epochs 5 --stage2.patience 2 --stage2.batch_size 64 --stage2.learning_rate 2e-3 "
    "--stage2.operations_per_token 0 "  # with one of 800,000 the loss of SST-5 stayed that of guessing
    "--quantise.calibration_texts 512 --quantise.epochs 0"
)
HEADER = (
    "", "spiking, integers", "firing rate", "operations a token", "of dense (45nm)", "dense, float32", "dense, int8",
)  # fmt: skip


def train(programs: TrainingPrograms, task: str, data: Path, out: Path, common: Sequence[str]) -> None:
    """The spiking student: what is finished of it, and was made with these flags, is not trained again.

    Raises UserError where it fails.
    """
    note(f"{out / task}: training ({out / task}.log)")
    programs.train(out / task, ["--recipe", task, "--data.folder", str(data / task), *shlex.split(ALONE), *common])


def row(task: str, out: Path, learning_rate: float) -> list[str]:
    """Of the table; the dense student is trained for it, if it is not finished."""
    dense = teach_beside(out / task, out / f"{task}_dense", learning_rate)
    spiking, _, _ = measure(out / task)
    return [
        task, accuracy_cell(spiking.accuracy), f"{spiking.firing_rate:.1%}", f"{spiking.operations_per_token:,.0f}",
        f"{spiking.of_dense:.1%}", *(accuracy_cell(Accuracy(**dense[f"dense, {kind}"])) for kind in KINDS),
    ]  # fmt: skip


def baselines(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each task")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=TASKS, metavar="TASK")
    parser.add_argument("--at-once", type=int, default=processors(), metavar="N", help="spiking students side by side")
    parser.add_argument("--dense-learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    arguments, common = parser.parse_known_args(argv)
    refuse_own(common)
    require_engine(ENGINE)  # what is trained is measured with it
    rows, wrong = [], []
    with ThreadPoolExecutor(arguments.at_once) as pool, TrainingPrograms(threads=1) as programs:
        runs = {
            task: pool.submit(train, programs, task, arguments.data, arguments.out, common) for task in arguments.only
        }
        for task, run in runs.items():
            try:
                run.result()
                with output_kept_clean():
                    rows.append(row(task, arguments.out, arguments.dense_learning_rate))
            except UserError as error:
                note(str(error))
                wrong.append(task)
    write_output(table(HEADER, rows))
    if wrong:
        raise CheckFailed(f"not trained: {', '.join(wrong)}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(baselines, argv)


if __name__ == "__main__":
    sys.exit(main())
