"""A graph of all that only passes make, small enough to be worked out by hand."""

from __future__ import annotations

import numpy as np

from converters.execution import TokenBatch
from converters.graph import (
    LIF,
    Add,
    Coincidence,
    Concat,
    Graph,
    Product,
    Readout,
    Relay,
    Slice,
    Source,
    Synapses,
    ValidLane,
)

BATCH = TokenBatch([[1, 3], [2, 0]], [[1, 1], [1, 0]])  # the graph takes three tokens


def machine_graph() -> Graph:
    """Two timesteps, both alike; features 0 and 1 of `neuron` are bits 0 and 1 of the token id.

    The scores of a query are one for each of three keys; that of the third, which BATCH has not, is 5 all the same.
    """
    one = np.eye(2, dtype=int)
    of_key = np.repeat(np.eye(3, dtype=int), 2, axis=1)  # [3, 6]: the two features of each key
    of_feature = np.tile(one, 3)  # [2, 6]: of each feature, that of three keys
    nodes = (
        Source("source", [[-1, -1], [1, -1], [-1, 1], [1, 1]], kind="sign"),
        Synapses("current", ("source",), 9 * one, [0, 0]),
        LIF("neuron", ("current",), 5, 4095),
        Add("sum", ("neuron", "neuron", "source")),
        Slice("second", ("sum",), 1, 2),
        ValidLane("valid", 2),
        Concat("side_by_side", ("second", "neuron", "valid")),
        Coincidence("match", ("neuron", "neuron")),
        Synapses("scores", ("match",), of_key, [0, 0, 5]),
        Relay("relay", ("scores",)),
        Product("product", ("relay", "neuron"), 1),
        Synapses("attended", ("product",), of_feature, [0, 0]),
        LIF("last", ("attended",), 2, 4095),
        Concat("all", ("last", "valid")),
        Readout("readout", ("all",), [[1, 10, 0, 0], [0, 0, 100, 0]], [0, 1]),
    )
    return Graph(2, 3, nodes)


# The values at each of both timesteps, [B, N, D]; by hand.
VALUES = {
    "neuron": [[[1, 0], [1, 1]], [[0, 1], [0, 0]]],
    "sum": [[[3, 0], [3, 3]], [[0, 3], [0, 0]]],
    "second": [[[0], [3]], [[3], [0]]],
    "valid": [[[1, 1], [1, 1]], [[1, 1], [0, 0]]],
    "side_by_side": [[[0, 1, 0, 1, 1], [3, 1, 1, 1, 1]], [[3, 0, 1, 1, 1], [0, 0, 0, 0, 0]]],
    "match": [[[1, 0, 1, 0, 0, 0], [1, 0, 1, 1, 0, 0]], [[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]],
    "scores": [[[1, 1, 5], [1, 2, 5]], [[1, 0, 5], [0, 0, 0]]],
    "relay": [[[1, 1, 5], [1, 2, 5]], [[1, 0, 5], [0, 0, 0]]],
    "product": [[[1, 0, 1, 1, 0, 0], [1, 0, 2, 2, 0, 0]], [[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]],
    "attended": [[[2, 1], [3, 2]], [[0, 1], [0, 0]]],
    "last": [[[0, 0], [1, 0]], [[0, 0], [0, 0]]],
    "readout": [[[0, 101], [1, 101]], [[0, 101], [0, 0]]],
}
LOGITS = [[2, 404], [0, 202]]
