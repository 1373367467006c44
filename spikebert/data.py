"""Texts: reading them, tokenising them once, and handing them out in batches of similar length."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spikebert.commands import UserError
from spikebert.recipe import Data

UNLABELLED = -100  # what torch's cross entropy leaves out
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class SpecialTokens:
    """How a tokenizer frames a text: ids before it, ids after it, and the one that masks (None where it has none)."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    mask: int | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
        frame = tokenizer("")["input_ids"]
        marked = tokenizer("a")["input_ids"]
        before = next((i for i, (x, y) in enumerate(zip(frame, marked)) if x != y), len(frame))
        return cls(tuple(frame[:before]), tuple(frame[before:]), tokenizer.mask_token_id)


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and their classes, labels[i] in 0 .. classes - 1."""

    texts: list[str]
    labels: list[int]


def read_tsv(path: Path, text_column: str = "text", label_column: str = "label") -> LabelledTexts:
    """A TSV file with a header line and no quoting. Raises UserError with file and line for what is malformed."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a data folder holds train.tsv and validation.tsv") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; a data folder holds train.tsv and validation.tsv") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); convert the file to UTF-8") from None
    if "\0" in content:
        raise UserError(f"{path}: holds a zero byte, so this is a binary file; give tab-separated text")
    # only \n and \r\n end a line: a text may hold rarer breaks
    lines = [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")]
    header = lines[0].split("\t")
    for column in (text_column, label_column):
        if column not in header:
            raise UserError(f"{path}: line 1: no column '{column}', there are {header}; the header is text<TAB>label")
    text_index, label_index = header.index(text_column), header.index(label_column)
    texts, labels = [], []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(header):
            raise UserError(f"{path}: line {number}: {len(cells)} columns, the header has {len(header)}")
        if not (cells[label_index].isascii() and cells[label_index].strip().isdigit()):
            raise UserError(f"{path}: line {number}: label '{cells[label_index]}' is no integer of 0 or more")
        texts.append(cells[text_index])
        labels.append(int(cells[label_index]))
    if not texts:
        raise UserError(f"{path}: no texts below the header")
    return LabelledTexts(texts, labels)


def data_folder(folder: str) -> Path:
    """A folder as the user names it; `package:NAME` is one that is installed with spikebert."""
    if folder.startswith("package:"):
        return Path(str(resources.files("recipes") / "data" / folder.removeprefix("package:")))
    return Path(folder)


def read_split(data: Data, split: str) -> LabelledTexts | None:
    """One of `SPLITS`; None for a test split that does not exist."""
    if bool(data.folder) == bool(data.hub):
        raise UserError("data: give either data.folder (with train.tsv, validation.tsv) or data.hub (a dataset's name)")
    if data.folder:
        path = data_folder(data.folder) / f"{split}.tsv"
        if split == "test" and not path.exists():
            return None
        return read_tsv(path, data.text_column, data.label_column)
    try:
        import datasets  # an extra of its own: most people have their texts in files
    except ImportError:
        raise UserError("data.hub needs the package 'datasets': pip install 'spikebert[hub]'") from None
    try:
        loaded = datasets.load_dataset(data.hub, data.hub_subset or None)
    except (OSError, ValueError) as error:
        raise UserError(f"data.hub: cannot load '{data.hub}': {str(error).splitlines()[0]}") from None
    if split not in loaded:
        if split == "test":
            return None
        raise UserError(f"data.hub: {data.hub} has no split '{split}', it has {sorted(loaded)}")
    for column in (data.text_column, data.label_column):
        if column not in loaded[split].column_names:
            raise UserError(f"data.hub: {data.hub} has no column '{column}', it has {loaded[split].column_names}")
    labels = [int(label) for label in loaded[split][data.label_column]]
    if min(labels, default=0) < 0:  # how the hub marks labels that are kept back
        if split == "test":
            return None
        raise UserError(f"data.hub: {data.hub} keeps back the labels of '{split}' (there are negative ones)")
    return LabelledTexts(list(loaded[split][data.text_column]), labels)


def open_text(path: Path) -> TextIO:
    """A text file for reading, plain, .gz or .xz."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return open(path, encoding="utf-8")


def read_lines(paths: Sequence[str], limit: int = 0, longest_words: int = 0) -> Iterator[str]:
    """Non-empty lines of text files, streamed, one from each file in turn; at most `limit` of them (0 for all).

    Lines of more than `longest_words` words are left out (0: none is).

    A file that ends sooner leaves its turns to the others. Raises UserError for one that is missing or no text.
    """
    open_files = [_lines_of(Path(path)) for path in paths]
    given = 0
    while open_files:
        for lines in list(open_files):
            if limit and given >= limit:
                return
            line = next(lines, None)
            if line is None:
                open_files.remove(lines)
            elif not longest_words or len(line.split()) <= longest_words:
                given += 1
                yield line


def _lines_of(path: Path) -> Iterator[str]:
    try:
        with open_text(path) as lines:
            yield from (line.strip() for line in lines if line.strip())
    except FileNotFoundError:
        raise UserError(f"{path}: no such text file") from None
    except (UnicodeDecodeError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{path}: not a text file of one sentence a line ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def hash_files(paths: Sequence[str]) -> str:
    """sha256 of the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as content:
            while piece := content.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def check_text_files(paths: Sequence[str], lines: int = 1000) -> None:
    """Read the first lines of every file. Raises UserError for one that is missing, empty or no text."""
    for path in paths:
        if sum(1 for _ in read_lines([path], limit=lines)) == 0:
            raise UserError(f"{path}: holds no text")


def describe_unusual(texts: TokenisedTexts, n_max: int, added: int, unknown_id: int | None) -> list[str]:
    """What a person may want to know of texts: how many were cut, are empty, or hold nothing that is known.

    `added` is the number of special tokens of each text.
    """
    lengths = texts.lengths
    unknown = np.add.reduceat(texts.ids == unknown_id, texts.offsets[:-1])
    found = {
        f"have {n_max} tokens or more: what is beyond is cut": int((lengths >= n_max).sum()),
        "are empty": int((lengths <= added).sum()),
        "hold no word that the tokenizer knows": int(((unknown == lengths - added) & (lengths > added)).sum()),
    }
    return [f"{count} of {len(texts)} texts {what}" for what, count in found.items() if count]


class TokenisedTexts:
    """Token ids of many texts, compact: one int32 array of all ids and where each text begins."""

    def __init__(self, ids: list[list[int]], labels: Sequence[int] | None = None) -> None:
        self.offsets = np.concatenate([[0], np.cumsum([len(x) for x in ids])]).astype(np.int64)
        self.ids = np.fromiter((i for text in ids for i in text), dtype=np.int32, count=int(self.offsets[-1]))
        self.labels = np.full(len(ids), UNLABELLED) if labels is None else np.asarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def __add__(self, other: TokenisedTexts) -> TokenisedTexts:
        both = TokenisedTexts([])
        both.ids = np.concatenate([self.ids, other.ids])
        both.offsets = np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]])
        both.labels = np.concatenate([self.labels, other.labels])
        return both

    def body(self, index: int, special: SpecialTokens) -> np.ndarray:
        """The ids of one text without its frame."""
        return self.ids[self.offsets[index] + len(special.before) : self.offsets[index + 1] - len(special.after)]

    def select(self, indices: np.ndarray) -> TokenisedTexts:
        """Some of the texts, in the order of `indices`."""
        chosen = TokenisedTexts([])
        pieces = [self.ids[self.offsets[i] : self.offsets[i + 1]] for i in indices]
        chosen.ids = np.concatenate(pieces) if pieces else self.ids[:0]
        chosen.offsets = np.concatenate([[0], np.cumsum(self.lengths[indices])]).astype(np.int64)
        chosen.labels = self.labels[indices]
        return chosen

    def batch(self, indices: np.ndarray, pad_id: int) -> dict[str, Tensor]:
        """input_ids, attention_mask and labels of some texts, padded to the longest of them, and their index."""
        width = int(self.lengths[indices].max())
        ids = torch.full((len(indices), width), pad_id, dtype=torch.long)
        mask = torch.zeros(len(indices), width, dtype=torch.long)
        for row, index in enumerate(indices):
            text = self.ids[self.offsets[index] : self.offsets[index + 1]]
            ids[row, : len(text)] = torch.from_numpy(text.astype(np.int64))
            mask[row, : len(text)] = 1
        labels, index = torch.from_numpy(self.labels[indices]), torch.from_numpy(indices)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "index": index}


def tokenise(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], n_max: int, labels: Sequence[int] | None = None
) -> TokenisedTexts:
    """Ids with special tokens, cut to `n_max` tokens (special tokens kept)."""
    ids: list[list[int]] = []
    for start in range(0, len(texts), 10_000):
        chunk = list(texts[start : start + 10_000])
        ids += tokenizer(chunk, truncation=True, max_length=n_max, return_attention_mask=False)["input_ids"]
    return TokenisedTexts(ids, labels)


def shuffled_batches(texts: int, batch_size: int, seed: Sequence[int]) -> list[np.ndarray]:
    """Index batches in random order, the same for the same seed.

    Lengths are mixed on purpose: attention counts grow with the length of a text, so BatchNorm trained on
    batches of one length would hide a difference that evaluation meets. Packed tokens make mixing cheap.
    """
    order = np.random.default_rng(seed).permutation(texts)
    return [order[i : i + batch_size] for i in range(0, texts, batch_size)]


def sorted_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Index batches from the shortest text to the longest, for evaluation."""
    order = np.argsort(lengths, kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
