"""Writes report.json and report.html into the folder of a bundle."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from converters.report.contents import Report
from converters.report.page import report_page

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
# A list of numbers over several lines; a text never holds a line's end, so this finds no part of one.
NUMBERS = re.compile(r"\[\n[^\[\]{}\"]*\]")


def write_report(folder: Path, report: Report) -> None:
    """Both files. The same report gives the same bytes."""
    (folder / REPORT_JSON).write_bytes(readable_json(report.to_json()))
    (folder / REPORT_HTML).write_bytes(report_page(report).encode())


def readable_json(document: Any) -> bytes:
    """JSON of which each list of numbers stands on one line. Raises ValueError for NaN and infinity."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    return (NUMBERS.sub(lambda found: " ".join(found[0].split()), text) + "\n").encode()


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below a folder, by its path with `/` between folders."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
