"""The chips of a bundle for Loihi 2 on the page of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy")

from random_graphs import random_graph
from small_bundles import small_bundle

from sim.page.chips import CHIPS_DRAWN, chips_section, read_mapping
from sim.run_command import main
from targets.loihi2.mapping.core_model import CoreModel
from targets.loihi2.mapping.network import chip_network
from targets.loihi2.mapping.place import place
from targets.loihi2.mapping.report import MAPPING_FILE, to_json
from targets.loihi2.mapping.traffic import assumed_rates

GRAPH = random_graph(np.random.default_rng(0), blocks=1)


def mapping(**limits: int) -> dict[str, Any]:
    network = chip_network(GRAPH)
    placed = place(network, assumed_rates(network, 0.1), "assumed", model=CoreModel(**limits))
    document: dict[str, Any] = json.loads(json.dumps(to_json(placed)))
    return document


def test_every_core_is_drawn_once_with_what_is_on_it() -> None:
    document = mapping(neurons=64, cores=4)
    assert 1 < document["chips"] <= CHIPS_DRAWN
    body = chips_section(document).body
    assert sorted(map(int, re.findall(r"<title>core (\d+):", body))) == list(range(document["cores"]))
    assert body.count("<figure>") == document["chips"]
    for population, *_, core in document["boxes"]:
        (title,) = re.findall(rf"<title>core {core}: ([^<]*)</title>", body)
        assert document["populations"][population]["name"] in title
        assert f"{document['core_use'][core][0]:,} neurons" in title


def test_chips_beyond_a_number_are_counted_and_not_drawn() -> None:
    document = mapping(neurons=16, cores=1)
    assert document["chips"] > CHIPS_DRAWN
    body = chips_section(document).body
    assert body.count("<figure>") == CHIPS_DRAWN
    assert f"{document['chips'] - CHIPS_DRAWN:,} more chips" in body


def test_the_page_of_a_bundle_for_the_chip_has_them(tmp_path: Path) -> None:
    def add(folder: Path) -> None:
        (folder / MAPPING_FILE).write_text(json.dumps(mapping()))

    bundle = small_bundle(tmp_path / "bundle", GRAPH, target="loihi2", add_target=add)
    assert main([str(bundle.folder), "--text", "good", "--report", str(tmp_path / "run.html")]) == 0
    assert '<h2 id="chips">Chips</h2>' in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_what_cannot_be_read_is_no_mapping(tmp_path: Path) -> None:
    assert read_mapping(tmp_path) is None
    (tmp_path / "loihi2").mkdir()
    (tmp_path / "loihi2" / MAPPING_FILE).write_text('{"schema": 2}')
    assert read_mapping(tmp_path) is None
