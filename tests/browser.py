"""Opens a page in a real browser, where there is one, for the tests of our pages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
DARK = "--blink-settings=preferredColorScheme=0"

needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine to open the report in: apt-get install chromium"
)


def open_in_browser(page: str, folder: Path, *flags: str) -> tuple[str, list[str]]:
    """The document as it is after its script ran, and the lines that the browser wrote on its console."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"),
        *("--enable-logging=stderr", "--v=0", "--window-size=1280,900", *flags, "--dump-dom"),
        (folder / "page.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
