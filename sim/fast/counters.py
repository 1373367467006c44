"""What the steps of a plan count while they run, and the activity of all nodes that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from converters.execution import COUNTS, Activity
from converters.graph import Graph, Norm
from sim.fast import kernels
from sim.fast.plan import (
    ReadoutStep,
    Step,
    SynapsesStep,
    layers_of,
    neurons_of,
    reads_of,
    senders_of,
    sends_bits,
    sums_of,
    words_of,
)
from sim.fast.vectors import BLOCK

SITES, NORMALISED = COUNTS.index("sites"), COUNTS.index("normalised_values")


class Counters:
    """Arrays that the kernels write anew in every run.

    events     node name -> int64 [64 for each word of its spikes]: how many of a neuron's values were not 0; of
               neurons that only attention reads, how many of all, at the first
    payload    node name -> int64, the same: the sum of their sizes. Of a node that sends bits it is the same array
    fired      for each step, the events of all its nodes, side by side
    operations for each step int64 [its layers, 2]: synaptic operations, plain and weighted, of attention and of the
               nodes it is made of; those of other layers follow from what their inputs sent
    cuts       for each step int64 [words of all its nodes]: how often membranes were cut
    """

    def __init__(self, graph: Graph, steps: Sequence[Step]) -> None:
        self._timesteps, self._names = graph.timesteps, tuple(node.name for node in graph)
        row = {name: number for number, name in enumerate(self._names)}
        senders = [node for step in steps for node in senders_of(step)]
        width = {node.name: words_of(graph, node.name) * BLOCK for node in senders}
        events = _places(width)
        graded = _places({node.name: width[node.name] for node in senders if not sends_bits(node)})
        size = sum(width.values())
        payload = events | {name: slice(size + at.start, size + at.stop) for name, at in graded.items()}
        self._counts = np.zeros(size + sum(width[name] for name in graded), np.int64)
        self.events = {name: self._counts[at] for name, at in events.items()}
        self.payload = {name: self._counts[at] for name, at in payload.items()}
        ends = np.cumsum([0, *(sum(width[node.name] for node in senders_of(step)) for step in steps)])
        self.fired = [self._counts[low:high] for low, high in pairwise(ends)]
        self._cuts = np.zeros(size // BLOCK, np.int64)
        self.cuts = [self._cuts[low // BLOCK : high // BLOCK] for low, high in pairwise(ends)]

        neurons = {node.name for step in steps for node in neurons_of(step)}
        sums = {node.name for step in steps for node in sums_of(step)}
        self._senders = np.array(
            [(row[name], at.start, at.stop, name in neurons) for name, at in events.items() if name in neurons | sums]
        )
        layers, fan_outs = [], [np.zeros(0, np.int64)]
        for step in steps:
            read, inputs = "", 0
            if isinstance(step, (SynapsesStep, ReadoutStep)):
                read, inputs = reads_of(step)[0], step.fan_out.shape[1]
                fan_outs += list(step.fan_out)
            at = (events[read].start, payload[read].start, inputs) if inputs else (0, 0, 0)
            layers += [(row[name], *at) for name in layers_of(step)]
        self._layers, self._fan_out = np.array(layers), np.concatenate(fan_outs)
        self._operations = np.zeros((len(layers), 2), np.int64)
        layer_ends = np.cumsum([0, *(len(layers_of(step)) for step in steps)])
        self.operations = [self._operations[low:high] for low, high in pairwise(layer_ends)]

        self._per_site = np.zeros((len(row), len(COUNTS)), np.int64)
        for node in graph:
            if node.name in neurons:
                self._per_site[row[node.name], SITES] = graph.features[node.name]
            elif isinstance(node, Norm):
                self._per_site[row[node.name], NORMALISED] = graph.features[node.name]

    def clear(self) -> None:
        """Before a run: attention adds to its operations."""
        self._operations[:] = 0

    def activity(self, sites: int) -> Activity:
        """By node, the counts of a run of so many tokens times timesteps."""
        counts = self._per_site * sites
        kernels.tally(self._counts, self._senders, self._cuts, self._layers, self._fan_out, self._operations, counts)
        return Activity(self._timesteps, self._names, counts)


def _places(width: dict[str, int]) -> dict[str, slice]:
    """Where each one stands when all are side by side."""
    ends = np.cumsum([0, *width.values()]).tolist()
    return {name: slice(start, stop) for name, (start, stop) in zip(width, pairwise(ends))}
