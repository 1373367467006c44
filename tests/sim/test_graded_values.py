"""Graded spikes where attention and the source send them: every engine against the equations, and what is noticed."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import middle_margin, random_batch

from converters.early_exit import EarlyExit
from converters.execution import EngineOptions, TokenBatch
from converters.graph import LIF, Attention, Graph, Readout, Source, Synapses
from converters.passes.expand_attention import ExpandAttention
from sim.activity import count_activity
from sim.fast import kernels
from sim.fast.engine import FastEngine, open_fast
from sim.reference import ReferenceEngine
from sim.saturation import saturable_neurons


def graded_graph(
    rng: np.random.Generator, size: int, heads: int, cap: int, *, similarity: str = "and", bias: int = 0,
    timesteps: int = 3, n_max: int = 5, code: int = 0, dv: int = 410, reset: str = "zero",
) -> Graph:  # fmt: skip
    """A source, q, k and v, an attention, its neurons, a readout; source and v send 0 .. cap.

    bias  the largest |bias| of the places of two tokens; 0: no bias
    code  P, spike-coded positions
    """
    width, vocabulary = size * heads, 30
    kind = {"spike": "graded", "cap": cap}
    biases = rng.integers(-bias, bias + 1, (heads, n_max, n_max)) if bias else None
    bits = rng.integers(0, 2, (timesteps, n_max, code)) if code else None
    table = rng.integers(-100, 128, (vocabulary, width))
    most = max(1, min(127, 30_000 // (cap * (width + code))))

    def synapses(name: str) -> Synapses:
        weight = rng.integers(-most, most + 1, (width, width + code))
        return Synapses(name, ("source",), weight, rng.integers(-most, most + 1, width))

    nodes = (
        Source("source", table, None, threshold=100 // cap, dv=dv, code=bits, reset=reset, **kind),
        *map(synapses, "qkv"),
        *(LIF(f"{name}.lif", (name,), most, dv) for name in "qk"),
        LIF("v.lif", ("v",), most, dv, reset=reset, **kind),
        Attention("attention", ("q.lif", "k.lif", "v.lif"), heads, similarity, biases),
        LIF("attended", ("attention",), max(1, size * cap // 4), dv, reset=reset, **kind),
        Readout("readout", ("attended",), rng.integers(-2, 3, (3, width)), rng.integers(-5, 6, 3)),
    )
    return Graph(timesteps, n_max, nodes)


def naive_attention(graph: Graph, values: dict[str, np.ndarray], mask: np.ndarray) -> np.ndarray:
    """The sum over keys, one product after another, in Python's integers."""
    node = graph["attention"]
    assert isinstance(node, Attention)
    q, k, v = (values[name] for name in node.inputs)
    out = np.zeros(q.shape, np.int64)
    size = q.shape[-1] // node.heads
    for t, b, n, j in np.ndindex(q.shape):
        h = j // size
        if mask[b, n]:
            total = 0
            for m in np.flatnonzero(mask[b]):
                pairs = list(zip(q[t, b, n, h * size :][:size], k[t, b, m, h * size :][:size]))
                score = sum(int(x == y) if node.similarity == "xnor" else int(x * y) for x, y in pairs)
                score += 0 if node.bias is None else int(node.bias[h, n, m])
                total += score * int(v[t, b, m, j])
            out[t, b, n, j] = total
    return out


def assert_fast_is_exact(graph: Graph, batch: TokenBatch) -> None:
    names = [node.name for node in graph]
    expected = ReferenceEngine(graph).run(batch, names)
    with closing(FastEngine(graph, threads=2)) as engine:
        actual = engine.run(batch, names)
        again = engine.run(batch, ())  # nothing stored on the way
    assert np.array_equal(actual.logits, expected.logits) and np.array_equal(again.logits, expected.logits)
    for name in names:
        assert np.array_equal(actual.values[name], expected.values[name]), name
    counted = count_activity(graph, expected.values, batch, saturable_neurons(graph))
    assert actual.activity is not None and again.activity is not None
    assert np.array_equal(actual.activity.counts, counted.counts)
    assert np.array_equal(again.activity.counts, counted.counts)


@pytest.mark.parametrize(("similarity", "bias"), [("and", 0), ("xnor", 0), ("and", 3), ("xnor", 40)])
@pytest.mark.parametrize("cap", [2, 15, 255])
def test_the_reference_obeys_the_equation(cap: int, similarity: str, bias: int) -> None:
    rng = np.random.default_rng(cap)
    graph = graded_graph(rng, 3, 2, cap, similarity=similarity, bias=bias)
    batch = random_batch(rng, graph, 3)
    values = ReferenceEngine(graph).run(batch, [node.name for node in graph]).values
    assert values["source"].max() > 1 and values["v.lif"].max() > 1 and values["q.lif"].max() == 1
    assert np.array_equal(values["attention"], naive_attention(graph, values, batch.mask))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_fast_equals_the_reference(data: st.DataObject) -> None:
    """Heads within a word, of one word, and across words; sums of 16 and of 32 bits; T = 1; spike-coded positions."""
    size, heads = data.draw(st.sampled_from([(1, 3), (5, 2), (16, 4), (64, 2), (70, 1), (40, 3)]))
    cap = data.draw(st.sampled_from([2, 3, 15, 255 if size <= 40 else 100]))
    graph = graded_graph(
        np.random.default_rng(data.draw(st.integers(0, 99))), size, heads, cap,
        similarity=data.draw(st.sampled_from(["and", "xnor"])),
        bias=data.draw(st.sampled_from([0, 2])),
        timesteps=data.draw(st.sampled_from([1, 3, 5])),
        code=data.draw(st.sampled_from([0, 0, 7])),
        dv=data.draw(st.sampled_from([0, 410, 2048, 4095])),
        reset=data.draw(st.sampled_from(["zero", "subtract"])),
    )  # fmt: skip
    samples = data.draw(st.sampled_from([1, 2, 5]))
    assert_fast_is_exact(graph, random_batch(np.random.default_rng(samples), graph, samples))


def test_a_sum_as_large_as_an_accumulator() -> None:
    """All match, all values at their cap: 64 * 68 * 15 = 65,280."""
    ones = np.ones((64, 64), int)
    kind = {"spike": "graded", "cap": 15}
    nodes = (
        Source("source", np.full((2, 64), 100), threshold=1, **kind),
        *(Synapses(name, ("source",), ones, np.zeros(64, int)) for name in "qkv"),
        *(LIF(f"{name}.lif", (name,), 0) for name in "qk"),
        LIF("v.lif", ("v",), 1, **kind),
        Attention("attention", ("q.lif", "k.lif", "v.lif"), 1),
        LIF("attended", ("attention",), 4000, **kind),
        Readout("readout", ("attended",), np.ones((2, 64), int), [0, 1]),
    )
    graph = Graph(1, 68, nodes)
    batch = TokenBatch(np.ones((1, 68), int), np.ones((1, 68), int))
    assert ReferenceEngine(graph).run(batch, ("attention",)).values["attention"].max() == 65_280
    assert_fast_is_exact(graph, batch)


@pytest.mark.parametrize("samples", [1, 6])
def test_samples_that_stop_early(samples: int) -> None:
    rng = np.random.default_rng(3)
    graph = graded_graph(rng, 8, 2, 15, timesteps=6, dv=0, code=3)
    batch = random_batch(rng, graph, samples)
    early = EarlyExit(middle_margin(graph, batch))
    names = [node.name for node in graph]
    expected = ReferenceEngine(graph, early).run(batch, names)
    counted = count_activity(graph, expected.values, batch, saturable_neurons(graph), expected.timesteps)
    with closing(open_fast(graph, EngineOptions(threads=1, early_exit=early))) as engine:
        for observed in (names, ()):
            actual = engine.run(batch, observed)
            assert np.array_equal(actual.logits, expected.logits)
            assert np.array_equal(actual.timesteps, expected.timesteps)
            assert all(np.array_equal(actual.values[name], expected.values[name]) for name in observed)
            assert actual.activity is not None and np.array_equal(actual.activity.counts, counted.counts)


@pytest.mark.parametrize("threads", [1, 3])
def test_samples_that_come_alone_one_after_another(threads: int) -> None:
    """What is bound for one text serves the next one of as many tokens, with its own ids."""
    rng = np.random.default_rng(4)
    graph = graded_graph(rng, 8, 2, 15, code=3)
    with closing(FastEngine(graph, threads)) as engine:
        for _ in range(6):
            ids = rng.integers(0, 30, (1, int(rng.integers(3, 5))))
            batch = TokenBatch(ids, np.ones_like(ids))
            assert np.array_equal(engine.run(batch).logits, ReferenceEngine(graph).run(batch).logits)


@pytest.mark.parametrize("similarity", ["and", "xnor"])
def test_attention_of_stock_neurons_is_the_same(similarity: str) -> None:
    """A product multiplies a score with a graded value."""
    rng = np.random.default_rng(8)
    graph = graded_graph(rng, 3, 2, 15, similarity=similarity, n_max=4)
    batch = random_batch(rng, graph, 4)
    expanded = ExpandAttention().rewrite(graph).graph
    matches = 3 if similarity == "and" else 6  # with opposites, of which nobody has proven that one of two is silent
    assert expanded.value_max["attention.product"] == matches * 15
    wanted = ReferenceEngine(graph).run(batch, ("attention",)).values["attention"]
    assert wanted.any()
    assert np.array_equal(ReferenceEngine(expanded).run(batch, ("attention",)).values["attention"], wanted)
    assert_fast_is_exact(expanded, batch)


def test_an_engine_that_takes_graded_values_for_bits_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    graph = graded_graph(rng, 6, 2, 15)
    batch = random_batch(rng, graph, 4)
    right = kernels.attention

    def lowest_plane_alone(q: np.ndarray, k: np.ndarray, v: np.ndarray, *others: object) -> None:
        right(q, k, np.ascontiguousarray(v[:1]), *others)

    with closing(FastEngine(graph, threads=1)) as engine:
        expected = ReferenceEngine(graph).run(batch)
        assert np.array_equal(engine.run(batch).logits, expected.logits)
        monkeypatch.setattr(kernels, "attention", lowest_plane_alone)
        assert not np.array_equal(engine.run(batch).logits, expected.logits)
