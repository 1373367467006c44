"""Batches through an engine: one by one, or streamed where the engine can."""

from contextlib import closing

import numpy as np
import pytest
from random_graphs import random_batch, random_graph
from streaming_engines import OneBehind

from converters.execution import EngineOptions, PipelinedEngine, run_batches
from sim.reference import ReferenceEngine


@pytest.fixture(scope="module")
def graph():
    return random_graph(np.random.default_rng(0), blocks=1)


@pytest.fixture(scope="module")
def batches(graph):
    return [random_batch(np.random.default_rng(seed), graph, 2) for seed in range(4)]


def check_equal(graph, batches, executions, observe):
    assert len(executions) == len(batches)
    for batch, got in zip(batches, executions):
        wanted = ReferenceEngine(graph).run(batch, observe)
        assert np.array_equal(got.logits, wanted.logits)
        assert set(got.values) == set(observe)
        assert all(np.array_equal(got.values[name], wanted.values[name]) for name in observe)


@pytest.mark.parametrize("engine_class", [ReferenceEngine, OneBehind])
@pytest.mark.parametrize("count", [0, 1, 4])
def test_every_batch_has_its_execution_in_order(graph, batches, engine_class, count):
    engine = engine_class(graph)
    executions = list(run_batches(engine, iter(batches[:count]), ("block0.q",)))
    check_equal(graph, batches[:count], executions, ("block0.q",))


def test_only_an_engine_with_stream_is_streamed(graph, batches):
    engine = OneBehind(graph)
    assert isinstance(engine, PipelinedEngine) and not isinstance(ReferenceEngine(graph), PipelinedEngine)
    list(run_batches(engine, batches))
    assert engine.streams == 1


def test_an_engine_that_runs_batches_one_by_one_is_given_no_batch_ahead(graph, batches):
    taken = []

    def told():
        for batch in batches:
            taken.append(batch)
            yield batch

    for done, _ in enumerate(run_batches(ReferenceEngine(graph), told()), start=1):
        assert len(taken) == done


def test_closing_ends_the_stream_of_the_engine(graph, batches):
    engine = OneBehind(graph)
    with closing(run_batches(engine, batches)) as executions:
        next(executions)
        assert engine.is_streaming
    assert not engine.is_streaming


class Forgetful(OneBehind):
    """Gives no result of the last batch."""

    def drained(self, held):
        return iter(())


class Doubling(OneBehind):
    """Gives the last result twice."""

    def drained(self, held):
        return iter([held, held])


@pytest.mark.parametrize(("engine_class", "given"), [(Forgetful, 3), (Doubling, 5)])
def test_a_stream_with_too_few_or_too_many_results_is_an_error(graph, batches, engine_class, given):
    with pytest.raises(RuntimeError, match=f"gave {given} results for 4 batches"):
        list(run_batches(engine_class(graph), batches))


def test_an_unknown_kind_of_attention_is_refused():
    with pytest.raises(ValueError, match="'soft' is none of process, stock"):
        EngineOptions(attention="soft")
