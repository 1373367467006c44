"""The report in a real browser: Chromium opens it, says nothing on its console, and shows what it must."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from browser import needs_browser, open_in_browser
from random_graphs import random_graph
from small_reports import small_report

from converters.report.page import report_page

pytestmark = needs_browser


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
