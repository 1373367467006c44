"""Altered copies of training texts, for the teacher to label: more of its knowledge than the texts alone show.

As in SpikeBERT's second stage (Lv et al. 2023) after Tang et al. 2019 (arXiv 1903.12136): words are masked,
words are replaced, a run of words is taken. Two things differ: a replacement is drawn from all words of the
training texts by their frequency, not by part of speech, and two texts may be joined.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spikebert.data import SpecialTokens, TokenisedTexts


@dataclass(frozen=True)
class Alteration:
    """Chances, each 0 .. 1. join, run: of a text; mask, replace: of a token."""

    join: float = 0.3
    run: float = 0.3
    mask: float = 0.1
    replace: float = 0.1


def alter(
    texts: TokenisedTexts, copies: int, special: SpecialTokens, n_max: int, seed: tuple[int, ...],
    chances: Alteration = Alteration(),
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
            if random.random() < chances.join:
                body = np.concatenate([body, bodies[random.integers(len(bodies))]])
            if random.random() < chances.run:
                size = random.integers(1, len(body) + 1)
                start = random.integers(len(body) - size + 1)
                body = body[start : start + size]
            body = body[:room].copy()
            fate = random.random(len(body))
            if special.mask is not None:
                body[fate < chances.mask] = special.mask
            replaced = (fate >= chances.mask) & (fate < chances.mask + chances.replace)
            body[replaced] = random.choice(words, int(replaced.sum()))
            altered.append([*special.before, *body.tolist(), *special.after])
    return TokenisedTexts(altered)
