"""What the page of a run tells, as plain data."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec

from converters.bundle import Bundle
from sim.energy import SHIPPED, Energy, estimate, read_cost_table
from sim.page.raster import Raster
from sim.run import Summary

LIBRARIES = ("spikebert", "numpy", "numba", "tokenizers", "torch")
LAVA = "lava-nc"


@dataclass(frozen=True, eq=False)
class Sentence:
    """The one whose spikes are shown.

    name        for people
    probability of the class that was predicted
    """

    name: str
    prediction: str
    probability: float
    raster: Raster


@dataclass(frozen=True, eq=False)
class RunReport:
    """A run.

    bundle    and `summary`: what was run and what came of it
    energies  estimates by some cost tables
    sentence  whose spikes are shown
    facts     (what, value) of all that it takes to do the run again
    """

    bundle: Bundle
    summary: Summary
    energies: Sequence[Energy]
    sentence: Sentence
    facts: Sequence[tuple[str, str]]


def energies_of(bundle: Bundle, summary: Summary) -> list[Energy]:
    """By every shipped table."""
    assert summary.activity is not None  # there is one where a sample was run
    tables = [read_cost_table(name) for name in SHIPPED]
    return estimate(bundle.graph, summary.activity, summary.tokens, tables)


def facts_of(bundle: Bundle, engine: str, command: str, place: str) -> list[tuple[str, str]]:
    """Of a run of this command on the texts of `place`."""
    libraries = [*LIBRARIES, *([LAVA] if engine.startswith("lava") and find_spec("lava") else [])]
    installed = [f"{name} {version(name)}" for name in libraries if name == LAVA or find_spec(name)]
    return [
        ("command", command),
        ("bundle", f"{bundle.place.name}, digest {bundle.manifest['digest']}"),
        ("target", str(bundle.manifest["target"] or "any engine")),
        ("engine", engine),
        ("texts", place),
        ("software", ", ".join([f"Python {platform.python_version()}", *installed])),
        ("machine", f"{platform.system()} {platform.machine()}"),
    ]
