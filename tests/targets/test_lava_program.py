"""A program takes batch after batch: what comes out, in which order, and how many steps it takes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lava.magma")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import random_batch, random_dag, random_graph

from converters.execution import EngineOptions, Execution, TokenBatch
from converters.graph import Graph
from converters.passes.expand_attention import ExpandAttention
from sim.reference import ReferenceEngine
from spikebert.commands import UserError
from targets.lava import program as program_module
from targets.lava.engine import FAST_MODELS, STOCK_MODELS, LavaEngine, LavaInlineEngine, open_lava_inline
from targets.lava.plan import AttentionSpec
from targets.lava.records import BatchRecords, LavaMismatchError
from targets.lava.target import LavaTarget, ScheduleError

CONV = "lava.proc.conv.process:Conv"


@pytest.fixture
def graph() -> Graph:
    return random_graph(np.random.default_rng(2), blocks=1, hidden=8, n_max=4)


def batches_of(graph: Graph, sizes: tuple[int, ...], seed: int = 0) -> list[TokenBatch]:
    """Batches of these many samples, of different widths."""
    rng = np.random.default_rng(seed)
    return [random_batch(rng, graph, size, tokens=int(rng.integers(1, graph.n_max + 1))) for size in sizes]


def assert_equal(graph: Graph, batches: list[TokenBatch], actual: list[Execution], names: list[str]) -> None:
    assert len(actual) == len(batches)
    reference = ReferenceEngine(graph)
    for batch, execution in zip(batches, actual):
        expected = reference.run(batch, names)
        assert np.array_equal(execution.logits, expected.logits)
        assert list(execution.values) == names
        for name in names:
            assert np.array_equal(execution.values[name], expected.values[name]), name


@pytest.mark.parametrize("engine", [LavaInlineEngine, LavaEngine])
def test_a_stream_gives_each_batch_in_order_and_never_runs_empty(graph: Graph, engine) -> None:
    batches = batches_of(graph, (1, 1, 3, 1, 2))
    names = [node.name for node in graph]
    with engine(graph) as program:
        assert_equal(graph, batches, list(program.stream(batches, names)), names)
        schedule = program.plan.schedule
        assert program._session.next_step == 1 + 8 * graph.timesteps + schedule.drain_steps
        more = batches_of(graph, (2, 1), seed=1)
        assert_equal(graph, more, list(program.stream(more, names)), names)
        assert program._session.next_step == 1 + 11 * graph.timesteps + 2 * schedule.drain_steps


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    timesteps=st.sampled_from([1, 2, 3, 4, 8]),
    part_bytes=st.sampled_from([1, 5_000, 1 << 28]),
)
def test_streams_of_any_sizes(seed: int, sizes: list[int], timesteps: int, part_bytes: int) -> None:
    graph = random_dag(np.random.default_rng(seed), timesteps=timesteps)
    batches = batches_of(graph, tuple(sizes), seed)
    names = [node.name for node in graph]
    with pytest.MonkeyPatch.context() as patched, LavaInlineEngine(graph) as program:
        patched.setattr(program_module, "RECORD_BYTES_MAX", part_bytes)
        assert_equal(graph, batches, list(program.stream(batches, names)), names)
        assert_equal(graph, batches[:1], [program.classify(batches[0], names)], names)


def test_a_deep_network_is_never_recorded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of all its processes is large, and a sample is under way for many: as it runs, and as it runs empty."""
    graph = random_graph(np.random.default_rng(0), blocks=4, hidden=8, n_max=4)
    batches, names, held = batches_of(graph, (1, 1)), [node.name for node in graph], []

    class Counted(program_module.StepFile):
        def begin(self, first_step: int, steps: int) -> None:
            held.append(steps * self.width * program_module.ITEM_BYTES)
            super().begin(first_step, steps)

    with LavaInlineEngine(graph) as program:
        program.open(names)
        bound = 3 * program._session.layout.width * program_module.ITEM_BYTES
        assert program.plan.schedule.depth_steps > 20
    monkeypatch.setattr(program_module, "StepFile", Counted)
    monkeypatch.setattr(program_module, "RECORD_BYTES_MAX", bound)
    with LavaInlineEngine(graph) as program:
        assert_equal(graph, batches, list(program.stream(batches, names)), names)
        assert max(held) == bound
        records = BatchRecords(graph, program.plan, program._session.layout, names, batches[0], steps=50)
        one_sample = sum(part.nbytes for part in records._kept.values())
        assert one_sample < 2 * graph.timesteps * program._session.layout.width * program_module.ITEM_BYTES


@pytest.mark.parametrize("grouping", ["process", "layer", "core"])
@pytest.mark.parametrize("dv", [0, 410, 2048, 4095])
def test_groupings_are_one_network(grouping: str, dv: int) -> None:
    graph = random_graph(np.random.default_rng(dv), blocks=2, hidden=8, n_max=4, dv=dv)
    batches, names = batches_of(graph, (3,)), [node.name for node in graph]
    with LavaInlineEngine(graph, grouping=grouping) as program:
        assert_equal(graph, batches, [program.classify(batches[0], names)], names)


@pytest.mark.parametrize("grouping", ["process", "core"])
def test_groupings_in_the_runtime(graph: Graph, grouping: str) -> None:
    batches, names = batches_of(graph, (2, 1)), [node.name for node in graph]
    with LavaEngine(graph, grouping=grouping, cores=2) as program:
        assert_equal(graph, batches, list(program.stream(batches, names)), names)


@pytest.mark.parametrize("models", [FAST_MODELS, STOCK_MODELS])
def test_with_models_every_process_is_its_own(graph: Graph, models) -> None:
    with LavaInlineEngine(graph, models) as program:
        program.open()
        assert len(program._session.network.models) == len(program.plan.specs) + 1, "and the recorder"
    with LavaInlineEngine(graph) as program:
        program.open()
        assert len(program._session.network.models) == 1 + 6 + 1, "feed, five layers and the readout, recorder"


@pytest.mark.parametrize("engine", [LavaInlineEngine, LavaEngine])
@pytest.mark.parametrize("models", [None, STOCK_MODELS], ids=["groups", "stock models"])
def test_attention_of_stock_neurons_keeps_the_nodes_of_the_graph(graph: Graph, engine, models) -> None:
    batches, names = batches_of(graph, (2, 1)), [node.name for node in graph]
    with engine(graph, models, attention="stock") as program:
        assert program.graph is graph
        assert not any(isinstance(spec, AttentionSpec) for spec in program.plan.specs)
        assert_equal(graph, batches, list(program.stream(batches, names)), names)


def test_a_bundle_is_held_against_its_own_graph(graph: Graph, tmp_path: Path) -> None:
    """Its schedule is that of the graph it holds, also where attention is then made of stock neurons."""
    LavaTarget().emit(graph, tmp_path / "lava")
    for attention in ("process", "stock"):
        engine = open_lava_inline(graph, EngineOptions(bundle=tmp_path, attention=attention, stock_models=True))
        batch = batches_of(graph, (2,))[0]
        assert_equal(graph, [batch], [engine.run(batch)], [])
    other = random_graph(np.random.default_rng(3), blocks=2, hidden=8, n_max=4)
    with pytest.raises(ScheduleError):
        open_lava_inline(other, EngineOptions(bundle=tmp_path))


def test_attention_too_large_for_stock_neurons_is_refused(monkeypatch: pytest.MonkeyPatch, graph: Graph) -> None:
    monkeypatch.setattr(ExpandAttention, "__init__", partialmethod(ExpandAttention.__init__, most_weights=1))
    with pytest.raises(UserError, match=r"attention of stock neurons: 1 attentions .* would need"):
        open_lava_inline(graph, EngineOptions(attention="stock"))


def test_results_come_one_batch_behind(graph: Graph) -> None:
    drawn = []

    def batches() -> Iterator[TokenBatch]:
        for number, batch in enumerate(batches_of(graph, (4, 4, 4))):
            drawn.append(number)
            yield batch

    with LavaInlineEngine(graph) as program:
        results = program.stream(batches())
        assert drawn == []
        next(results)
        assert drawn[:2] == [0, 1]
        assert len(list(results)) == 2 and drawn == [0, 1, 2]


def test_an_empty_stream_gives_nothing(graph: Graph) -> None:
    with LavaInlineEngine(graph) as program:
        assert list(program.stream([])) == []


def test_a_stream_under_way_keeps_others_out(graph: Graph) -> None:
    batches = batches_of(graph, (2, 2, 2))
    with LavaInlineEngine(graph) as program:
        results = program.stream(batches)
        next(results)
        with pytest.raises(RuntimeError, match="a stream of this program is under way"):
            program.classify(batches[0])
        assert_equal(graph, batches[1:], list(results), [])
        assert_equal(graph, batches[:1], [program.classify(batches[0])], [])


def test_a_stream_that_is_left_leaves_a_fresh_network(graph: Graph) -> None:
    batches = batches_of(graph, (2, 2, 2))
    with LavaInlineEngine(graph) as program:
        results = program.stream(batches)
        next(results)
        results.close()
        assert program._session is None
        assert_equal(graph, batches[:1], [program.classify(batches[0])], [])


def test_an_error_while_batches_are_drawn_comes_after_what_has_entered(graph: Graph) -> None:
    good = batches_of(graph, (1,))

    def batches() -> Iterator[TokenBatch]:
        yield good[0]
        raise OSError("the disk is gone")

    with LavaInlineEngine(graph) as program:
        results = program.stream(batches())
        assert_equal(graph, good, [next(results)], [])
        with pytest.raises(OSError, match="the disk is gone"):
            next(results)
        with pytest.raises(ValueError, match="the graph takes"):
            list(program.stream([good[0], TokenBatch(np.zeros((1, 9)), np.ones((1, 9)))]))
        assert_equal(graph, good, [program.classify(good[0])], [])


def test_open_builds_the_network_and_close_ends_it(graph: Graph) -> None:
    program = LavaInlineEngine(graph)
    program.open(["source"])
    session = program._session
    program.classify(batches_of(graph, (1,))[0], ["source"])
    assert program._session is session
    with pytest.raises(ValueError, match="no such node"):
        program.open(["nothing"])
    program.close()
    program.close()
    for use in (program.open, lambda: list(program.stream([]))):
        with pytest.raises(RuntimeError, match="closed"):
            use()


def test_spikes_between_two_streams_are_noticed(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain that is too short leaves samples in the pipeline when the next stream begins."""
    batches = batches_of(graph, (2,))
    with LavaInlineEngine(graph) as program:
        program.open([node.name for node in graph])
        monkeypatch.setattr(type(program.plan.schedule), "drain_steps", 0)
        with pytest.raises((LavaMismatchError, ValueError)):
            program.classify(batches[0], [node.name for node in graph])
            program.classify(batches[0], [node.name for node in graph])
