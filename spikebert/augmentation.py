"""Altered copies of training texts, for the teacher to label: more of its knowledge than the texts alone show.

What SpikeBERT's second stage (Lv et al. 2023) takes from Tang et al. 2019 (arXiv 1903.12136): words are masked, words
are replaced, a run of words (an n-gram) is taken. `alter_words` replaces a word by one of the same part of speech, as
they do. `alter` asks nobody about parts of speech: it takes tokens for words, and replaces one by any token. Both draw
from the training texts by frequency, and both may join two texts, which they do not. Theirs is `alter_words` with the
chances that `Alteration` names.
"""

from __future__ import annotations

import numpy as np

from spikebert.data import SpecialTokens, TokenisedTexts
from spikebert.parts_of_speech import Words
from spikebert.recipe import Alteration


def alter(
    texts: TokenisedTexts, copies: int, special: SpecialTokens, n_max: int, seed: tuple[int, ...],
    chances: Alteration,
) -> TokenisedTexts:  # fmt: skip
    """`copies` altered copies of every text, unlabelled, at most `n_max` tokens each; the same for the same seed."""
    random = np.random.default_rng(seed)
    bodies = [body for body in (texts.body(i, special) for i in range(len(texts))) if len(body)]
    if not bodies:
        return TokenisedTexts([])
    words = np.concatenate(bodies)
    room = n_max - len(special.before) - len(special.after)
    altered = []
    for _ in range(copies):
        for body in bodies:
            body = _other_extent(body, bodies, chances, random)[:room].copy()
            fate = random.random(len(body))
            if special.mask is not None:
                body[fate < chances.mask] = special.mask
            replaced = (fate >= chances.mask) & (fate < chances.mask + chances.replace)
            body[replaced] = random.choice(words, int(replaced.sum()))
            altered.append([*special.before, *body.tolist(), *special.after])
    return TokenisedTexts(altered)


def alter_words(
    words: Words, copies: int, special: SpecialTokens, n_max: int, seed: tuple[int, ...],
    chances: Alteration,
) -> TokenisedTexts:  # fmt: skip
    """As `alter`, word by word: a word is masked with all its tokens, or replaced by one of its part of speech."""
    random = np.random.default_rng(seed)
    bodies = [body for body in words.bodies if len(body)]
    room = n_max - len(special.before) - len(special.after)
    altered = []
    for _ in range(copies):
        for body in bodies:
            body = _other_extent(body, bodies, chances, random)
            tokens: list[int] = []
            for word, fate in zip(body, random.random(len(body))):
                if fate < chances.mask and special.mask is not None:
                    tokens += [special.mask] * len(words.pieces[word])
                    continue
                if chances.mask <= fate < chances.mask + chances.replace:
                    alike = words.of_a_part[words.part[word]]
                    word = alike[random.integers(len(alike))]
                tokens += words.pieces[word].tolist()
            altered.append([*special.before, *tokens[:room], *special.after])
    return TokenisedTexts(altered)


def _other_extent(
    body: np.ndarray, bodies: list[np.ndarray], chances: Alteration, random: np.random.Generator
) -> np.ndarray:
    """A text, perhaps joined with another, and perhaps only a run of it."""
    if random.random() < chances.join:
        body = np.concatenate([body, bodies[random.integers(len(bodies))]])
    if random.random() < chances.run:
        size = random.integers(1, min(len(body), chances.longest_run or len(body)) + 1)
        start = random.integers(len(body) - size + 1)
        body = body[start : start + size]
    return body
