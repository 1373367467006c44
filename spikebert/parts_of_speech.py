"""Which words of the training texts may stand for each other: those of one part of speech.

Who knows parts of speech are two libraries, both MIT, whose word lists come with them: TextBlob for English, and jieba
for Chinese, which also finds where words begin and end. They are the extra `augment`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from spikebert.commands import UserError

Tagger = Callable[[str], list[tuple[str, str]]]  # text -> its words, in order, and the part of speech of each
NO_PART = ""  # of tokens that are in no word of the tagger's


@dataclass(frozen=True, eq=False)
class Words:
    """The texts as words, a word being tokens that a tagger takes together.

    pieces      token ids of each word int64 [..]; words that differ in their part of speech are different ones
    part        for each word, a number of its part of speech: int64 [words]
    bodies      for each text its words, int64 [..], without what frames it
    of_a_part   for each part of speech, all words of it as often as the texts hold them: to draw from these is to draw
                from the words of a part by their frequency (Tang et al. 2019, arXiv 1903.12136, section 3.4)
    """

    pieces: list[np.ndarray]
    part: np.ndarray
    bodies: list[np.ndarray]
    of_a_part: list[np.ndarray]


def tagger_for(language: str) -> Tagger:
    """That of one of `recipe.LANGUAGES`. Raises UserError where the library for it is not installed."""
    try:
        return {"en": _english, "zh": _chinese}[language]()
    except ImportError as error:
        raise UserError(
            f"stage2.parts_of_speech '{language}' needs the package '{error.name}': pip install 'spikebert[augment]'"
        ) from None


def words_of(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], n_max: int, tagger: Tagger) -> Words:
    """The words of texts that are cut to `n_max` tokens. A token belongs to the word that its first character is in."""
    numbers: dict[tuple[str, tuple[int, ...]], int] = {}
    bodies = []
    for text in texts:
        encoded = tokenizer(
            text, truncation=True, max_length=n_max, return_offsets_mapping=True, return_special_tokens_mask=True
        )
        places = zip(encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"])
        tokens = [(number, start) for number, (start, _), added in places if not added]
        body = [numbers.setdefault(word, len(numbers)) for word in _grouped(tokens, list(_spans(text, tagger(text))))]
        bodies.append(np.array(body, np.int64))
    parts = {part: number for number, part in enumerate(dict.fromkeys(part for part, _ in numbers))}
    part = np.array([parts[part] for part, _ in numbers], np.int64)
    everything = np.concatenate([np.zeros(0, np.int64), *bodies])
    return Words(
        [np.array(pieces, np.int64) for _, pieces in numbers],
        part,
        bodies,
        [everything[part[everything] == number] for number in range(len(parts))],
    )


def _grouped(tokens: list[tuple[int, int]], spans: list[tuple[int, int, str]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Tokens (id, where it begins) and words (where they begin and end, their part) -> the words, as parts and ids."""
    pieces: list[int] = []
    at, word = 0, None
    for number, start in tokens:
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        now = at if at < len(spans) and spans[at][0] <= start else None
        if pieces and (now is None or now != word):
            yield NO_PART if word is None else spans[word][2], tuple(pieces)
            pieces = []
        pieces.append(number)
        word = now
    if pieces:
        yield NO_PART if word is None else spans[word][2], tuple(pieces)


def _spans(text: str, words: list[tuple[str, str]]) -> Iterator[tuple[int, int, str]]:
    """Where each word of a tagger stands in the text; those that it spells in another way are left out."""
    at = 0
    for word, part in words:
        start = text.find(word, at) if word else -1
        if start >= 0:
            at = start + len(word)
            yield start, at, part


def _english() -> Tagger:
    from textblob.en.taggers import PatternTagger

    tagger = PatternTagger()
    return lambda text: [(str(word), str(part)) for word, part in tagger.tag(text)]


def _chinese() -> Tagger:
    import logging

    import jieba
    import jieba.posseg

    jieba.setLogLevel(logging.ERROR)
    return lambda text: [(word, part) for word, part in jieba.posseg.cut(text)]
