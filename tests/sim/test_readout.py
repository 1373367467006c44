"""A readout that is a membrane, on the engines and in the command."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import DECAYS, random_batch, random_graph
from readout_cases import with_membrane
from small_bundles import small_bundle

from converters.early_exit import EarlyExit
from converters.execution import TokenBatch
from converters.graph import Graph
from converters.passes.balance_delays import balance_delays
from converters.readout import logits_over_time, unit_of
from converters.schedule import LatencyTable
from sim.activity import count_activity
from sim.clocked import run_clocked
from sim.fast.engine import FastEngine
from sim.reference import ReferenceEngine
from sim.run_command import main
from sim.verify import compare


def drawn(seed: int, dv: int, **options) -> tuple[Graph, TokenBatch]:
    rng = np.random.default_rng(seed)
    graph = with_membrane(random_graph(rng, blocks=1, hidden=8, **options), dv)
    return graph, random_batch(rng, graph, int(rng.integers(1, 5)))


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    timesteps=st.sampled_from([1, 2, 4, 8, 16]),
    n_max=st.integers(1, 5),
    dv=st.sampled_from(DECAYS),
    threads=st.integers(1, 3),
    observed=st.booleans(),
)
def test_fast_equals_the_reference(seed, timesteps, n_max, dv, threads, observed) -> None:
    graph, batch = drawn(seed, dv, timesteps=timesteps, n_max=n_max)
    names = tuple(graph.features) if observed else ()
    engine = FastEngine(graph, threads)
    expected = ReferenceEngine(graph).run(batch, graph.features)
    for _ in range(2):  # what was bound before is used again
        given = engine.run(batch, names)
        kept = replace(expected, values={name: expected.values[name] for name in names})
        assert compare(graph, kept, given).mismatches == 0
        assert given.activity == count_activity(graph, expected.values, batch)
    engine.close()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), dv=st.sampled_from(DECAYS), every=st.booleans())
def test_it_is_carried_on_where_samples_stop(seed, dv, every) -> None:
    graph, batch = drawn(seed, dv)
    whole = ReferenceEngine(graph).run(batch, (graph.output,))
    logits = np.sort(logits_over_time(graph, whole.values[graph.output]), axis=2)[1]
    tokens = np.maximum(1, batch.mask.sum(1))
    margin = int(np.median((logits[:, -1] - logits[:, -2]) // (unit_of(graph.readout, 2) * tokens)))
    early_exit = EarlyExit(margin, None if every else (2,))
    engine, expected = FastEngine(graph, 2, early_exit), ReferenceEngine(graph, early_exit).run(batch)
    given = engine.run(batch)
    assert np.array_equal(given.logits, expected.logits)
    assert np.array_equal(given.timesteps, expected.timesteps)
    engine.close()


def test_padding_changes_nothing() -> None:
    graph, batch = drawn(3, 410, n_max=6)
    short = batch.mask.sum(1).max()
    cut, wide = TokenBatch(batch.ids[:, :short], batch.mask[:, :short]), 6 - batch.ids.shape[1]
    padded = TokenBatch(np.pad(batch.ids, ((0, 0), (0, wide))), np.pad(batch.mask, ((0, 0), (0, wide))))
    runs = [
        engine.run(each).logits for engine in (ReferenceEngine(graph), FastEngine(graph, 1)) for each in (cut, padded)
    ]
    assert all(np.array_equal(run, runs[0]) for run in runs)


def test_in_machine_time_it_is_the_same() -> None:
    graph, batch = drawn(5, 2048)
    clocked = run_clocked(graph, balance_delays(graph, LatencyTable()), batch)
    assert np.array_equal(clocked.logits, ReferenceEngine(graph).run(batch).logits)


@pytest.mark.parametrize("change", [{"kind": "sum", "dv": 0}, {"dv": 2049}, {"dv": 0}])
def test_another_readout_is_noticed(change) -> None:
    """The currents are alike, so only the logits can tell."""
    graph, batch = drawn(7, 2048)
    other = replace(graph, nodes=(*graph.nodes[:-1], replace(graph.readout, **change)))
    names = tuple(graph.features)
    expected, given = ReferenceEngine(graph).run(batch, names), FastEngine(other, 1).run(batch, names)
    comparison = compare(graph, expected, given)
    assert comparison.mismatches > 0 and comparison.first_mismatch.node == "logits"


def test_the_command_runs_and_checks_it(tmp_path, capsys) -> None:
    bundle = small_bundle(tmp_path / "bundle", with_membrane(random_graph(np.random.default_rng(0), blocks=1), 2048))
    text = ["--text", "a good film", "--text", "bad"]
    assert main([str(bundle.folder), *text, "--verify", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    batch, _ = bundle.encode(["a good film", "bad"])
    assert told["verify"]["mismatches"] == 0
    assert told["logits"] == ReferenceEngine(bundle.graph).run(batch).logits.tolist()
    assert main([str(bundle.folder), "--check"]) == 0
