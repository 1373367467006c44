"""The report in a real browser: Chromium opens it, says nothing on its console, and shows what it must."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from random_graphs import random_graph
from small_reports import small_report

from converters.report.page import report_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine to open the report in: apt-get install chromium"
)


def open_in_browser(page: str, folder: Path) -> tuple[str, list[str]]:
    """The document as it is after its script ran, and the lines that the browser wrote on its console."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"),
        *("--enable-logging=stderr", "--v=0", "--window-size=1280,900", "--dump-dom"),
        (folder / "page.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def page() -> str:
    return report_page(small_report(random_graph(np.random.default_rng(0), blocks=5), target="lava"))


def test_it_opens_without_a_word_on_the_console(page: str, tmp_path: Path) -> None:
    document, console = open_in_browser(page, tmp_path)
    assert console == []
    assert "<h1>small</h1>" in document and document.count('class="graph"') == 7
    assert 'hidden=""' not in document, "the script ran: it shows the buttons"


def test_its_button_opens_all_parts_of_a_section_and_closes_them(page: str, tmp_path: Path) -> None:
    press = """<script>
        const section = document.getElementById("weights").parentElement, parts = section.querySelectorAll("details");
        const open = () => [...parts].filter((part) => part.open).length;
        const said = [parts.length, open()];
        for (const _ of [1, 2]) { section.querySelector("button").click(); said.push(open()); }
        document.title = said.join(" ");
    </script></body>"""
    document, console = open_in_browser(page.replace("</body>", press), tmp_path)
    assert console == []
    assert "<title>7 3 7 0</title>" in document


def test_it_is_no_wider_than_the_window(page: str, tmp_path: Path) -> None:
    measure = "<script>document.title = document.documentElement.scrollWidth <= innerWidth;</script></body>"
    everything = page.replace("<details", "<details open").replace("</body>", measure)
    document, _ = open_in_browser(everything.replace("<body", '<body style="width: 420px"'), tmp_path)
    assert "<title>true</title>" in document


@pytest.mark.parametrize(
    "mistake", ["<script>nothing.at_all();</script>", "<script src='https://example.org/x.js'></script>"]
)
def test_a_mistake_would_be_heard(page: str, tmp_path: Path, mistake: str) -> None:
    """A script that fails, and one from elsewhere, which the page's own policy refuses."""
    _, console = open_in_browser(page.replace("</main>", f"</main>{mistake}"), tmp_path)
    assert len(console) >= 1
