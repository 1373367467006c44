"""Reading texts: what is accepted, what is refused and how, and batches that lose nothing."""

from __future__ import annotations

import gzip
import lzma
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from small_teachers import make_tokenizer
from transformers import AutoTokenizer

from spikebert import data
from spikebert.commands import UserError
from spikebert.data import (
    UNLABELLED,
    LabelledTexts,
    SpecialTokens,
    TokenisedTexts,
    TooManyTokens,
    check_text_files,
    hash_files,
    read_lines,
    read_split,
    read_texts,
    read_tsv,
    shuffled_batches,
    tokenise,
    tokenise_on_disk,
    word_count,
)
from spikebert.recipe import Data


def write(path, content: str):
    path.write_text(content, encoding="utf-8")
    return path


def test_a_tsv_is_read(tmp_path) -> None:
    texts = read_tsv(write(tmp_path / "a.tsv", 'text\tlabel\n"quoted" text\t1\n\t0\n'))
    assert texts.texts == ['"quoted" text', ""] and texts.labels == [1, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: no column 'text'"),
        ("text\tclass\nx\t1\n", "line 1: no column 'label'"),
        ("text\tlabel\n", "no texts below the header"),
        ("text\tlabel\nx\t1\nno label\n", "line 3: 1 columns, the header has 2"),
        ("text\tlabel\nx\tgood\n", "line 2: label 'good' is no integer"),
        ("text\tlabel\nx\t-1\n", "line 2: label '-1' is no integer"),
    ],
)
def test_a_malformed_tsv_is_refused_with_its_line(tmp_path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_tsv(write(tmp_path / "a.tsv", content))


def test_a_binary_or_missing_file_is_refused(tmp_path) -> None:
    (tmp_path / "binary.tsv").write_bytes(b"\x80\xff\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_tsv(tmp_path / "binary.tsv")
    with pytest.raises(UserError, match="no such file"):
        read_tsv(tmp_path / "missing.tsv")


def test_labels_may_be_names_of_the_classes(tmp_path) -> None:
    names = ["negative", "positive"]
    path = write(tmp_path / "a.tsv", "text\tlabel\nx\tpositive\ny\tnegative\n")
    assert read_tsv(path, names=names) == LabelledTexts(["x", "y"], [1, 0])
    with pytest.raises(UserError, match=r"line 2: label 'positive' is no integer of 0 or more; names of classes go in"):
        read_tsv(path)
    for label in ("neutral", "1"):  # all are names, or all are numbers
        mixed = write(tmp_path / "b.tsv", f"text\tlabel\nx\tpositive\ny\t{label}\n")
        with pytest.raises(UserError, match=rf"line 3: label '{label}' is none of data\.labels \(negative, positive\)"):
            read_tsv(mixed, names=names)
        assert read_texts(mixed) == ["x", "y"]
    others = write(tmp_path / "d.tsv", "text\tlabel\nx\t1\ny\tgood\n")
    with pytest.raises(
        UserError, match=r"line 3: label 'good' is no integer of 0 or more, and none of data\.labels \(neg"
    ):
        read_tsv(others, names=names)
    numbers = write(tmp_path / "c.tsv", "text\tlabel\nx\t1\ny\t0\n")
    assert read_tsv(numbers, names=names).labels == read_tsv(numbers).labels == [1, 0]
    assert read_tsv(numbers, names=["1", "0"]).labels == [1, 0], "numbers are numbers"
    (tmp_path / "train.tsv").write_text(path.read_text())
    assert read_split(Data(folder=str(tmp_path), labels=names), "train").labels == [1, 0]


def test_a_folder_needs_train_and_validation_but_no_test(tmp_path) -> None:
    write(tmp_path / "train.tsv", "text\tlabel\nx\t1\n")
    data = Data(folder=str(tmp_path))
    assert read_split(data, "train") is not None
    assert read_split(data, "test") is None
    with pytest.raises(UserError, match="validation"):
        read_split(data, "validation")
    with pytest.raises(UserError, match=r"data\.folder"):
        read_split(Data(), "train")


def test_the_reviews_are_shipped() -> None:
    sizes = [len(read_split(Data(folder="package:reviews"), split).texts) for split in ("train", "validation", "test")]
    assert sizes == [2383, 298, 298]


@pytest.mark.parametrize("suffix", [".txt", ".gz", ".xz"])
def test_lines_are_streamed_from_plain_and_packed_files(tmp_path, suffix: str) -> None:
    content = b"one\n\n two \nthree\nfour\n"
    pack = {".txt": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix]
    path = tmp_path / f"lines{suffix}"
    path.write_bytes(pack(content))
    assert list(read_lines([str(path)])) == ["one", "two", "three", "four"]
    assert list(read_lines([str(path)], limit=2)) == ["one", "two"]
    assert list(read_lines([str(path)], limit=2, longest_words=1)) == ["one", "two"]
    other = write(tmp_path / "other.txt", "eins\n")
    assert list(read_lines([str(path), str(other)], limit=4)) == ["one", "eins", "two", "three"], "in turns"


def test_long_lines_are_left_out_and_do_not_count(tmp_path) -> None:
    path = write(tmp_path / "lines.txt", "a b c\na b\nc d e f\ng\nh\n")
    assert list(read_lines([str(path)], longest_words=2)) == ["a b", "g", "h"]
    assert list(read_lines([str(path)], limit=2, longest_words=2)) == ["a b", "g"]


def test_a_chinese_character_is_a_word() -> None:
    assert word_count("味道很好，送餐也快") == 9, "the comma stands with a word, as an English one does"
    assert word_count("SpikeBERT 很好") == 3 and word_count("a gripping , funny film") == 5


def test_a_file_of_no_text_is_refused(tmp_path) -> None:
    (tmp_path / "a.xz").write_bytes(b"not packed")
    with pytest.raises(UserError, match="not a text file"):
        list(read_lines([str(tmp_path / "a.xz")]))
    with pytest.raises(UserError, match="no such text file"):
        list(read_lines([str(tmp_path / "missing.txt")]))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_tokenising_keeps_special_tokens_and_cuts(tokenizer) -> None:
    texts = tokenise(tokenizer, ["", "good film", "the " * 50], 6, [0, 1, 1])
    assert texts.lengths.tolist() == [2, 4, 6]
    batch = texts.batch(np.array([2, 0]), pad_id=0)
    assert batch["input_ids"][0, 0] == 2 and batch["input_ids"][0, -1] == 3, "[CLS] and [SEP] stay"
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]


def test_the_first_of_some_texts_are_texts_of_their_own() -> None:
    first = TokenisedTexts([[1, 2], [3], [4, 5, 6]]).first(2)
    joined = first + TokenisedTexts([[7, 8]])
    assert joined.select(np.arange(3)).ids.tolist() == joined.ids.tolist() == [1, 2, 3, 7, 8]


def test_tokenising_on_disk_gives_the_same(tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(data, "TEXTS_AT_ONCE", 3)
    lines = ["good film", "", "the " * 50, "bad", "a very warm soup", "it was", "sad"]
    expected = tokenise(tokenizer, lines, 6)
    for given in (iter(lines), iter(())):  # written, then taken as it is
        texts = tokenise_on_disk(tokenizer, given, 6, tmp_path / "texts")
        assert isinstance(texts.ids, np.memmap)
        for name in ("ids", "offsets", "labels"):
            found, wanted = getattr(texts, name), getattr(expected, name)
            assert np.array_equal(found, wanted) and found.dtype == wanted.dtype
    joined = texts + expected.select(np.array([2, 0]))
    assert joined.lengths.tolist() == [*expected.lengths, 6, 4]
    assert len(tokenise_on_disk(tokenizer, [], 6, tmp_path / "none")) == 0


def test_what_was_not_finished_is_tokenised_again(tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(data, "TEXTS_AT_ONCE", 2)

    def breaking() -> Iterator[str]:
        yield from ["good film", "bad film", "sad"]
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        tokenise_on_disk(tokenizer, breaking(), 6, tmp_path)
    assert (tmp_path / "ids.int32").stat().st_size > 0
    assert (
        tokenise_on_disk(tokenizer, ["bad"], 6, tmp_path).ids.tolist() == tokenise(tokenizer, ["bad"], 6).ids.tolist()
    )


def test_more_tokens_than_may_be_on_disk_are_refused(tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(data, "TEXTS_AT_ONCE", 2)
    lines = ["good film", "bad film", "sad film"]  # 4 ids of 4 bytes each
    assert len(tokenise_on_disk(tokenizer, lines, 6, tmp_path / "all", 48)) == 3
    with pytest.raises(TooManyTokens) as refused:
        tokenise_on_disk(tokenizer, lines, 6, tmp_path / "fewer", 47)
    assert refused.value.texts == 2
    assert not list((tmp_path / "fewer").iterdir())


def test_texts_are_read_as_they_are_needed(tokenizer, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(data, "TEXTS_AT_ONCE", 4)
    read: list[str] = []

    def lines() -> Iterator[str]:
        for _ in range(40):
            read.append("good")
            yield "good"

    class Watched:
        def __call__(self, texts: list[str], **options) -> dict:
            assert len(read) - self.done <= 4
            self.done += len(texts)
            return tokenizer(texts, **options)

        done = 0

    assert len(tokenise_on_disk(Watched(), lines(), 6, tmp_path)) == 40


class Hub:
    """Stands for the package `datasets`, which is an extra."""

    records = ({"text": "one\n\n two ", "title": "x"}, {"text": "three", "title": "y"})

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def load_dataset(self, name: str, subset: str | None, **options) -> Iterator[dict]:
        if name == "none":
            raise FileNotFoundError("no dataset 'none'\nsecond line")
        self.asked.append((name, subset, options))
        return iter(self.records)


@pytest.fixture
def hub(monkeypatch) -> Hub:
    found = Hub()
    monkeypatch.setitem(sys.modules, "datasets", found)
    return found


def test_lines_of_the_hub_are_streamed(hub, tmp_path) -> None:
    streamed = {"split": "train", "streaming": True}
    assert list(read_lines(["hub:some/texts"])) == ["one", "two", "three"]
    assert list(read_lines(["hub:some/texts:20231101.en:title"], limit=1)) == ["x"]
    assert hub.asked == [("some/texts", None, streamed), ("some/texts", "20231101.en", streamed)]
    (tmp_path / "a.txt").write_text("eins\n")
    assert list(read_lines([str(tmp_path / "a.txt"), "hub:a"])) == ["eins", "one", "two", "three"]
    check_text_files(["hub:some/texts"])
    assert hash_files(["hub:some/texts"]) != hash_files(["hub:others"])


def test_a_stream_that_breaks_is_told(hub, monkeypatch) -> None:
    def broken() -> Iterator[dict]:
        yield {"text": "one"}
        raise ConnectionError("the line is cut\nsecond line")

    monkeypatch.setattr(hub, "load_dataset", lambda *names, **options: broken())
    with pytest.raises(UserError, match=r"hub:a: the line is cut$"):
        list(read_lines(["hub:a"]))


def test_an_error_without_words_is_named(hub, monkeypatch) -> None:
    def broken(*names: str, **options: object) -> Iterator[dict]:
        raise TimeoutError

    monkeypatch.setattr(hub, "load_dataset", broken)
    with pytest.raises(UserError, match=r"hub:a: cannot load 'a': TimeoutError$"):
        list(read_lines(["hub:a"]))


def test_a_record_without_a_text_is_passed_over(hub, monkeypatch) -> None:
    monkeypatch.setattr(hub, "records", ({"text": "one"}, {"text": None}, {"text": "two"}))
    assert list(read_lines(["hub:a"])) == ["one", "two"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("hub:none", "hub:none: cannot load 'none': no dataset 'none'$"),
        ("hub:", "hub:: write hub:NAME"),
        ("hub:a:b:c:d", "write hub:NAME, hub:NAME:SUBSET or"),
        ("hub:a::body", r"no texts in column 'body', there are \['text', 'title'\]"),
    ],
)
def test_what_the_hub_lacks_is_told(hub, path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read_lines([path]))


class Rows:
    """Stands for a split of a dataset of the hub."""

    column_names = ("text", "label")

    def __init__(self, labels: list, texts: list | None = None) -> None:
        self.columns = {"label": labels, "text": texts or ["good film"] * len(labels)}

    def __getitem__(self, column: str) -> list:
        return self.columns[column]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (Rows([0, 0.9]), r"some/set has label 0\.9 in 'train', which is no integer: name another data\.label_column"),
        (Rows(["neg", "pos"]), r"has label 'neg' in 'train'"),
        (Rows([0, None]), r"has label None in 'train'"),
        (Rows([0.0, float("nan")]), r"has label nan in 'train'"),
        (Rows([]), r"some/set has no texts in 'train'"),
        (Rows([0, 1], ["good", None]), r"has rows without a text in 'train', column 'text'"),
        (Rows([0, -1]), r"keeps back the labels of 'train'"),
    ],
)
def test_rows_of_the_hub_that_are_none_of_ours_are_told(hub, monkeypatch, rows: Rows, message: str) -> None:
    monkeypatch.setattr(hub, "load_dataset", lambda *names, **options: {"train": rows, "test": Rows([])})
    data = Data(hub="some/set")
    with pytest.raises(UserError, match=message):
        read_split(data, "train")
    assert read_split(data, "test") is None


def test_labelled_texts_of_the_hub(hub, monkeypatch) -> None:
    for labels in ([0, 1], [False, True], ["0", "1"], [0.0, 1.0]):
        rows = Rows(labels, ["bad", "good"])
        monkeypatch.setattr(hub, "load_dataset", lambda *names, rows=rows, **options: {"train": rows})
        assert read_split(Data(hub="some/set"), "train") == LabelledTexts(["bad", "good"], [0, 1])


def test_without_the_extra_it_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"hub:a needs the package 'datasets': pip install 'spikebert\[hub\]'"):
        list(read_lines(["hub:a"]))


def test_a_real_dataset_is_streamed(tmp_path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text('{"text": "one\\ntwo"}\n{"text": "three"}\n')
    assert list(read_lines([f"hub:{tmp_path}"])) == ["one", "two", "three"]


def test_the_frame_of_a_text_is_found(tokenizer) -> None:
    frame = SpecialTokens.of(tokenizer)
    assert (frame.before, frame.after, frame.mask) == ((2,), (3,), None)
    texts = tokenise(tokenizer, ["good film", ""], 6)
    assert tokenizer.decode(texts.body(0, frame)) == "good film"
    assert len(texts.body(1, frame)) == 0


def test_texts_are_joined_and_chosen_without_mixing_them_up() -> None:
    first, second = TokenisedTexts([[1, 2], [3]], [0, 1]), TokenisedTexts([[4, 5, 6]])
    both = first + second
    assert both.batch(np.array([2, 1]), 0)["input_ids"].tolist() == [[4, 5, 6], [3, 0, 0]]
    assert both.labels.tolist() == [0, 1, UNLABELLED]
    chosen = both.select(np.array([2, 0]))
    assert chosen.batch(np.array([0, 1]), 9)["input_ids"].tolist() == [[4, 5, 6], [1, 2, 9]]
    assert len(both.select(np.array([], dtype=int))) == 0
    assert both.lengths_of(np.array([2, 0])).tolist() == [3, 2] and both.lengths.tolist() == [2, 1, 3]


def test_batches_hold_every_text_once_and_repeat_for_the_same_seed() -> None:
    batches = shuffled_batches(103, 10, (1, 2))
    assert sorted(np.concatenate(batches).tolist()) == list(range(103))
    assert all(np.array_equal(a, b) for a, b in zip(batches, shuffled_batches(103, 10, (1, 2))))
    assert not np.array_equal(batches[0], shuffled_batches(103, 10, (1, 3))[0])
