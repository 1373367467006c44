"""Which membranes might be cut at +-(2^23 - 1) at all. Found once for a graph, so that counting from spikes costs
nothing where it is proven that none can be, as for most networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converters.graph import DECAY_BITS, LIF, MEMBRANE_MAX, Graph, Node, Source
from converters.ranges import prove_ranges


@dataclass(frozen=True, eq=False)
class Saturable:
    """A neuron with memory, and those of its features whose membrane some text might bring beyond +-(2^23 - 1).

    features  int64 [F], rising, one or more
    threshold int64 [F], accumulator units
    """

    node: Source | LIF
    features: np.ndarray
    threshold: np.ndarray


def saturable_neurons(graph: Graph) -> tuple[Saturable, ...]:
    """The neurons of which it is not proven that they never saturate, in graph order."""
    if not any(_might_saturate(graph, node) for node in graph):  # cheap, and enough for most graphs
        return ()
    ranges = prove_ranges(graph)
    found = []
    for node in graph:
        features = np.flatnonzero(ranges[node.name].saturable)
        if isinstance(node, (Source, LIF)) and features.size:
            thresholds = np.broadcast_to(np.asarray(node.threshold, np.int64), ranges[node.name].low.shape)
            found.append(Saturable(node, features, thresholds[features]))
    return tuple(found)


def _might_saturate(graph: Graph, node: Node) -> bool:
    """A membrane that the largest current charges T times, all the same way, and that never fires."""
    if isinstance(node, LIF):
        reach = graph.value_max[node.inputs[0]]
    elif isinstance(node, Source) and node.kind == "lif":
        position = np.zeros(1) if node.position is None else node.position
        reach = sum(int(np.abs(part.astype(np.int64)).max()) for part in (node.table, position))
    else:
        return False
    membrane = 0
    for _ in range(graph.timesteps):
        membrane = (membrane * (2**DECAY_BITS - node.dv) >> DECAY_BITS) + (reach << node.shift)
        if membrane > MEMBRANE_MAX:
            return True
    return False
