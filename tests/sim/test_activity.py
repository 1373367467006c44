"""Counts against loops over every synapse."""

import numpy as np
import pytest
from random_graphs import random_batch, random_dag, random_graph

from converters.graph import LIF, Attention, Graph, Readout, Source, Synapses
from sim.activity import count_activity
from sim.reference import ReferenceEngine


def naive_linear(x: np.ndarray, weight: np.ndarray) -> tuple[int, int]:
    operations = weighted = 0
    for *_, i, value in ((*index, x[index]) for index in np.ndindex(x.shape)):
        for row in weight:
            if value != 0 and row[i] != 0:
                operations += 1
                weighted += int(value)
    return operations, weighted


def naive_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> tuple[int, int]:
    timesteps, samples, tokens, features = q.shape
    width = features // heads
    operations = weighted = 0
    for t, b, h, n, p in np.ndindex(timesteps, samples, heads, tokens, tokens):
        part = slice(h * width, (h + 1) * width)
        products = [int(i) * int(j) for i, j in zip(q[t, b, n, part], k[t, b, p, part])]
        score = sum(products)
        pairs = sum(1 for j in v[t, b, p, part] if score != 0 and j != 0)
        operations += sum(1 for product in products if product != 0) + pairs
        weighted += score + score * pairs
    return operations, weighted


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [random_graph, random_dag])
def test_counts_are_those_of_loops(make, seed):
    rng = np.random.default_rng(seed)
    graph: Graph = make(rng, hidden=6, n_max=3, timesteps=2, weight_bits=2)
    batch = random_batch(rng, graph, 2)
    values = ReferenceEngine(graph).run(batch, graph.spiking).values
    activity = count_activity(graph, values, batch.mask)
    for node in graph:
        counts = activity.per_node[node.name]
        inputs = [values[name] for name in node.inputs if name in values]
        operations, spikes = (0, 0), 0
        if isinstance(node, (Synapses, Readout)):
            operations = naive_linear(inputs[0], node.weight)
        elif isinstance(node, Attention):
            operations = naive_attention(*inputs, node.heads)
        elif isinstance(node, (Source, LIF)):
            spikes = sum(int(value) for value in values[node.name].ravel())
            sites = graph.timesteps * int(batch.mask.sum()) * graph.features[node.name]
            assert counts.rate == spikes / sites
        assert (counts.synaptic_operations, counts.weighted_operations) == operations
        assert counts.spikes == spikes
        assert (counts.rate is None) == (not isinstance(node, (Source, LIF)))


def test_padding_counts_for_nothing():
    rng = np.random.default_rng(0)
    graph = random_graph(rng)
    batch = random_batch(rng, graph, 1, tokens=2)
    wide = type(batch)(np.pad(batch.ids, ((0, 0), (0, 4))), np.pad(batch.mask, ((0, 0), (0, 4))))
    one, other = (
        count_activity(graph, ReferenceEngine(graph).run(each, graph.spiking).values, each.mask)
        for each in (batch, wide)
    )
    assert one == other


def test_two_batches_add_up():
    rng = np.random.default_rng(0)
    graph = random_graph(rng)
    batch = random_batch(rng, graph, 5)
    parts = (batch[:2], batch[2:], batch)
    one, other, both = (
        count_activity(graph, ReferenceEngine(graph).run(part, graph.spiking).values, part.mask) for part in parts
    )
    assert one + other == both
    assert both.total.spikes == sum(counts.spikes for counts in both.per_node.values())
