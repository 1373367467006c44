"""The sentences of a file as the batches that are timed, and what they make a network do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from converters.bundle import Bundle
from converters.execution import Activity, EngineOptions, TokenBatch
from converters.graph import Graph
from sim.engines import open_engine
from sim.rows import Row, open_rows

FAST = "fast"
SINGLES = 60  # sentences of all lengths that are run one by one
SMALL, LARGE = 1, 64  # sizes of batches


def read_batches(bundle: Bundle, file: Path) -> dict[int, list[TokenBatch]]:
    """By size: some of the sentences one by one, and all in large batches, sorted by length.

    Batches of a middle length come first, so that a few stand for all.
    """
    texts = [bundle.tokenise(row.text) for row in open_rows(file, bundle.labels).items if isinstance(row, Row)]
    texts.sort(key=lambda text: len(text.ids))
    groups = {
        SMALL: [[text] for text in texts[:: max(1, len(texts) // SINGLES)]],
        LARGE: [texts[i : i + LARGE] for i in range(0, len(texts), LARGE)],
    }
    return {size: _from_the_middle([bundle.batch(group) for group in of_size]) for size, of_size in groups.items()}


def _from_the_middle(batches: Sequence[TokenBatch]) -> list[TokenBatch]:
    order = sorted(range(len(batches)), key=lambda index: abs(index - len(batches) // 2))
    return [batches[index] for index in order]


def activity_of(graph: Graph, batches: Sequence[TokenBatch]) -> Activity:
    """What every node does with all these batches, counted by the engine `fast`."""
    engine = open_engine(FAST, graph, EngineOptions())
    try:
        counted = [engine.run(batch).activity for batch in batches]
    finally:
        engine.close()
    first, *others = [activity for activity in counted if activity is not None]
    return sum(others, first)
