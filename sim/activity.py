"""Activity: how many spikes a network fired and how much work they caused. The same counts on every engine.

All of it follows from the values of the spiking nodes, how often a membrane was cut too, so an engine need not count
anything itself (it may: `Engine.counts_activity`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from converters.early_exit import shortened
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
    stops: np.ndarray | None = None,
) -> Activity:
    """Count what happened in one batch.

    values    the value [T, B, N, D] of every node in `graph.spiking`; others may be there too
    batch     padding is silent, so it adds nothing to the counts, and it is left out of `sites`
    saturable from `saturable_neurons`, of a caller who counts more than one batch; found here where None
    stops     int64 [B], after how many timesteps each sample stopped: nothing is counted from there on
    """
    neurons = saturable_neurons(graph) if saturable is None else saturable
    if stops is not None:
        return _count_stopped(graph, values, batch, neurons, stops)
    cuts = {each.node.name: _count_cuts(graph, each, values, batch) for each in neurons}
    per_node = {}
    for node in graph:
        counts = _count_node(graph, node, values, batch)
        per_node[node.name] = replace(counts, saturations=cuts[node.name]) if node.name in cuts else counts
    return Activity.of(graph.timesteps, per_node)


def _count_stopped(
    graph: Graph, values: Mapping[str, np.ndarray], batch: TokenBatch, neurons: Sequence[Saturable], stops: np.ndarray
) -> Activity:
    """Samples that stopped after t timesteps did what they do in a network of t timesteps."""
    activity = Activity.of(graph.timesteps, {node.name: NodeActivity() for node in graph})
    for t in np.unique(stops).tolist():
        of_these = stops == t
        part = TokenBatch(batch.ids[of_these], batch.mask[of_these])
        own = {name: values[name][:t, of_these] for name in graph.spiking}
        activity += count_activity(shortened(graph, t), own, part, neurons)
    return activity


def _count_cuts(graph: Graph, neuron: Saturable, values: Mapping[str, np.ndarray], batch: TokenBatch) -> int:
    """The neuron is run once more on its current, which follows from the spikes before it."""
    node = neuron.node
    if isinstance(node, Source):
        current = np.repeat(source_current(node, batch)[None], graph.timesteps, axis=0)
    else:
        current = _current(graph, node.inputs[0], values, batch)
    rule = node.dv, node.shift, node.reset, node.spike, node.cap
    return count_saturations(current[..., neuron.features], neuron.threshold, *rule)


def _current(graph: Graph, name: str, values: Mapping[str, np.ndarray], batch: TokenBatch) -> np.ndarray:
    """A current [T, B, N, D]: of a norm it follows from that of the synapses before it."""
    node = graph[name]
    inputs = [
        values[producer] if producer in graph.spiking else _current(graph, producer, values, batch)
        for producer in node.inputs
    ]
    return evaluate(node, inputs, batch, graph.timesteps, graph.n_max)


def _count_node(graph: Graph, node: Node, values: Mapping[str, np.ndarray], batch: TokenBatch) -> NodeActivity:
    real_tokens = int(batch.mask.sum())
    if isinstance(node, (Source, LIF)):
        sites = graph.timesteps * real_tokens * graph.features[node.name]
        spikes = int(np.count_nonzero(values[node.name]))
        return NodeActivity(spikes, sites, messages=spikes)
    if isinstance(node, (Synapses, Readout)):
        return _count_linear(values[node.inputs[0]], node.weight)
    if isinstance(node, Norm):
        return NodeActivity(normalised_values=graph.timesteps * real_tokens * graph.features[node.name])
    if isinstance(node, Attention):
        return _count_attention(node, [values[name] for name in node.inputs], batch.mask)
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
    payload = np.abs(x).sum(axis=(0, 1, 2), dtype=np.int64)  # [in]
    return NodeActivity(synaptic_operations=int(events @ fan_out), weighted_operations=int(payload @ fan_out))


def _count_attention(node: Attention, inputs: Sequence[np.ndarray], mask: np.ndarray) -> NodeActivity:
    """inputs: q, k [T, B, N, D] of 0 and 1, v [T, B, N, D], and the valid lane [T, B, N, 1] where the node reads it.

    Features at which a real query and a real key match, and for each score (with its bias) that is not 0 the spikes of
    v that it meets; weighted, what they bring. One timestep of one sample at a time, so memory stays at [H, N, N].
    """
    operations = weighted = 0
    for t, b in np.ndindex(inputs[0].shape[:2]):
        real = int(mask[b].sum())
        q, k, v = (x[t, b, :real] for x in inputs[:3])  # each [N, D]
        lane = inputs[3][t, b, :real, 0] if node.lane is not None else np.ones(real)
        scores = _heads(q, node.heads) @ _heads(k, node.heads).swapaxes(-1, -2)  # [H, N, N]
        if node.similarity == "xnor":
            scores += _heads(1 - q, node.heads) @ _heads(1 - k, node.heads).swapaxes(-1, -2)
        scores *= lane[:, None]
        matched = int(scores.sum())  # a score is how many features match
        if node.bias is not None:
            scores += node.bias[:, :real, :real] * lane[:, None]
        sent = _heads(v, node.heads)
        targets, payload = np.count_nonzero(sent, axis=-1), sent.sum(axis=-1)  # [H, N]: of the v of each key token
        operations += matched + int(np.count_nonzero(scores, axis=1).ravel() @ targets.ravel())
        weighted += matched + int(np.abs(scores).sum(axis=1).ravel() @ payload.ravel())
    return NodeActivity(synaptic_operations=operations, weighted_operations=weighted)


def _count_product(scores: np.ndarray, v: np.ndarray, heads: int, n_max: int) -> NodeActivity:
    """A score reaches the d features of its head, a spike of v one neuron of each of n_max queries."""
    size = v.shape[-1] // heads
    operations = size * int(np.count_nonzero(scores)) + n_max * int(np.count_nonzero(v))
    weighted = size * int(scores.sum()) + n_max * int(v.sum())
    return NodeActivity(synaptic_operations=operations, weighted_operations=weighted)


def _heads(x: np.ndarray, heads: int) -> np.ndarray:
    """[N, D] -> float64 [H, N, d]: exact for these counts, and a product of floats is fast."""
    return x.reshape(len(x), heads, x.shape[1] // heads).swapaxes(0, 1).astype(np.float64)
