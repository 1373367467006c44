"""A smaller vocabulary: the tokens that a task's texts use most, for a teacher and a student that know no others.

A token table is the largest part of a small student. Few of its rows are asked for by the texts of one task; without
the others the tokenizer takes a word that has gone apart into pieces that have stayed, in the end single characters.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from spikebert.commands import UserError
from spikebert.data import tokenise
from spikebert.tokenizer_rows import continuation_of, named_ids, write_with_rows

NO_LIMIT = 1 << 30  # tokens of a text
ID_FIELDS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "unk_token_id")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Some of a tokenizer's tokens, and the tokenizer that knows only these.

    kept           int64, rising: their ids before; the i-th of them has id i now
    tokenizer      what it was, without the others
    tokens_before  how many tokens the texts had with all of them
    """

    kept: np.ndarray
    tokenizer: PreTrainedTokenizerBase
    tokens_before: int

    def longer_by(self, texts: Sequence[str]) -> float:
        """How many times as many tokens the texts that it was made of have now."""
        return len(tokenise(self.tokenizer, texts, NO_LIMIT).ids) / self.tokens_before


def most_frequent(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], size: int) -> Vocabulary:
    """The tokens that `texts` hold most often, `size` with those that must stay; fewer where the texts hold fewer.

    What must stay: special tokens, those up to the padding's (some models count on its id), and the single characters
    of the texts and of ASCII, where they stand in a word: at its beginning, or behind. So none of their words becomes
    unknown.
    Raises UserError where that alone is more, and for a tokenizer that is not of word pieces.
    """
    with tempfile.TemporaryDirectory() as work:
        before, after = Path(work) / "before", Path(work) / "after"
        tokenizer.save_pretrained(before)
        after.mkdir()
        counts = np.bincount(tokenise(tokenizer, texts, NO_LIMIT).ids, minlength=len(tokenizer))
        kept = _choose(tokenizer, before, counts, size)
        write_with_rows(before, kept, after)
        names = before / "special_tokens_map.json"  # of special tokens; later versions have them elsewhere
        if names.is_file():
            (after / names.name).write_bytes(names.read_bytes())
        return Vocabulary(kept, AutoTokenizer.from_pretrained(after), int(counts.sum()))


def ids_of(smaller: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """int64: which id each token of `smaller`, in the order of its own ids, has in `tokenizer`.

    Raises UserError for a token that `tokenizer` does not know.
    """
    ids, wanted = tokenizer.get_vocab(), smaller.get_vocab()
    others = sorted(wanted.keys() - ids.keys())
    if others:
        raise UserError(f"a tokenizer knows {len(others)} tokens that the model's does not, first '{others[0]}'")
    return np.array([ids[token] for token in sorted(wanted, key=lambda token: wanted[token])], np.int64)


def _choose(tokenizer: PreTrainedTokenizerBase, folder: Path, counts: np.ndarray, size: int) -> np.ndarray:
    """The ids that stay, rising; counts int64 [vocabulary], how often the texts hold each."""
    vocabulary, prefix = tokenizer.get_vocab(), continuation_of(folder)
    names = {number: token for token, number in vocabulary.items()}
    pieces = [names[number] for number in np.flatnonzero(counts).tolist()]
    characters = {*map(chr, range(128)), *(prefix + chr(point) for point in range(128))}
    for piece in pieces:
        first, behind = ("", piece[len(prefix) :]) if piece.startswith(prefix) else (piece[0], piece[1:])
        characters |= {first, *(prefix + character for character in behind)}
    must = named_ids(folder) | set(range((tokenizer.pad_token_id or 0) + 1))
    must |= {vocabulary[character] for character in characters if character in vocabulary}
    if len(must) > size:
        raise UserError(f"a vocabulary of {size} tokens: special ones and single characters are {len(must)} already")
    by_count = np.argsort(-counts, kind="stable")
    others = [number for number in by_count[counts[by_count] > 0].tolist() if number not in must]
    return np.array(sorted([*must, *others[: size - len(must)]]), np.int64)


def keep_rows(model: PreTrainedModel, kept: np.ndarray) -> None:
    """Leave the model, in place, no rows of its token table but `kept` (ids, in their order); so too its config."""
    table = model.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    padding = table.padding_idx  # it is among the first rows, and all of these stay
    smaller = nn.Embedding(len(kept), table.embedding_dim, padding_idx=padding)
    with torch.no_grad():
        smaller.weight.copy_(table.weight[torch.from_numpy(kept)])
    model.set_input_embeddings(smaller.to(table.weight.device))
    new = {int(old): place for place, old in enumerate(kept)}
    model.config.vocab_size = len(kept)
    for name in ID_FIELDS:
        old = getattr(model.config, name, None)
        if old is not None:
            setattr(model.config, name, new.get(old))
