"""Everything about training that only a GPU can tell, in one command: for a machine that is lent for minutes.

    python -m benchmarks.gpu OUT              on the GPU, 18 minutes at most: each program has a limit
    python -m benchmarks.gpu OUT --rehearse   the same programs on a CPU, as small as they get: does all of it run?

Each program runs by itself, in turn, and what it printed stands in OUT/NAME.txt as soon as it ends. One that fails or
takes too long does not stop the next. The last lines are a table; the exit code is 1 where a program did not end well.
A Python with torch, triton, transformers, accelerate, numba, spikingjelly and pytest is enough; Lava is not needed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.timing import table
from spikebert.commands import CheckFailed, UserError, note, run_command, write_output

HERE = Path(__file__).parents[1]
FAILED, TOOK_TOO_LONG = "failed", "took too long"


@dataclass(frozen=True)
class Program:
    """What is run: its name, what it tells, `python -m` these arguments, and so many seconds at most.

    small  the arguments that a rehearsal has in place of `arguments`
    """

    name: str
    tells: str
    arguments: tuple[str, ...]
    small: tuple[str, ...]
    seconds: int


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


KERNEL_TESTS = "pytest -q -p no:cacheprovider tests/spikebert/test_triton_lif.py"
SMALL_STEP = "--layers 1 --hidden 64 --heads 1 --intermediate 128 --n-max 16"
PROGRAMS = (
    Program(
        "triton_tests", "the kernel's spikes in every bit, its gradients to rounding",
        words(KERNEL_TESTS), words(f"{KERNEL_TESTS} -k surrogate"), 240,
    ),
    Program(
        "lif_backends", "the neuron on each of its paths, and how near to the floor",
        words("benchmarks.lif_backends --seconds 2"),
        words("benchmarks.lif_backends --seconds 0.1 --features 64 --cpu-tokens 64"), 120,
    ),
    Program(
        "train", "sentences a second beside SpikingJelly; goal at 12 x 768: 5 times, 40 % of the floor",
        words("benchmarks.train --shapes 12x768 --batch 64 --rounds 1 --seconds 3 --profile 12x768"),
        words("benchmarks.train --shapes 1x64 --batch 4 --rounds 1 --seconds 0.1"), 300,
    ),
    Program(
        "activation_memory", "whether a batch of 512 fits, 12 x 768, N = 128",
        words("benchmarks.activation_memory --texts 64 512 --predict 1024 --precisions bf16 --checkpointing on"),
        words(f"benchmarks.activation_memory --texts 1 2 --precisions bf16 --checkpointing on {SMALL_STEP}"), 200,
    ),
    Program(
        "train_losses", "whether every path learns the same in 200 steps",
        words("benchmarks.train_losses --seeds 0 1 2"),
        words("benchmarks.train_losses --shape 1x64 --steps 2 --batch 2 --seeds 0 1 2 3 4"), 200,  # two may lie close
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a program ended ("well" or why not), after how many seconds."""

    how: str
    seconds: float


def run_program(arguments: Sequence[str], to: Path, limit_seconds: float) -> Ended:
    """Runs `python -m ARGUMENTS`; what it prints goes to the file `to`, line by line."""
    start = time.perf_counter()
    with open(to, "w", encoding="utf-8") as file:
        command = [sys.executable, "-m", *arguments]
        try:
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, timeout=limit_seconds, cwd=HERE
            ).returncode
            how = "well" if code == 0 else f"{FAILED}, exit code {code}"
        except subprocess.TimeoutExpired:
            how = TOOK_TOO_LONG
    return Ended(how, time.perf_counter() - start)


def run_all(programs: Sequence[Program], out: Path, rehearse: bool) -> dict[str, Ended]:
    """Program name -> how it ended, in order. What was printed stands in `out`."""
    ended = {}
    for program in programs:
        note(f"{program.name}: {program.tells} ...")
        arguments = program.small if rehearse else program.arguments
        ended[program.name] = one = run_program(arguments, out / f"{program.name}.txt", program.seconds)
        note(f"{program.name}: {one.how}, {one.seconds:.0f} s")
    return ended


def gpu(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for what the programs print")
    parser.add_argument("--rehearse", action="store_true", help="small, on whatever there is")
    parser.add_argument("--only", nargs="+", choices=[program.name for program in PROGRAMS], help="default: all")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    options = parser.parse_args(argv)
    if not options.rehearse and not torch.cuda.is_available():
        raise UserError("torch sees no GPU here: --rehearse runs all of it, small, on the CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = [program for program in PROGRAMS if options.only is None or program.name in options.only]
    ended = run_all(chosen, options.out, options.rehearse)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    rows = [[name, one.how, f"{one.seconds:.0f}"] for name, one in ended.items()]
    write_output(f"{table(['', 'ended', 'seconds'], rows)}\n\n{device}, torch {torch.__version__}")
    if wrong := [name for name, one in ended.items() if one.how != "well"]:
        raise CheckFailed(f"did not end well: {', '.join(wrong)}; see {options.out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(gpu, argv)


if __name__ == "__main__":
    sys.exit(main())
