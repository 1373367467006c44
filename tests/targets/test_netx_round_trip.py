"""Graph -> network file -> lava-dl's own Network -> Lava's ProcessModels: every value is that of the reference.

And every mistake that the way there could make, made on purpose: the comparison must notice each.
"""

from __future__ import annotations

import logging
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lava.lib.dl.netx")

import h5py
from hypothesis import given, settings
from hypothesis import strategies as st
from netx_chains import DECAYS, compare_all, compare_changed, random_chain
from random_graphs import random_batch

from converters.execution import TokenBatch
from converters.graph import LIF, Concat, Graph, Readout, Slice, Source, Synapses, ValidLane
from converters.passes.lay_out_bias_lanes import LayOutBiasLanes, split_evenly
from sim.reference import ReferenceEngine
from spikebert.commands import CheckFailed
from targets.lava.records import LavaMismatchError
from targets.netx.chain import Layer, make_chain
from targets.netx.engine import NetxEngine, load_program
from targets.netx.legal import check
from targets.netx.network_file import RESET_OFFSET, write_network
from targets.netx.program import NetworkProgram
from targets.netx.target import check_round_trip


def example(timesteps: int = 4, dv: int = 410, **options: object) -> tuple[Graph, TokenBatch]:
    rng = np.random.default_rng(7)
    graph = random_chain(rng, timesteps=timesteps, dv=dv, **options)
    return graph, random_batch(rng, graph, 8)


def assert_equal(graph: Graph, batch: TokenBatch) -> None:
    engine = NetxEngine(graph)
    try:
        comparison = compare_all(graph, engine, batch)
    finally:
        engine.close()
    assert comparison.values_compared > 0 and comparison.first_mismatch is None


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    timesteps=st.sampled_from([1, 4, 8]),
    dv=st.sampled_from([*DECAYS, DECAYS]),
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    n_max=st.integers(1, 6),
    bits=st.sampled_from([2, 4, 8]),
    bias_max=st.sampled_from([0, 20, 300]),
    kind=st.sampled_from(["lif", "sign"]),
    samples=st.integers(1, 4),
)
def test_a_random_chain(
    seed: int,
    timesteps: int,
    dv: int,
    widths: list[int],
    n_max: int,
    bits: int,
    bias_max: int,
    kind: str,
    samples: int,
) -> None:
    """What the rules refuse (all weights 0, or none positive and the lowest a power of two) is small and rare here."""
    rng = np.random.default_rng(seed)
    graph = random_chain(rng, widths, timesteps, dv, n_max, bits, bias_max, kind)
    refused = {violation.rule for violation in check(graph)}
    assert refused <= {"no-empty-layer", "held-weights"}
    if not refused:
        assert_equal(graph, random_batch(rng, graph, samples))


@pytest.mark.parametrize("timesteps", [1, 4, 8, 16])
@pytest.mark.parametrize("dv", DECAYS)
def test_each_decay_and_number_of_timesteps(timesteps: int, dv: int) -> None:
    assert_equal(*example(timesteps, dv))


def test_thresholds_are_met_exactly_and_membranes_are_negative() -> None:
    """What the tests above rely on, of the graphs that they draw."""
    graph, _ = example()
    batch = random_batch(np.random.default_rng(0), graph, 100)
    values = ReferenceEngine(graph).run(batch, [node.name for node in graph]).values
    neurons = [node for node in graph if isinstance(node, LIF)]
    assert any((values[node.inputs[0]][0] == node.threshold).any() for node in neurons)  # from a membrane of 0
    assert all((values[node.inputs[0]][0] < 0).any() for node in neurons)
    assert all(0.05 < values[node.name].mean() < 0.95 for node in neurons)


def test_batch_after_batch_of_any_size_on_one_network() -> None:
    graph, _ = example()
    rng = np.random.default_rng(0)
    engine = NetxEngine(graph)
    for samples, tokens in ((1, 5), (3, 1), (2, 4)):
        assert compare_all(graph, engine, random_batch(rng, graph, samples, tokens)).mismatches == 0
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.run(random_batch(rng, graph, 1))


def test_a_large_batch_is_run_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, batch = example()
    channels = sum(len(layer.weight) for layer in make_chain(graph).layers)
    monkeypatch.setattr("targets.netx.engine.RECORD_BYTES_MAX", 3 * 4 * 5 * 2 * 4 * channels)  # three samples
    engine = NetxEngine(graph)
    assert [len(part) for part in engine._parts(batch)] == [3, 3, 2]
    assert compare_all(graph, engine, batch).mismatches == 0


def test_a_run_that_breaks_off_closes_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, batch = example()
    engine = NetxEngine(graph)
    assert engine._program is not None
    monkeypatch.setattr(engine._program.models[3], "run_spk", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.run(batch)
    with pytest.raises(RuntimeError, match="closed"):
        engine.run(batch)


def test_sums_of_the_readout_may_wrap() -> None:
    """A Sigma has 32 bits and no reset: here it begins just below where they end."""
    graph, batch = example()
    engine = NetxEngine(graph)
    assert engine._program is not None
    sigma = engine._program.models[-1]
    sigma.sigma = np.full_like(sigma.sigma, 2**31 - 100)
    assert compare_all(graph, engine, batch).mismatches == 0
    assert sigma.sigma.min() < 0  # it did wrap


def test_a_graph_whose_lanes_are_laid_out_already_and_what_the_host_puts_together() -> None:
    graph, batch = example()
    laid = LayOutBiasLanes().rewrite(graph).graph
    assert any(isinstance(node, (Concat, ValidLane)) for node in laid)
    assert_equal(laid, batch)
    source = Source("source", np.arange(-6, 6).reshape(3, 4), kind="sign")
    nodes = (
        source, Slice("some", ("source",), 1, 4), ValidLane("valid", 2), Concat("sent", ("valid", "some", "source")),
        Readout("readout", ("sent",), np.arange(-9, 9).reshape(2, 9), [3, 0]),
    )  # fmt: skip
    assert_equal(Graph(2, 3, nodes), TokenBatch([[0, 1, 2], [2, 0, 0]], [[1, 1, 1], [1, 0, 0]]))


def test_the_largest_numbers_a_graph_allows() -> None:
    """Currents of 65535, a threshold of 65534, weights of -128 and 127, membranes that are cut at both ends."""
    table = [[1, -1], [-1, -1], [1, 1]]
    up = Synapses("up", ("source",), [[127, 0], [-127, 0], [1, 1]], [65408, -65408, 0])
    neuron = LIF("up.lif", ("up",), 65534, 0)
    nodes = (Source("source", table, kind="sign"), up, neuron, Readout("readout", ("up.lif",), [[-128, 127, 1]], [-7]))
    graph = Graph(8, 3, nodes)
    assert check(graph) == [] and graph.value_max["up"] == 65535
    assert_equal(graph, TokenBatch([[0, 1, 2], [2, 0, 0]], [[1, 1, 1], [1, 1, 0]]))


def test_loading_leaves_this_process_as_it_was(tmp_path: Path) -> None:
    graph, _ = example()
    before = multiprocessing.get_start_method(allow_none=True), list(logging.getLogger().handlers)
    NetxEngine(graph).close()
    assert (multiprocessing.get_start_method(allow_none=True), list(logging.getLogger().handlers)) == before


def test_a_file_holds_what_netx_documents_and_is_the_same_every_time(tmp_path: Path) -> None:
    graph, _ = example()
    chain = make_chain(graph)
    paths = [tmp_path / name for name in ("one.net", "two.net")]
    for path in paths:
        write_network(chain, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with h5py.File(paths[0]) as file:
        assert sorted(file["layer"]) == ["0", "1", "2", "3"]
        first, last = file["layer/1"], file["layer/3"]
        assert first["neuron/iDecay"][()] == 4096 and first["neuron/vDecay"][()] == 410
        assert first["neuron/vThMant"][()] == 2 * graph["layer0"].threshold
        assert np.array_equal(first["weight"][:9, :7], 2 * graph["layer0.synapses"].weight.astype(int))
        assert last["neuron/type"][0] == b"SDNN" and "bias" not in last


# Negative controls


def test_without_a_mistake_they_agree(tmp_path: Path) -> None:
    assert compare_changed(*example(), tmp_path).mismatches == 0


@pytest.mark.parametrize("wrong", [-2, -1, 1, 2])
def test_a_threshold_off_by_one_or_by_half_is_noticed(wrong: int, tmp_path: Path) -> None:
    """`vth` counts halves of an accumulator unit; decayed membranes lie between."""

    def shift(layer: Layer) -> Layer:
        return layer if layer.vth is None else replace(layer, vth=layer.vth + wrong)

    assert compare_changed(*example(timesteps=8, n_max=16, dv=410), tmp_path, shift).mismatches > 0


@pytest.mark.parametrize("timesteps", [4, 8])
@pytest.mark.parametrize("wrong", [-1, 1])
def test_a_reset_one_step_off_is_noticed(wrong: int, timesteps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, batch = example(timesteps)
    monkeypatch.setattr("targets.netx.engine.RESET_OFFSET", RESET_OFFSET + wrong)
    engine = NetxEngine(graph)
    assert compare_all(graph, engine, batch).mismatches > 0


def test_no_reset_is_noticed(tmp_path: Path) -> None:
    graph, batch = example()
    write_network(make_chain(graph), tmp_path / "network.net")
    engine = NetxEngine(graph)
    engine._program = NetworkProgram(tmp_path / "network.net", reset_interval=1 << 30, reset_offset=RESET_OFFSET)
    assert compare_all(graph, engine, batch).mismatches > 0


def undoubled(layer: Layer) -> Layer:
    """w in place of 2w, and the threshold to match; the readout stays."""
    return layer if layer.vth is None else replace(layer, weight=layer.weight // 2, vth=layer.vth // 2)


@pytest.mark.parametrize(("dv", "current"), [(410, 869), (4095, 32)])
def test_weights_that_are_not_doubled_are_noticed(dv: int, current: int, tmp_path: Path) -> None:
    """netx scales odd weights up and Lava its sums down again, so currents are right; but a membrane has a bit less.

    Here that bit decides the second step: what decay leaves of the first is 1 of 128 above a whole current.
    """
    left = (128 * current * (4096 - dv)) >> 12
    assert left % 128 == 1
    nodes = (
        Source("source", np.ones((1, 7), int), kind="sign"),
        Synapses("up", ("source",), split_evenly(np.array([current]), 7), [0]),
        LIF("up.lif", ("up",), current + left // 128, dv),
        Readout("readout", ("up.lif",), [[1]], [0]),
    )
    graph, batch = Graph(4, 1, nodes), TokenBatch([[0]], [[1]])
    assert compare_changed(graph, batch, tmp_path).mismatches == 0
    chain = make_chain(graph)
    write_network(replace(chain, layers=tuple(map(undoubled, chain.layers))), tmp_path / "undoubled.net")
    engine = NetxEngine(graph, tmp_path / "undoubled.net")
    expected, got = (each.run(batch, ["up.lif"]).values["up.lif"] for each in (ReferenceEngine(graph), engine))
    assert (expected[1].item(), got[1].item()) == (1, 0)


def test_one_odd_weight_is_noticed(tmp_path: Path) -> None:
    """netx asks for 9 bits then, so Lava's CPU model does not floor it: it is the current that is odd."""

    def spoil(layer: Layer) -> Layer:
        weight = layer.weight.copy()
        weight[0, 0] += 1
        return replace(layer, weight=weight) if layer.latency_steps == 2 else layer

    with pytest.raises(LavaMismatchError, match=r"'layer1\.synapses' gave an odd current"):
        compare_changed(*example(), tmp_path, spoil)


def test_a_lane_that_is_too_weak_is_noticed(tmp_path: Path) -> None:
    def weaken(layer: Layer) -> Layer:
        weight = layer.weight.copy()
        weight[layer.features :] = 0
        return replace(layer, weight=weight)

    assert compare_changed(*example(), tmp_path, weaken).mismatches > 0


def test_a_bias_of_the_file_acts_in_padding_too(tmp_path: Path) -> None:
    """Why biases ride on lanes: here they stand in the file, and real tokens alone come out right."""
    rng = np.random.default_rng(3)
    graph = random_chain(rng, (7, 9), timesteps=1, bias_max=0)
    batch = random_batch(rng, graph, 6)
    assert (batch.mask == 0).any()
    bias = np.full(9, graph["layer0"].threshold + 1)
    biased = Graph(1, graph.n_max, tuple(
        replace(node, bias=bias) if node.name == "layer0.synapses" else node for node in graph
    ))  # fmt: skip
    path = tmp_path / "biased.net"
    write_network(make_chain(graph), path)
    with h5py.File(path, "a") as file:
        file["layer/1/bias"] = 2 * bias
    engine = NetxEngine(graph, path)
    engine.graph = biased
    got, expected = (each.run(batch, ["layer0"]).values["layer0"] for each in (engine, ReferenceEngine(biased)))
    real = batch.mask == 1
    assert np.array_equal(got[:, real], expected[:, real])
    assert got[:, ~real].all() and not expected[:, ~real].any()


def test_a_round_trip_that_fails_says_where(tmp_path: Path) -> None:
    graph, _ = example()
    chain = make_chain(graph)
    path = tmp_path / "network.net"
    spoilt = tuple(replace(layer, vth=layer.vth - 2) if layer.neuron == "layer1" else layer for layer in chain.layers)
    write_network(replace(chain, layers=spoilt), path)
    with pytest.raises(CheckFailed, match=r"network\.net: .* node 'layer1', \d+ of \d+ values differ"):
        check_round_trip(graph, path)
    assert isinstance(load_program(path, chain), NetworkProgram)
