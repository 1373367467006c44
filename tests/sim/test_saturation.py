"""How often membranes are cut: against a count in plain Python, the same on every engine, and free where it is 0."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_bundles import WORDS, small_bundle

from converters.bundle import read_bundle
from converters.execution import Engine, EngineOptions, TokenBatch
from converters.graph import LIF, Add, Attention, Graph, Node, Readout, Source, Synapses
from sim.activity import count_activity
from sim.engines import open_engine
from sim.fast.engine import FastEngine
from sim.reference import ReferenceEngine
from sim.run_command import main
from sim.saturation import saturable_neurons

WIDTH = 5
ENGINES = ["reference", "fast", pytest.param("lava-inline", id="lava-inline")]


def cuts_in_python(current: list[int], threshold: int, dv: int) -> int:
    """One neuron, T whole numbers: the rule written out anew."""
    v = cuts = 0
    for a in current:
        v = (-1 if v < 0 else 1) * (abs(v) * (4096 - dv) // 4096) + a * 128
        if v > 8388607:
            v, cuts = 8388607, cuts + 1
        if v < -8388607:
            v, cuts = -8388607, cuts + 1
        if v > threshold * 128:
            v = 0
    return cuts


def expected_cuts(graph: Graph, batch: TokenBatch) -> dict[str, int]:
    """Node -> cuts, from the currents of the reference and, of a source, from its tables."""
    values = ReferenceEngine(graph).run(batch, [node.name for node in graph]).values
    cuts = {}
    for node in graph:
        if isinstance(node, LIF):
            current, levels = values[node.inputs[0]], np.broadcast_to(node.threshold, graph.features[node.name])
        elif isinstance(node, Source) and node.kind == "lif":
            one = node.table[batch.ids].astype(int) + (
                0 if node.position is None else node.position[: batch.ids.shape[1]]
            )
            current = np.array([one * batch.mask[:, :, None]] * graph.timesteps)
            levels = np.full(one.shape[-1], node.threshold)
        else:
            continue
        cuts[node.name] = sum(
            cuts_in_python(current[:, b, n, d].tolist(), int(levels[d]), node.dv)
            for b, n, d in np.ndindex(current.shape[1:])
        )
    return cuts


def counted_cuts(engine: Engine, batch: TokenBatch) -> dict[str, int]:
    """Node -> cuts as a run of the command counts them, from spikes or on the way."""
    graph = engine.graph
    execution = engine.run(batch, () if engine.counts_activity else graph.spiking)
    activity = execution.activity or count_activity(graph, execution.values, batch)
    assert activity.total.saturations == sum(counts.saturations for counts in activity.per_node.values())
    return {
        name: counts.saturations
        for name, counts in activity.per_node.items()
        if isinstance(graph[name], (Source, LIF)) and getattr(graph[name], "kind", "lif") == "lif"
    }


def large_graph(
    rng: np.random.Generator, timesteps: int, dv: int, threshold: int | np.ndarray, kind: str = "sign"
) -> Graph:
    """Currents of all sizes up to 65535, to both sides: from a bias in each feature, and few weights."""

    def layer(name: str, producer: str) -> list[Node]:
        bias = rng.choice([-65535, -40000, -300, 300, 20000, 65535], WIDTH)
        weight = -np.sign(bias)[:, None] * rng.integers(0, 127, (WIDTH, WIDTH))  # towards 0, so the bound is kept
        bias -= np.sign(bias) * np.abs(weight).sum(1)
        return [Synapses(f"{name}.a", (producer,), weight, bias), LIF(name, (f"{name}.a",), threshold, dv)]

    position = rng.choice([-60000, -200, 0, 200, 60000], (3, WIDTH))
    nodes: list[Node] = [
        Source("source", rng.integers(-100, 100, (7, WIDTH)), position, kind, threshold=65535, dv=dv),
        *layer("p", "source"),
        *layer("q", "source"),  # reads what p reads: one step of the fast engine
        Add("sum", ("p", "q")),
        Synapses("shared", ("p",), rng.integers(-3, 4, (WIDTH, WIDTH)), rng.choice([-65500, 65500], WIDTH)),
        LIF("r", ("shared",), threshold, dv),  # two neurons read one current
        LIF("s", ("shared",), 0, dv),
        Attention("met", ("r", "s", "p"), 1),
        LIF("t", ("met",), 2, dv),
        Readout("readout", ("sum",), np.eye(3, WIDTH, dtype=int), [0, 0, 0]),
    ]
    return Graph(timesteps, 3, tuple(nodes))


def some_batch(rng: np.random.Generator) -> TokenBatch:
    return TokenBatch(rng.integers(0, 7, (3, 3)), np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0]]))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    timesteps=st.sampled_from([1, 2, 4, 8, 16]),
    dv=st.sampled_from([0, 1, 410, 2048, 4095]),
    threshold=st.sampled_from([0, 30000, 65535]),
    kind=st.sampled_from(["lif", "sign"]),
)
@pytest.mark.parametrize("name", ["reference", "fast"])
def test_cuts_are_those_of_plain_python(
    name: str, seed: int, timesteps: int, dv: int, threshold: int, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    graph, batch = large_graph(rng, timesteps, dv, threshold, kind), some_batch(rng)
    with closing(open_engine(name, graph, EngineOptions(threads=2))) as engine:
        assert counted_cuts(engine, batch) == expected_cuts(graph, batch)


@pytest.mark.parametrize("name", ENGINES)
def test_membranes_are_cut_on_both_sides_and_every_engine_counts_it(name: str) -> None:
    """+65535 charges a membrane to 65535 * 128 = 8388480, which neither fires nor is cut; twice is cut, and fires.
    -65535 is cut at every step but the first."""
    if name == "lava-inline":
        pytest.importorskip("lava.magma")
    nodes = (
        Source("source", np.ones((7, 2), int), kind="sign"),
        Synapses("a", ("source",), np.array([[127, 0], [0, -127]]), np.array([65408, -65408])),
        LIF("s", ("a",), 65535),
        Readout("readout", ("s",), np.eye(2, dtype=int), [0, 0]),
    )
    graph = Graph(16, 3, nodes)
    batch = TokenBatch([[1, 2, 3], [4, 0, 0]], [[1, 1, 1], [1, 0, 0]])
    with closing(open_engine(name, graph)) as engine:
        assert counted_cuts(engine, batch) == {"s": 4 * (8 + 15)}
        assert expected_cuts(graph, batch) == {"s": 4 * (8 + 15)}
        # nothing is left of one run in the next, where a sample has no token
        for mask, tokens in (([[0, 0, 0]], 0), ([[1, 1, 1], [0, 0, 0]], 3), ([[0, 0, 0]], 0)):
            assert counted_cuts(engine, TokenBatch(np.ones_like(mask), mask)) == {"s": tokens * (8 + 15)}


@pytest.mark.parametrize("dv", [0, 410, 2048, 4095])
@pytest.mark.parametrize("name", ["fast", "lava-inline"])
def test_engines_agree(name: str, dv: int) -> None:
    if name == "lava-inline":
        pytest.importorskip("lava.magma")
    for seed in range(3):
        rng = np.random.default_rng(seed)
        graph, batch = large_graph(rng, 16, dv, 65535, "lif"), some_batch(rng)
        with closing(open_engine(name, graph)) as engine, closing(ReferenceEngine(graph)) as reference:
            found = counted_cuts(engine, batch)
            assert found == counted_cuts(reference, batch)
            assert (sum(found.values()) > 0) == (dv < 4095)


def test_thresholds_of_each_feature_and_observed_currents() -> None:
    rng = np.random.default_rng(1)
    graph, batch = large_graph(rng, 8, 0, np.array([0, 65535, 40000, 65535, 1])), some_batch(rng)
    names = [node.name for node in graph]
    expected = ReferenceEngine(graph).run(batch, names)
    with closing(FastEngine(graph, 2)) as engine:
        observed = engine.run(batch, names)
        assert all(np.array_equal(observed.values[name], expected.values[name]) for name in names)
        assert observed.activity == engine.run(batch).activity == count_activity(graph, expected.values, batch)


def test_what_is_proven_not_to_saturate_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the bound itself: 65535 once is within, and no ranges are proven for it; what passes it names the features."""

    def layer(bias: list[int], timesteps: int) -> Graph:
        zero = np.zeros((2, 2), int)
        nodes = (
            Source("source", np.ones((7, 2), int), kind="sign"),
            Synapses("a", ("source",), zero, bias),
            LIF("s", ("a",), 65535),
            Readout("readout", ("s",), zero, [0, 0]),
        )
        return Graph(timesteps, 1, nodes)

    (found,) = saturable_neurons(layer([-3, -65535], 2))
    assert (found.node.name, found.features.tolist(), found.threshold.tolist()) == ("s", [1], [65535])
    monkeypatch.setattr("sim.saturation.prove_ranges", None)
    assert saturable_neurons(layer([-65535, 65535], 1)) == ()
    assert saturable_neurons(layer([-32767, 32767], 2)) == ()


def test_the_shipped_bundle_never_saturates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proven from its bounds alone: not even ranges are computed."""
    monkeypatch.setattr("sim.saturation.prove_ranges", None)
    graph = read_bundle(Path(__file__).parents[2] / "recipes" / "bundles" / "reviews").graph
    assert saturable_neurons(graph) == ()


def test_the_command_tells_saturations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = (
        Source("source", np.ones((len(WORDS), 2), int), kind="sign"),
        Synapses("a", ("source",), np.array([[127, 0], [0, -127]]), np.array([65408, -65408])),
        LIF("s", ("a",), 65535),
        Readout("readout", ("s",), np.eye(3, 2, dtype=int), [0, 0, 0]),
    )
    bundle = small_bundle(tmp_path / "bundle", Graph(16, 6, nodes))
    arguments = [str(bundle.folder), "--text", "a good film", "--engine"]
    for name in ("reference", "fast"):
        assert main([*arguments, name, "--json"]) == 0
        activity = json.loads(capsys.readouterr().out)["activity"]
        assert activity["saturations"] == activity["per_node"]["s"]["saturations"] == 5 * (8 + 15)
    assert main([*arguments, "reference"]) == 0
    out = capsys.readouterr().out
    assert "membranes cut        115 times" in out
