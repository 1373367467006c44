"""Lava against the reference: every value of every node, with array_equal."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("lava.magma")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import RULES, random_batch, random_dag, random_graph

from converters.execution import EngineOptions, Execution, TokenBatch
from converters.graph import LIF, Attention, Graph, Readout, Source, Synapses
from converters.passes.expand_attention import ExpandAttention
from converters.passes.lay_out_bias_lanes import LayOutBiasLanes
from converters.passes.merge_query_key_value import MergeQueryKeyValue
from converters.passes.split_wide_layers import SplitWideLayers
from sim.reference import ReferenceEngine
from targets.lava import engine as engine_module
from targets.lava import program as program_module
from targets.lava.engine import STOCK_MODELS, LavaEngine, LavaInlineEngine, open_lava, open_lava_inline

ENGINES = pytest.mark.parametrize("make", [LavaInlineEngine, LavaEngine])
Make = Callable[..., program_module.LavaProgram]


def names_of(graph: Graph) -> list[str]:
    return [node.name for node in graph]


def assert_equal(graph: Graph, batch: TokenBatch, actual: Execution) -> int:
    """Compare logits and every observed value with the reference; how many values there were."""
    expected = ReferenceEngine(graph).run(batch, list(actual.values))
    assert np.array_equal(actual.logits, expected.logits)
    for name, values in expected.values.items():
        assert actual.values[name].dtype == np.int64 and actual.values[name].shape == values.shape, name
        assert np.array_equal(actual.values[name], values), name
    return sum(values.size for values in expected.values.values())


def assert_alive(graph: Graph, execution: Execution) -> None:
    """Every LIF of the graph fires, and none always does: equality of silence would show nothing."""
    for node in graph:
        if isinstance(node, LIF):
            assert 0.02 < execution.values[node.name].mean() < 0.9, node.name


def one_layer(weight: np.ndarray, bias: np.ndarray, threshold: int, timesteps: int = 4, dv: int = 0) -> Graph:
    """x (all ones where a token is real) -> a -> s -> y."""
    width = weight.shape[1]
    nodes = (
        Source("x", np.ones((5, width), dtype=np.int8), kind="sign"),
        Synapses("a", ("x",), weight, bias),
        LIF("s", ("a",), threshold, dv),
        Readout("y", ("s",), np.eye(weight.shape[0], dtype=np.int8), np.zeros(weight.shape[0], dtype=np.int32)),
    )
    return Graph(timesteps, 3, nodes)


@ENGINES
def test_two_blocks_equal_the_reference(make: Make) -> None:
    rng = np.random.default_rng(20)
    graph = random_graph(rng, blocks=2, hidden=24, heads=3, n_max=8, timesteps=4, dv=(410, 2048))
    batch = random_batch(rng, graph, 6)
    engine = make(graph)
    actual = engine.run(batch, names_of(graph))
    engine.close()
    assert_alive(graph, actual)
    assert assert_equal(graph, batch, actual) > 100_000


@pytest.mark.parametrize("dv", [0, 410, 2048, 4095])
@pytest.mark.parametrize("timesteps", [1, 4, 8, 16])
@pytest.mark.parametrize("source_kind", ["lif", "sign"])
def test_inline_for_every_decay_and_length(dv: int, timesteps: int, source_kind: str) -> None:
    rng = np.random.default_rng(dv + timesteps)
    graph = random_graph(rng, blocks=1, hidden=12, n_max=4, timesteps=timesteps, dv=dv, source_kind=source_kind)
    batch = random_batch(rng, graph, 5)
    engine = LavaInlineEngine(graph)
    actual = engine.run(batch, names_of(graph))
    assert_equal(graph, batch, actual)
    currents = np.concatenate([actual.values[node.inputs[0]].ravel() for node in graph if isinstance(node, LIF)])
    assert currents.min() < 0, "no membrane was driven below 0"
    assert any((actual.values[node.inputs[0]] == node.threshold).any() for node in graph if isinstance(node, LIF))


PASSES = [
    MergeQueryKeyValue(scalar_thresholds=True), ExpandAttention(), SplitWideLayers(5), LayOutBiasLanes(),
]  # fmt: skip


@pytest.mark.parametrize("each", [*PASSES, None], ids=lambda each: each.name if each else "all")
@pytest.mark.parametrize("models", [None, engine_module.FAST_MODELS, STOCK_MODELS], ids=["groups", "fast", "stock"])
def test_inline_after_passes(each, models) -> None:
    """Two blocks and a random wiring, with every node that only passes make."""
    for seed, make in enumerate((random_graph, random_dag)):
        rng = np.random.default_rng(seed)
        graph = make(rng, hidden=6, n_max=3)
        if make is random_graph:
            graph = with_one_threshold(graph)
        for todo in PASSES if each is None else [each]:
            graph = todo.rewrite(graph).graph
        engine = LavaInlineEngine(graph, models)
        for _ in range(2):  # the second is shorter than n_max
            batch = random_batch(rng, graph, 4, tokens=rng.integers(1, 4))
            assert_equal(graph, batch, engine.run(batch, names_of(graph)))
        engine.close()


def with_one_threshold(graph: Graph) -> Graph:
    """q, k and v with one threshold, so that they can be one layer."""
    neurons = [node for node in graph if isinstance(node, LIF) and node.name.split(".")[-1] in ("q", "k", "v")]
    alike = {node.name: replace(node, threshold=neurons[0].threshold, dv=neurons[0].dv) for node in neurons}
    return Graph(graph.timesteps, graph.n_max, tuple(alike.get(node.name, node) for node in graph))


def test_attention_of_stock_processes_in_the_runtime() -> None:
    rng = np.random.default_rng(5)
    graph = ExpandAttention().rewrite(random_graph(rng, blocks=1, hidden=12, n_max=4, firing=0.6)).graph
    batch = random_batch(rng, graph, 3)
    engine = LavaEngine(graph)
    actual = engine.run(batch, names_of(graph))
    engine.close()
    assert actual.values["block0.attention.product"].max() > 1, "scores are graded"
    assert_equal(graph, batch, actual)


@pytest.mark.parametrize("maker", [LavaInlineEngine, LavaEngine], ids=["inline", "runtime"])
@pytest.mark.parametrize("models", [None, STOCK_MODELS], ids=["groups", "stock"])
def test_attention_with_other_scores(maker, models) -> None:
    """Equal features, and a bias for each head; two blocks, so that a lane waits and is carried past adds."""
    rng = np.random.default_rng(5)
    graph = random_graph(rng, blocks=2, hidden=6, n_max=4, firing=0.5)
    bias = rng.integers(-3, 9, (2, 4, 4))
    nodes = (replace(node, similarity="xnor", bias=bias) if isinstance(node, Attention) else node for node in graph)
    graph = Graph(graph.timesteps, graph.n_max, tuple(nodes))
    batch = random_batch(rng, graph, 3)
    engine = maker(graph, models)
    actual = engine.run(batch, names_of(graph))
    engine.close()
    assert_equal(graph, batch, actual)
    padding = batch.mask == 0
    assert padding.any() and not any(values[:, padding].any() for values in actual.values.values())


def test_an_attention_of_equal_features_made_of_stock_processes() -> None:
    rng = np.random.default_rng(5)
    graph = random_graph(rng, blocks=1, hidden=6, n_max=3, firing=0.6)
    nodes = (replace(node, similarity="xnor") if isinstance(node, Attention) else node for node in graph)
    graph = Graph(graph.timesteps, graph.n_max, tuple(nodes))
    engine = LavaInlineEngine(graph, attention="stock")
    batch = random_batch(rng, graph, 3)
    assert_equal(graph, batch, engine.run(batch, names_of(graph)))
    engine.close()


@pytest.mark.parametrize("timesteps, dv", [(1, 0), (3, 410), (8, 4095)])
def test_the_runtime_for_other_lengths(timesteps: int, dv: int) -> None:
    rng = np.random.default_rng(timesteps)
    graph = random_dag(rng, nodes=5, timesteps=timesteps, dv=dv)
    engine = LavaEngine(graph)
    for _ in range(2):
        batch = random_batch(rng, graph, 4)
        assert_equal(graph, batch, engine.run(batch, names_of(graph)))
    engine.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    nodes=st.integers(1, 8),
    hidden=st.integers(1, 8),
    n_max=st.integers(1, 5),
    timesteps=st.sampled_from([1, 2, 3, 4, 5, 8]),
    weight_bits=st.integers(1, 8),
    bias_max=st.sampled_from([0, 1, 127, 128, 300, 5000]),
    source_kind=st.sampled_from(["lif", "sign"]),
    attention=st.sampled_from(["plain", "any"]),
    norms=st.sampled_from([0.0, 0.5]),
    neurons=st.sampled_from(RULES),
)
def test_inline_on_graphs_of_any_shape(seed: int, **options: object) -> None:
    rng = np.random.default_rng(seed)
    graph = random_dag(rng, **options)
    engine = LavaInlineEngine(graph)
    for tokens in {1, graph.n_max}:
        batch = random_batch(rng, graph, 3, tokens)
        assert_equal(graph, batch, engine.run(batch, names_of(graph)))
    engine.close()


@ENGINES
def test_stock_models_on_a_small_network(make: Make) -> None:
    rng = np.random.default_rng(4)
    graph = random_graph(rng, blocks=1, hidden=4, n_max=2, bias_max=130)
    batch = random_batch(rng, graph, 3)
    engine = make(graph, STOCK_MODELS)
    assert_equal(graph, batch, engine.run(batch, names_of(graph)))
    engine.close()


@ENGINES
def test_a_running_engine_takes_more_work(make: Make) -> None:
    rng = np.random.default_rng(5)
    graph = random_dag(rng, nodes=4)
    engine = make(graph)
    session = None
    for samples, tokens in ((1, 3), (7, 1), (2, 2)):
        batch = random_batch(rng, graph, samples, tokens)
        assert_equal(graph, batch, engine.run(batch, names_of(graph)))
        assert session in (None, engine._session), "the network was built again"
        session = engine._session
    batch = random_batch(rng, graph, 2)
    assert_equal(graph, batch, engine.run(batch))
    assert engine._session is session
    engine.close()


def test_a_network_is_built_again_only_to_record_more() -> None:
    rng = np.random.default_rng(6)
    graph = random_dag(rng, nodes=4)
    batch = random_batch(rng, graph, 2)
    engine = LavaInlineEngine(graph)
    assert engine.run(batch).values == {}
    first = engine._session
    assert set(engine.run(batch, ["source"]).values) == {"source"}
    second = engine._session
    assert second is not first
    assert_equal(graph, batch, engine.run(batch, [graph.output]))
    assert engine._session is second


def test_a_large_batch_is_streamed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    graph = random_dag(rng, nodes=4)
    batch = random_batch(rng, graph, 7)
    monkeypatch.setattr(program_module, "RECORD_BYTES_MAX", 1)  # one sample at a time
    engine = LavaInlineEngine(graph)
    assert_equal(graph, batch, engine.run(batch, names_of(graph)))
    assert engine._session.next_step == 1 + 7 * graph.timesteps + engine.plan.schedule.drain_steps


@pytest.mark.parametrize("dv", [0, 2048, 4095])
@pytest.mark.parametrize("threshold", [0, 1, 126, 127, 128, 65534, 65535])
def test_lanes_survive_the_highest_thresholds(threshold: int, dv: int) -> None:
    rng = np.random.default_rng(threshold)
    width = 2
    weight, bias = rng.integers(-127, 128, (width, width)), np.array([65535 - 254, -65535 + 254])
    nodes = (
        Source("x", np.ones((5, width), dtype=np.int8), kind="sign"),
        Synapses("a", ("x",), weight, bias),
        LIF("s", ("a",), threshold, dv),
        Synapses("b", ("s",), weight, bias),
        LIF("t", ("b",), threshold, dv),
        Readout("y", ("t",), weight, np.array([300, -300])),
    )
    graph = Graph(4, 3, nodes)
    batch = random_batch(rng, graph, 4)
    assert_equal(graph, batch, LavaInlineEngine(graph).run(batch, names_of(graph)))


@pytest.mark.parametrize("current, fires", [(99, False), (100, False), (101, True)])
def test_a_threshold_met_exactly_does_not_fire(current: int, fires: bool) -> None:
    graph = one_layer(np.array([[current]]), np.array([0]), threshold=100, timesteps=1)
    batch = TokenBatch([[0]], [[1]])
    actual = LavaInlineEngine(graph).run(batch, names_of(graph))
    assert actual.values["s"].item() == int(fires)
    assert_equal(graph, batch, actual)


def test_a_membrane_that_saturates_on_both_sides() -> None:
    graph = one_layer(np.array([[127] * 516, [-127] * 516]), np.array([0, 0]), threshold=65535, timesteps=16)
    batch = TokenBatch([[0, 1, 2]], [[1, 1, 0]])
    actual = LavaInlineEngine(graph).run(batch, names_of(graph))
    assert_equal(graph, batch, actual)
    assert actual.values["s"][:, :, 0, 0].any()


@ENGINES
def test_padding_and_narrow_batches_are_silent(make: Make) -> None:
    """A sample gives the same whatever stands beside it: the engine itself checks padding and idle steps."""
    rng = np.random.default_rng(8)
    graph = random_dag(rng, nodes=5, n_max=5)
    batch = random_batch(rng, graph, 3, tokens=5)
    engine = make(graph)
    wide = engine.run(batch, names_of(graph))
    assert_equal(graph, batch, wide)
    for index in range(3):
        length = int(batch.mask[index].sum())
        alone = TokenBatch(batch.ids[index : index + 1, :length], batch.mask[index : index + 1, :length])
        assert np.array_equal(engine.run(alone).logits, wide.logits[index : index + 1])
    engine.close()


def test_wrong_use_is_refused() -> None:
    rng = np.random.default_rng(9)
    graph = random_dag(rng, nodes=2)
    engine = LavaInlineEngine(graph)
    batch = random_batch(rng, graph, 2)
    with pytest.raises(ValueError, match="no such node in this graph: nothing"):
        engine.run(batch, ["nothing"])
    with pytest.raises(ValueError, match="the graph takes"):
        engine.run(TokenBatch(np.zeros((1, 9)), np.ones((1, 9))))
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.run(batch)


def test_the_factories_follow_the_contract() -> None:
    rng = np.random.default_rng(10)
    graph = random_dag(rng, nodes=1)
    batch = random_batch(rng, graph, 2)
    for factory in (open_lava, open_lava_inline):
        engine = factory(graph, EngineOptions())
        assert engine.graph is graph
        assert_equal(graph, batch, engine.run(batch))
        engine.close()


def test_an_exception_of_a_model_comes_through_inline() -> None:
    rng = np.random.default_rng(3)
    graph = random_dag(rng, nodes=2)
    batch = random_batch(rng, graph, 2)
    engine = LavaInlineEngine(graph, {"lava.proc.conv.process:Conv": "lava_faults:RaisesBeforeSending"})
    with pytest.raises(ArithmeticError, match="before sending"):
        engine.run(batch)


@pytest.mark.parametrize("method", [None, "spawn"])
def test_inline_leaves_the_interpreter_as_it_was(method: str | None) -> None:
    """Importing Lava would set multiprocessing's start method, and each Lava process adds a log handler."""
    script = f"""
import sys
sys.path[:] = {sys.path!r}
import logging, multiprocessing
import numpy as np
from random_graphs import random_batch, random_dag
from targets.lava.engine import LavaInlineEngine

if {method!r}:
    multiprocessing.set_start_method({method!r})
rng = np.random.default_rng(0)
graph = random_dag(rng, nodes=2)
LavaInlineEngine(graph).run(random_batch(rng, graph, 2))
assert multiprocessing.get_start_method(allow_none=True) == {method!r}
assert logging.getLogger().handlers == []
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert multiprocessing.get_start_method(allow_none=True) in (None, "fork", "spawn", "forkserver")
