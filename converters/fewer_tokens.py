"""A trained model that knows fewer tokens than it was trained with: those that some texts use most.

The token table is the largest part of a small bundle. No other weight changes, and a text all of whose tokens have
stayed gives the values that it gave before; a word that has gone falls apart into pieces (`spikebert.vocabulary`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from converters.from_torch import load_tokenizer
from spikebert.commands import UserError, note
from spikebert.data import read_lines, read_split, read_tsv, tokenise
from spikebert.evaluation import accuracy, predict
from spikebert.model import SpikeBertForSequenceClassification
from spikebert.recipe import Data
from spikebert.vocabulary import keep_rows, most_frequent

MEASURED = "integer student"  # the model that is exported, in results.json


@contextmanager
def with_fewer_tokens(model: SpikeBertForSequenceClassification, size: int, files: Sequence[str]) -> Iterator[Path]:
    """Leave `model`, in place, the `size` tokens that the texts of `files` use most; the folder of its tokenizer then.

    files   text files, a text a line, plain, .gz or .xz; of a .tsv its column "text"

    Raises UserError for a file that cannot be read, a size that is too small, and a tokenizer of another kind than
    word pieces.
    """
    texts: list[str] = []
    for file in files:
        texts += read_tsv(Path(file)).texts if file.endswith(".tsv") else read_lines([file])
    if not texts:
        raise UserError(f"--vocabulary-text: no text in {', '.join(files)}")
    vocabulary = most_frequent(load_tokenizer(Path(model.config.name_or_path)), texts, size)
    note(
        f"vocabulary: {len(vocabulary.kept):,} of {model.config.vocab_size:,} tokens; with them the texts given have "
        f"{vocabulary.longer_by(texts):.3f} times as many"
    )
    keep_rows(model, vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        vocabulary.tokenizer.save_pretrained(folder)
        yield Path(folder)


def measured_again(
    model: SpikeBertForSequenceClassification, tokenizer: Path, results: Mapping[str, Any]
) -> dict[str, Any]:
    """`results` (of spikebert-train) with the accuracy of the model as it is now, on the splits that they have it of.

    Where a split cannot be read, which is said, they hold none of it.
    """
    again = {name: value for name, value in results.items() if name != "changed_predictions"}
    if MEASURED not in results.get("accuracy", {}):
        return again
    again["accuracy"] = {name: value for name, value in results["accuracy"].items() if name != MEASURED}
    data, words, n_max = (
        Data(**results["recipe"]["data"]),
        load_tokenizer(tokenizer),
        model.config.max_position_embeddings,
    )
    measured = {}
    try:
        for split in results["accuracy"][MEASURED]:
            labelled = read_split(data, split)
            if labelled is not None:
                texts = tokenise(words, labelled.texts, n_max, labelled.labels)
                measured[split] = accuracy(predict(model, texts, words.pad_token_id or 0), texts)
                note(f"{split}: {measured[split]} with these tokens")
    except UserError as error:
        note(f"the card will tell no accuracy, for with fewer tokens it may be another: {error}")
        return again
    again["accuracy"][MEASURED] = {split: value.to_dict() for split, value in measured.items()}
    return again
