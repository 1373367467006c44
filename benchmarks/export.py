"""How long does exporting a BERT-base take, how much memory, and how large is its bundle?

    .venv/bin/python -m benchmarks.export --out build/export

A model of that size with random weights is quantised and saved as spikebert-train does it, then exported by what
spikebert-export calls, in a process of its own. Times and sizes do not depend on what the weights are.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.timing import Usage, machine, table
from sim.find_bundle import known_bundles

Result = TypeVar("Result")

WORDS = 30_522  # of BERT's vocabulary; the tokenizer, that of the shipped bundle, knows fewer

PEAK_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of what the system tells


@dataclass(frozen=True)
class Size:
    """Of a model."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    n_max: int
    timesteps: int


@dataclass(frozen=True)
class Measured:
    """One export: its seconds, imports included; the most memory its process ever held; bytes of each file written."""

    seconds: float
    peak_bytes: int
    files: dict[str, int]


def make_model(folder: Path, size: Size, bits: int) -> None:
    """Writes an integer model, random weights of `bits` bits, and the tokenizer of the shipped bundle, to `folder`."""
    import torch

    from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification
    from spikebert.quantisation import quantise

    tokenizer = known_bundles()["reviews"] / "tokenizer"
    config = SpikeBertConfig(
        vocab_size=WORDS,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.intermediate,
        max_position_embeddings=size.n_max,
        timesteps=size.timesteps,
    )
    torch.manual_seed(0)
    model = SpikeBertForSequenceClassification(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):  # so that neurons fire
            torch.nn.init.uniform_(module.running_var, 0.05, 0.5)
            torch.nn.init.normal_(module.bias, 0.2, 0.3)
    quantise(model, bits).save_pretrained(folder)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)


def measure_export(model: Path, out: Path) -> Measured:
    """Exports a model; the process must have done nothing before."""
    start = time.perf_counter()
    from converters.pipeline import Request, export

    export(model, Request(out))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * PEAK_UNIT
    files = {path.relative_to(out).as_posix(): path.stat().st_size for path in sorted(out.rglob("*")) if path.is_file()}
    return Measured(seconds, peak, files)


def in_a_process(work: Callable[..., Result], *arguments: object) -> Result:
    """What `work` returns, done in a fresh process: so its memory is its own, and nothing is imported yet."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def measure(out: Path, size: Size, bits: Sequence[int]) -> dict[int, Measured]:
    """By bits. The bundles stay in `out`, the models do not."""
    measured = {}
    for width in bits:
        with tempfile.TemporaryDirectory() as folder:
            in_a_process(make_model, Path(folder), size, width)
            measured[width] = in_a_process(measure_export, Path(folder), out / f"{width}_bits")
    return measured


def report(measured: dict[int, Measured]) -> str:
    """A column for each width of weights."""
    all_of_them = list(measured.values())
    names = sorted({name for one in all_of_them for name in one.files})
    besides = [sum(size for name, size in one.files.items() if name != "golden.safetensors") for one in all_of_them]
    rows = [
        ["seconds", *(f"{one.seconds:.1f}" for one in all_of_them)],
        ["peak memory, MB", *(f"{one.peak_bytes / 1e6:,.0f}" for one in all_of_them)],
        *([f"{name}, bytes", *(f"{one.files.get(name, 0):,}" for one in all_of_them)] for name in names),
        ["all files, bytes", *(f"{sum(one.files.values()):,}" for one in all_of_them)],
        ["all but golden.safetensors", *(f"{size:,}" for size in besides)],
    ]
    return table(["", *(f"{width} bits" for width in measured)], rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the bundles; they must not exist")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--intermediate", type=int, default=3072)
    parser.add_argument("--n-max", type=int, default=128)
    parser.add_argument("--timesteps", type=int, default=4)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4], help="of a weight; default: 8 4")
    fields = vars(parser.parse_args(argv))
    out, bits = fields.pop("out"), fields.pop("bits")
    start = Usage.now()
    measured = measure(out, Size(**fields), bits)
    print(f"{report(measured)}\n\n{machine(start)}")


if __name__ == "__main__":
    main()
