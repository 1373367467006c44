"""The target `netx`: which graphs it takes, and what it adds to a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from converters.encoder import lif
from converters.execution import Execution, TokenBatch
from converters.graph import LIF, Graph, Readout, Synapses
from converters.schedule import LatencyTable
from spikebert.commands import CheckFailed
from targets.lava.lowering import LATENCIES
from targets.legality import Violation
from targets.netx.chain import host_value, on_host
from targets.netx.engine import NetxEngine, require_lava_dl
from targets.netx.legal import NAME, check, lower_legal
from targets.netx.network_file import NETWORK_FILE, write_description, write_network

SAMPLES, TOKENS_MAX = 4, 16  # of the random batch that an export sends through the network


class NetxTarget:
    """What the entry-point group `spikebert.targets` names `netx`.

    Raises MissingExtra where lava-dl is not installed, before any work: an export ends with a run of its network, and
    nothing is written that was not run. `targets.netx.legal.check` works without.
    """

    name = NAME
    latencies: LatencyTable = LATENCIES  # netx makes Lava's own Dense and LIFReset

    def __init__(self) -> None:
        require_lava_dl()

    def check(self, graph: Graph) -> list[Violation]:
        """Everything in a graph that a network file of lava-dl cannot hold."""
        return check(graph)

    def emit(self, graph: Graph, folder: Path) -> None:
        """Write `network.net` and `netx.json` into `folder`, and run what was written.

        Raises IllegalGraphError where the graph is not legal, CheckFailed where lava-dl's network differs from it.
        """
        chain = lower_legal(graph)
        folder.mkdir(parents=True, exist_ok=True)
        write_network(chain, folder / NETWORK_FILE)
        compared = check_round_trip(graph, folder / NETWORK_FILE)
        write_description(chain, compared, folder)


def check_round_trip(graph: Graph, path: Path) -> dict[str, int]:
    """Load a network file with lava-dl, run it on a random batch, and compare every value of every node.

    The batch is the same for every graph of one size. Returns its size and how many values were compared. Raises
    CheckFailed with the first node that differs.
    """
    batch = random_batch(graph)
    expected, names = run_definition(graph, batch), [node.name for node in graph]
    engine = NetxEngine(graph, path)
    try:
        got = engine.run(batch, names)
    finally:
        engine.close()
    pairs = [(f"node '{name}'", expected.values[name], got.values[name]) for name in names]
    for what, right, given in [*pairs, ("logits", expected.logits, got.logits)]:
        if not np.array_equal(right, given):
            raise CheckFailed(
                f"{path.name}: lava-dl's network is not that of the graph: {what}, "
                f"{np.count_nonzero(right != given)} of {right.size} values differ"
            )
    samples, tokens = batch.ids.shape
    compared = sum(right.size for _, right, _ in pairs) + expected.logits.size
    return {"samples": samples, "tokens": tokens, "values_compared": compared}


def random_batch(graph: Graph) -> TokenBatch:
    """Random tokens, SAMPLES texts of different lengths, the first as long as the batch is wide."""
    rng = np.random.default_rng(0)
    tokens = min(graph.n_max, TOKENS_MAX)
    lengths = rng.integers(1, tokens + 1, SAMPLES)
    lengths[0] = tokens
    ids = rng.integers(0, len(graph.source.table), (SAMPLES, tokens))
    return TokenBatch(ids, np.arange(tokens) < lengths[:, None])


def run_definition(graph: Graph, batch: TokenBatch) -> Execution:
    """What the docstrings of `converters.graph` say of a chain: every value of every node, in int64."""
    values: dict[str, np.ndarray] = {}
    for node in graph:
        if on_host(graph, node.name):
            values[node.name] = host_value(graph, node.name, batch)
        elif isinstance(node, LIF):
            values[node.name] = lif(values[node.inputs[0]], node.threshold, node.dv, node.shift)
        else:
            assert isinstance(node, (Synapses, Readout))
            product = values[node.inputs[0]].astype(np.float64) @ node.weight.T.astype(np.float64)  # exact below 2^53
            values[node.name] = product.astype(np.int64) + batch.mask[:, :, None] * node.bias.astype(np.int64)
    return Execution(values[graph.output].sum(axis=(0, 2)), values)
