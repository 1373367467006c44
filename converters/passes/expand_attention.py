"""Makes attention of stock neurons and synapses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converters.graph import Attention, Coincidence, Graph, GraphError, Node, Product, Relay, Synapses
from converters.passes.edit import free_name, with_nodes
from converters.passes.rewrite import Rewrite

BITS = 2  # of the new weights, which are 0 and 1


@dataclass(frozen=True)
class ExpandAttention:
    """Attention becomes nodes that any chip with LIF neurons and graded spikes has. Exact.

    The identity, for query n, key m, head h of `d` features and feature e of that head:

        sum over m of (sum over j of q[n, j] * k[m, j]) * v[m, e]

    with `q * k` a coincidence of two spikes (a LIF of threshold 1), the inner sum a layer of synapses of weight 1
    whose current a relay sends on as a graded spike, `score * v` a product, and the outer sum a layer of synapses that
    keeps the name of the attention.

    It is dear: `2 n_max D` more neurons for each token, and weights that grow with `n_max^2 D H` and `n_max D^2`. A
    graph that would need more than `most_weights` of them is refused.
    """

    most_weights: int = 2**27
    name: str = "expand-attention"

    def rewrite(self, graph: Graph) -> Rewrite:
        """Raises GraphError where the weights would be too many."""
        attentions = [node for node in graph if isinstance(node, Attention)]
        weights = sum(_weights(graph, node) for node in attentions)
        if weights > self.most_weights:
            raise GraphError(
                f"{len(attentions)} attentions of stock neurons would need {weights:,} weights, the limit is "
                f"{self.most_weights:,}: use fewer tokens, or a smaller model (or raise most_weights)"
            )
        instead = {node.name: _expand(graph, node) for node in attentions}
        summary = f"{len(attentions)} attentions made of stock neurons" if attentions else "no attention"
        return Rewrite(with_nodes(graph, instead) if attentions else graph, summary)


def _weights(graph: Graph, node: Attention) -> int:
    pairs = graph.n_max * graph.features[node.name]
    return pairs * (graph.n_max * node.heads + graph.features[node.name])


def _expand(graph: Graph, node: Attention) -> Sequence[Node]:
    q, k, v = node.inputs
    width, heads, keys = graph.features[node.name], node.heads, graph.n_max
    match, scores, relay, product = (
        free_name(graph, f"{node.name}.{part}") for part in ("match", "scores", "relay", "product")
    )
    head = np.repeat(np.eye(heads, dtype=np.int8), width // heads, axis=1)  # [H, D]
    to_scores = np.kron(np.eye(keys, dtype=np.int8), head)  # [n_max * H, n_max * D]
    to_sums = np.tile(np.eye(width, dtype=np.int8), keys)  # [D, n_max * D]
    return (
        Coincidence(match, (q, k)),
        Synapses(scores, (match,), to_scores, np.zeros(keys * heads, np.int32), BITS),
        Relay(relay, (scores,)),
        Product(product, (relay, v), heads),
        Synapses(node.name, (product,), to_sums, np.zeros(width, np.int32), BITS),
    )
