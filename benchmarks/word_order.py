"""Does a classifier read the order of words? Its accuracy on texts whose tokens are shuffled.

    python -m benchmarks.word_order sst2=SST2/validation.tsv mr=MR/validation.tsv
    python -m benchmarks.word_order sst2=SST2/validation.tsv --models runs/sst2/teacher=SST2/validation.tsv

A bag of words is right as often as before. What a network loses is at most what the order tells it: a part may be the
surprise, for it has seen no such texts. Each argument is BUNDLE=TEXTS: a folder, a zip, or the name of a bundle beside
the recipes, and texts with labels. `--models` are folders of classifiers as transformers keeps them, such as the stages
of a run, with a TSV file each. Special tokens stay where they are. Points are paired by text, over all shuffles.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import spikebert.model  # noqa: F401  # so that transformers knows a SpikeBERT
from benchmarks.compare_runs import accuracy_cell, points_cell
from benchmarks.text_lengths import cut_texts, read_labelled
from benchmarks.timesteps import split_argument
from benchmarks.timing import table
from converters.bundle import read_bundle
from converters.on_texts import run_on_texts
from sim.find_bundle import find_bundle
from spikebert.commands import UserError, note, run_command, write_output
from spikebert.data import SpecialTokens, TokenisedTexts, read_tsv, tokenise
from spikebert.evaluation import Accuracy, predict
from spikebert.teachers import load_teacher

HEADER = ("", "right", "tokens shuffled", "what the order is worth, points")
N_MAX = 512  # tokens, of a model that is told no other number

Right = Callable[[TokenisedTexts], np.ndarray]  # bool [texts]


def shuffled(texts: TokenisedTexts, special: SpecialTokens, seed: int) -> TokenisedTexts:
    """The same texts, the tokens of each in random order within its frame."""
    random = np.random.default_rng(seed)
    ids = [
        [*special.before, *random.permutation(texts.body(i, special)).tolist(), *special.after]
        for i in range(len(texts))
    ]
    return TokenisedTexts(ids, texts.labels)


def row(name: str, right: Right, texts: TokenisedTexts, special: SpecialTokens, shuffles: int) -> list[str]:
    """Of the table."""
    note(f"{name} ...")
    as_written = right(texts)
    in_disorder = [right(shuffled(texts, special, seed)) for seed in range(shuffles)]
    return [
        name, accuracy_cell(Accuracy.of(int(as_written.sum()), len(texts))), f"{np.mean(in_disorder):.1%}",
        points_cell([as_written], in_disorder),
    ]  # fmt: skip


def row_of_bundle(name: str, file: Path, shuffles: int) -> list[str]:
    bundle = read_bundle(find_bundle(name))
    texts, _ = cut_texts(bundle, read_labelled(file, bundle.labels), bundle.graph.n_max)
    special = SpecialTokens.around(bundle.tokenise("").ids, bundle.tokenise("a").ids)
    return row(name, lambda some: run_on_texts(bundle.graph, some).right, texts, special, shuffles)


def require_model(folder: str) -> None:
    """Raises UserError where `folder` is none of a model."""
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder}: no folder of a model (no config.json)")


def row_of_model(name: str, file: Path, shuffles: int) -> list[str]:
    require_model(name)
    model = load_teacher(AutoModelForSequenceClassification, name).eval()
    names = [str(label) for label in model.config.id2label.values()]
    tokenizer, labelled = load_teacher(AutoTokenizer, name), read_tsv(file, names=names)
    n_max = min(N_MAX, model.config.max_position_embeddings, tokenizer.model_max_length)
    texts = tokenise(tokenizer, labelled.texts, n_max, labelled.labels)
    pad, special = tokenizer.pad_token_id or 0, SpecialTokens.of(tokenizer)
    return row(name, lambda some: predict(model, some, pad) == some.labels, texts, special, shuffles)


def run(argv: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", metavar="BUNDLE=TEXTS")
    parser.add_argument("--models", nargs="+", default=[], metavar="FOLDER=TEXTS")
    parser.add_argument("--shuffles", type=int, default=3, metavar="N", help="of each text (default: 3)")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    options = parser.parse_args(argv)
    if options.shuffles < 1:
        raise UserError(f"--shuffles {options.shuffles}: 1 is the least")
    if not (options.bundles or options.models):
        raise UserError("give a BUNDLE=TEXTS, or --models")
    bundles, models = ([split_argument(text) for text in given] for given in (options.bundles, options.models))
    rows = [row_of_bundle(name, file, options.shuffles) for name, file in bundles]
    rows += [row_of_model(name, file, options.shuffles) for name, file in models]
    write_output(table(HEADER, rows))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see `spikebert.commands` for the exit codes."""
    return run_command(run, argv)


if __name__ == "__main__":
    sys.exit(main())
