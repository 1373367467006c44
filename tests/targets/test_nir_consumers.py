"""NIR files of random networks, read and run by Norse and NIRTorch: every spike and logit is that of the reference.

And mistakes made on purpose, one in a threshold or a weight: each must be noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nir")
pytest.importorskip("norse")

import nir
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from nir_consumers import differences, open_in_nirtorch, open_in_norse, read_again, run
from nir_graphs import random_chain, random_paths
from random_graphs import random_batch

from converters.encoder import decay
from converters.execution import TokenBatch
from converters.graph import LIF, SHIFT, Add, Concat, Graph, Readout, Relay, Slice, Source, Synapses, ValidLane
from converters.passes.lay_out_bias_lanes import LayOutBiasLanes
from converters.passes.split_wide_layers import SplitWideLayers
from sim.reference import ReferenceEngine
from targets import legality
from targets.nir.files import write
from targets.nir.network import build
from targets.nir.rules import RULES

# T and the decays that are exact for it; any decay at T = 1
CASES = ((1, (0, 410, 2048, 4095)), (4, (0, 2048, 1024)), (8, (0, 2048)))
QUICK = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
SOURCES = st.sampled_from(["stock", "graded source"])
seeds = st.integers(0, 2**32 - 1)


@QUICK
@given(seeds, st.sampled_from(CASES), SOURCES)
def test_a_chain_runs_in_norse(tmp_path: Path, seed: int, case: tuple, neurons: str) -> None:
    """By `norse.torch.from_nir`, as a user of Norse reads it."""
    rng = np.random.default_rng(seed)
    graph = random_chain(rng, *case, neurons=neurons)
    batch = random_batch(rng, graph, 6)
    assert differences(graph, batch, read_again(graph, tmp_path), open_in_norse) == []


@QUICK
@given(seeds, st.sampled_from(CASES), SOURCES)
def test_a_network_of_many_paths_runs_in_nirtorch(tmp_path: Path, seed: int, case: tuple, neurons: str) -> None:
    rng = np.random.default_rng(seed)
    graph = random_paths(rng, *case, neurons=neurons)
    assume(not legality.check(RULES, graph))  # sums of sums may grow until membranes saturate
    batch = random_batch(rng, graph, 6)
    assert differences(graph, batch, read_again(graph, tmp_path), open_in_nirtorch) == []


def test_the_random_networks_have_everything_and_are_alive() -> None:
    """That those tests show something: all kinds of node, neurons that fire and do not, repeated inputs."""
    kinds, repeated, rates = set(), 0, []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        graph = random_paths(rng, 4, (0, 2048))
        kinds |= {type(node) for node in graph}
        repeated += sum(len(set(node.inputs)) < len(node.inputs) for node in graph if isinstance(node, Add))
        batch = random_batch(rng, graph, 6)
        names = [node.name for node in graph if isinstance(node, LIF)]
        values = ReferenceEngine(graph).run(batch, names).values
        rates += [value[:, batch.mask == 1].mean() for value in values.values()]
    assert kinds >= {LIF, Add, Concat, Slice, ValidLane, Relay} and repeated >= 3
    assert np.mean([0.05 < rate < 0.95 for rate in rates]) > 0.5


@pytest.mark.parametrize("seed", range(5))
def test_after_passes_the_network_is_the_same(tmp_path: Path, seed: int) -> None:
    """Biases on lanes and layers split: the file has no bias, and padding is silent when it is fed with a lane of 0."""
    rng = np.random.default_rng(seed)
    graph = random_paths(rng, 4, (0, 2048))
    batch = random_batch(rng, graph, 6)
    changed = SplitWideLayers(most_features=5).rewrite(LayOutBiasLanes().rewrite(graph).graph).graph
    network = read_again(changed, tmp_path)
    kinds = {type(node) for node in network.nodes.values()}
    assert nir.Affine not in kinds and network.nodes["input"].input_type["input"] == [7]
    assert differences(changed, batch, network, open_in_nirtorch) == []
    padding = run(open_in_nirtorch(network), np.zeros((4, 1, 7)))
    assert not any(value.any() for value in padding.values())


def test_a_threshold_for_each_neuron_runs_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    graph = random_chain(rng, 4, (0, 2048))
    nodes = []
    for node in graph:
        if isinstance(node, LIF):
            levels = node.threshold + np.arange(graph.features[node.name], dtype=np.int32)
            node = LIF(node.name, node.inputs, levels, node.dv)
        nodes.append(node)
    graph = Graph(4, graph.n_max, tuple(nodes))
    batch = random_batch(rng, graph, 6)
    assert differences(graph, batch, read_again(graph, tmp_path), open_in_norse) == []


# Mistakes made on purpose


def thresholds_one_off(by: int) -> Callable[[nir.NIRNode], bool]:
    """By one accumulator unit, which is dt / tau in NIR."""

    def change(node: nir.NIRNode) -> bool:
        if isinstance(node, nir.IF):
            node.v_threshold = node.v_threshold + np.float32(by)
        elif isinstance(node, nir.LIF):
            node.v_threshold = node.v_threshold + np.float32(by * 1e-4) / node.tau
        return isinstance(node, (nir.IF, nir.LIF))

    return change


def a_weight_one_off(node: nir.NIRNode) -> bool:
    """Of each row, so that one of an input that spikes is among them."""
    if not isinstance(node, (nir.Affine, nir.Linear)):
        return False
    node.weight = node.weight.copy()
    node.weight[:, 0] += 1
    return True


def a_bias_one_off(node: nir.NIRNode) -> bool:
    if not isinstance(node, nir.Affine):
        return False
    node.bias = node.bias + np.float32(1)
    return True


def another_tau(node: nir.NIRNode) -> bool:
    """Time constants by an eighth: a neuron that keeps a little less."""
    if not isinstance(node, nir.LIF):
        return False
    node.tau = node.tau * np.float32(0.875)
    return True


MISTAKES = {
    "threshold one higher": thresholds_one_off(1),
    "threshold one lower": thresholds_one_off(-1),
    "weight": a_weight_one_off,
    "bias": a_bias_one_off,
    "tau": another_tau,
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("dv", [0, 2048])
def test_a_mistake_in_any_node_is_noticed(tmp_path: Path, mistake: str, dv: int) -> None:
    graph = random_chain(np.random.default_rng(1), 4, (dv,), weight_bits=3)
    batch = random_batch(np.random.default_rng(2), graph, 200)
    names = list(read_again(graph, tmp_path).nodes)
    changed = 0
    for name in names:
        network = nir.read(tmp_path / "network.nir")
        if MISTAKES[mistake](network.nodes[name]):
            changed += 1
            assert name in differences(graph, batch, network, open_in_norse), name
    assert changed == 0 if (mistake, dv) == ("tau", 0) else changed >= 3


def test_membranes_that_are_not_cleared_are_noticed(tmp_path: Path) -> None:
    """Two samples one after another, without a reset between: the second is another."""
    import torch

    graph = random_chain(np.random.default_rng(1), 4, (0,))
    module = open_in_norse(read_again(graph, tmp_path))
    x = torch.randint(0, 2, (4, 10, 6), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        state, twice = None, []
        for _ in range(2):
            outputs = []
            for step in x:
                output, state = module(step, state)
                outputs.append(output)
            twice.append(torch.stack(outputs))
    assert not torch.equal(*twice)


def test_why_norse_alone_takes_chains_only(tmp_path: Path) -> None:
    """`nirtorch.load`, which it calls, runs nodes in the order of a walk, not after all their inputs."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(10):
        graph = random_paths(rng, 4, (0,), nodes=8)
        network, batch = read_again(graph, tmp_path), random_batch(rng, graph, 6)
        assert differences(graph, batch, network, open_in_nirtorch) == []
        found += differences(graph, batch, network, open_in_norse) != []
    assert found > 0


def rounded_to_a_threshold(dv: int, timesteps: int) -> tuple[int, int]:
    """A constant current, and a threshold that its membrane meets exactly, but only because the rule rounded."""
    for current in range(1, 500):
        ruled, real = 0, 0.0
        for _ in range(timesteps):
            ruled = int(decay(np.array(ruled), dv)) + (current << SHIFT)
            real = real * (4096 - dv) / 4096 + (current << SHIFT)
        if ruled % 2**SHIFT == 0 and real > ruled:
            return current, ruled >> SHIFT
    raise AssertionError("no such current")


def test_what_a_rule_refuses_is_another_network(tmp_path: Path) -> None:
    """A decay of 410 at T = 4, written in spite of the rule: Norse fires where the neuron does not."""
    current, threshold = rounded_to_a_threshold(410, 4)
    nodes = (
        Source("source", [[1], [-1]], kind="sign"),
        Synapses("current", ("source",), [[current]], [0]),
        LIF("neuron", ("current",), threshold, 410),
        Readout("readout", ("neuron",), [[1]], [0]),
    )
    graph = Graph(4, 2, nodes)
    assert [violation.rule for violation in legality.check(RULES, graph)] == ["exact-decay"]
    write(build(graph), tmp_path / "network.nir")
    batch = TokenBatch([[0, 1]], [[1, 1]])
    network = nir.read(tmp_path / "network.nir")
    assert differences(graph, batch, network, open_in_norse) == ["neuron", "readout", "logits"]
