"""Small bundles for tests: a random graph, and a WordPiece tokenizer made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from random_graphs import random_batch, random_graph
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from converters.bundle import Bundle, Golden, golden_nodes, make_golden, write_bundle
from converters.graph import Graph
from sim.reference import ReferenceEngine

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "bad", "film", "funny", "dull", "##ny", "fun")
LABELS = ("negative", "neutral", "positive")


def write_tokenizer(folder: Path) -> Path:
    """A folder with a tokenizer.json that carries settings of truncation and padding of its own."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def small_golden(graph: Graph, seed: int = 0, samples: int = 3) -> Golden:
    batch = random_batch(np.random.default_rng(seed), graph, samples)
    return make_golden(graph, batch, ReferenceEngine(graph).run(batch, golden_nodes(graph)))


def small_bundle(folder: Path, graph: Graph | None = None, **options: object) -> Bundle:
    """Write and read a bundle at `folder`; `options` go to `write_bundle`."""
    graph = graph or random_graph(np.random.default_rng(0), blocks=1)
    if "tokenizer" not in options:
        tokenizer = folder.parent / f"{folder.name}_tokenizer"
        options["tokenizer"] = tokenizer if tokenizer.exists() else write_tokenizer(tokenizer)
    arguments: dict[str, object] = {
        "golden": small_golden(graph),
        "config": {"labels": list(LABELS), "accuracies": {"test": 0.9}},
        "provenance": {"made by": "a test"},
    }
    return write_bundle(folder, graph, **(arguments | options))  # type: ignore[arg-type]
