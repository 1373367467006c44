"""Counts against loops over every synapse."""

import numpy as np
import pytest
from machine_graphs import BATCH, machine_graph
from random_graphs import random_batch, random_dag, random_graph, random_machine_dag

from converters.execution import NodeActivity
from converters.graph import NEURONS, Add, Attention, Coincidence, Graph, Product, Readout, Relay, Synapses
from sim.activity import count_activity
from sim.reference import ReferenceEngine


def naive_linear(x: np.ndarray, weight: np.ndarray) -> tuple[int, int]:
    operations = weighted = 0
    for *_, i, value in ((*index, x[index]) for index in np.ndindex(x.shape)):
        for row in weight:
            if value != 0 and row[i] != 0:
                operations += 1
                weighted += abs(int(value))
    return operations, weighted


def naive_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, node: Attention, mask: np.ndarray) -> tuple[int, int]:
    timesteps, samples, tokens, features = q.shape
    width = features // node.heads
    operations = weighted = 0
    for t, b, h, n, p in np.ndindex(timesteps, samples, node.heads, tokens, tokens):
        part = slice(h * width, (h + 1) * width)
        if not (mask[b, n] and mask[b, p]):
            continue
        features_of_both = list(zip(q[t, b, n, part].tolist(), k[t, b, p, part].tolist()))
        matched = sum(1 for i, j in features_of_both if (i == j if node.similarity == "xnor" else i == j == 1))
        score = matched
        if node.bias is not None:
            score += int(node.bias[h % len(node.bias), n, p])
        operations += matched + sum(1 for j in v[t, b, p, part] if score != 0 and j != 0)
        weighted += matched + sum(abs(score * int(j)) for j in v[t, b, p, part])
    return operations, weighted


def naive_coincidence(q: np.ndarray, k: np.ndarray, n_max: int) -> tuple[int, int]:
    """A spike of a query meets every key, one of a key every query: also those that no sample has."""
    operations = sum(n_max for x in (q, k) for index in np.ndindex(x.shape) if x[index] != 0)
    return operations, operations


def naive_product(scores: np.ndarray, v: np.ndarray, heads: int, n_max: int) -> tuple[int, int]:
    operations = weighted = 0
    for index in np.ndindex(scores.shape):
        for _ in range(v.shape[-1] // heads):
            operations += int(scores[index] != 0)
            weighted += int(scores[index])
    for index in np.ndindex(v.shape):
        operations += n_max * int(v[index] != 0)
        weighted += n_max * int(v[index])
    return operations, weighted


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("make", [random_graph, random_dag, random_machine_dag])
@pytest.mark.parametrize(("attention", "neurons"), [("plain", "stock"), ("any", "stock"), ("plain", "any")])
def test_counts_are_those_of_loops(make, seed, attention, neurons):
    rng = np.random.default_rng(seed)
    graph: Graph = make(rng, hidden=6, n_max=3, timesteps=2, weight_bits=2, attention=attention, neurons=neurons)
    batch = random_batch(rng, graph, 2)
    values = ReferenceEngine(graph).run(batch, graph.spiking).values
    activity = count_activity(graph, values, batch)
    for node in graph:
        counts = activity.per_node[node.name]
        inputs = [values[name] for name in node.inputs if name in values]
        operations, spikes, messages = (0, 0), 0, 0
        if isinstance(node, (Synapses, Readout)):
            operations = naive_linear(inputs[0], node.weight)
        elif isinstance(node, Attention):
            operations = naive_attention(*inputs, node, batch.mask)
        elif isinstance(node, Coincidence):
            operations = naive_coincidence(*inputs, graph.n_max)
        elif isinstance(node, Product):
            operations = naive_product(*inputs, node.heads, graph.n_max)
        if isinstance(node, NEURONS):
            spikes = sum(int(value != 0) for value in values[node.name].ravel())
            sites = graph.timesteps * int(batch.mask.sum()) * graph.features[node.name]
            assert counts.rate == spikes / sites
        assert (counts.synaptic_operations, counts.weighted_operations) == operations
        if isinstance(node, (*NEURONS, Add, Relay, Product)):
            messages = sum(int(value != 0) for value in values[node.name].ravel())
        assert counts.messages == messages
        assert counts.spikes == spikes
        assert (counts.rate is None) == (not isinstance(node, NEURONS))


def test_what_passes_make_is_counted():
    """By hand, from the values of `machine_graphs`: two timesteps, three real tokens."""
    graph = machine_graph()
    values = ReferenceEngine(graph).run(BATCH, graph.spiking).values
    counted = count_activity(graph, values, BATCH).per_node
    assert counted["match"] == NodeActivity(
        2 * 6, 2 * 3 * 6, synaptic_operations=2 * 3 * (4 + 4), weighted_operations=2 * 3 * (4 + 4), messages=2 * 6
    )
    product = (2 * (2 * 8 + 3 * 4), 2 * (2 * 21 + 3 * 4))  # 8 scores that are not 0, 21 in all; 4 spikes of v
    assert counted["product"] == NodeActivity(0, 0, *product, messages=2 * 7)
    assert counted["scores"] == NodeActivity(0, 0, 2 * 6, 2 * 6)
    assert counted["attended"] == NodeActivity(0, 0, 2 * 7, 2 * 9)  # two of the seven products are 2
    assert counted["readout"] == NodeActivity(0, 0, 2 * 4, 2 * 4)  # the first valid lane, and one spike of `last`
    assert counted["relay"] == NodeActivity(messages=2 * 8)  # the 8 scores that are not 0
    for name in ("second", "valid", "side_by_side", "all"):
        assert counted[name] == NodeActivity(), name


@pytest.mark.parametrize("attention", ["plain", "unbiased", "any"])
def test_padding_counts_for_nothing(attention):
    rng = np.random.default_rng(0)
    graph = random_graph(rng, attention=attention)
    batch = random_batch(rng, graph, 1, tokens=2)
    wide = type(batch)(np.pad(batch.ids, ((0, 0), (0, 4))), np.pad(batch.mask, ((0, 0), (0, 4))))
    one, other = (
        count_activity(graph, ReferenceEngine(graph).run(each, graph.spiking).values, each) for each in (batch, wide)
    )
    assert one == other


def test_two_batches_add_up():
    rng = np.random.default_rng(0)
    graph = random_graph(rng)
    batch = random_batch(rng, graph, 5)
    parts = (batch[:2], batch[2:], batch)
    one, other, both = (
        count_activity(graph, ReferenceEngine(graph).run(part, graph.spiking).values, part) for part in parts
    )
    assert one + other == both
    assert both.total.spikes == sum(counts.spikes for counts in both.per_node.values())
