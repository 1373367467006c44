"""Texts: reading them, tokenising them once, and handing them out in batches of similar length."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spikebert.commands import UserError
from spikebert.recipe import Data

UNLABELLED = -100  # what torch's cross entropy leaves out
SPLITS = ("train", "validation", "test")
HUB = "hub:"  # in front of a dataset's name, where a text file may stand too
OFFSETS = "offsets.npy"  # of texts on disk; it is there once all of them are
CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]")  # as BERT's tokenizers have it
TEXTS_AT_ONCE = 10_000  # are tokenised together


@dataclass(frozen=True)
class SpecialTokens:
    """How a tokenizer frames a text: ids before it, ids after it, and the one that masks (None where it has none)."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    mask: int | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
        return cls.around(tokenizer("")["input_ids"], tokenizer("a")["input_ids"], tokenizer.mask_token_id)

    @classmethod
    def around(cls, empty: Sequence[int], word: Sequence[int], mask: int | None = None) -> SpecialTokens:
        """From the ids of the empty text and of a text of one word."""
        before = next((i for i, (x, y) in enumerate(zip(empty, word)) if x != y), len(empty))
        return cls(tuple(empty[:before]), tuple(empty[before:]), mask)


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and their classes, labels[i] in 0 .. classes - 1."""

    texts: list[str]
    labels: list[int]

    def sha256(self) -> str:
        """Of the texts and labels in their order, hex."""
        return hashlib.sha256(json.dumps([self.texts, self.labels]).encode()).hexdigest()


def read_tsv(
    path: Path, text_column: str = "text", label_column: str = "label", names: Sequence[str] = ()
) -> LabelledTexts:
    """A TSV file with a header line and no quoting. Its labels are numbers, or all out of `names`.

    Raises UserError with file and line for what is malformed.
    """
    texts, labels = _read_columns(path, text_column, label_column)
    numbers = [label.isascii() and label.strip().isdigit() for label in labels]
    if all(numbers):
        return LabelledTexts(texts, [int(label) for label in labels])
    place = {name: number for number, name in enumerate(names)}
    named = any(label in place for label in labels)
    for line, (label, is_number) in enumerate(zip(labels, numbers), start=2):
        if not (label in place if named else is_number):
            known = f"none of data.labels ({', '.join(names)})"
            other = f"no integer of 0 or more{f', and {known}' if names else '; names of classes go in data.labels'}"
            raise UserError(f"{path}: line {line}: label '{label}' is {known if named else other}")
    return LabelledTexts(texts, [place[label] for label in labels])


def read_texts(path: Path) -> list[str]:
    """The texts of a TSV file, as `read_tsv` reads them, whatever their labels are."""
    return _read_columns(path, "text", "label")[0]


def _read_columns(path: Path, text_column: str, label_column: str) -> tuple[list[str], list[str]]:
    """Texts and labels, as they stand there. Raises UserError as `read_tsv` does."""
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
        texts.append(cells[text_index])
        labels.append(cells[label_index])
    if not texts:
        raise UserError(f"{path}: no texts below the header")
    return texts, labels


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
        return read_tsv(path, data.text_column, data.label_column, data.labels)
    return _read_hub_split(data, split)


def _read_hub_split(data: Data, split: str) -> LabelledTexts | None:
    """None for a test split that does not exist, or whose labels are kept back."""
    loaded = _load_hub("data.hub", data.hub, data.hub_subset)
    if split not in loaded:
        if split == "test":
            return None
        raise UserError(f"data.hub: {data.hub} has no split '{split}', it has {sorted(loaded)}")
    for column in (data.text_column, data.label_column):
        if column not in loaded[split].column_names:
            raise UserError(f"data.hub: {data.hub} has no column '{column}', it has {loaded[split].column_names}")
    labels, texts = [], list(loaded[split][data.text_column])
    for label in loaded[split][data.label_column]:
        try:
            labels.append(_whole(label))
        except (TypeError, ValueError):
            raise UserError(
                f"data.hub: {data.hub} has label {label!r} in '{split}', which is no integer: name another "
                "data.label_column, or write the texts to files (data.folder)"
            ) from None
    if not labels and split != "test":
        raise UserError(f"data.hub: {data.hub} has no texts in '{split}'")
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"data.hub: {data.hub} has rows without a text in '{split}', column '{data.text_column}'")
    if min(labels, default=0) < 0:  # how the hub marks labels that are kept back
        if split == "test":
            return None
        raise UserError(f"data.hub: {data.hub} keeps back the labels of '{split}' (there are negative ones)")
    return LabelledTexts(texts, labels) if labels else None


def _whole(label: Any) -> int:
    """A label as a number, also where it is written 1.0, "1" or True. Raises TypeError or ValueError where it is none,
    or would be another."""
    if isinstance(label, float) and not label.is_integer():
        raise ValueError(label)
    return int(label)


def _load_hub(field: str, name: str, subset: str, **options: object) -> Any:
    """A dataset of the hub, all splits, or what the options say. `field` is where the user names it."""
    try:
        import datasets  # an extra of its own: most people have their texts in files
    except ImportError:
        raise UserError(f"{field} needs the package 'datasets': pip install 'spikebert[hub]'") from None
    try:
        return datasets.load_dataset(name, subset or None, **options)
    except Exception as error:  # of the hub, of the network, of a format: the library raises those of others too
        raise UserError(f"{field}: cannot load '{name}': {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def open_text(path: Path) -> TextIO:
    """A text file for reading, plain, .gz or .xz."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return open(path, encoding="utf-8")


def read_lines(paths: Sequence[str], limit: int = 0, longest_words: int = 0) -> Iterator[str]:
    """Non-empty lines of texts, streamed, one from each in turn; at most `limit` of them (0 for all).

    paths  files, plain, .gz or .xz; or datasets of the hub, `hub:NAME`, `hub:NAME:SUBSET` or `hub:NAME:SUBSET:COLUMN`,
           whose split "train" is streamed (column "text" where none is named)

    Lines of more than `longest_words` words are left out (0: none is); see `word_count`.

    A file that ends sooner leaves its turns to the others. Raises UserError for one that is missing or no text.
    """
    open_files = [_lines_of_hub(path) if path.startswith(HUB) else _lines_of(Path(path)) for path in paths]
    given = 0
    while open_files:
        for lines in list(open_files):
            if limit and given >= limit:
                return
            line = next(lines, None)
            if line is None:
                open_files.remove(lines)
            elif not longest_words or word_count(line) <= longest_words:
                given += 1
                yield line


def word_count(line: str) -> int:
    """Words between spaces; each Chinese character counts as one, as for the tokenizers of BERT."""
    return len((line if line.isascii() else CHINESE.sub(r" \g<0> ", line)).split())


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


def _lines_of_hub(path: str) -> Iterator[str]:
    parts = path.removeprefix(HUB).split(":")
    if len(parts) > 3 or not parts[0]:
        raise UserError(f"{path}: write hub:NAME, hub:NAME:SUBSET or hub:NAME:SUBSET:COLUMN")
    name, subset, column = parts[0], "".join(parts[1:2]), "".join(parts[2:]) or "text"
    try:
        for record in _load_hub(path, name, subset, split="train", streaming=True):
            text = record.get(column, 0)
            if not (text is None or isinstance(text, str)):
                raise UserError(f"{path}: no texts in column '{column}', there are {sorted(record)}")
            yield from (line.strip() for line in (text or "").splitlines() if line.strip())
    except UserError:
        raise
    except Exception as error:  # the stream breaks, in whatever library reads it
        raise UserError(f"{path}: {_first_line(error)}") from None


def hash_files(paths: Sequence[str]) -> str:
    """sha256 of the contents of files, one after the other; of a dataset of the hub, of its name."""
    digest = hashlib.sha256()
    for path in paths:
        if path.startswith(HUB):
            digest.update(path.encode())
            continue
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
        self.offsets = offsets_of([len(x) for x in ids])
        self.ids = np.fromiter((i for text in ids for i in text), dtype=np.int32, count=int(self.offsets[-1]))
        self.labels = np.full(len(ids), UNLABELLED) if labels is None else np.asarray(labels, dtype=np.int64)

    @classmethod
    def of(cls, ids: np.ndarray, offsets: np.ndarray, labels: Sequence[int] | np.ndarray | None) -> TokenisedTexts:
        """ids int32, perhaps of a file; offsets int64 [texts + 1], where each text begins; labels [texts]."""
        texts = cls([])
        texts.ids, texts.offsets = ids, offsets
        texts.labels = np.full(len(offsets) - 1, UNLABELLED) if labels is None else np.asarray(labels, dtype=np.int64)
        return texts

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def lengths_of(self, indices: np.ndarray) -> np.ndarray:
        """Tokens of some texts, whatever the number of all."""
        return self.offsets[indices + 1] - self.offsets[indices]

    def __add__(self, other: TokenisedTexts) -> TokenisedTexts:
        ids = np.concatenate([self.ids, other.ids])
        offsets = np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]])
        return TokenisedTexts.of(ids, offsets, np.concatenate([self.labels, other.labels]))

    def body(self, index: int, special: SpecialTokens) -> np.ndarray:
        """The ids of one text without its frame."""
        return self.ids[self.offsets[index] + len(special.before) : self.offsets[index + 1] - len(special.after)]

    def first(self, count: int) -> TokenisedTexts:
        """The first so many of the texts; nothing is copied."""
        return TokenisedTexts.of(self.ids[: self.offsets[count]], self.offsets[: count + 1], self.labels[:count])

    def select(self, indices: np.ndarray) -> TokenisedTexts:
        """Some of the texts, in the order of `indices`."""
        pieces = [self.ids[self.offsets[i] : self.offsets[i + 1]] for i in indices]
        ids = np.concatenate(pieces) if pieces else self.ids[:0]
        return TokenisedTexts.of(ids, offsets_of(self.lengths_of(indices)), self.labels[indices])

    def batch(self, indices: np.ndarray, pad_id: int) -> dict[str, Tensor]:
        """input_ids, attention_mask and labels of some texts, padded to the longest of them, and their index."""
        lengths = self.lengths_of(indices)
        real = np.arange(lengths.max()) < lengths[:, None]  # [texts, width]
        row, token = real.nonzero()
        padded = np.full(real.shape, pad_id, dtype=np.int64)
        padded[real] = self.ids[self.offsets[indices][row] + token]
        ids, mask = torch.from_numpy(padded), torch.from_numpy(real.astype(np.int64))
        labels, index = torch.from_numpy(self.labels[indices]), torch.from_numpy(indices)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "index": index}


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where each of some texts begins, and where the last one ends: int64 [texts + 1]."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def tokenise(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], n_max: int, labels: Sequence[int] | None = None
) -> TokenisedTexts:
    """Ids with special tokens, cut to `n_max` tokens (special tokens kept)."""
    ids, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for some, their_lengths in _tokenised(tokenizer, texts, n_max):
        ids.append(some)
        lengths.append(their_lengths)
    return TokenisedTexts.of(np.concatenate(ids), offsets_of(np.concatenate(lengths)), labels)


class TooManyTokens(Exception):
    """More tokens than may be kept on disk; `texts` of them had room."""

    def __init__(self, texts: int) -> None:
        super().__init__(f"only {texts:,} texts have room")
        self.texts = texts


def tokenise_on_disk(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], n_max: int, folder: Path, most_bytes: int | None = None
) -> TokenisedTexts:
    """As `tokenise`, unlabelled, for more texts than memory holds: their ids stay in a file in `folder`.

    In memory are 16 bytes a text, and 8 more while an epoch shuffles them. What is there already is taken as it is, and
    `texts` is not read; a file that was not finished is written again. Raises OSError where there is no room, and
    `TooManyTokens` where ids, 4 bytes each, would take more than `most_bytes`: what was written is removed.
    """
    ids, offsets = folder / "ids.int32", folder / OFFSETS
    if not offsets.exists():
        folder.mkdir(parents=True, exist_ok=True)
        lengths = [np.zeros(0, np.int64)]
        with ids.open("wb") as file:
            for some, their_lengths in _tokenised(tokenizer, texts, n_max):
                if most_bytes is not None and file.tell() + some.nbytes > most_bytes:
                    ids.unlink()
                    raise TooManyTokens(sum(map(len, lengths)))
                file.write(some.tobytes())
                lengths.append(their_lengths)
        partial = folder / "offsets.partial.npy"
        np.save(partial, offsets_of(np.concatenate(lengths)))
        partial.replace(offsets)  # last, so that what is there is whole
    begins = np.load(offsets)
    empty = begins[-1] == 0  # no file of no bytes can be mapped
    return TokenisedTexts.of(np.zeros(0, np.int32) if empty else np.memmap(ids, np.int32, "r"), begins, None)


def _tokenised(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], n_max: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For some texts at a time, their ids int32, one text after the other, and their lengths int64."""
    remaining = iter(texts)
    while chunk := list(islice(remaining, TEXTS_AT_ONCE)):
        found = tokenizer(chunk, truncation=True, max_length=n_max, return_attention_mask=False)["input_ids"]
        lengths = np.array([len(one) for one in found], np.int64)
        yield np.fromiter(chain.from_iterable(found), np.int32, int(lengths.sum())), lengths


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
