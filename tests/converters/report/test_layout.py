"""Drawings: nothing overlaps, edges go downward, panels are the blocks."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from random_graphs import random_dag, random_graph
from small_reports import small_report

from converters.report.drawing import drawing_shape
from converters.report.layout import lay_out
from converters.report.panels import block_of, cut_into_panels

WIDTH, ROW, GAP, LANE = 100.0, 50.0, 10.0, 8.0


def test_a_chain_with_a_way_around_it() -> None:
    """a -> b -> c -> d, and a -> d past b and c: the chain is straight, the way around has a lane of its own."""
    edges = [("a", "b"), ("b", "c"), ("c", "d"), ("a", "d")]
    layout = lay_out(dict.fromkeys("abcd", WIDTH), edges, ROW, GAP, LANE)
    x = {name: centre[0] for name, centre in layout.centres.items()}
    assert len({round(value, 3) for value in x.values()}) == 1
    assert [layout.centres[name][1] for name in "abcd"] == [25, 75, 125, 175]
    assert layout.routes[:3] == ((), (), ())
    (one, other) = layout.routes[3]
    assert one[0] == other[0] and abs(one[0] - x["b"]) >= WIDTH / 2 + LANE / 2 + GAP - 1e-3
    assert layout.height == 200


@pytest.mark.parametrize("seed", range(6))
def test_no_box_stands_on_another_and_every_edge_goes_down(seed: int) -> None:
    graph = random_dag(np.random.default_rng(seed), nodes=12)
    widths = {node.name: WIDTH for node in graph}
    edges = [(producer, node.name) for node in graph for producer in dict.fromkeys(node.inputs)]
    layout = lay_out(widths, edges, ROW, GAP, LANE)
    for one, other in combinations(layout.centres.values(), 2):
        assert one[1] != other[1] or abs(one[0] - other[0]) >= WIDTH + GAP - 1e-3
    for (a, b), route in zip(edges, layout.routes):
        way = [layout.centres[a], *route, layout.centres[b]]
        assert [y for _, y in way] == [layout.centres[a][1] + ROW * place for place in range(len(way))]
        for x, y in route:
            boxes = [centre for centre in layout.centres.values() if centre[1] == y]
            assert all(abs(x - centre[0]) >= WIDTH / 2 + LANE / 2 + GAP - 1e-3 for centre in boxes)
    assert all(WIDTH / 2 - 1e-3 <= x <= layout.width - WIDTH / 2 + 1e-3 for x, _ in layout.centres.values())


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("encoder", ""),
        ("blocks.3.up.lif", "blocks.3"),
        ("block0.q.synapses", "block0"),
        ("layers.12.mlp.0.up", "layers.12"),
        ("fc1.lif", ""),
        ("blocks.3", ""),
        ("up.2", ""),
    ],
)
def test_a_block_is_told_by_its_number(name: str, block: str) -> None:
    assert block_of(name) == block


def test_panels_are_the_blocks_and_what_is_around_them() -> None:
    report = small_report(random_graph(np.random.default_rng(0), blocks=3))
    panels = cut_into_panels(report.nodes)
    assert [panel.title for panel in panels] == ["", "block0", "block1", "block2", ""]
    assert [node.name for panel in panels for node in panel.nodes] == [node.name for node in report.nodes]
    shapes = [drawing_shape(panel) for panel in panels]
    assert shapes[1] == shapes[2] == shapes[3] != shapes[0]


def test_panels_of_other_widths_are_not_alike() -> None:
    wide = cut_into_panels(small_report(random_graph(np.random.default_rng(0), blocks=1, hidden=8)).nodes)
    narrow = cut_into_panels(small_report(random_graph(np.random.default_rng(0), blocks=1, hidden=16)).nodes)
    assert drawing_shape(wide[1]) != drawing_shape(narrow[1])
