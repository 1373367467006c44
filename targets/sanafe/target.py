"""The target `sanafe`: which graphs it takes, and what it adds to a bundle. Needs no sanafe."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from converters.graph import Graph
from targets import legality
from targets.legality import IllegalGraphError, Limit, Violation
from targets.loihi2 import rules
from targets.loihi2.mapping.network import chip_network
from targets.sanafe.layout import SYNAPSES, Layout, make_layout, play_that_fits, played_network, synapses
from targets.sanafe.machine import CORE, architecture
from targets.sanafe.spikes import require_values

SCHEMA = 1  # of `mapping.json`
ARCHITECTURE_FILE = "arch.yaml"
MAPPING_FILE = "mapping.json"
LARGEST = Limit("synapses of one token", SYNAPSES, "synapses", "targets/sanafe/layout.py: what SANA-FE bears, measured")


class SanafeTarget:
    """What the entry-point group `spikebert.targets` names `sanafe`."""

    name = "sanafe"
    latencies = None  # played in logical time: all messages of a timestep in one step

    def check(self, graph: Graph) -> list[Violation]:
        """What keeps a graph from a chip of neurons (that of `loihi2`, attention apart), or makes it too large."""
        violations = legality.check([each for each in rules.RULES if each is not rules.no_attention_process], graph)
        if violations:
            return violations
        try:
            chip_network(graph)
        except IllegalGraphError as error:
            return list(error.violations)
        token = synapses(played_network(graph, "token"))
        if token <= LARGEST.value:
            return []
        remedy = "fewer or narrower layers"
        return [Violation(graph.output, "sanafe-synapses", token, LARGEST.value, LARGEST.unit, LARGEST.source, remedy)]

    def emit(self, graph: Graph, folder: Path) -> None:
        """Write `arch.yaml`, the machine as SANA-FE reads it, and `mapping.json`, the core of every neuron
        (docs/sanafe.md): of the whole network if SANA-FE bears it, else of one token's.

        Raises IllegalGraphError where the graph is not legal, CheckFailed where a neuron of it fits no core or sends
        what no node has.
        """
        violations = self.check(graph)
        if violations:
            raise IllegalGraphError(self.name, violations)
        layout = make_layout(graph, play_that_fits(graph))
        require_values(layout)
        folder.mkdir(parents=True, exist_ok=True)
        text = architecture(layout.mapping.chips, layout.machine)
        (folder / ARCHITECTURE_FILE).write_text(text, encoding="utf-8")
        (folder / MAPPING_FILE).write_text(json.dumps(describe(layout)) + "\n", encoding="utf-8")


def describe(layout: Layout) -> dict[str, Any]:
    """The content of `mapping.json`."""
    index = {each.name: number for number, each in enumerate(layout.network.on_chip)}
    return {
        "schema": SCHEMA,
        "play": layout.play,
        "timesteps": layout.network.timesteps,
        "chips": layout.mapping.chips,
        "core": asdict(CORE),
        "populations": [
            {
                "name": each.name,
                "kind": each.kind,
                "tokens": each.tokens,
                "keys": each.keys,
                "features": each.features,
                "lanes": each.lanes,
            }
            for each in layout.network.on_chip
        ],
        "boxes": [
            [index[box.population], *box.tokens, *box.keys, *box.features, int(core)]
            for box, core in zip(layout.mapping.boxes, layout.core)
        ],
    }
