"""Texts cut to so many tokens: cut as a bundle of such an n_max would, run by the engine, compared with the longest."""

from __future__ import annotations

import numpy as np
import pytest
from random_graphs import random_graph
from small_bundles import small_bundle

from benchmarks.text_lengths import cut_texts, main, measure, read_labelled
from converters.bundle import Bundle
from sim.reference import ReferenceEngine
from spikebert.data import LabelledTexts

TEXTS = LabelledTexts(["a good film", "bad", "a dull dull dull film", "fun"], [2, 0, 1, 1])


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    return small_bundle(tmp_path / "bundle", random_graph(np.random.default_rng(0), blocks=1, n_max=6))


def test_texts_lose_their_end_and_keep_the_special_tokens(bundle) -> None:
    begin, end = (bundle.tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    whole, cut = cut_texts(bundle, TEXTS, 6)
    assert whole.lengths.tolist() == [5, 3, 6, 3] and cut == 1
    short, cut = cut_texts(bundle, TEXTS, 4)
    assert short.lengths.tolist() == [4, 3, 4, 3] and cut == 2
    for before, after in zip(np.split(whole.ids, whole.offsets[1:-1]), np.split(short.ids, short.offsets[1:-1])):
        assert after[0] == begin and after[-1] == end and np.array_equal(after[:-1], before[: len(after) - 1])
    assert bundle.tokenise(TEXTS.texts[2]).ids == tuple(whole.ids[8:14]), "the bundle cuts as before"


def test_each_length_is_run_by_the_engine(bundle) -> None:
    found = measure(bundle, TEXTS, [3, 6, 4, 6])
    assert list(found) == [6, 4, 3]
    assert [cut for _, cut in found.values()] == [1, 2, 2]
    for length, (measured, _) in found.items():
        texts, _ = cut_texts(bundle, TEXTS, length)
        batch = texts.batch(np.arange(4), bundle.pad_id)
        ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
        predictions = ReferenceEngine(bundle.graph).run(type(bundle.golden.batch)(ids, mask)).predictions
        assert np.array_equal(measured.right, predictions == np.array(TEXTS.labels))
        assert measured.tokens == texts.lengths.sum()
    counts = [measured.activity.total.synaptic_operations for measured, _ in found.values()]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def test_the_command_prints_a_row_for_each_length(bundle, tmp_path, capsys) -> None:
    file = tmp_path / "texts.tsv"
    rows = [f"{text}\t{bundle.labels[label]}" for text, label in zip(TEXTS.texts, TEXTS.labels)]
    file.write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    assert read_labelled(file, bundle.labels) == TEXTS
    assert main([str(bundle.folder), "--file", str(file), "--lengths", "3", "6"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["6", "3"]
    assert "25.0%" in table[2] and "50.0%" in table[3]
    assert table[2].split("|")[4].strip() == "" and ".." in table[3].split("|")[4]


@pytest.mark.parametrize("length", [2, 7])
def test_lengths_that_the_bundle_cannot_take_are_refused(bundle, tmp_path, capsys, length) -> None:
    file = tmp_path / "texts.tsv"
    file.write_text("text\tlabel\na good film\t1\n")
    assert main([str(bundle.folder), "--file", str(file), "--lengths", str(length)]) == 2
    assert f"--lengths {length}" in capsys.readouterr().err


def test_texts_without_labels_are_refused(bundle, tmp_path, capsys) -> None:
    file = tmp_path / "texts.tsv"
    file.write_text("text\na good film\n")
    assert main([str(bundle.folder), "--file", str(file)]) == 2
    assert "no row has a label" in capsys.readouterr().err


def test_rows_that_cannot_be_read_are_named(bundle, tmp_path, capsys) -> None:
    file = tmp_path / "texts.tsv"
    file.write_text("text\tlabel\na good film\t1\nbad\tgruesome\n")
    assert main([str(bundle.folder), "--file", str(file)]) == 2
    assert "row 3" in capsys.readouterr().err
