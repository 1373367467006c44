"""SpikingJelly, imported without lava-dl.

    with spikingjelly_alone():
        from spikingjelly.activation_based import neuron

SpikingJelly imports lava-dl wherever it is installed, for a backend that nothing here uses. That takes as long
as to import torch, and prints what is missing for CUDA and for a demo.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator

BACKEND = "lava.lib.dl.slayer"


@contextlib.contextmanager
def spikingjelly_alone() -> Iterator[None]:
    """While this is open lava-dl cannot be imported, if nobody did before. Afterwards it can, but a SpikingJelly that
    was imported here has no backend "lava": whoever wants that imports SpikingJelly first."""
    hidden = BACKEND not in sys.modules
    if hidden:
        sys.modules[BACKEND] = None  # type: ignore[assignment]  # Python's own way to say that there is none
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
            yield
    finally:
        if hidden:
            del sys.modules[BACKEND]
