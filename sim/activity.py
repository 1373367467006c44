"""Activity: how many spikes a network fired and how much work they caused. The same counts on every engine.

All of it follows from the values of the spiking nodes, how often a membrane was cut too, so an engine need not count
anything itself (it may: `Engine.counts_activity`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from converters.encoder import count_saturations, source_current
from converters.execution import Activity, NodeActivity, TokenBatch
from converters.graph import (
    LIF,
    Add,
    Attention,
    Coincidence,
    Graph,
    Node,
    Norm,
    Product,
    Readout,
    Relay,
    Source,
    Synapses,
)
from sim.reference import evaluate
from sim.saturation import Saturable, saturable_neurons


def count_activity(
    graph: Graph,
    values: Mapping[str, np.ndarray],
    batch: TokenBatch,
    saturable: Sequence[Saturable] | None = None,
) -> Activity:
    """Count what happened in one batch.

    values    the value [T, B, N, D] of every node in `graph.spiking`; others may be there too
    batch     padding is silent, so it adds nothing to the counts, and it is left out of `sites`
    saturable from `saturable_neurons`, of a caller who counts more than one batch; found here where None
    """
    real_tokens = int(batch.mask.sum())
    neurons = saturable_neurons(graph) if saturable is None else saturable
    cuts = {each.node.name: _count_cuts(graph, each, values, batch) for each in neurons}
    per_node = {}
    for node in graph:
        counts = _count_node(graph, node, values, real_tokens)
        per_node[node.name] = replace(counts, saturations=cuts[node.name]) if node.name in cuts else counts
    return Activity(graph.timesteps, per_node)


def _count_cuts(graph: Graph, neuron: Saturable, values: Mapping[str, np.ndarray], batch: TokenBatch) -> int:
    """The neuron is run once more on its current, which follows from the spikes before it."""
    node = neuron.node
    if isinstance(node, Source):
        current = np.repeat(source_current(node, batch)[None], graph.timesteps, axis=0)
    else:
        current = _current(graph, node.inputs[0], values, batch)
    return count_saturations(current[..., neuron.features], neuron.threshold, node.dv, node.shift)


def _current(graph: Graph, name: str, values: Mapping[str, np.ndarray], batch: TokenBatch) -> np.ndarray:
    """A current [T, B, N, D]: of a norm it follows from that of the synapses before it."""
    node = graph[name]
    inputs = [
        values[producer] if producer in graph.spiking else _current(graph, producer, values, batch)
        for producer in node.inputs
    ]
    return evaluate(node, inputs, batch, graph.timesteps, graph.n_max)


def _count_node(graph: Graph, node: Node, values: Mapping[str, np.ndarray], real_tokens: int) -> NodeActivity:
    if isinstance(node, (Source, LIF)):
        sites = graph.timesteps * real_tokens * graph.features[node.name]
        spikes = int(np.count_nonzero(values[node.name]))
        return NodeActivity(spikes, sites, messages=spikes)
    if isinstance(node, (Synapses, Readout)):
        return _count_linear(values[node.inputs[0]], node.weight)
    if isinstance(node, Norm):
        return NodeActivity(normalised_values=graph.timesteps * real_tokens * graph.features[node.name])
    if isinstance(node, Attention):
        q, k, v = (values[name] for name in node.inputs)
        return _count_attention(q, k, v, node.heads)
    if isinstance(node, Coincidence):
        sites = graph.timesteps * real_tokens * graph.features[node.name]
        reached = graph.n_max * sum(int(np.count_nonzero(values[name])) for name in node.inputs)
        spikes = int(np.count_nonzero(values[node.name]))
        return NodeActivity(spikes, sites, reached, reached, messages=spikes)
    if isinstance(node, Product):
        scores, v = (values[name] for name in node.inputs)
        counts = _count_product(scores, v, node.heads, graph.n_max)
        return replace(counts, messages=int(np.count_nonzero(values[node.name])))
    if isinstance(node, (Add, Relay)):
        return NodeActivity(messages=int(np.count_nonzero(values[node.name])))
    return NodeActivity()


def _count_linear(x: np.ndarray, weight: np.ndarray) -> NodeActivity:
    """x [T, B, N, in], weight [out, in]: each nonzero x[..., i] reaches the nonzero weights of column i."""
    fan_out = np.count_nonzero(weight, axis=0)  # [in]
    events = np.count_nonzero(x, axis=(0, 1, 2))  # [in]
    payload = x.sum(axis=(0, 1, 2), dtype=np.int64)  # [in]
    return NodeActivity(synaptic_operations=int(events @ fan_out), weighted_operations=int(payload @ fan_out))


def _count_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> NodeActivity:
    """q, k, v [T, B, N, D] of 0 and 1. One timestep of one sample at a time, so memory stays at [H, N, N]."""
    operations = weighted = 0
    for q_tb, k_tb, v_tb in zip(*(x.reshape(-1, *x.shape[2:]) for x in (q, k, v))):  # each [N, D]
        scores = _heads(q_tb, heads) @ _heads(k_tb, heads).swapaxes(-1, -2)  # [H, N, N]
        targets = _heads(v_tb, heads).sum(axis=-1)  # [H, N]: the nonzero v of each key token
        products = int(scores.sum())  # q and k are 0 and 1, so a score is its number of nonzero products
        operations += products + int(np.count_nonzero(scores, axis=1).ravel() @ targets.ravel())
        weighted += products + int(scores.sum(axis=1).ravel() @ targets.ravel())
    return NodeActivity(synaptic_operations=operations, weighted_operations=weighted)


def _count_product(scores: np.ndarray, v: np.ndarray, heads: int, n_max: int) -> NodeActivity:
    """A score reaches the d features of its head, a spike of v one neuron of each of n_max queries."""
    size, reached = v.shape[-1] // heads, n_max * int(v.sum())
    operations = size * int(np.count_nonzero(scores)) + reached
    return NodeActivity(synaptic_operations=operations, weighted_operations=size * int(scores.sum()) + reached)


def _heads(x: np.ndarray, heads: int) -> np.ndarray:
    """[N, D] -> float64 [H, N, d]: exact for these counts, and a product of floats is fast."""
    return x.reshape(x.shape[0], heads, -1).swapaxes(0, 1).astype(np.float64)
