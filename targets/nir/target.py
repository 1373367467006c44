"""The target `nir`: which graphs it takes, and the file that it adds to a bundle."""

from __future__ import annotations

from pathlib import Path

from converters.graph import Graph
from spikebert.commands import missing_extra
from targets import legality
from targets.legality import IllegalGraphError, Violation
from targets.nir.rules import RULES

NETWORK_FILE = "network.nir"


class NirTarget:
    """What the entry-point group `spikebert.targets` names `nir`. Raises MissingExtra where nir is not installed."""

    name = "nir"
    latencies = None  # logical time: NIR has no machine whose steps could be counted

    def __init__(self) -> None:
        try:
            import nir  # noqa: F401  # before the model is read, not after the long work
        except ModuleNotFoundError:
            raise missing_extra("nir") from None

    def check(self, graph: Graph) -> list[Violation]:
        """Everything in a graph that NIR cannot express exactly."""
        return legality.check(RULES, graph)

    def emit(self, graph: Graph, folder: Path) -> None:
        """Write `network.nir` into `folder` and read it back.

        Raises IllegalGraphError where the graph is not legal, CheckFailed where the file is not what was written.
        """
        from targets.nir.files import write
        from targets.nir.network import build

        violations = self.check(graph)
        if violations:
            raise IllegalGraphError(self.name, violations)
        folder.mkdir(parents=True, exist_ok=True)
        write(build(graph), folder / NETWORK_FILE)
