"""Random models of every kind through export, every pass and every engine: equal in every value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from random_models import KINDS, Shape, make_batch, make_model, shapes

from benchmarks.campaign import passes_for
from converters.execution import Engine
from converters.from_torch import graph_from_model
from converters.graph import Graph
from converters.passes.catalogue import PassContext, choose_passes, make_passes
from converters.passes.run import Interpreters, run_passes
from converters.pipeline import run_reference
from converters.torch_engine import TorchEngine
from sim.clocked import run_clocked
from sim.engines import open_engine
from sim.verify import compare
from targets.lava.target import LavaTarget

SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def assert_equal(graph: Graph, engine: Engine, batch) -> None:
    names = [node.name for node in graph]
    comparison = compare(graph, run_reference(graph, batch), engine.run(batch, names))
    engine.close()
    assert comparison.mismatches == 0, comparison.first_mismatch
    assert comparison.values_compared > 0


@pytest.mark.parametrize("kind", KINDS)
@settings(SETTINGS, max_examples=25)
@given(shapes())
def test_torch_and_fast_give_the_values_of_the_reference(kind: str, shape: Shape) -> None:
    shape = replace(shape, kind=kind)
    model = make_model(shape)
    graph, batch = graph_from_model(model), make_batch(shape, np.random.default_rng(shape.seed))
    assert_equal(graph, TorchEngine(graph, model), batch)
    assert_equal(graph, open_engine("fast", graph), batch)


@settings(SETTINGS, max_examples=20)
@given(shapes(n_max=5, depth=2))
def test_every_pass_leaves_the_network_the_same(shape: Shape) -> None:
    """`run_passes` compares the graph after each pass with that before, value by value."""
    graph, batch = graph_from_model(make_model(shape)), make_batch(shape, np.random.default_rng(shape.seed))
    passes = make_passes(choose_passes(passes_for(graph)), PassContext(Path()))
    for each in passes:
        run_passes(graph, [each], batch, Interpreters(run_reference, run_clocked))
    after = run_passes(graph, passes, batch, Interpreters(run_reference, run_clocked)).graph
    assert_equal(after, open_engine("fast", after), batch)


@pytest.mark.slow
@settings(SETTINGS, max_examples=20)
@given(shapes(n_max=4, depth=2))
def test_lava_gives_the_values_of_the_reference_or_says_why_not(shape: Shape) -> None:
    pytest.importorskip("lava")
    graph, batch = graph_from_model(make_model(shape)), make_batch(shape, np.random.default_rng(shape.seed), samples=2)
    violations = LavaTarget().check(graph)
    assert all(violation.remedy for violation in violations)
    if not violations:
        assert_equal(graph, open_engine("lava-inline", graph), batch)
