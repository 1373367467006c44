"""Altered copies of texts: framed, bounded, made of known words, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebert.augmentation import Alteration, alter
from spikebert.data import UNLABELLED, SpecialTokens, TokenisedTexts

FRAME = SpecialTokens(before=(101,), after=(102,), mask=103)
NOTHING = Alteration(join=0, run=0, mask=0, replace=0)


def framed(bodies: list[list[int]]) -> TokenisedTexts:
    return TokenisedTexts([[101, *body, 102] for body in bodies], [0] * len(bodies))


def bodies_of(texts: TokenisedTexts) -> list[list[int]]:
    return [texts.body(i, FRAME).tolist() for i in range(len(texts))]


@settings(deadline=None, max_examples=100)
@given(
    bodies=st.lists(st.lists(st.integers(1, 99), max_size=9), min_size=1, max_size=6),
    copies=st.integers(1, 3),
    n_max=st.integers(3, 12),
    seed=st.integers(0, 99),
)
def test_what_always_holds(bodies: list[list[int]], copies: int, n_max: int, seed: int) -> None:
    texts = framed(bodies)
    altered = alter(texts, copies, FRAME, n_max, (seed,), Alteration())
    assert len(altered) == copies * sum(1 for body in bodies if body)
    assert (altered.labels == UNLABELLED).all()
    known = {word for body in bodies for word in body} | {103}
    for i, body in enumerate(bodies_of(altered)):
        whole = altered.ids[altered.offsets[i] : altered.offsets[i + 1]]
        assert whole[0] == 101
        assert whole[-1] == 102
        assert 1 <= len(body) <= n_max - 2
        assert set(body) <= known
    again = alter(texts, copies, FRAME, n_max, (seed,), Alteration())
    assert np.array_equal(altered.ids, again.ids)
    assert bodies_of(texts) == bodies, "the texts themselves were changed"


def test_chances_of_0_copy() -> None:
    bodies = [[1, 2, 3], [4, 5]]
    assert bodies_of(alter(framed(bodies), 2, FRAME, 64, (0,), NOTHING)) == bodies * 2


@pytest.mark.parametrize(
    ("chances", "expected"),
    [
        (Alteration(join=0, run=0, mask=1, replace=0), [[103, 103, 103]]),
        (Alteration(join=1, run=0, mask=0, replace=0), [[7, 7, 7, 7, 7, 7]]),
    ],
)
def test_each_alteration_alone(chances: Alteration, expected: list[list[int]]) -> None:
    assert bodies_of(alter(framed([[7, 7, 7]]), 1, FRAME, 64, (0,), chances)) == expected


def test_a_run_is_part_of_its_text() -> None:
    body = list(range(1, 30))
    runs = bodies_of(alter(framed([body]), 50, FRAME, 64, (0,), Alteration(join=0, run=1, mask=0, replace=0)))
    assert all(run == list(range(run[0], run[0] + len(run))) for run in runs)
    assert len({len(run) for run in runs}) > 10


def test_a_run_may_be_held_short() -> None:
    body = list(range(1, 30))
    short = Alteration(join=0, run=1, longest_run=5, mask=0, replace=0)
    runs = bodies_of(alter(framed([body, [1, 2]]), 50, FRAME, 64, (0,), short))
    assert {len(run) for run in runs} == {1, 2, 3, 4, 5} and max(len(run) for run in runs[1::2]) == 2


def test_another_seed_alters_otherwise() -> None:
    texts = framed([list(range(1, 30))])
    assert not np.array_equal(
        alter(texts, 5, FRAME, 64, (1,), Alteration()).ids, alter(texts, 5, FRAME, 64, (2,), Alteration()).ids
    )


def test_a_tokenizer_without_a_mask() -> None:
    frame = SpecialTokens(before=(), after=(9,), mask=None)
    altered = alter(TokenisedTexts([[1, 2, 9], [9]]), 3, frame, 8, (0,), Alteration(join=0, run=0, mask=1, replace=0))
    assert [altered.body(i, frame).tolist() for i in range(3)] == [[1, 2]] * 3


def test_only_empty_texts_give_no_copies() -> None:
    assert len(alter(framed([[], []]), 3, FRAME, 8, (0,), Alteration())) == 0
