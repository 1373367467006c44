"""The target `loihi2`: which graphs the chip takes, and what it adds to a bundle. Needs no Lava."""

from __future__ import annotations

import json
from pathlib import Path

from converters.graph import Graph
from targets.lava.target import LoweredTarget
from targets.loihi2.mapping.network import chip_network
from targets.loihi2.mapping.place import place
from targets.loihi2.mapping.report import MAPPING_FILE, to_json
from targets.loihi2.mapping.traffic import FIRING_RATE, assumed_rates, assumed_rates_name
from targets.loihi2.rules import LAID_OUT_RULES, LATENCIES, RULES


class Loihi2Target(LoweredTarget):
    """What the entry-point group `spikebert.targets` names `loihi2`. Its schedule is written as that of `lava`, and
    beside it `mapping.json`: where every neuron would be (docs/mapping.md)."""

    name = "loihi2"
    latencies = LATENCIES
    rules = RULES
    laid_out_rules = LAID_OUT_RULES

    def emit(self, graph: Graph, folder: Path) -> None:
        """Write `schedule.json` and `mapping.json` into `folder`.

        Raises IllegalGraphError where the graph is not legal, CheckFailed where a neuron of it fits no core.
        """
        super().emit(graph, folder)
        network = chip_network(graph)
        mapping = place(network, assumed_rates(network, FIRING_RATE), assumed_rates_name(FIRING_RATE))
        text = json.dumps(to_json(mapping)) + "\n"
        (folder / MAPPING_FILE).write_text(text, encoding="utf-8")
