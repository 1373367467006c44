"""The fast engine against the reference: every value of every node, and the activity it counts on the way."""

from __future__ import annotations

import gc
import threading
import time
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine_graphs import BATCH as MACHINE_BATCH
from machine_graphs import machine_graph
from random_graphs import RULES, random_batch, random_dag, random_graph, random_machine_dag

from converters.execution import TokenBatch
from converters.graph import LIF, Add, Attention, Concat, Graph, Readout, Relay, Slice, Source, Synapses
from sim.activity import count_activity
from sim.fast import kernels, wiring
from sim.fast.engine import TOGETHER_MOST, FastEngine
from sim.fast.plan import LIFStep, SynapsesStep, make_plan
from sim.reference import ReferenceEngine
from sim.verify import compare


def assert_equal(graph: Graph, batch: TokenBatch, threads: int = 2) -> None:
    """Values when all are asked for, logits and activity when none is; those of the first sample alone, twice."""
    names = tuple(node.name for node in graph)
    expected = ReferenceEngine(graph).run(batch, names)
    with closing(FastEngine(graph, threads)) as engine:
        everything, nothing, spikes = engine.run(batch, names), engine.run(batch), engine.run(batch, graph.spiking)
        alone = [engine.run(batch[:1]) for _ in range(2)]
    for name in graph.spiking:  # currents that nobody asks for are never stored
        assert np.array_equal(spikes.values[name], expected.values[name]), name
    comparison = compare(graph, expected, everything)
    assert comparison.mismatches == 0, str(comparison.first_mismatch)
    assert np.array_equal(nothing.logits, expected.logits)
    assert nothing.values == {}
    counted = count_activity(graph, expected.values, batch)
    assert everything.activity == counted
    assert nothing.activity == counted
    first = count_activity(graph, {name: values[:, :1] for name, values in expected.values.items()}, batch[:1])
    for result in alone:
        assert np.array_equal(result.logits, expected.logits[:1])
        assert result.activity == first


BATCH = TokenBatch(np.array([[1, 2], [3, 0]]), np.array([[1, 1], [1, 0]]))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    blocks=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 4]),
    n_max=st.integers(1, 9),
    timesteps=st.sampled_from([1, 2, 3, 4, 5, 7, 8, 16]),
    dv=st.sampled_from([0, 410, 2048, 4095, (0, 410, 2048, 4095)]),
    bits=st.sampled_from([2, 4, 6, 8]),
    kind=st.sampled_from(["lif", "sign"]),
    firing=st.sampled_from([0.02, 0.3, 0.9]),
    code=st.sampled_from([0, 1, 70]),
    samples=st.integers(1, 5),
    threads=st.integers(1, 4),
    attention=st.sampled_from(["plain", "any"]),
    norms=st.sampled_from([0.0, 0.5]),
    neurons=st.sampled_from(RULES),
)
def test_random_transformers(
    seed, blocks, heads, n_max, timesteps, dv, bits, kind, firing, code, samples, threads, attention, norms, neurons
) -> None:
    rng = np.random.default_rng(seed)
    graph = random_graph(
        rng, blocks=blocks, hidden=8, heads=heads, n_max=n_max, timesteps=timesteps, dv=dv, weight_bits=bits,
        source_kind=kind, firing=firing, code_features=code, attention=attention, norms=norms, neurons=neurons,
    )  # fmt: skip
    assert_equal(graph, random_batch(rng, graph, samples), threads)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6), nodes=st.integers(1, 9), timesteps=st.sampled_from([1, 4]),
    norms=st.sampled_from([0.0, 0.5]), neurons=st.sampled_from(RULES),
)  # fmt: skip
def test_random_wirings(seed: int, nodes: int, timesteps: int, norms: float, neurons: str) -> None:
    """Currents that two neurons read, currents that none reads, adds of adds, attention of one node to itself."""
    rng = np.random.default_rng(seed)
    graph = random_dag(rng, nodes=nodes, timesteps=timesteps, attention="any", norms=norms, neurons=neurons)
    assert_equal(graph, random_batch(rng, graph, 3))


def test_what_passes_make_worked_out_by_hand() -> None:
    assert_equal(machine_graph(), MACHINE_BATCH)


@pytest.mark.parametrize("start", [0, 1, 63, 64, 65, 128])
@pytest.mark.parametrize("width", [1, 63, 64, 65, 127])
def test_slices_of_sums_anywhere(start: int, width: int) -> None:
    """Out of two and three planes, read by a layer, by a concat of one plane and of several, and cut again."""
    rng = np.random.default_rng(start + width)
    nodes = (
        Source("source", rng.integers(-60, 60, (9, 260)), threshold=20, dv=2048),
        Add("few", ("source",) * 2),
        Add("many", ("few", "few", "source")),
        Slice("part", ("many",), start, start + width),
        Concat("joined", ("part", "source", "few")),
        Slice("again", ("joined",), width // 2, width + 200),
        Synapses("a", ("again",), rng.integers(-20, 20, (70, width + 200 - width // 2)), rng.integers(-9, 9, 70)),
        LIF("s", ("a",), 30, 410),
        Readout("readout", ("s",), np.eye(2, 70, dtype=int), [0, 1]),
    )
    assert_equal(Graph(5, 3, nodes), TokenBatch(rng.integers(0, 9, (3, 2)), [[1, 1], [1, 0], [1, 1]]))


def test_currents_that_a_relay_and_a_neuron_read() -> None:
    """Of a layer and of attention; one of the relays stands behind a layer that gives nothing."""
    rng = np.random.default_rng(0)
    width, nothing = 70, np.zeros((3, 70), int)
    nodes = (
        Source("source", rng.integers(-60, 60, (9, width)), threshold=20, dv=2048),
        Synapses("a", ("source",), rng.integers(0, 9, (width, width)), rng.integers(0, 9, width)),
        LIF("s", ("a",), 130, 410),
        Relay("sent", ("a",)),
        Attention("attention", ("s", "s", "s"), 7),
        Relay("attended", ("attention",)),
        LIF("o", ("attention",), 3),
        Synapses("silent", ("o",), nothing, [0, 0, 0]),
        Relay("quiet", ("silent",)),
        Synapses("b", ("quiet",), np.ones((4, 3), int), [0, 5, -5, 9]),
        LIF("biased", ("b",), 5, 410),
        Concat("all", ("sent", "attended", "o", "quiet", "biased")),
        Readout("readout", ("all",), rng.integers(0, 2, (2, 3 * width + 7)), [0, 1]),
    )
    assert_equal(Graph(4, 9, nodes), TokenBatch(rng.integers(0, 9, (3, 5)), np.tri(3, 5, 2, int)))


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 10**6),
    nodes=st.integers(0, 12),
    hidden=st.integers(1, 130),
    n_max=st.integers(1, 9),
    timesteps=st.integers(1, 16),
    firing=st.sampled_from([0.02, 0.3, 0.9]),
    kind=st.sampled_from(["lif", "sign"]),
    samples=st.integers(1, 5),
    tokens=st.integers(1, 9),
    threads=st.integers(1, 3),
    norms=st.sampled_from([0.0, 0.5]),
    neurons=st.sampled_from(RULES),
)
def test_random_wirings_of_what_passes_make(
    seed, nodes, hidden, n_max, timesteps, firing, kind, samples, tokens, threads, norms, neurons
) -> None:
    """Nodes of all kinds, of any width, and batches of fewer tokens than n_max."""
    rng = np.random.default_rng(seed)
    graph = random_machine_dag(
        rng, nodes=nodes, hidden=hidden, n_max=n_max, timesteps=timesteps, source_kind=kind, firing=firing, norms=norms,
        neurons=neurons,
    )  # fmt: skip
    assert_equal(graph, random_batch(rng, graph, samples, min(tokens, n_max)), threads)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(64, 1), (64, 2), (72, 6), (130, 2), (140, 1), (192, 12)]),
    n_max=st.sampled_from([1, 12, 40]),
    timesteps=st.sampled_from([1, 2, 4, 6, 9]),
    dv=st.sampled_from([0, 2048, (0, 410, 2048, 4095)]),
    firing=st.sampled_from([0.01, 0.1, 0.5, 0.97]),
)
def test_blocks_of_64_neurons(seed, shape, n_max, timesteps, dv, firing) -> None:
    """Widths that fill words, and that do not; heads within a word, across two, and of several; many spikes."""
    hidden, heads = shape
    rng = np.random.default_rng(seed)
    graph = random_graph(
        rng, blocks=2, hidden=hidden, heads=heads, n_max=n_max, timesteps=timesteps, dv=dv, firing=firing
    )  # fmt: skip
    assert_equal(graph, random_batch(rng, graph, 4))


@pytest.mark.parametrize("largest", [54, 109])  # of sums that fit 16 bits, and that do not
@pytest.mark.parametrize("timesteps", [1, 2, 4, 5])
def test_sums_of_many_spikes(largest: int, timesteps: int) -> None:
    """600 inputs, nearly all of which spike at every step: more than LIST_MAX rows in one list."""
    rng = np.random.default_rng(0)
    inputs, width = 600, 70
    sign = np.where(np.arange(width) % 2, 1, -1)[:, None]
    weight = sign * rng.integers(largest - 3, largest + 1, (width, inputs))
    table = rng.integers(-2, 100, (9, inputs))
    source = Source("source", table, kind="sign")
    level = int((weight.clip(0) @ (table[1] >= 0)).max())  # met by the largest
    nodes = (
        source, Synapses("a", ("source",), weight, np.zeros(width, int)), LIF("s", ("a",), level - 1, 2048),
        Readout("readout", ("s",), np.eye(2, width, dtype=int), [0, 1]),
    )  # fmt: skip
    graph = Graph(timesteps, 2, nodes)
    assert (graph.value_max["a"] > 2**15) == (largest == 109)
    assert_equal(graph, BATCH)


def neuron_graph(weight: int, bias: int, threshold: int | np.ndarray, dv: int, timesteps: int) -> Graph:
    """One layer whose current is `weight + bias` where the source fires, which it does at every timestep."""
    width = 3
    source = Source("source", np.ones((4, width), int), kind="sign")
    return Graph(
        timesteps, 2, (
            source, Synapses("a", ("source",), np.full((width, width), weight), np.full(width, bias)),
            LIF("s", ("a",), threshold, dv), Readout("readout", ("s",), np.eye(2, width, dtype=int), [0, 1]),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("timesteps", [1, 4, 8, 16])
@pytest.mark.parametrize("dv", [0, 410, 2048, 4095])
@pytest.mark.parametrize(
    ("weight", "bias", "threshold"),
    [
        (127, 65154, 65535),  # the largest current, met exactly
        (-127, -65154, 0),  # saturates below
        (10, 0, 30),  # met exactly
        (10, 1, 30),
        (0, 0, 0),
        (-1, 3, 0),
        (30, 33000, 65535),  # sums that int16 cannot hold
    ],
)
def test_the_edges_of_a_neuron(weight: int, bias: int, threshold: int, dv: int, timesteps: int) -> None:
    assert_equal(neuron_graph(weight, bias, threshold, dv, timesteps), BATCH)


def test_a_threshold_for_each_feature() -> None:
    assert_equal(neuron_graph(10, 0, np.array([29, 30, 31]), 2048, 4), BATCH)


def test_sums_of_more_than_a_byte() -> None:
    """An add of adds beyond 255, and through synapses whose sums need 32 bits."""
    width = 2
    nodes: list = [Source("source", np.ones((4, width), int), kind="sign")]
    for i in range(5):
        nodes.append(Add(f"add{i}", (nodes[-1].name,) * 4))
    nodes.append(Synapses("a", ("add4",), np.array([[10, 20], [-10, -20]]), np.zeros(width, int)))
    nodes.append(LIF("s", ("a",), 30000))
    nodes.append(Readout("readout", ("s",), np.eye(2, dtype=int), [0, 0]))
    graph = Graph(2, 2, tuple(nodes))
    assert graph.value_max["add4"] > 255
    assert_equal(graph, BATCH)


def test_a_sample_without_a_real_token() -> None:
    graph = random_graph(np.random.default_rng(0), n_max=3)
    assert_equal(graph, TokenBatch(np.ones((3, 3), int), np.array([[0, 0, 0], [1, 1, 0], [0, 0, 0]])))
    assert_equal(graph, TokenBatch(np.ones((1, 3), int), np.zeros((1, 3), int)))


def test_layers_that_read_one_input_run_together() -> None:
    graph = random_graph(np.random.default_rng(0), blocks=1, dv=2048)
    merged = [step for step in make_plan(graph) if isinstance(step, SynapsesStep)]
    assert [len(step.layers) for step in merged] == [3, 1, 1, 1]
    assert not any(isinstance(step, LIFStep) for step in make_plan(graph)), "every neuron runs with its current"


def test_a_current_read_twice_is_kept() -> None:
    one = np.eye(2, dtype=int)
    nodes = (
        Source("source", np.ones((4, 2), int), kind="sign"),
        Synapses("a", ("source",), one * 9, [0, 1]),
        LIF("s", ("a",), 5),
        LIF("r", ("a",), 30, 410),
        Attention("b", ("s", "r", "s"), 1),
        LIF("o", ("b",), 0),
        Readout("readout", ("o",), one, [0, 0]),
    )
    graph = Graph(4, 2, nodes)
    assert sum(isinstance(step, LIFStep) for step in make_plan(graph)) == 2
    assert_equal(graph, BATCH)


@pytest.mark.parametrize("make", [random_graph, random_machine_dag])
def test_all_is_compiled_when_the_engine_is_opened(make) -> None:
    """A first sentence that waited for the compiler would be told as slow."""
    rng = np.random.default_rng(0)
    graph = make(rng, n_max=12)
    with closing(FastEngine(graph)) as engine:
        functions = [*vars(kernels).values(), *vars(wiring).values()]
        compiled = [function for function in functions if hasattr(function, "signatures")]
        before = [len(function.signatures) for function in compiled]
        engine.run(random_batch(rng, graph, 5))
        assert [len(function.signatures) for function in compiled] == before


def test_threads_share_nothing() -> None:
    rng = np.random.default_rng(5)
    graph = random_graph(rng, blocks=2, hidden=16, n_max=12)
    batch = random_batch(rng, graph, 40)
    with closing(FastEngine(graph, threads=8)) as engine:
        first = engine.run(batch, graph.spiking)
        for _ in range(5):
            again = engine.run(batch, graph.spiking)
            assert all(np.array_equal(first.values[name], again.values[name]) for name in graph.spiking)


def test_what_does_not_fit_is_refused() -> None:
    graph = random_graph(np.random.default_rng(0), n_max=3)
    with closing(FastEngine(graph)) as engine:
        with pytest.raises(ValueError, match="a batch of 4 tokens"):
            engine.run(TokenBatch(np.ones((1, 4)), np.ones((1, 4))))
        with pytest.raises(ValueError, match="no such node"):
            engine.run(TokenBatch(np.ones((1, 3)), np.ones((1, 3))), ["nothing"])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_single_samples_one_after_another(threads: int) -> None:
    """What was bound for some number of tokens serves the next sample of as many, until a larger batch moves it."""
    rng = np.random.default_rng(7)
    graph = random_graph(rng, blocks=2, hidden=72, heads=4, n_max=9)
    masks = [[1, 1, 1], [1] * 9, [1, 1, 1, 0], "many", [1, 1, 1], [1] * 9, [0], [1, 1, 1]]
    with closing(FastEngine(graph, threads)) as engine:
        for mask in masks:
            batch = random_batch(rng, graph, 30)
            if mask != "many":
                batch = TokenBatch(batch.ids[:1, : len(mask)], np.array([mask]))
            expected = ReferenceEngine(graph).run(batch, graph.spiking)
            result = engine.run(batch)
            assert np.array_equal(result.logits, expected.logits)
            assert result.activity == count_activity(graph, expected.values, batch)


def test_threads_that_share_a_sample() -> None:
    """More of them than processors, so that some are always late; layers of many blocks, more tokens than a tile."""
    rng = np.random.default_rng(8)
    graph = random_graph(rng, blocks=2, hidden=192, heads=6, n_max=kernels.TILE + 70)
    batch = random_batch(rng, graph, 3)
    batches = [batch[number : number + 1] for number in range(3)]
    expected = [ReferenceEngine(graph).run(each, graph.spiking) for each in batches]
    with closing(FastEngine(graph, threads=8)) as engine:
        assert engine.team.helpers == TOGETHER_MOST - 1
        engine.run(batches[0])
        assert engine.team.shared
        (_, (program, *_)), *_ = reversed(engine.workers[0]._bound.values())
        units = {work.kernel.__name__: work.units for work in program._works}
        assert units["list_spikes"] > 1 and units["add_block"] > 1 and units["attention"] > 1
        for _ in range(20):
            for each, right in zip(batches, expected):
                result = engine.run(each)
                assert np.array_equal(result.logits, right.logits)
                assert result.activity == count_activity(graph, right.values, each)


def test_threads_end_with_their_engine() -> None:
    """Closed or dropped."""
    graph = random_graph(np.random.default_rng(0), n_max=3)

    def helpers() -> int:
        return sum(thread.name == "fast-helper" for thread in threading.enumerate())

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + 30
        while helpers() != count:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    gc.collect()
    wait_for(0)
    with closing(FastEngine(graph, threads=3)):
        assert helpers() == 2
    wait_for(0)
    engine = FastEngine(graph, threads=2)
    assert helpers() == 1
    del engine
    gc.collect()
    wait_for(0)


# Attention by equal features, and with a bias


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1, 3, 32, 63, 64, 65, 100, 130]),
    heads=st.integers(1, 3),
    n_max=st.integers(1, 9),
    timesteps=st.sampled_from([1, 4, 5]),
    similarity=st.sampled_from(["and", "xnor"]),
    bias=st.sampled_from(["none", "small", "least", "most", "silences"]),
    firing=st.sampled_from([0.0, 0.3, 1.0]),
    read_by_two=st.booleans(),
)
def test_scores_of_any_kind(seed, size, heads, n_max, timesteps, similarity, bias, firing, read_by_two) -> None:
    """Heads that end anywhere in words, silent and busy tokens, biases at either end of the accumulator, of one map or
    of a map for each head; and one that makes scores 0 where all features match, which must count for nothing."""
    rng = np.random.default_rng(seed)
    width, room = heads * size, 65535 // n_max - size
    maps = {
        "none": None,
        "small": rng.integers(-3, 4, (heads, n_max, n_max)),
        "least": np.full((1, n_max, n_max), -(65535 // n_max)),
        "most": np.full((heads, n_max, n_max), room),
        "silences": np.full((1, n_max, n_max), -size),
    }
    table = np.where(rng.random((9, width)) < firing, 60, -60)
    nodes = [
        Source("source", table, rng.integers(-9, 10, (n_max, width)), threshold=20, dv=2048),
        *(
            node
            for part in "qkv"
            for node in (
                Synapses(f"{part}.a", ("source",), rng.integers(-9, 10, (width, width)), rng.integers(-9, 10, width)),
                LIF(part, (f"{part}.a",), 3, 410),
            )
        ),
        Attention("attention", ("q", "k", "v"), heads, similarity, maps[bias]),
        LIF("attended", ("attention",), size, 410),
        *([LIF("other", ("attention",), 0, 2048)] if read_by_two else []),
        Readout("readout", ("attended",), rng.integers(-9, 10, (2, width)), [0, 1]),
    ]
    graph = Graph(timesteps, n_max, tuple(nodes))
    assert_equal(graph, random_batch(rng, graph, 4))


def test_a_lane_closes_a_query() -> None:
    """A fourth input that fires for some tokens only: no valid lane, but what the node is defined by."""
    rng = np.random.default_rng(0)
    nodes = (
        Source("source", rng.integers(-60, 60, (9, 70)), threshold=20, dv=2048),
        Synapses("a", ("source",), rng.integers(-9, 10, (70, 70)), rng.integers(0, 9, 70)),
        LIF("s", ("a",), 20, 410),
        Slice("some", ("s",), 69, 70),
        Attention("attention", ("s", "s", "s", "some"), 7, "xnor", rng.integers(-3, 9, (7, 5, 5))),
        LIF("attended", ("attention",), 50, 410),
        Readout("readout", ("attended",), rng.integers(-9, 10, (2, 70)), [0, 1]),
    )
    graph, batch = Graph(4, 5, nodes), TokenBatch(rng.integers(0, 9, (3, 4)), np.tri(3, 4, 1, int))
    assert_equal(graph, batch)
    some = ReferenceEngine(graph).run(batch, ["some"]).values["some"][:, batch.mask == 1]
    assert some.any() and not some.all()


def test_scores_take_no_new_memory() -> None:
    """The same arrays for the second sample of as many tokens."""
    graph = random_graph(np.random.default_rng(0), blocks=4, attention="any")
    assert any(node.needs_lane for node in graph if isinstance(node, Attention))
    batch = random_batch(np.random.default_rng(1), graph, 1)
    with closing(FastEngine(graph, 1)) as engine:
        engine.run(batch)
        worker = engine.workers[0]
        bound = {tokens: id(calls) for tokens, (_, calls) in worker._bound.items()}
        engine.run(batch)
        assert {tokens: id(calls) for tokens, (_, calls) in worker._bound.items()} == bound
