"""Do all ways to train learn alike? 200 steps from the same weights with the same batches, for three seeds.

    python -m benchmarks.train_losses
    python -m benchmarks.train_losses --padded

The mean loss of the last 20 steps, of every path of our neuron and of plain SpikingJelly, in float32 and in bf16. A way
whose mean over the seeds lies further from that of the plain path in float32 than the plain path's seeds lie from each
other has learnt something else: exit code 1. A seed decides the first weights and the order of the batches.

Each batch has sentences of one length. With `--padded` batches are those of training: then padding takes part in the
BatchNorm of plain SpikingJelly, not in ours, and it is another network. It fires at the threshold itself too, and in
bf16 products are rounded. So the ways need not be equal to the bit; `tests/spikebert` compares the paths of the neuron.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from torch import nn

from benchmarks.spikingjelly_model import with_weights_of
from benchmarks.timing import table
from benchmarks.train_batches import REVIEWS, TOKENIZER, Sentences, read_sentences
from benchmarks.train_ways import Batch, Shape, Trainer, prepare_torch
from spikebert import SpikeBertForSequenceClassification
from spikebert.commands import CheckFailed, UserError, note, run_command, write_output
from spikebert.neurons import LoihiLIF

LAST = 20  # steps that count
SPIKINGJELLY = "spikingjelly"


@dataclass(frozen=True)
class Variant:
    """path: of our neuron (`LoihiLIF.path`), or SPIKINGJELLY; mixed: products in bf16."""

    path: str
    mixed: bool

    def __str__(self) -> str:
        name = "SpikingJelly" if self.path == SPIKINGJELLY else f"ours, {self.path}"
        return f"{name}, {'bf16' if self.mixed else 'float32'}"


STANDARD = Variant("plain", False)


def ways(device: torch.device) -> list[Variant]:
    """All there are on a device, STANDARD first."""
    paths = ("plain", "triton" if device.type == "cuda" else "fused", SPIKINGJELLY)
    return [Variant(path, mixed) for mixed in (False, True) for path in paths]


def make(way: Variant, shape: Shape, sentences: Sentences, seed: int) -> nn.Module:
    """The network of a seed, the same weights for every way."""
    torch.manual_seed(seed)
    model = SpikeBertForSequenceClassification(shape.config(sentences.vocabulary, sentences.classes))
    if way.path == SPIKINGJELLY:
        return with_weights_of(model)
    for module in model.modules():
        if isinstance(module, LoihiLIF):
            module.path = way.path
    return model


def last_loss(way: Variant, shape: Shape, sentences: Sentences, seed: int, batches: Sequence[Batch]) -> float:
    """Mean loss of the last steps of a training, one step a batch."""
    trainer = Trainer(make(way, shape, sentences, seed), way.mixed, prepare_torch(), len(batches))
    losses = [trainer.step(batch) for batch in batches]
    return mean(losses[-LAST:])


def spread(losses: Sequence[float]) -> float:
    return max(losses) - min(losses)


def astray(losses: Mapping[Variant, Sequence[float]]) -> list[Variant]:
    """Those whose mean over the seeds lies further from that of STANDARD than its seeds spread, or is no number."""
    standard = losses[STANDARD]
    return [way for way, of in losses.items() if not abs(mean(of) - mean(standard)) <= spread(standard)]


def report(losses: Mapping[Variant, Sequence[float]], seeds: Sequence[int]) -> str:
    standard = losses[STANDARD]
    header = ["", *(f"seed {seed}" for seed in seeds), "mean", f"from '{STANDARD}'"]
    rows = [
        [str(way), *(f"{loss:.4f}" for loss in of), f"{mean(of):.4f}", f"{mean(of) - mean(standard):+.4f}"]
        for way, of in losses.items()
    ]
    return f"{table(header, rows)}\n\nspread of the seeds of '{STANDARD}': {spread(standard):.4f}"


def body(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_losses", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--shape", default="2x128", help="blocks x features (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8, help="sentences (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="two or more (default: 0 1 2)")
    parser.add_argument("--padded", action="store_true", help="sentences of all lengths in a batch, as in training")
    parser.add_argument("--data", default=REVIEWS, help="folder with train.tsv (default: %(default)s)")
    parser.add_argument("--tokenizer", default=TOKENIZER, help="its folder (default: the shipped bundle's)")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    arguments = parser.parse_args(argv)
    seeds = list(dict.fromkeys(arguments.seeds))
    if len(seeds) < 2 or min(arguments.steps, arguments.batch) < 1:
        raise UserError("--seeds needs two different ones or more, --steps and --batch 1 or more")
    shape = Shape.parse(arguments.shape)
    sentences = read_sentences(arguments.data, arguments.tokenizer, shape.n_max)
    draw = sentences.drawn if arguments.padded else sentences.unpadded
    batches = {seed: draw(arguments.batch, arguments.steps, seed) for seed in seeds}
    losses: dict[Variant, list[float]] = {}
    for way in ways(prepare_torch()):
        note(f"{way} ...")
        losses[way] = [last_loss(way, shape, sentences, seed, batches[seed]) for seed in seeds]
    kind = "padded batches" if arguments.padded else "batches"
    about = f"{shape}, {arguments.steps} steps with {kind} of {arguments.batch}, "
    write_output(f"{about}mean loss of the last {min(LAST, arguments.steps)}\n\n{report(losses, seeds)}")
    if wrong := astray(losses):
        raise CheckFailed(f"further from '{STANDARD}' than its seeds spread: {'; '.join(map(str, wrong))}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(body))
