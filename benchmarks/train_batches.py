"""The batches that all ways to train are given: real sentences, as training draws them, and of one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from benchmarks.train_ways import Batch
from spikebert.commands import UserError
from spikebert.data import TokenisedTexts, read_split, shuffled_batches, tokenise
from spikebert.recipe import Data

ROOT = Path(__file__).parents[1]
TOKENIZER = str(ROOT / "recipes" / "bundles" / "reviews" / "tokenizer")
REVIEWS = "package:reviews"


@dataclass(frozen=True, eq=False)
class Sentences:
    """Tokenised training sentences with their labels."""

    texts: TokenisedTexts
    pad_id: int
    vocabulary: int
    classes: int

    def drawn(self, size: int, count: int, seed: int = 0) -> list[Batch]:
        """`count` batches in the order of training, padded to their longest; epoch after epoch."""
        batches: list[np.ndarray] = []
        while len(batches) < count:
            epoch = shuffled_batches(len(self.texts), size, (seed, len(batches)))
            batches += [indices for indices in epoch if len(indices) == size]  # not the last, smaller one
        return [self.texts.batch(indices, self.pad_id) for indices in batches[:count]]

    def unpadded(self, size: int, count: int, seed: int = 0) -> list[Batch]:
        """`count` batches, each of whole sentences of one length, long and short as often as they occur.

        Raises UserError where there are fewer than `size` sentences of every length.
        """
        random = np.random.default_rng(seed)
        of_length = [np.flatnonzero(self.texts.lengths == length) for length in np.unique(self.texts.lengths)]
        of_length = [indices for indices in of_length if len(indices) >= size]
        if not of_length:
            raise UserError(f"there are no {size} sentences of one length: choose smaller batches")
        shares = np.array([len(indices) for indices in of_length])
        chosen = random.choice(len(of_length), count, p=shares / shares.sum())
        drawn = [random.choice(of_length[length], size, replace=False) for length in chosen]
        return [self.texts.batch(indices, self.pad_id) for indices in drawn]

    def of_length(self, tokens: int, size: int, count: int) -> list[Batch]:
        """`count` batches of texts of so many tokens each: all sentences one after another, cut into pieces."""
        ids = np.resize(self.texts.ids, (count, size, tokens)).astype(np.int64)
        labels = np.resize(self.texts.labels, (count, size))
        return [
            {
                "input_ids": torch.from_numpy(own),
                "attention_mask": torch.ones(size, tokens, dtype=torch.long),
                "labels": torch.from_numpy(own_labels),
            }
            for own, own_labels in zip(ids, labels)
        ]


def read_sentences(folder: str, tokenizer_folder: str, n_max: int) -> Sentences:
    """The training split of a data folder. Raises UserError as `read_split` does, and for fewer than two classes."""
    split = read_split(Data(folder=folder), "train")
    assert split is not None  # only a test split may be missing
    try:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    except (OSError, ValueError) as error:
        raise UserError(f"--tokenizer: cannot load '{tokenizer_folder}': {str(error).splitlines()[0]}") from None
    if len(set(split.labels)) < 2:
        raise UserError(f"{folder}: all sentences of train.tsv have one label, there is nothing to learn")
    texts = tokenise(tokenizer, split.texts, n_max, split.labels)
    return Sentences(texts, tokenizer.pad_token_id, len(tokenizer), max(split.labels) + 1)


def lengths(batch: Batch) -> list[int]:
    """Real tokens of each text."""
    return batch["attention_mask"].sum(1).tolist()


def describe(batches: Sequence[Batch]) -> str:
    """Sizes, tokens, and how much of the padded batches is padding."""
    tokens = sum(sum(lengths(batch)) for batch in batches)
    places = sum(batch["input_ids"].numel() for batch in batches)
    sentences = sum(len(batch["labels"]) for batch in batches)
    size = len(batches[0]["labels"])
    return f"batches of {size}, {tokens / sentences:.1f} tokens a sentence, {1 - tokens / places:.0%} of places padding"
