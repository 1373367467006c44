"""The rules by which a graph is legal for Lava. Needs no Lava.

Each says what a node asks for; the numbers are in `limits.py`. A rule goes by what it needs of a node (a threshold,
weights, several inputs), so that nodes of other kinds pass through.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from converters.graph import LIF, Attention, Concat, Graph, Norm, Product, Readout, Relay, Synapses
from converters.passes.balance_delays import balance_delays
from converters.schedule import LatencyTable
from targets.lava import limits
from targets.lava.lowering import LATENCIES, attention_inputs
from targets.lava.plan import DOUBLING
from targets.legality import Limit, Rule, rule


@rule(
    "scalar-threshold",
    limits.THRESHOLDS,
    'quantise with one threshold for the whole layer (of norm "none": scalar_thresholds; where a pass merged layers: '
    "merge-query-key-value:scalar_thresholds=true), or run on the engine fast or reference",
)
def scalar_thresholds(graph: Graph) -> Iterator[tuple[str, int]]:
    """A stock LIFReset has one threshold for all its neurons."""
    for node in graph:
        if isinstance(node, LIF):
            yield node.name, np.unique(np.asarray(node.threshold)).size


def delay_rule(limit: Limit, latencies: LatencyTable) -> Rule:
    """The rule for a machine that takes so many steps. Its graph is one whose biases are laid out."""

    @rule("bounded-delay", limit, "shorten the longer way into this node, or pass the shorter one through a layer")
    def bounded(laid: Graph) -> Iterator[tuple[str, int]]:
        """An input that is early waits in a DelaySparse, whose delays have 6 bits."""
        schedule = balance_delays(laid, latencies)
        for node in laid:
            if len(node.inputs) > 1:
                # these take no step for what leads into them, so the step of the route itself is part of the wait
                free = 1 if isinstance(node, (Attention, Concat, Norm)) else 0
                yield node.name, max(schedule.delay_steps[node.name]) - free

    return bounded


bounded_delays = delay_rule(limits.DELAY, LATENCIES)


@rule("bounded-message-bits", limits.MESSAGE_BITS, "add fewer branches, or put a LIF between the adds")
def bounded_messages(graph: Graph) -> Iterator[tuple[str, int]]:
    """A graded spike is sent as one message, whose payload has 24 bits."""
    for name in graph.spiking:
        yield name, graph.value_max[name].bit_length() + (name in graph.signed)


@rule("bounded-weight", limits.WEIGHT, "quantise to -127 .. 127")
def bounded_weights(graph: Graph) -> Iterator[tuple[str, int]]:
    """Lava clips a weight that 8 bits and a sign do not hold. Synapses keep to it; a readout of int8 may hold -128."""
    for node in graph:
        if isinstance(node, (Synapses, Readout)):
            yield node.name, DOUBLING * int(np.abs(node.weight.astype(np.int64)).max())


@rule("bounded-current", limits.CURRENT, "use smaller or fewer weights")
def bounded_currents(graph: Graph) -> Iterator[tuple[str, int]]:
    """A current beyond 2^17 wraps to the other sign. A Graph proves it of all its nodes; here it is held to Lava's."""
    for node in graph:
        if node.name not in graph.spiking:
            yield node.name, DOUBLING * graph.value_max[node.name]


@rule("relay-into-product", limits.RELAY_READERS, "let only a product read it, as expand-attention does")
def relays_into_products(graph: Graph) -> Iterator[tuple[str, int]]:
    """What a relay sends is a doubled current; a ProdNeuron halves it again, other processes do not."""
    for node in graph:
        if isinstance(node, Relay):
            others = [
                reader
                for reader in graph
                if node.name in reader.inputs and not (isinstance(reader, Product) and reader.inputs[0] == node.name)
            ]
            yield node.name, len(others)


@rule("attention-inputs", limits.ATTENTION_INPUTS, "split q, k and v into fewer parts")
def bounded_attention_inputs(laid: Graph) -> Iterator[tuple[str, int]]:
    """q, k and v may come from several processes, each of which takes a port of the attention."""
    yield from attention_inputs(laid).items()


# Of the graph as it is ...
RULES: tuple[Rule, ...] = (
    scalar_thresholds,
    bounded_messages,
    bounded_weights,
    bounded_currents,
    relays_into_products,
)
# ... and of the one that is lowered, whose biases are laid out on lanes.
LAID_OUT_RULES: tuple[Rule, ...] = (bounded_delays, bounded_attention_inputs)
