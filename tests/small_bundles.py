"""Small bundles for tests: a random graph, and a WordPiece tokenizer made on the spot."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
from random_graphs import random_batch, random_graph
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from converters.bundle import Bundle, Golden, golden_nodes, make_golden, manifest_digest, read_bundle, write_bundle
from converters.graph import Graph, Synapses
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


def rewrite_as_schema_1(bundle: Bundle) -> Bundle:
    """Change a written bundle into one of schema 1, as it was written then, and read it again."""
    folder = bundle.folder
    weights = load_file(folder / "weights.safetensors")
    weights |= {f"{node.name}.weight": node.weight for node in bundle.graph if isinstance(node, Synapses)}
    save_file(weights, folder / "weights.safetensors")
    golden = load_file(folder / "golden.safetensors")
    golden |= {f"spikes.{name}": np.packbits(spikes) for name, spikes in bundle.golden.spikes.items()}
    save_file(golden, folder / "golden.safetensors")
    structure = json.loads((folder / "graph.json").read_text(encoding="utf-8"))
    (folder / "graph.json").write_text(json.dumps(structure | {"schema": 1}), encoding="utf-8")
    sign_again(folder, schema=1)
    return read_bundle(folder)


def sign_again(folder: Path, **fields: object) -> None:
    """Make the manifest fit files that were changed, and change fields of its own."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8")) | fields
    for name in manifest["files"]:
        manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    manifest["digest"] = manifest_digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def zip_bundle(folder: Path, path: Path, top: str = "") -> Path:
    """A zip of a bundle, its files in the folder `top`, which ends with `/`, or at its top."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"{top}{file.relative_to(folder).as_posix()}")
    return path
