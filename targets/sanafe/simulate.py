"""SANA-FE's own network, and its run.

Each box of the mapping becomes a group of SANA-FE's neurons on one core, each synapse a connection of its own. Spikes
are replayed: all weights are 0 and a neuron fires where it is given a bias of 1 above a threshold of 0. So SANA-FE
cannot come to other spikes than ours; energy, time and counts are its own.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import sanafe

from targets.loihi2.mapping.boxes import Box
from targets.loihi2.mapping.network import Connection
from targets.sanafe.expected import Counts
from targets.sanafe.layout import Layout, spans
from targets.sanafe.machine import DENDRITE, DENSE, SOMA, SPARSE, core_name
from targets.sanafe.run import ENERGIES, Run, joined
from targets.sanafe.spikes import Messages

SILENT, FIRES = {"bias": 0.0}, {"bias": 1.0}
# it fires above a threshold of 0 and keeps nothing; it is updated at every step, as the tables of energy.md count
NEURON = {"threshold": 0.0, "leak_decay": 0.0, "reset_mode": "hard", "force_update": True, **SILENT}


class Chip:
    """A network that is loaded into SANA-FE, and its neurons in our order."""

    def __init__(self, layout: Layout, architecture: Path) -> None:
        self.layout = layout
        described = sanafe.load_arch(str(architecture))
        network = sanafe.Network()
        _add_neurons(layout, network, described.cores())
        _connect(layout, network)
        self._chip = sanafe.SpikingChip(described)
        self._chip.load(network)
        self._neurons = _in_our_order(layout, self._chip.mapped_neuron_groups)
        self._core_energy = {f"{core_name(core, layout.machine)}.energy": core for core in range(layout.cores)}

    def play(self, messages: Messages, tell: Callable[[], None] = lambda: None) -> Run:
        """Play all steps; `tell` is called after each."""
        order = [each.name for each in self.layout.network.on_chip]
        steps = len(messages[order[0]])
        before = np.zeros(len(self._neurons), dtype=bool)
        parts = []
        for step in range(steps):
            now = np.concatenate([messages[name][step].reshape(-1) for name in order])
            for neuron in np.flatnonzero(now != before).tolist():
                self._neurons[neuron].set_attributes(model_attributes=FIRES if now[neuron] else SILENT)
            before = now
            parts.append(self._step())
            tell()
        for neuron in np.flatnonzero(before).tolist():  # so that the next run begins in silence
            self._neurons[neuron].set_attributes(model_attributes=SILENT)
        return joined(parts)

    def _step(self) -> Run:
        with redirect_stdout(io.StringIO()):  # it tells its progress there
            told = self._chip.sim(1, processing_threads=1, perf_trace=True, message_trace=True)
        trace = told["perf_trace"]
        core_joules = np.zeros(self.layout.cores)
        for name, core in self._core_energy.items():
            core_joules[core] = trace[name][0]
        sending, receiving, ended = (np.zeros(self.layout.cores) for _ in range(3))
        for message in told["message_trace"][0]:
            sender = message["src_core_id"]
            sending[sender] += message["generation_delay"]
            ended[sender] = max(ended[sender], message["send_timestamp"])
            if not message["placeholder"]:
                reader = message["dest_core_id"]
                receiving[reader] += message["processing_delay"]
                ended[reader] = max(ended[reader], message["processed_timestamp"])
        counts = {
            "updated": trace["updated"][0],
            "fired": trace["fired"][0],
            "events": told["spikes"],
            "packets": told["packets_sent"],
            "hops": trace["hops"][0],
        }
        return Run(
            Counts(**{name: np.array([count], dtype=np.int64) for name, count in counts.items()}),
            {kind: np.array([told["energy"][kind]]) for kind in ENERGIES},
            np.array([told["sim_time"]]),
            core_joules,
            sending[None],
            receiving[None],
            np.array([int(ended.argmax()) if ended.any() else -1]),
        )


def _group(box: int) -> str:
    """The name of the group that a box is."""
    return f"box{box}"


def _add_neurons(layout: Layout, network: Any, cores: Any) -> None:
    for number, box in enumerate(layout.mapping.boxes):
        group = network.create_neuron_group(
            _group(number),
            box.neurons,
            model_attributes=NEURON,
            default_synapse_hw_name=DENSE if box.population in layout.dense else SPARSE,
            default_dendrite_hw_name=DENDRITE,
            soma_hw_name=SOMA,
        )
        group.map_to_core(cores[int(layout.core[number])])


def _connect(layout: Layout, network: Any) -> None:
    boxes: dict[str, list[tuple[int, Box]]] = {}
    for number, box in enumerate(layout.mapping.boxes):
        boxes.setdefault(box.population, []).append((number, box))
    for one in layout.connections:
        for source_number, source in boxes[one.source]:
            for target_number, target in boxes[one.target]:
                senders, readers = synapses_between(one, source, target)
                if len(senders):
                    pairs = list(zip(senders.tolist(), readers.tolist()))
                    weights = {"weight": [0.0] * len(pairs)}
                    reader = network[_group(target_number)]
                    network[_group(source_number)].connect_neurons_sparse(reader, weights, pairs)


def synapses_between(one: Connection, source: Box, target: Box) -> tuple[np.ndarray, np.ndarray]:
    """The synapses of a connection from one box to another: (sender, reader) of each, int64, counted in their boxes."""
    features, channels = np.nonzero(one.pattern[slice(*target.features), slice(*source.features)])
    both = range(max(source.tokens[0], target.tokens[0]), min(source.tokens[1], target.tokens[1]))
    if one.reads == "token":
        places = [((n, 0), (n, m)) for n in both for m in range(*target.keys)]
    elif one.reads == "key":
        read = range(max(source.tokens[0], target.keys[0]), min(source.tokens[1], target.keys[1]))
        places = [((m, 0), (n, m)) for n in range(*target.tokens) for m in read]
    elif one.reads == "pair":
        keys = range(max(source.keys[0], target.keys[0]), min(source.keys[1], target.keys[1]))
        places = [((n, m), (n, m)) for n in both for m in keys]
    else:
        places = [((n, m), (n, 0)) for n in both for m in range(*source.keys)]
    if not places:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    sends, reads = (np.array([place[side] for place in places]) for side in (0, 1))  # each [places, (token, key)]
    return _numbers(source, sends, channels), _numbers(target, reads, features)


def _numbers(box: Box, places: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Numbers of neurons within a box, int64 [places * features]: each (token, key) with each of its features."""
    keys, width = box.keys[1] - box.keys[0], box.features[1] - box.features[0]
    first = ((places[:, 0] - box.tokens[0]) * keys + places[:, 1] - box.keys[0]) * width
    return (first[:, None] + features).reshape(-1)


def _in_our_order(layout: Layout, groups: Any) -> list[Any]:
    """SANA-FE's neurons, population by population, each in the order [tokens, keys, features]."""
    numbers: dict[str, np.ndarray] = {}
    first = 0
    for each in layout.network.on_chip:
        numbers[each.name] = np.arange(first, first + each.size).reshape(each.tokens, each.keys, each.features)
        first += each.size
    neurons: list[Any] = [None] * first
    for number, box in enumerate(layout.mapping.boxes):
        for place, neuron in zip(numbers[box.population][spans(box)].reshape(-1).tolist(), groups[_group(number)]):
            neurons[place] = neuron
    return neurons
