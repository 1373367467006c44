"""The paper's figures by its own rule, from our table of prices and our count of a transformer."""

from __future__ import annotations

import numpy as np
import pytest
from random_graphs import random_graph

from benchmarks.paper_energy import main, rows, transformer_operations
from sim.energy import Tokens, dense_operations


def test_a_transformer_is_the_dense_network() -> None:
    graph = random_graph(np.random.default_rng(0), blocks=3, hidden=8, heads=2, n_max=4)
    assert dense_operations(graph, Tokens(1, 4, 16)) == transformer_operations(3, 8, 16, 4) + graph.readout.weight.size
    assert transformer_operations(12, 768, 3072, 128) == 11_173_625_856


def test_the_papers_rows(capsys) -> None:
    printed, counted, spiking = rows()
    assert float(printed[3]) == pytest.approx(102.24, abs=0.03), "to the rounding of 22.23 G"
    assert printed[4] == "102.24" and printed[5] == "27.9%"
    assert counted[1:] == ["11.17 G", "4.6", "51.40", "", "55.5%"]
    assert spiking[1:] == ["31.71 G", "0.9", "28.54", "28.54", ""]
    main()
    assert "SpikeBERT's are 71% of them, or 35% where" in capsys.readouterr().out
