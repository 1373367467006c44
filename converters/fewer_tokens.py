"""A trained model that knows fewer tokens than it was trained with: those that some texts use most.

The token table is the largest part of a small bundle. No other weight changes, and a text all of whose tokens have
stayed gives the values that it gave before; a word that has gone falls apart into pieces (`spikebert.vocabulary`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from converters.from_torch import load_tokenizer
from converters.graph import Graph
from spikebert.commands import UserError, note
from spikebert.data import check_text_files, read_lines, read_texts
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.vocabulary import Vocabulary, ids_of, keep_rows, most_frequent

if TYPE_CHECKING:  # without torch, transformers would complain before we name what is missing
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TABLES = (".tsv.gz", ".tsv.xz")


def check_texts(files: Sequence[str]) -> None:
    """Raises UserError where a file of `with_fewer_tokens` cannot be read, before anything else is done."""
    for file in files:
        if file.lower().endswith(TABLES):
            raise UserError(f"--vocabulary-text: {file}: unpack a compressed table first")
        if not Path(file).is_file():
            raise UserError(f"--vocabulary-text: {file}: no such file")
        if not _is_table(file):
            check_text_files([file])


@contextmanager
def with_fewer_tokens(model: SpikeBertForSequenceClassification, size: int, files: Sequence[str]) -> Iterator[Path]:
    """Leave `model`, in place, the `size` tokens of `most_used`; the folder of its tokenizer then."""
    vocabulary = most_used(Path(model.config.name_or_path), model.config.vocab_size, size, files)
    keep_rows(model, vocabulary.kept)
    with saved(vocabulary.tokenizer) as folder:
        yield folder


def most_used(tokenizer_folder: Path, rows: int, size: int, files: Sequence[str]) -> Vocabulary:
    """The `size` tokens that the texts of `files` use most, fewer where they use fewer, of a table of so many rows.

    files   text files, a text a line, plain, .gz or .xz; of a .tsv its column "text", beside a column "label"

    Raises UserError for a file that cannot be read, a size that is too small, and a tokenizer of another kind than
    word pieces or of more tokens than there are rows.
    """
    texts: list[str] = []
    for file in files:
        texts += read_texts(Path(file)) if _is_table(file) else read_lines([file])
    tokenizer = load_tokenizer(tokenizer_folder)
    if len(tokenizer) > rows:
        raise UserError(f"the tokenizer knows {len(tokenizer)} tokens, the model has {rows}")
    vocabulary = most_frequent(tokenizer, texts, size)
    note(
        f"vocabulary: {len(vocabulary.kept):,} of {rows:,} tokens; with them the texts given have "
        f"{vocabulary.longer_by(texts):.3f} times as many"
    )
    return vocabulary


@contextmanager
def saved(tokenizer: PreTrainedTokenizerBase) -> Iterator[Path]:
    """A folder for a time, with a tokenizer in it."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        yield Path(folder)


def _is_table(file: str) -> bool:
    return file.lower().endswith(".tsv")


def with_tokens_of(bundle: Path, graph: Graph, model: PreTrainedModel) -> None:
    """Leave `model`, in place, the tokens of the bundle (a folder, its graph) where that was exported with fewer.

    Raises UserError where it knows other tokens than the model's tokenizer, or one of the two cannot be read.
    """
    if len(graph.source.table) < model.config.vocab_size:
        own, fewer = load_tokenizer(Path(model.config.name_or_path)), load_tokenizer(bundle / "tokenizer")
        keep_rows(model, ids_of(fewer, own))
