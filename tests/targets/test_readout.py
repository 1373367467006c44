"""A readout that is a membrane on the targets: exact on Lava, whose host integrates, refused by name elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("lava.magma")

from random_graphs import random_batch, random_graph
from readout_cases import with_membrane

from converters.execution import TokenBatch
from converters.graph import LIF, Graph, Readout, Source, Synapses
from sim.reference import ReferenceEngine
from sim.verify import compare
from targets import legality
from targets.lava.engine import LavaEngine, LavaInlineEngine
from targets.lava.target import LavaTarget
from targets.loihi2.target import Loihi2Target
from targets.netx.legal import check as check_netx
from targets.nir.rules import RULES as NIR_RULES


def chain(kind: str = "membrane") -> Graph:
    nodes = (
        Source("source", [[1, 2], [3, 1]], threshold=1),
        Synapses("layer", ("source",), [[9, 2], [1, 3]], [0, 0]),
        LIF("neuron", ("layer",), 3, 0),
        Readout("readout", ("neuron",), np.eye(2, dtype=int), [0, 0], 1.0, kind, 2048 if kind == "membrane" else 0),
    )
    return Graph(4, 2, nodes)


@pytest.mark.parametrize("timesteps", [1, 2, 4, 8])
@pytest.mark.parametrize("dv", [410, 2048])
def test_lava_inline_equals_the_reference(timesteps: int, dv: int) -> None:
    rng = np.random.default_rng(timesteps)
    graph = with_membrane(random_graph(rng, blocks=1, hidden=8, n_max=4, timesteps=timesteps), dv)
    batch, names = random_batch(rng, graph, 3), tuple(graph.features)
    engine = LavaInlineEngine(graph)
    try:
        comparison = compare(graph, ReferenceEngine(graph).run(batch, names), engine.run(batch, names))
    finally:
        engine.close()
    assert comparison.mismatches == 0, str(comparison.first_mismatch)


def test_a_program_of_ones_own_gets_the_same_logits() -> None:
    """Of the readout's currents, which Lava holds doubled, from the step on at which they come."""
    LavaInlineEngine(chain()).close()  # imports Lava in the way that leaves this process as it was
    from targets.lava.process import as_process

    batch = TokenBatch(np.array([[0, 1], [1, 0]]), np.array([[1, 1], [1, 0]]))
    expected = ReferenceEngine(chain()).run(batch, ("readout",))
    network = as_process(chain())
    currents = np.zeros((network.steps(2), 2, 1, 2), np.int32)
    own = expected.values["readout"].swapaxes(0, 1).reshape(8, 2, 1, 2)  # sample after sample
    currents[network.latency_steps :] = 2 * own
    assert np.array_equal(network.logits(currents, batch), expected.logits)


@pytest.mark.slow
def test_the_lava_runtime_equals_the_reference() -> None:
    rng = np.random.default_rng(0)
    graph = with_membrane(random_graph(rng, blocks=1, hidden=8, n_max=4), 2048)
    batch, names = random_batch(rng, graph, 3), tuple(graph.features)
    engine = LavaEngine(graph)
    try:
        assert compare(graph, ReferenceEngine(graph).run(batch, names), engine.run(batch, names)).mismatches == 0
    finally:
        engine.close()


def test_lava_and_the_chip_take_it() -> None:
    """Their host reads the currents at every timestep."""
    for target in (LavaTarget(), Loihi2Target()):
        assert [violation.node for violation in target.check(chain()) if violation.node == "readout"] == []


def test_netx_and_nir_refuse_it_by_name() -> None:
    for check in (check_netx, lambda graph: legality.check(NIR_RULES, graph)):
        (violation,) = check(chain())
        assert (violation.rule, violation.node, violation.value, violation.limit) == ("sum-readout", "readout", 1, 0)
        assert 'train with readout "sum"' in str(violation)
        assert check(chain("sum")) == []
