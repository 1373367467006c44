"""What is read from a tab-separated file, and what is refused with the line that is wrong."""

import pytest

from sim.text_file import read_text_file
from spikebert.commands import UserError

NAMES = ("negative", "positive")


@pytest.fixture
def write(tmp_path):
    def write_content(content: bytes):
        path = tmp_path / "data.tsv"
        path.write_bytes(content)
        return path

    return write_content


def test_texts_and_labels(write):
    file = read_text_file(write("text\tlabel\nschön\t1\nbad \tnegative\n".encode()), NAMES)
    assert file.texts == ("schön", "bad ")
    assert file.labels == (1, 0)


def test_texts_alone_and_empty_ones(write):
    file = read_text_file(write(b"text\none\n\ntwo"), NAMES)
    assert file.texts == ("one", "", "two")
    assert file.labels is None


def test_columns_in_another_order_byte_order_mark_and_windows_lines(write):
    file = read_text_file(write("\ufefflabel\tid\ttext\r\n0\t7\tone\r\n".encode()), NAMES)
    assert (file.texts, file.labels) == (("one",), (0,))


def test_rare_line_breaks_stay_in_a_text(write):
    assert read_text_file(write("text\na\u2028b\x0bc\n".encode()), NAMES).texts == ("a\u2028b\x0bc",)


def test_limit(write):
    assert read_text_file(write(b"text\na\nb\nc\n"), NAMES, limit=2).texts == ("a", "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"line 1: no column 'text'"),
        (b"sentence\tlabel\na\t1\n", r"line 1: no column 'text'"),
        (b"text\tlabel\n", "no rows"),
        (b"text\tlabel\na\t1\nb\n", "line 3: 1 columns, the header has 2"),
        (b"text\tlabel\na\tb\t1\n", "line 2: 3 columns"),
        (b"text\tlabel\na\t2\n", "line 2: label '2' is no class"),
        (b"text\tlabel\na\tgreat\n", "line 2: label 'great' is no class"),
        (b"text\tlabel\na\t\n", "line 2: label '' is no class"),
        (b"text\na\nb\xff\n", "line 3: not UTF-8"),
        (b"text\n\x7fELF\x00\x01", "line 2: a zero byte, so this is a binary file"),
    ],
)
def test_bad_files_are_refused_with_the_line(write, content, message):
    with pytest.raises(UserError, match=message) as error:
        read_text_file(write(content), NAMES)
    assert "data.tsv" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.tsv: No such file"):
        read_text_file(tmp_path / "none.tsv", NAMES)
    with pytest.raises(UserError, match="Is a directory"):
        read_text_file(tmp_path, NAMES)
