"""Texts in disorder: a bag of words is as right as before, and a network that reads the order is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from random_graphs import random_graph
from small_bundles import small_bundle
from small_teachers import make_teacher

from benchmarks.word_order import main, row, shuffled
from spikebert.data import SpecialTokens, TokenisedTexts

FRAME = SpecialTokens((2,), (3,), None)


def test_tokens_change_places_within_their_frame() -> None:
    texts = TokenisedTexts([[2, *range(10, 30), 3], [2, 3], [2, 7, 3]], [0, 1, 0])
    other = shuffled(texts, FRAME, 0)
    assert np.array_equal(other.offsets, texts.offsets) and np.array_equal(other.labels, texts.labels)
    assert sorted(other.ids[:22]) == sorted(texts.ids[:22]) and not np.array_equal(other.ids, texts.ids)
    assert (other.ids[0], other.ids[21]) == (2, 3) and np.array_equal(other.ids[22:], texts.ids[22:])
    assert np.array_equal(other.ids, shuffled(texts, FRAME, 0).ids), "the same for the same seed"


def test_a_bag_of_words_loses_nothing_and_a_reader_does() -> None:
    texts = TokenisedTexts([[2, *range(10, 10 + length), 3] for length in range(5, 45)], [0, 1] * 20)

    def reads(some: TokenisedTexts) -> np.ndarray:
        return np.array([some.ids[some.offsets[i] + 1] == 10 for i in range(len(some))])

    def counts(some: TokenisedTexts) -> np.ndarray:
        return np.array([(some.body(i, FRAME) == 10).any() for i in range(len(some))])

    assert row("bag", counts, texts, FRAME, 3)[2:] == ["100.0%", "+0.0 (+0.0 .. +0.0)"]
    worth = row("reader", reads, texts, FRAME, 3)[3]
    assert float(worth.split(" (")[0]) > 80, worth


def test_the_command_prints_a_row_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = small_bundle(tmp_path / "bundle", random_graph(np.random.default_rng(0), blocks=1, n_max=6))
    texts = tmp_path / "texts.tsv"
    texts.write_text("text\tlabel\na good film\t0\nbad dull film\t1\n")
    teacher = make_teacher(tmp_path / "teacher")
    assert main([f"{bundle.folder}={texts}", "--models", f"{teacher}={texts}", "--shuffles", "2"]) == 0
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [str(bundle.folder), str(teacher)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give a BUNDLE=TEXTS"),
        (["x=y", "--shuffles", "0"], "1 is the least"),
        (["sst2"], "give BUNDLE=TEXTS"),
        (["--models", "nowhere=texts.tsv"], "no folder of a model"),
    ],
)
def test_wrong_use_is_told(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
