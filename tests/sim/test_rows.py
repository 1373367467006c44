"""What is read from a file of texts, which rows are bad, and which files are refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.rows import LINE_BYTES, BadRow, Row, open_rows
from spikebert.commands import UserError

NAMES = ("negative", "positive")


@pytest.fixture
def read(tmp_path):
    """Writes a file of this content and reads its rows."""

    def read_content(content: bytes, name: str = "data.tsv", **options):
        path = tmp_path / name
        path.write_bytes(content)
        rows = open_rows(path, NAMES, **options)
        items = list(rows.items)
        assert rows.total >= len(items)
        return items

    return read_content


def test_texts_and_labels(read):
    expected = [Row(2, "schön", 1), Row(3, "bad ", 0)]
    assert read("text\tlabel\nschön\t1\nbad \tnegative\n".encode()) == expected


def test_texts_alone_and_empty_ones(read):
    assert read(b"text\none\n\ntwo") == [Row(2, "one"), Row(3, ""), Row(4, "two")]


def test_columns_in_another_order_byte_order_mark_and_windows_lines(read):
    assert read("\ufefflabel\tid\ttext\r\n0\t7\tone\r\n".encode()) == [Row(2, "one", 0)]


def test_rare_line_breaks_stay_in_a_text(read):
    assert read("text\na\u2028b\x0bc\n".encode()) == [Row(2, "a\u2028b\x0bc")]


@pytest.mark.parametrize("limit", [1, 2, 3, 9])
def test_limit(read, limit):
    assert [row.text for row in read(b"text\na\nb\nc\n", limit=limit)] == ["a", "b", "c"][:limit]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"b\n", "1 columns, the header has 2"),
        (b"a\tb\t1\n", "3 columns, the header has 2"),
        (b"a\t2\n", "label '2' is no class"),
        (b"a\tgreat\n", "label 'great' is no class: use 0 .. 1 or negative, positive"),
        (b"a\t \n", "label ' ' is no class"),
        (b"b\xff\t1\n", "not UTF-8"),
        (b"x" * LINE_BYTES + b"\t1\n", "longer than 1,048,576 bytes"),
        (b"x" * (3 * LINE_BYTES - 1) + b"\n", "longer than 1,048,576 bytes"),
    ],
)
def test_a_bad_row_is_told_and_the_others_are_read(read, content, reason):
    first, bad, last = read(b"text\tlabel\nfine\t1\n" + content + b"fine too\t0\n")
    assert (first, last) == (Row(2, "fine", 1), Row(4, "fine too", 0))
    assert isinstance(bad, BadRow) and bad.number == 3 and reason in bad.reason


def test_a_row_may_have_no_label(read):
    assert read(b"text\tlabel\na\t1\nb\t\n\t0.0\n") == [Row(2, "a", 1), Row(3, "b"), Row(4, "", 0)]


def test_a_zero_byte_far_into_a_file_is_one_bad_row(read):
    rows = read(b"text\n" + b"fine\n" * 20_000 + b"a\0b\nlast")
    assert rows[20_000] == BadRow(20_002, "a zero byte") and rows[20_001] == Row(20_003, "last")


def test_a_zero_byte_in_a_row_is_one_bad_row(read):
    assert read(b"text\nfine\na\0b\nlast") == [Row(2, "fine"), BadRow(3, "a zero byte"), Row(4, "last")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"line 1: no column 'text'"),
        (b"sentence\tlabel\na\t1\n", r"line 1: no column 'text'"),
        (b"text\tlabel\n", "has no rows"),
        (b"text\n\x7fELF\x00\x01", "line 2: a zero byte, so this is a binary file"),
    ],
)
def test_a_file_of_another_kind_is_refused(read, content, message):
    with pytest.raises(UserError, match=message) as error:
        read(content)
    assert "data.tsv" in str(error.value)


@pytest.mark.parametrize("name", ["none.tsv", "none.jsonl", "none.parquet"])
def test_a_missing_file_is_named(tmp_path, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match=f"cannot read .*{name}: No such file"):
        open_rows(tmp_path / name, NAMES)
    with pytest.raises(UserError, match="Is a directory"):
        open_rows(tmp_path, NAMES)


def test_json_lines(read):
    content = b'{"text": "one", "label": 1}\n{"label": "negative", "text": "two", "id": 7}\n'
    assert read(content, "data.jsonl") == [Row(1, "one", 1), Row(2, "two", 0)]
    floats = b'{"text": "one", "label": 1.0}\n{"text": "two", "label": NaN}'
    assert read(floats, "data.jsonl") == [Row(1, "one", 1), Row(2, "two")]
    some = b'{"text": "one"}\n{"text": "two", "label": 1}\n{"text": "three", "label": null}'
    assert read(some, "data.JSONL") == [Row(1, "one"), Row(2, "two", 1), Row(3, "three")]
    with pytest.raises(UserError, match="has no rows"):
        read(b"", "data.jsonl")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "no object with a field 'text'"),
        ('{"label": 1}', "its 'text' is None, not a string"),
        ('{"text": 3, "label": 1}', "its 'text' is 3"),
        ('{"text": "a", "label": true}', "label True is no class"),
        ('{"text": "a", "label": 2}', "label 2 is no class"),
        ('{"text": "a", "label": -1}', "label -1 is no class"),
        ('{"text": "a", "label": 0.5}', "label 0.5 is no class"),
        ('{"text": "a", "label": Infinity}', "label inf is no class"),
        ('{"text": "\\ud800", "label": 1}', "half a character"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON (nested too deeply)"),
        ('{"text": ' * 100_000, "not JSON (nested too deeply)"),
    ],
)
def test_a_bad_json_line(read, line, reason):
    fine = '{"text": "fine", "label": 1}\n'
    first, bad, last = read((fine + line + "\n" + fine).encode(), "data.jsonl")
    assert (first, last) == (Row(1, "fine", 1), Row(3, "fine", 1))
    assert isinstance(bad, BadRow) and bad.number == 2 and reason in bad.reason


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    path = tmp_path / "data.parquet"
    write_table(pyarrow.table({"text": ["one", "two"], "label": [0, None]}), path)
    assert list(open_rows(path, NAMES).items) == [Row(1, "one", 0), Row(2, "two")]
    floats = pyarrow.array([1.0, float("nan"), None], pyarrow.float64())
    write_table(pyarrow.table({"text": ["one", "two", "three"], "label": floats}), path)
    assert list(open_rows(path, NAMES).items) == [Row(1, "one", 1), Row(2, "two"), Row(3, "three")]
    write_table(pyarrow.table({"text": ["one", None, "three"] * 1000, "label": [0, 1, 5] * 1000}), path)
    rows = open_rows(path, NAMES, limit=2999)
    items = list(rows.items)
    assert (rows.total, rows.unit, len(items)) == (2999, "row", 2999)
    assert items[0] == Row(1, "one", 0) and items[2997] == Row(2998, "one", 0)
    assert items[1] == BadRow(2, "its 'text' is None, not a string")
    assert items[2].number == 3 and "label 5 is no class" in items[2].reason
    write_table(pyarrow.table({"words": ["one"]}), path)
    with pytest.raises(UserError, match="no column 'text'"):
        open_rows(path, NAMES)
    path.write_bytes(b"text\nno table\n")
    with pytest.raises(UserError, match="not a Parquet file"):
        open_rows(path, NAMES)


def test_a_bad_row_of_a_table_is_told_and_the_others_are_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    path = tmp_path / "data.parquet"
    raw = pyarrow.array([b"one", b"caf\xe9", b"three"], pyarrow.binary())
    text = pyarrow.StringArray.from_buffers(3, *raw.buffers()[1:])  # nobody looks at what is in there
    write_table(pyarrow.table({"text": text}), path)
    first, bad, last = open_rows(path, NAMES).items
    assert (first, last) == (Row(1, "one"), Row(3, "three"))
    assert bad.number == 2 and bad.reason.startswith("not UTF-8")


def test_a_damaged_page_of_a_table_is_named(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    path = tmp_path / "data.parquet"
    texts = [f"text {i}" for i in range(3000)]
    write_table(pyarrow.table({"text": texts}), path, row_group_size=1024, use_dictionary=False)
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[half : half + 2000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"data\.parquet: damaged behind row 1024 \("):
        list(open_rows(path, NAMES).items)


def test_json_lines_may_begin_with_a_byte_order_mark(read):
    line = '{"text": "fine", "label": 1}\n'
    assert read(("\ufeff" + line + line).encode(), "data.jsonl") == [Row(1, "fine", 1), Row(2, "fine", 1)]


TEXTS = st.text(st.characters(exclude_characters="\t\n\r\0", exclude_categories=["Cs"]))


@given(texts=st.lists(TEXTS, min_size=1), labels=st.lists(st.integers(0, 1), min_size=1))
def test_every_text_comes_back(tmp_path_factory, texts, labels):
    rows = [(text, labels[i % len(labels)]) for i, text in enumerate(texts)]
    folder = tmp_path_factory.mktemp("rows")
    lines = [f"{text}\t{label}\n" for text, label in rows]
    (folder / "a.tsv").write_text("text\tlabel\n" + "".join(lines), encoding="utf-8", newline="")
    objects = [json.dumps({"text": text, "label": label}) + "\n" for text, label in rows]
    (folder / "a.jsonl").write_text("".join(objects), encoding="utf-8", newline="")
    for name in ("a.tsv", "a.jsonl"):
        assert [(row.text, row.label) for row in open_rows(folder / name, NAMES).items] == rows
