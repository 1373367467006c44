"""Words and their parts of speech: which tokens are a word, and altered copies that keep the parts in order."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_teachers import BAD, FILLER, GOOD, make_tokenizer, recipe_arguments
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from spikebert import stages, task_texts
from spikebert.augmentation import Alteration, alter_words
from spikebert.commands import UserError
from spikebert.data import UNLABELLED, SpecialTokens, TokenisedTexts
from spikebert.parts_of_speech import Words, tagger_for, words_of
from spikebert.train_command import main

NOUNS = ("film", "soup")
NOTHING = Alteration(join=0, run=0, mask=0, replace=0)


def tag(text: str) -> list[tuple[str, str]]:
    """Adjectives, nouns and others; two words with a hyphen are one."""
    kinds = dict.fromkeys(GOOD + BAD, "ADJ") | dict.fromkeys(NOUNS, "NOUN")
    return [(word, kinds.get(word.split("-")[0], "X")) for word in text.split()]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def spelled(tokenizer: PreTrainedTokenizerBase, words: Words, body: np.ndarray) -> list[str]:
    return [tokenizer.decode(words.pieces[word]) for word in body]


def test_tokens_of_a_word_stand_together(tokenizer) -> None:
    words = words_of(tokenizer, ["a good-film it was", "bad soup", ""], 64, tag)
    assert [spelled(tokenizer, words, body) for body in words.bodies] == [
        ["a", "good [UNK] film", "it", "was"], ["bad", "soup"], [],
    ]  # fmt: skip
    assert len(words.pieces) == len(words.part) == 6
    parts = [words.part[body].tolist() for body in words.bodies]
    assert parts[0][0] == parts[0][2] == parts[0][3] and parts[0][1] == parts[1][0] != parts[1][1]


def test_the_words_of_a_part_are_there_as_often_as_in_the_texts(tokenizer) -> None:
    words = words_of(tokenizer, ["good film", "good soup", "bad"], 64, tag)
    drawn = [sorted(spelled(tokenizer, words, of)) for of in words.of_a_part]
    assert sorted(drawn) == [["bad", "good", "good"], ["film", "soup"]]


def test_a_word_of_two_parts_is_two_words(tokenizer) -> None:
    turns = iter("VN")
    words = words_of(tokenizer, ["film film"], 64, lambda text: [("film", next(turns)), ("film", next(turns))])
    assert len(words.pieces) == 2 and words.pieces[0].tolist() == words.pieces[1].tolist()


def test_what_the_tagger_spells_otherwise_is_of_no_part(tokenizer) -> None:
    words = words_of(tokenizer, ["good film bad"], 64, lambda text: [("Good", "ADJ"), ("", "X"), ("bad", "ADJ")])
    assert spelled(tokenizer, words, words.bodies[0]) == ["good", "film", "bad"], "each token by itself"
    [adjective] = [of for of in words.of_a_part if spelled(tokenizer, words, of) == ["bad"]]
    assert len(words.of_a_part) == 2 and len(adjective) == 1


def test_texts_are_cut_as_everywhere(tokenizer) -> None:
    words = words_of(tokenizer, ["good film was bad"], 4, tag)
    assert spelled(tokenizer, words, words.bodies[0]) == ["good", "film"]


@settings(max_examples=100)
@given(
    texts=st.lists(st.lists(st.sampled_from([*GOOD, *BAD, *FILLER, "good-film"]), max_size=7), min_size=1, max_size=5),
    copies=st.integers(1, 3),
    n_max=st.integers(3, 12),
    seed=st.integers(0, 99),
)
def test_what_always_holds(tokenizer, texts: list[list[str]], copies: int, n_max: int, seed: int) -> None:
    frame = SpecialTokens((2,), (3,), 1)
    words = words_of(tokenizer, [" ".join(text) for text in texts], 64, tag)
    altered = alter_words(words, copies, frame, n_max, (seed,), Alteration())
    assert len(altered) == copies * sum(map(bool, texts)) and (altered.labels == UNLABELLED).all()
    assert (altered.lengths <= n_max).all() and (altered.lengths >= 3).all()
    again = alter_words(words, copies, frame, n_max, (seed,), Alteration())
    assert np.array_equal(altered.ids, again.ids)
    copied = alter_words(words, 1, frame, 64, (seed,), NOTHING)
    whole = [tokenizer(" ".join(text))["input_ids"] for text in texts if text]
    assert [copied.ids[a:b].tolist() for a, b in zip(copied.offsets, copied.offsets[1:])] == whole


def bodies(tokenizer, texts: TokenisedTexts) -> list[list[str]]:
    frame = SpecialTokens((2,), (3,), 1)
    return [tokenizer.decode(texts.body(i, frame)).split() for i in range(len(texts))]


def test_a_word_is_replaced_by_one_of_its_part(tokenizer) -> None:
    words = words_of(tokenizer, ["the film was good", "a soup was sad"], 64, tag)
    altered = alter_words(
        words, 40, SpecialTokens((2,), (3,), 1), 64, (0,), Alteration(join=0, run=0, mask=0, replace=1)
    )
    for text in bodies(tokenizer, altered):
        assert len(text) == 4 and text[1] in NOUNS and text[3] in ("good", "sad")
        assert text[0] in ("the", "a", "was") and text[2] in ("the", "a", "was")
    assert len({tuple(text) for text in bodies(tokenizer, altered)}) > 10


def test_a_word_is_masked_with_all_its_tokens(tokenizer) -> None:
    words = words_of(tokenizer, ["a good-film"], 64, tag)
    frame = SpecialTokens((2,), (3,), 1)
    masked = alter_words(words, 60, frame, 64, (0,), Alteration(join=0, run=0, mask=0.5, replace=0))
    seen = {tuple(masked.body(i, frame).tolist()) for i in range(len(masked))}
    first, *rest = tokenizer("a good-film", add_special_tokens=False)["input_ids"]
    assert seen == {(a, *b) for a in (first, 1) for b in (rest, [1, 1, 1])}


# The libraries


@pytest.mark.parametrize(("language", "package"), [("en", "textblob"), ("zh", "jieba")])
def test_a_library_that_is_missing_is_named(monkeypatch, language: str, package: str) -> None:
    for name in (package, "textblob.en.taggers", "textblob.en", "jieba.posseg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"parts_of_speech '{language}' needs .*: pip install 'spikebert\[augment\]'"):
        tagger_for(language)


def test_english() -> None:
    pytest.importorskip("textblob")
    found = dict(tagger_for("en")("The quick fox likes boring films."))
    assert found["quick"] == found["boring"] == "JJ" and found["fox"] == "NN" and found["films"] == "NNS"


def test_chinese() -> None:
    pytest.importorskip("jieba")
    found = dict(tagger_for("zh")("房间很干净，服务员热情"))
    assert found["房间"] == found["服务员"] == "n" and found["热情"] == "n" and found["干净"] == "a"


def test_another_language_is_refused(tmp_path: Path, capfd) -> None:
    assert main([*recipe_arguments(tmp_path), "--stage2.parts_of_speech=fr"]) == 2
    assert "stage2.parts_of_speech is 'fr', it must be one of en, zh, or empty" in capfd.readouterr().err


def test_stage2_alters_words(trained: Path, tmp_path: Path, monkeypatch) -> None:
    """The recipe's field reaches the copies, and a run ends."""
    given: list[tuple[Words, int]] = []

    def watched(words: Words, copies: int, *rest) -> TokenisedTexts:
        given.append((words, copies))
        return alter_words(words, copies, *rest)

    monkeypatch.setattr(stages, "tagger_for", lambda language: tag)
    monkeypatch.setattr(task_texts, "alter_words", watched)
    out = tmp_path / "run"
    flags = ["--stage2.parts_of_speech=en", "--stage2.altered_copies=2", "--stage2.epochs=1", "--quantise.epochs=1"]
    assert main([*recipe_arguments(trained), f"--out={out}", *flags]) == 0
    assert [copies for _, copies in given] == [2, 2], "once an epoch: of stage 2, and of the integer stage"
    assert len(given[0][0].bodies) == 200 and len(given[0][0].of_a_part) == 3
