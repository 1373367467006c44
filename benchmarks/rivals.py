"""A sentence on the chip that this is for, beside the dense models that people would use: energy and time.

    python -m benchmarks.rivals recipes/research/reviews_long.zip --file recipes/data/reviews/validation.tsv

Energy by the papers' method (`45nm`) for all of them: arithmetic alone, each dense product 4.6 pJ, each addition for a
spike 0.9 pJ. Time is this computer's, one sentence after the other: our network in the engine `fast`, the dense ones,
of random weights, in ONNX Runtime with int8 products. What a chip would take is told below.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.dense_bert import onnx_classifier, random_bert
from benchmarks.paper_energy import SPIKEBERT_JOULES, transformer_operations
from benchmarks.sentences import FAST, LARGE, SMALL, activity_of, read_batches
from benchmarks.timing import Usage, machine, side_by_side, table
from converters.bundle import Bundle, read_bundle
from converters.execution import EngineOptions, TokenBatch
from sim.energy import Tokens, estimate, read_cost_table
from sim.engines import open_engine
from spikebert import SpikeBertConfig
from spikebert.commands import processors

HEADER = ("", "products, or additions for spikes", "45nm, uJ", "ours takes", "ms here")

Classify = Callable[[TokenBatch], object]


@dataclass(frozen=True)
class Dense:
    """A dense BERT: blocks, width, heads, inner width of the MLP."""

    name: str
    blocks: int
    width: int
    heads: int
    inner: int

    def operations(self, lengths: Sequence[int]) -> float:
        """Multiplications, each with an addition, of a sentence; the mean over sentences of so many tokens."""
        counts = [transformer_operations(self.blocks, self.width, self.inner, length) for length in lengths]
        return float(np.mean(counts))

    def classifier(self, bundle: Bundle) -> Classify:
        graph = bundle.graph
        model = random_bert(
            self.blocks, self.width, self.heads, self.inner, len(graph.source.table), graph.n_max, len(bundle.labels)
        )
        return onnx_classifier(model, int8=True)


def rivals(config: SpikeBertConfig) -> list[Dense]:
    """The dense network of the bundle's size, the teacher of our recipes, and the BERT of the paper."""
    blocks, width = config.num_hidden_layers, config.hidden_size
    name = f"dense, of its size ({blocks} x {width})"
    return [
        Dense(name, blocks, width, config.num_attention_heads, config.intermediate_size),
        Dense("dense, its teacher (MiniLM, 6 x 384)", 6, 384, 12, 1536),
        Dense("dense, BERT-base (12 x 768)", 12, 768, 12, 3072),
    ]


def lengths_of(batches: Sequence[TokenBatch]) -> list[int]:
    return [int(length) for batch in batches for length in batch.mask.sum(1)]


def milliseconds(work: Mapping[str, Classify], batches: Sequence[TokenBatch], seconds: float) -> dict[str, float]:
    """By name, of a sentence: the mean over the sentences that all of them got done."""
    taken = side_by_side({name: [partial(run, batch) for batch in batches] for name, run in work.items()}, seconds)
    shared = min(map(len, taken.values()))
    return {name: 1e3 * float(np.mean(times[:shared])) for name, times in taken.items()}


def rows(bundle: Bundle, batches: dict[int, list[TokenBatch]], seconds: float) -> list[list[str]]:
    config = SpikeBertConfig(**bundle.config["model"])
    lengths = lengths_of(batches[LARGE])
    tokens = Tokens()
    for length in lengths:
        tokens = tokens.with_sentence(length)
    activity = activity_of(bundle.graph, batches[LARGE])
    (energy,) = estimate(bundle.graph, activity, tokens, [read_cost_table("45nm")])
    joules, each = energy.total / len(lengths), activity.total.weighted_operations / len(lengths)
    dense = rivals(config)
    with closing(open_engine(FAST, bundle.graph, EngineOptions())) as engine:
        times = milliseconds(
            {FAST: engine.run} | {one.name: one.classifier(bundle) for one in dense}, batches[SMALL], seconds
        )
    product = read_cost_table("45nm").dense
    assert product is not None  # the papers' rule prices a dense network
    joules_each = product.picojoules * 1e-12

    def line(one: Dense) -> list[str]:
        operations = one.operations(lengths)
        own = operations * joules_each
        share, time = f"{joules / own:.1%}", f"{times[one.name]:.2f}"
        return [one.name, f"{operations / 1e6:,.1f} M", f"{1e6 * own:,.1f}", share, time]

    return [
        ["this bundle, integers and spikes", f"{each / 1e6:,.1f} M", f"{1e6 * joules:,.1f}", "", f"{times[FAST]:.2f}"],
        *map(line, dense),
        ["the paper's SpikeBERT (12 x 768), as printed", "", f"{1e6 * SPIKEBERT_JOULES:,.1f}", "", ""],
    ]


def on_chips(bundle: Bundle, batches: Sequence[TokenBatch]) -> str:
    """Our network by prices of chips, a line each."""
    lengths, tokens = lengths_of(batches), Tokens()
    for length in lengths:
        tokens = tokens.with_sentence(length)
    tables = [read_cost_table(name) for name in ("loihi1", "hala_point")]
    found = estimate(bundle.graph, activity_of(bundle.graph, batches), tokens, tables)
    return "\n".join(f"{one.table.name}: {1e6 * one.total / len(lengths):,.0f} uJ, {one.table.title}" for one in found)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--file", type=Path, required=True, help="sentences, as for spikebert-run")
    parser.add_argument("--seconds", type=float, default=10, help="for each row")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(processors())
    bundle = read_bundle(arguments.bundle)
    if "model" not in bundle.config:
        parser.error(f"{arguments.bundle} does not say what model it was made from (config.model in manifest.json)")
    start, batches = Usage.now(), read_batches(bundle, arguments.file)
    print(table(HEADER, rows(bundle, batches, arguments.seconds)))
    lengths = lengths_of(batches[LARGE])
    print(f"\n{len(lengths)} sentences of {np.mean(lengths):.1f} tokens; the paper's of SST-2, padded to 128")
    print("our network by prices of chips, estimated:")
    print(on_chips(bundle, batches[LARGE]))
    print(machine(start))


if __name__ == "__main__":
    main()
