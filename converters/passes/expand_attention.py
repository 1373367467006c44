"""Makes attention of stock neurons and synapses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converters.graph import LIF, Attention, Coincidence, Concat, Graph, GraphError, Node, Product, Relay, Synapses
from converters.passes.edit import free_name, with_nodes
from converters.passes.rewrite import Rewrite

BITS = 2  # of the new weights, which are 0 and 1, and -1 of opposites
FORGETS = 4095  # the decay of a neuron that is charged anew at each step


@dataclass(frozen=True)
class ExpandAttention:
    """Attention becomes nodes that any chip with LIF neurons and graded spikes has. Exact.

    The identity, for query n, key m, head h of `d` features and feature e of that head:

        sum over m of (sum over j of q[n, j] * k[m, j]) * v[m, e]

    with `q * k` a coincidence of two spikes (a LIF of threshold 1), the inner sum a layer of synapses of weight 1
    whose current a relay sends on as a graded spike, `score * v` a product, and the outer sum a layer of synapses that
    keeps the name of the attention.

    Features of an attention of similarity "xnor" match where they are both 0 too. So q and k first get their opposites
    beside them, neurons that fire at each step of a real token at which the one of q (or k) does not: `m - q > 0`. Then
    `q[n] = k[j]` is a coincidence of one of the two. At padding the opposites are silent, so there is nothing to mask.

    A bias is refused: it depends on the places of two tokens, and the weights of a layer are the same for all.

    It is dear: `2 n_max D` more neurons for each token, and weights that grow with `n_max^2 D H` and `n_max D^2`. A
    graph that would need more than `most_weights` of them is refused. For "xnor" coincidences, and the weights from
    them, are twice as many.
    """

    most_weights: int = 2**27
    name: str = "expand-attention"

    def rewrite(self, graph: Graph) -> Rewrite:
        """Raises GraphError where the weights would be too many, and where an attention has a bias."""
        attentions = [node for node in graph if isinstance(node, Attention)]
        biased = [node.name for node in attentions if node.bias is not None]
        if biased:
            raise GraphError(
                f"node '{biased[0]}': attention with a position bias cannot be made of stock neurons, whose weights "
                "are the same for every token: train with attention_position none, or keep the attention as it is"
            )
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
    width = graph.features[node.name]
    scores, sums = graph.n_max**2 * width * node.heads, graph.n_max * width**2
    return scores + sums if node.similarity == "and" else 2 * scores + sums + 2 * width**2


def _expand(graph: Graph, node: Attention) -> Sequence[Node]:
    q, k, v = node.inputs[:3]
    width, heads, keys = graph.features[node.name], node.heads, graph.n_max
    match, scores, relay, product = (
        free_name(graph, f"{node.name}.{part}") for part in ("match", "scores", "relay", "product")
    )
    head = np.repeat(np.eye(heads, dtype=np.int8), width // heads, axis=1)  # [H, D]
    opposites: list[Node] = []
    if node.similarity == "xnor":
        of_q, of_k = _with_opposites(graph, node, "q", q), _with_opposites(graph, node, "k", k)
        opposites, q, k = [*of_q, *of_k], of_q[-1].name, of_k[-1].name
        head = np.tile(head, 2)  # [H, 2 D]
    to_scores = np.kron(np.eye(keys, dtype=np.int8), head)  # [n_max * H, n_max * D or n_max * 2 D]
    to_sums = np.tile(np.eye(width, dtype=np.int8), keys)  # [D, n_max * D]
    return (
        *opposites,
        Coincidence(match, (q, k)),
        Synapses(scores, (match,), to_scores, np.zeros(keys * heads, np.int32), BITS),
        Relay(relay, (scores,)),
        Product(product, (relay, v), heads),
        Synapses(node.name, (product,), to_sums, np.zeros(width, np.int32), BITS),
    )


def _with_opposites(graph: Graph, node: Attention, part: str, of: str) -> list[Node]:
    """Nodes, the last of which has the spikes `of` and beside them their opposites: `m - x > 0`."""
    current, lif, both, with_lane = (
        free_name(graph, f"{node.name}.{part}_{what}") for what in ("opposite", "opposite.lif", "both", "with_lane")
    )
    width = graph.features[of]
    weight, bias = -np.eye(width, dtype=np.int8), np.ones(width, np.int32)
    before: list[Node] = []
    if node.lane is not None:  # m comes from there
        before, of_current = [Concat(with_lane, (of, node.lane))], with_lane
        weight, bias = np.concatenate([weight, np.ones((width, 1), np.int8)], axis=1), np.zeros(width, np.int32)
    else:
        of_current = of
    return [
        *before,
        Synapses(current, (of_current,), weight, bias, BITS),
        LIF(lif, (current,), 0, FORGETS),
        Concat(both, (of, lif)),
    ]
