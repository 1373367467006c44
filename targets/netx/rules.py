"""The rules by which a graph is legal for a network file of lava-dl. Needs neither Lava nor lava-dl.

What is left is a chain: the host sends spikes, layers follow each other, the readout is the last. What the host makes
(`on_host`) is no part of the network, so slices and concats of it are free.
"""

from __future__ import annotations

from collections.abc import Iterator

import networkx as nx
import numpy as np

from converters.graph import (
    LIF,
    Add,
    Attention,
    Coincidence,
    Concat,
    Graph,
    Norm,
    Product,
    Readout,
    Relay,
    Slice,
    Source,
    Synapses,
)
from targets.lava.plan import DOUBLING
from targets.lava.rules import bounded_currents, scalar_thresholds
from targets.legality import Rule, rule
from targets.netx import limits
from targets.netx.chain import on_host
from targets.netx.weights import held_weights


@rule("no-attention", limits.PRODUCTS, "leave attention out of the model, or export it for the target lava")
def no_attention(graph: Graph) -> Iterator[tuple[str, int]]:
    """A layer of netx sums weighted spikes; none multiplies spikes with spikes."""
    for node in graph:
        if isinstance(node, (Attention, Coincidence, Relay, Product)):
            yield node.name, 1


@rule("no-norm", limits.NORMS, 'train with norm "batch" or "none", or export it for the target lava')
def no_norms(graph: Graph) -> Iterator[tuple[str, int]]:
    """A layer of netx sums weighted spikes; none looks at a whole layer at once."""
    for node in graph:
        if isinstance(node, Norm):
            yield node.name, 1


@rule(
    "stock-neuron",
    limits.NEURON_RULES,
    "train with reset zero, spike binary, value_cap 1 and encoder_cap 1, or export it for the target lava",
)
def stock_neurons(graph: Graph) -> Iterator[tuple[str, int]]:
    """Neurons of netx reset to 0 and send bits, and its first layer takes bits from the host."""
    for node in graph:
        if isinstance(node, LIF):
            yield node.name, int(not node.is_stock)
        elif isinstance(node, Source):
            yield node.name, int(node.spike != "binary")


@rule("no-residual", limits.ADDS, "leave residuals out of the model, or export it for the target lava")
def no_residuals(graph: Graph) -> Iterator[tuple[str, int]]:
    """A layer of netx reads one layer, so nothing can be added up on the way."""
    for node in graph:
        if isinstance(node, Add):
            yield node.name, 1


@rule("no-concat", limits.CONCATS, "let a layer read all of the one before it; leave --pass split-wide-layers out")
def no_concats(graph: Graph) -> Iterator[tuple[str, int]]:
    """A layer of netx reads the whole layer before it, in its order. The host may put together what it sends."""
    for node in graph:
        if isinstance(node, (Slice, Concat)) and not on_host(graph, node.name):
            yield node.name, 1


@rule("one-reader", limits.READERS, "let each layer be read by the next one alone, or export for the target lava")
def one_reader(graph: Graph) -> Iterator[tuple[str, int]]:
    """A network of netx has no branches: one layer reads what the host sends, and one each layer but the last."""
    for node in graph:
        yield node.name, sum(not on_host(graph, name) for name in graph.digraph.successors(node.name))


@rule("sum-readout", limits.READOUTS, 'train with readout "sum" or "spikes", or export for the target lava')
def readouts_are_sums(graph: Graph) -> Iterator[tuple[str, int]]:
    """The file says that the last layer is summed up, and whoever reads it does that."""
    yield graph.output, int(graph.readout.kind == "membrane")


@rule("no-dead-end", limits.DEAD_ENDS, "add --pass remove-unread-nodes")
def no_dead_ends(graph: Graph) -> Iterator[tuple[str, int]]:
    """The one end of a network of netx is its readout."""
    for node in graph:
        if not isinstance(node, Readout) and graph.digraph.out_degree(node.name) == 0:
            yield node.name, 1


@rule("lane-threshold", limits.LANE_THRESHOLD, "train with a lower threshold, or with no bias in the layers behind it")
def bounded_lane_thresholds(graph: Graph) -> Iterator[tuple[str, int]]:
    """A bias needs the valid lane, which each layer before it carries on: no current passes a threshold of 65535."""
    for node in graph:
        if isinstance(node, LIF):
            behind = (graph[name] for name in nx.descendants(graph.digraph, node.name))
            if any(isinstance(each, (Synapses, Readout)) and each.bias.any() for each in behind):
                yield node.name, int(np.max(node.threshold))


@rule("no-empty-layer", limits.EMPTY_MATRICES, "train the layer, or leave it out: it is silent whatever it reads")
def no_empty_layers(laid: Graph) -> Iterator[tuple[str, int]]:
    """netx divides by the largest weight of a layer."""
    for node in laid:
        if isinstance(node, (Synapses, Readout)):
            yield node.name, int(not node.weight.any())


@rule("held-weights", limits.LOST_WEIGHTS, "train it on, so that a weight is above 0 or the lowest no power of two")
def weights_are_held(laid: Graph) -> Iterator[tuple[str, int]]:
    """A matrix without a positive weight, whose lowest is a power of two, is clipped: some of its weights change."""
    for node in laid:
        if isinstance(node, (Synapses, Readout)) and node.weight.any():
            doubled = DOUBLING * node.weight.astype(np.int64)
            yield node.name, int(np.count_nonzero(held_weights(doubled) != doubled))


# Of the graph as it is ...
RULES: tuple[Rule, ...] = (
    no_attention,
    no_norms,
    stock_neurons,
    no_residuals,
    no_concats,
    one_reader,
    no_dead_ends,
    readouts_are_sums,
    bounded_lane_thresholds,
    scalar_thresholds,
    bounded_currents,
)
# ... and of the one that is written, whose biases are laid out on lanes.
LAID_OUT_RULES: tuple[Rule, ...] = (no_empty_layers, weights_are_held)
