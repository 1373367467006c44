"""The benchmark of early exit measures what it says: rows by margin and question, counts of what was run."""

from __future__ import annotations

import numpy as np
from random_graphs import random_batch, random_graph
from small_bundles import small_bundle

from benchmarks import early_exit
from benchmarks.timing import Usage


def test_rows_and_counts(tmp_path) -> None:
    graph = random_graph(np.random.default_rng(0), blocks=1)
    bundle = small_bundle(tmp_path / "bundle", graph)
    batches = {
        1: [random_batch(np.random.default_rng(1), graph, 1)],
        64: [random_batch(np.random.default_rng(2), graph, 9)],
    }
    rows = early_exit.measure(bundle, batches, (0.0, early_exit.ENDLESS), seconds=0.01)
    assert [row.name for row in rows] == [
        "without",
        *(f"margin 0, after {each}" for each in ("each", "1", "2")),
        *(f"nobody stops, after {each}" for each in ("each", "1", "2")),
    ]
    assert [row.timesteps for row in rows] == [4, 1, 1, 2, 4, 4, 4]
    whole, first, *_, nobody = rows
    assert whole.operations == nobody.operations > 2 * first.operations
    said = early_exit.report(rows, Usage.now())
    assert "| without " in said and " 1.00 |" in said
