"""Sentences per second of every engine, of the PyTorch models it stands for, and of dense BERTs of the same size.

    python -m benchmarks.engine recipes/research/reviews_long.zip --file recipes/data/reviews/validation.tsv
    python -m benchmarks.engine BUNDLE --file FILE --run runs/reviews_long --rows torch-float bert-onnx-int8

All rows run the same batches on the same cores, sorted by length and padded to the longest of a batch. A row that is
too slow to run them all in `--seconds` runs some, from the middle lengths on, and is compared with `fast` on those.
What each row is stands in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from transformers import BertForSequenceClassification

from benchmarks.dense_bert import onnx_classifier, random_bert, torch_classifier
from benchmarks.sentences import FAST, LARGE, activity_of, read_batches
from benchmarks.spikingjelly_model import SpikingJellyBert
from benchmarks.timing import Usage, Work, machine, side_by_side, table
from converters.bundle import Bundle, read_bundle
from converters.execution import EngineOptions, TokenBatch
from converters.fewer_tokens import with_tokens_of
from sim.engines import open_engine
from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification
from spikebert.commands import note, processors

ENGINES = ("reference", "lava-inline", "lava")
Classify = Callable[[TokenBatch], object]


@dataclass(frozen=True)
class Measured:
    """One row at one batch size: sentences a second, and how many times slower than `fast` on the same batches."""

    rate: float
    slower: float


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured: a bundle, its shape, the batches of each size, and the folder of its training if given."""

    bundle: Bundle
    config: SpikeBertConfig
    batches: dict[int, list[TokenBatch]]
    run: Path | None


def spiking_model(subject: Subject, mode: str) -> Classify:
    """Our model in PyTorch, in mode "float" or "integer"."""
    stage = {"float": "stage2", "integer": "integer"}[mode]
    if subject.run:
        model = SpikeBertForSequenceClassification.from_pretrained(subject.run / stage)
        with_tokens_of(subject.bundle.folder, subject.bundle.graph, model)
    else:
        model = SpikeBertForSequenceClassification(SpikeBertConfig(**{**subject.bundle.config["model"], "mode": mode}))
    return torch_classifier(model)


def dense_model(subject: Subject) -> BertForSequenceClassification:
    config = subject.config
    return random_bert(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
        n_max=config.max_position_embeddings,
        classes=len(subject.bundle.labels),
    )


def teacher(subject: Subject) -> BertForSequenceClassification:
    assert subject.run is not None
    model = BertForSequenceClassification.from_pretrained(subject.run / "teacher").eval()
    with_tokens_of(subject.bundle.folder, subject.bundle.graph, model)
    return model


MODELS: dict[str, Callable[[Subject], Classify]] = {
    "torch-float": lambda subject: spiking_model(subject, "float"),
    "torch-integer": lambda subject: spiking_model(subject, "integer"),
    "spikingjelly": lambda subject: torch_classifier(SpikingJellyBert(subject.config)),
    "bert-torch": lambda subject: torch_classifier(dense_model(subject)),
    "bert-onnx": lambda subject: onnx_classifier(dense_model(subject), int8=False),
    "bert-onnx-int8": lambda subject: onnx_classifier(dense_model(subject), int8=True),
}
TEACHERS: dict[str, Callable[[Subject], Classify]] = {  # with --run
    "teacher-onnx": lambda subject: onnx_classifier(teacher(subject), int8=False),
    "teacher-onnx-int8": lambda subject: onnx_classifier(teacher(subject), int8=True),
}
ROWS = (FAST, *MODELS, *TEACHERS, *ENGINES)


def measure(subject: Subject, names: Sequence[str], seconds: float) -> dict[str, dict[int, Measured]]:
    """Rows by name and batch size. All but the engines take turns; those run alone, the real Lava with processes of
    its own, and are compared with the same figures of `fast`."""
    with ExitStack() as stack:
        fast = open_engine(FAST, subject.bundle.graph, EngineOptions())
        stack.callback(fast.close)
        together: dict[str, Classify] = {FAST: fast.run}
        for name in names:
            if name in MODELS or name in TEACHERS:
                together[name] = (MODELS | TEACHERS)[name](subject)
        times = {
            size: side_by_side({name: work(classify, batches) for name, classify in together.items()}, seconds)
            for size, batches in subject.batches.items()
        }
    for name in names:
        if name in ENGINES:
            note(f"  {name} ...")
            engine = open_engine(name, subject.bundle.graph, EngineOptions(bundle=subject.bundle.folder))
            try:
                for size, batches in subject.batches.items():
                    times[size] |= side_by_side({name: work(engine.run, batches)}, seconds)
            finally:
                engine.close()
    return {
        name: {size: compare(taken[name], taken[FAST], subject.batches[size]) for size, taken in times.items()}
        for name in names
    }


def work(classify: Classify, batches: Sequence[TokenBatch]) -> list[Work]:
    return [partial(classify, batch) for batch in batches]


def compare(taken: Sequence[float], base: Sequence[float], batches: Sequence[TokenBatch]) -> Measured:
    """Seconds of a row and of `fast`, each for the first of the batches -> their rate and ratio on those of both."""
    shared = min(len(taken), len(base))
    sentences = sum(len(batch) for batch in batches[: len(taken)])
    return Measured(sentences / sum(taken), sum(taken[:shared]) / sum(base[:shared]))


def report(subject: Subject, measured: dict[str, dict[int, Measured]], start: Usage) -> str:
    columns = [(f"batch {size}, sentences/s", f"times slower than {FAST}") for size in subject.batches]
    header = ["", *(text for pair in columns for text in pair)]
    rows = [
        [name, *(cell for size in subject.batches for cell in (f"{of[size].rate:,.1f}", f"{of[size].slower:.2f}"))]
        for name, of in measured.items()
    ]
    lengths = [int(length) for batch in subject.batches[LARGE] for length in batch.mask.sum(1)]
    total, config = activity_of(subject.bundle.graph, subject.batches[LARGE]).total, subject.config
    weights = "their own" if subject.run else "random (the time of a dense product does not depend on its values)"
    return "\n".join(
        [
            table(header, rows),
            "",
            f"{len(lengths)} sentences of {mean(lengths):.1f} tokens on average; firing rate {total.rate:.1%}, "
            f"{total.synaptic_operations / len(lengths):,.0f} synaptic operations a sentence",
            f"{config.num_hidden_layers} x {config.hidden_size}, {config.num_attention_heads} heads, "
            f"MLP {config.intermediate_size}, T = {config.timesteps}",
            f"weights of torch-float and torch-integer: {weights}; of spikingjelly and bert-*: random",
            machine(start),
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--file", type=Path, required=True, help="sentences, as for spikebert-run")
    parser.add_argument("--run", type=Path, help="folder of spikebert-train: its models, and its teacher")
    parser.add_argument("--seconds", type=float, default=10, help="for each row and batch size")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="beside fast; default: all there are")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(processors())
    bundle = read_bundle(arguments.bundle)
    if "model" not in bundle.config:
        parser.error(f"{arguments.bundle} does not say what model it was made from (config.model in manifest.json)")
    config = SpikeBertConfig(**bundle.config["model"])
    subject = Subject(bundle, config, read_batches(bundle, arguments.file), arguments.run)
    names = arguments.rows or [name for name in ROWS if arguments.run or name not in TEACHERS]
    if not arguments.run and set(names) & set(TEACHERS):
        parser.error("the teacher is in the folder of a run: give --run")
    start = Usage.now()
    measured = measure(subject, list(dict.fromkeys([FAST, *names])), arguments.seconds)
    print(report(subject, measured, start))


if __name__ == "__main__":
    main()
