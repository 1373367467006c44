"""Token tables of fewer bits: rounded as `quantise` rounds, run by the engine, compared with 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from random_graphs import random_graph
from small_bundles import small_bundle
from small_models import small_model

from benchmarks.token_bits import main, with_token_bits
from converters.from_torch import graph_from_model
from spikebert.quantisation import quantise


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_table_is_rounded_as_quantise_rounds(bits: int) -> None:
    """But that the table of 8 bits was rounded before: what lies in the middle may go to either side."""
    model = small_model()
    rounded = with_token_bits(graph_from_model(quantise(model)), bits)
    expected = graph_from_model(quantise(model, token_bits=bits))
    apart = np.abs(rounded.source.table.astype(int) - expected.source.table)
    assert np.isin(apart, (0, 2 ** (8 - bits))).all() and (apart == 0).mean() > 0.4
    others = [(a, b) for a, b in zip(rounded, expected) if a is not rounded.source]
    assert all(np.array_equal(a.weight, b.weight) for a, b in others if hasattr(a, "weight"))


def test_the_command_prints_a_row_for_each_number_of_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = small_bundle(tmp_path / "bundle", random_graph(np.random.default_rng(0), blocks=1, n_max=6))
    file = tmp_path / "texts.tsv"
    file.write_text(f"text\tlabel\na good film\t{bundle.labels[1]}\nbad\t{bundle.labels[0]}\n")
    assert main([str(bundle.folder), "--file", str(file), "--bits", "2", "4"]) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["8", "4", "2"]
    assert rows[0][2] == "" and all(".." in row[2] for row in rows[1:])
    assert main([str(bundle.folder), "--file", str(file), "--bits", "1"]) == 2
    assert "--bits 1" in capsys.readouterr().err
