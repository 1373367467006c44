"""Whether a Loihi 2 chip can be reached from here. Lava is asked; nothing is started.

What the public code of lava-nc 0.10.0 tells of it: `lava.utils.system.Loihi2.is_loihi2_available` looks for the
compiler in Intel's extension, which members of Intel's research community get; `lava.utils.loihi` reaches a board over
SLURM or over the network, and leaves its address in `NXSDKHOST`.
"""

from __future__ import annotations

import os
import shutil


class NoLoihi2Error(RuntimeError):
    """No chip can be reached. The message says what is missing, in one line."""


def require_loihi2() -> None:
    """Raises NoLoihi2Error unless Lava, Intel's extension and a way to a board are here.

    Where the extension is, Lava sets `SLURM` and `LOIHI_GEN` in the environment, unless they are set.
    """
    lacking = missing()
    if lacking is not None:
        raise NoLoihi2Error(f"no Loihi 2 chip here: {lacking} (docs/loihi2.md)")


def missing() -> str | None:
    """The first thing that is missing, for a person; None where nothing is."""
    try:
        from lava.utils import slurm
        from lava.utils.system import Loihi2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "lava":
            raise
        return "Lava is not installed. Install it with: pip install 'spikebert[lava]' (Python 3.10)"
    if not Loihi2.is_loihi2_available:
        return "Lava has no compiler for it. That is in Intel's extension lava-loihi, for members of Intel's INRC"
    answers = shutil.which("sinfo") is not None and slurm.is_available()  # without `sinfo` Lava's question raises
    if not (answers or os.environ.get("NXSDKHOST") or os.environ.get("NOSLURM")):
        return "Intel's extension is here, but no board: no SLURM controller answers `sinfo`, NXSDKHOST is not set"
    return None
