"""Reading texts and labels from a tab-separated file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spikebert.commands import UserError

HEADERS = "'text' or 'text<TAB>label'"


@dataclass(frozen=True)
class TextFile:
    """The rows of a file: texts, and the class of each where the file has a column `label`."""

    texts: tuple[str, ...]
    labels: tuple[int, ...] | None


def read_text_file(path: Path, class_names: Sequence[str], limit: int | None = None) -> TextFile:
    """Read a UTF-8 file whose first line names its columns, `text` and perhaps `label`, separated by tabs.

    A label is a class number or one of `class_names`. Only the first `limit` rows are read. Raises UserError with
    the file, the line number (the header is line 1) and what to do.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}. Give a tab-separated text file") from error
    lines = _lines(content, path)
    columns = lines[0].split("\t")
    if "text" not in columns:
        raise UserError(f"{path}, line 1: no column 'text', it has {columns!r:.100}. The first line must be {HEADERS}")
    rows = [_fields(line, len(columns), path, number) for number, line in enumerate(lines[1:], start=2)][:limit]
    if not rows:
        raise UserError(f"{path} has no rows after its header. Add a line for each text")
    texts = tuple(row[columns.index("text")] for row in rows)
    if "label" not in columns:
        return TextFile(texts, None)
    column = columns.index("label")
    return TextFile(
        texts, tuple(_class(row[column], class_names, path, line) for line, row in enumerate(rows, start=2))
    )


def _lines(content: bytes, path: Path) -> list[str]:
    """The lines, without the last empty one. Only \\n and \\r\\n end a line: a text may hold rarer breaks."""
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: a zero byte, so this is a binary file. Give a tab-separated text file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 ({error.reason}). Save the file as UTF-8") from error
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _fields(line: str, columns: int, path: Path, number: int) -> list[str]:
    fields = line.split("\t")
    if len(fields) != columns:
        raise UserError(
            f"{path}, line {number}: {len(fields)} columns, the header has {columns}. Separate columns by one tab"
        )
    return fields


def _class(label: str, class_names: Sequence[str], path: Path, number: int) -> int:
    if label in class_names:
        return list(class_names).index(label)
    if label.isascii() and label.isdigit() and int(label) < len(class_names):
        return int(label)
    names = ", ".join(class_names)
    raise UserError(
        f"{path}, line {number}: label {label!r:.60} is no class. Use 0 .. {len(class_names) - 1} or {names}"
    )
