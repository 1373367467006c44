"""The rows of a file of texts, one after the other. A bad row is an item like the others, not the end of the file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from spikebert.commands import UserError, missing_extra

HEADERS = "'text' or 'text<TAB>label'"
FORMATS = ".jsonl (an object a line), .parquet, or anything else: tab-separated UTF-8 with a header"
WHOLE = re.compile(r"[0-9]+(\.0+)?")  # a label that is a number
LINE_BYTES = 2**20  # a longer line is a bad row: no text is that long, and memory stays bounded
PEEK_BYTES = 2**16  # of a file, searched for a zero byte
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # that some programs begin a file with
TABLE_ROWS = 1024  # of a Parquet file, read at a time


@dataclass(frozen=True)
class Row:
    """A text; `number` is its line in the file (the header is line 1), or its row in a table, from 1."""

    number: int
    text: str
    label: int | None = None


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read, and why."""

    number: int
    reason: str


@dataclass(frozen=True)
class Rows:
    """A file of texts being read.

    items  its rows in order; read as they are asked for
    total  at most so many rows, for a progress bar
    unit   what `number` counts: "line" or "row"
    """

    items: Iterator[Row | BadRow]
    total: int
    unit: str = "line"


def open_rows(path: Path, class_names: Sequence[str], limit: int | None = None) -> Rows:
    """Begin to read a file with a column `text` and perhaps `label`; its format follows from its name (`FORMATS`).

    A label is a class number or one of `class_names`; a row may have none (null, or an empty field). Only the first
    `limit` rows are read. Raises UserError, with the file and what to do, for a file that cannot be read, is binary,
    has no column `text`, or has no rows.
    """
    readers: dict[str, Callable[[Path, Sequence[str]], Rows]] = {".jsonl": _open_jsonl, ".parquet": _open_parquet}
    try:
        rows = readers.get(path.suffix.lower(), _open_tsv)(path, class_names)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}. Give {FORMATS}") from error
    first = next(rows.items, None)
    if first is None:
        raise UserError(f"{path} has no rows. Add one for each text")
    total = rows.total if limit is None else min(rows.total, limit)
    return replace(rows, items=islice(chain([first], rows.items), limit), total=total)


def _open_tsv(path: Path, class_names: Sequence[str]) -> Rows:
    try:
        columns = _decoded(_first_line(path).removeprefix(BYTE_ORDER_MARK)).split("\t")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line 1: not UTF-8 ({error.reason}). Give {FORMATS}") from error
    if "text" not in columns:
        raise UserError(f"{path}, line 1: no column 'text', it has {columns!r:.100}. The first line must be {HEADERS}")
    text, label = columns.index("text"), columns.index("label") if "label" in columns else None

    def row(number: int, line: str) -> Row:
        fields = line.split("\t")
        if len(fields) != len(columns):
            raise ValueError(f"{len(fields)} columns, the header has {len(columns)}: separate columns by one tab")
        return Row(number, fields[text], None if label is None else _class(fields[label], class_names))

    return Rows(_lines(path, row, header=True), max(1, _count_lines(path) - 1))


def _open_jsonl(path: Path, class_names: Sequence[str]) -> Rows:
    _first_line(path)  # or it is binary

    def row(number: int, line: str) -> Row:
        return _row_of(number, json.loads(line), class_names)

    return Rows(_lines(path, row, header=False), _count_lines(path))


def _open_parquet(path: Path, class_names: Sequence[str]) -> Rows:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise missing_extra("pyarrow") from error
    with open(path, "rb"):  # pyarrow has words of its own for what the system says
        pass
    try:
        table = ParquetFile(path)
    except ArrowException as error:
        raise UserError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from error
    columns = table.schema_arrow.names
    if "text" not in columns:
        raise UserError(f"{path}: no column 'text', it has {columns!r:.100}")
    labelled = "label" in columns

    def rows() -> Iterator[Row | BadRow]:
        wanted, number = (["text", "label"] if labelled else ["text"]), 0
        try:
            for batch in table.iter_batches(TABLE_ROWS, columns=wanted):
                for place in range(len(batch)):
                    number += 1
                    try:
                        record = {name: batch.column(name)[place].as_py() for name in wanted}
                        yield _row_of(number, record, class_names)
                    except UnicodeDecodeError as error:  # those who write the format need not look
                        yield BadRow(number, f"not UTF-8 ({error.reason})")
                    except ValueError as error:
                        yield BadRow(number, str(error))
        except (OSError, ArrowException) as error:
            raise UserError(f"{path}: damaged behind row {number} ({str(error).splitlines()[0]})") from error

    return Rows(rows(), table.metadata.num_rows, unit="row")


def _first_line(path: Path) -> bytes:
    """The first line of a text file. Raises UserError where a zero byte says that the file is binary: one in its first
    two lines. Further on it is a bad row among others."""
    with open(path, "rb") as file:
        start = file.read(PEEK_BYTES)
        if b"\0" in start and (line := start[: start.index(b"\0")].count(b"\n") + 1) <= 2:
            raise UserError(f"{path}, line {line}: a zero byte, so this is a binary file. Give {FORMATS}")
        file.seek(0)
        return file.readline(LINE_BYTES)


def _lines(path: Path, row: Callable[[int, str], Row], header: bool) -> Iterator[Row | BadRow]:
    """The rows of a file of lines. Only \\n and \\r\\n end a line: a text may hold rarer breaks."""
    number = 1
    with open(path, "rb") as file:
        if header:
            file.readline()
            number = 2
        while line := file.readline(LINE_BYTES):
            try:
                if len(line) == LINE_BYTES and not line.endswith(b"\n"):
                    _skip_line(file)
                    raise ValueError(f"longer than {LINE_BYTES:,} bytes")
                if b"\0" in line:
                    raise ValueError("a zero byte")
                yield row(number, _decoded(line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line))
            except UnicodeDecodeError as error:
                yield BadRow(number, f"not UTF-8 ({error.reason})")
            except json.JSONDecodeError as error:
                yield BadRow(number, f"not JSON ({error})")
            except RecursionError:
                yield BadRow(number, "not JSON (nested too deeply)")
            except ValueError as error:
                yield BadRow(number, str(error))
            number += 1


def _decoded(line: bytes) -> str:
    return line.removesuffix(b"\n").removesuffix(b"\r").decode()


def _skip_line(file: BinaryIO) -> None:
    while (piece := file.readline(LINE_BYTES)) and not piece.endswith(b"\n"):
        pass


def _row_of(number: int, record: object, class_names: Sequence[str]) -> Row:
    """A row from an object with fields. Raises ValueError where it is none."""
    if not isinstance(record, dict):
        raise ValueError("no object with a field 'text'")
    text = record.get("text")
    if not isinstance(text, str):
        raise ValueError(f"its 'text' is {text!r:.60}, not a string")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("its 'text' holds half a character (a lone surrogate)") from None
    return Row(number, text, _class(record.get("label"), class_names))


def _class(label: object, class_names: Sequence[str]) -> int | None:
    """The number of a class given by name or number; None where none is given. Raises ValueError for all else.

    A column of numbers in which some are missing is often written as floats: 1.0, and no number (NaN) for none.
    """
    if label is None or label == "" or label != label:
        return None
    if isinstance(label, str) and label in class_names:
        return list(class_names).index(label)
    number = int(label.partition(".")[0]) if isinstance(label, str) and WHOLE.fullmatch(label) else label
    number = int(number) if isinstance(number, float) and number.is_integer() else number
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(class_names):
        return number
    raise ValueError(f"label {label!r:.60} is no class: use 0 .. {len(class_names) - 1} or {', '.join(class_names)}")


def _count_lines(path: Path) -> int:
    with open(path, "rb") as file:
        lines, last = 0, b"\n"
        while block := file.read(LINE_BYTES):
            lines, last = lines + block.count(b"\n"), block[-1:]
        return lines + (last != b"\n")
