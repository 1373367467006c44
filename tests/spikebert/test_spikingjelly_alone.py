"""SpikingJelly does not bring lava-dl with it when we import it, and who wants lava-dl has it."""

import subprocess
import sys

import pytest

OURS = "import sys, spikebert; spikebert.from_spikingjelly; slayer = 'lava.lib.dl.slayer' in sys.modules; "


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_ours_does_not_import_lava_dl_and_prints_nothing() -> None:
    done = run(OURS + "assert not slayer and 'spikingjelly' in sys.modules")
    assert (done.stdout, done.stderr) == ("", "")


def test_lava_dl_can_be_imported_afterwards_and_stays_where_it_was_before() -> None:
    pytest.importorskip("lava.lib.dl")
    run(OURS + "import lava.lib.dl.slayer as found; assert found.__name__ in sys.modules and found.block")
    run("import lava.lib.dl.slayer as before; " + OURS + "assert slayer and sys.modules[before.__name__] is before")
