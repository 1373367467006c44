"""Sentences per second of every engine and of the models it stands for, side by side in one run.

    python benchmarks/engine.py runs/reviews_long build/reviews --file validation.tsv

RUN is a folder of spikebert-train (teacher, float and integer model), BUNDLE what was exported from it. Each row runs
as many of the sentences as it gets done in `--seconds`; machines are noisy, so read the ratios.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from converters.bundle import read_bundle
from converters.execution import EngineOptions, TokenBatch
from sim.engines import open_engine
from sim.rows import Row, open_rows
from spikebert import SpikeBertForSequenceClassification
from spikebert.neurons import LoihiLIF

Classify = Callable[[TokenBatch], object]


def torch_model(model: torch.nn.Module) -> Classify:
    """A PyTorch model in evaluation, in float32, without gradients."""
    model.eval()

    @torch.no_grad()
    def classify(batch: TokenBatch) -> object:
        return model(input_ids=torch.from_numpy(batch.ids), attention_mask=torch.from_numpy(batch.mask)).logits

    return classify


def step_by_step(model: SpikeBertForSequenceClassification) -> SpikeBertForSequenceClassification:
    """The same model with SpikingJelly's own loop over time in every neuron."""
    for module in model.modules():
        if isinstance(module, LoihiLIF):
            module.path = "plain"
    return model


def rivals(run: Path) -> Iterator[tuple[str, Classify]]:
    """The models behind a bundle, by name."""
    spiking = SpikeBertForSequenceClassification
    yield "torch, float", torch_model(spiking.from_pretrained(run / "stage2"))
    yield "torch, float, SpikingJelly's loop", torch_model(step_by_step(spiking.from_pretrained(run / "stage2")))
    yield "torch, integer", torch_model(spiking.from_pretrained(run / "integer"))
    yield "teacher, torch float32", torch_model(AutoModelForSequenceClassification.from_pretrained(run / "teacher"))


def sentences_per_second(classify: Classify, batches: list[TokenBatch], seconds: float) -> float:
    """Whole passes over the batches, or as far as `seconds` reach; the first batch runs once before, untimed."""
    classify(batches[0])
    done, start = 0, time.perf_counter()
    for batch in batches:
        classify(batch)
        done += len(batch)
        if time.perf_counter() - start > seconds:
            break
    return done / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--file", type=Path, required=True, help="TSV of sentences")
    parser.add_argument("--engines", nargs="*", default=["fast", "reference", "lava-inline"])
    parser.add_argument("--seconds", type=float, default=10, help="for each row and batch size")
    arguments = parser.parse_args()
    bundle = read_bundle(arguments.bundle)
    rows = open_rows(arguments.file, bundle.labels).items
    texts = [bundle.tokenise(row.text) for row in rows if isinstance(row, Row)]
    texts.sort(key=lambda text: len(text.ids))
    spread = [texts[i] for i in range(0, len(texts), max(1, len(texts) // 60))]  # of all lengths
    of_size = {
        1: [bundle.batch([text]) for text in spread],
        64: [bundle.batch(texts[i : i + 64]) for i in range(0, len(texts), 64)],
    }
    rows: dict[str, list[float]] = {}

    def measure(name: str, classify: Classify) -> None:
        rows[name] = [sentences_per_second(classify, batches, arguments.seconds) for batches in of_size.values()]
        print(f"  {name}: done", flush=True)

    for name in arguments.engines:
        options = EngineOptions(bundle=arguments.bundle, model=arguments.run)
        with closing(open_engine(name, bundle.graph, options)) as engine:
            measure(name, engine.run)
    for name, classify in rivals(arguments.run):
        measure(name, classify)
    print(f"\n{len(texts)} sentences, sentences per second, and times slower than {arguments.engines[0]}\n")
    print(f"{'':<36}{'batch of 1':>20}{'batch of 64':>20}")
    first = rows[arguments.engines[0]]
    for name, rates in rows.items():
        print(f"{name:<36}" + "".join(f"{rate:>12.1f}{best / rate:>7.1f}x" for rate, best in zip(rates, first)))


if __name__ == "__main__":
    main()
