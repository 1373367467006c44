"""Activity: how many spikes a network fired and how much work they caused. The same counts on every engine.

All of it follows from the values of the spiking nodes, so no engine has to count anything itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from converters.graph import LIF, Attention, Graph, Node, Readout, Source, Synapses


@dataclass(frozen=True)
class NodeActivity:
    """What one node did over some samples. All are totals over samples, timesteps, tokens and features.

    spikes              fired by this node; 0 for a node that is no neuron (an add passes spikes on, it fires none)
    sites               timesteps x real tokens x features of a neuron: how many spikes there could have been
    synaptic_operations synapses and readout: over the nonzero inputs, the nonzero weights they reach (the bias
                        lane apart); attention: nonzero products in q k^T, plus nonzero (score, v) pairs
    weighted_operations the same with each operation counted as often as the value it carries (graded spikes and
                        scores); equal to synaptic_operations where all values are 0 and 1
    """

    spikes: int = 0
    sites: int = 0
    synaptic_operations: int = 0
    weighted_operations: int = 0

    @property
    def rate(self) -> float | None:
        """spikes / (timesteps x real tokens x features); None for a node that is no neuron."""
        return self.spikes / self.sites if self.sites else None

    def __add__(self, other: NodeActivity) -> NodeActivity:
        return NodeActivity(
            self.spikes + other.spikes,
            self.sites + other.sites,
            self.synaptic_operations + other.synaptic_operations,
            self.weighted_operations + other.weighted_operations,
        )


@dataclass(frozen=True)
class Activity:
    """What every node of a graph did: node name -> counts, in graph order."""

    timesteps: int
    per_node: dict[str, NodeActivity]

    @property
    def total(self) -> NodeActivity:
        return sum(self.per_node.values(), NodeActivity())

    def __add__(self, other: Activity) -> Activity:
        """The counts of two runs of the same graph together."""
        return Activity(self.timesteps, {name: self.per_node[name] + other.per_node[name] for name in self.per_node})


def count_activity(graph: Graph, values: Mapping[str, np.ndarray], mask: np.ndarray) -> Activity:
    """Count what happened in one batch.

    values the value [T, B, N, D] of every node in `graph.spiking`
    mask   [B, N]; padding is silent, so it adds nothing to the counts, and it is left out of `sites`
    """
    real_tokens = int(mask.sum())
    return Activity(graph.timesteps, {node.name: _count_node(graph, node, values, real_tokens) for node in graph})


def _count_node(graph: Graph, node: Node, values: Mapping[str, np.ndarray], real_tokens: int) -> NodeActivity:
    if isinstance(node, (Source, LIF)):
        sites = graph.timesteps * real_tokens * graph.features[node.name]
        return NodeActivity(spikes=int(np.count_nonzero(values[node.name])), sites=sites)
    if isinstance(node, (Synapses, Readout)):
        return _count_linear(values[node.inputs[0]], node.weight)
    if isinstance(node, Attention):
        q, k, v = (values[name] for name in node.inputs)
        return _count_attention(q, k, v, node.heads)
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


def _heads(x: np.ndarray, heads: int) -> np.ndarray:
    """[N, D] -> float64 [H, N, d]: exact for these counts, and a product of floats is fast."""
    return x.reshape(x.shape[0], heads, -1).swapaxes(0, 1).astype(np.float64)
