"""The reference interpreter against the equations written as loops over Python integers."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from independent_interpreter import interpret
from machine_graphs import BATCH, LOGITS, VALUES, machine_graph
from random_graphs import MACHINE_KINDS, RULES, random_batch, random_dag, random_graph, random_machine_dag

from converters.encoder import decay, encode, lif
from converters.execution import TokenBatch
from converters.graph import LIF, MEMBRANE_MAX, Add, Attention, Graph, Readout, Source, Synapses
from sim.reference import ReferenceEngine, attention, coincidence, linear, product

DECAYS = (0, 410, 2048, 4095)
TIMESTEPS = (1, 4, 8, 16)


def naive_lif(currents: list[int], threshold: int, dv: int) -> list[int]:
    """One neuron, in Python integers, step by step as the docstring of `LIF` says."""
    v, spikes = 0, []
    for a in currents:
        kept = (abs(v) * (4096 - dv)) >> 12
        v = (kept if v >= 0 else -kept) + a * 2**7
        v = max(-(2**23 - 1), min(2**23 - 1, v))
        fires = v > threshold * 2**7
        spikes.append(int(fires))
        v = 0 if fires else v
    return spikes


def run_neuron(currents: list[int], threshold: int, dv: int) -> list[int]:
    return lif(np.array(currents, dtype=np.int64), threshold, dv, 7).tolist()


@given(
    st.integers(0, len(TIMESTEPS) - 1).flatmap(
        lambda index: st.lists(st.integers(-65535, 65535), min_size=TIMESTEPS[index], max_size=TIMESTEPS[index])
    ),
    st.integers(0, 65535),
    st.sampled_from(DECAYS) | st.integers(0, 4095),
)
def test_a_neuron_obeys_its_equation(currents, threshold, dv):
    assert run_neuron(currents, threshold, dv) == naive_lif(currents, threshold, dv)


@given(st.lists(st.integers(-65535, -60000), min_size=4, max_size=16), st.sampled_from(DECAYS), st.integers(0, 65535))
def test_a_neuron_saturates_below(currents, dv, last):
    currents = [*currents, last, 65535, 65535]
    assert run_neuron(currents, 65535, dv) == naive_lif(currents, 65535, dv)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=16), st.integers(0, 4), st.sampled_from(DECAYS))
def test_small_numbers_meet_thresholds_exactly(currents, threshold, dv):
    assert run_neuron(currents, threshold, dv) == naive_lif(currents, threshold, dv)


def test_a_threshold_is_strict():
    assert run_neuron([5, 1], threshold=5, dv=0) == [0, 1]
    assert run_neuron([6, 5], threshold=5, dv=0) == [1, 0]


def test_a_membrane_stops_at_its_limits():
    # 65535 * 2^7 is 8388480, just below 2^23 - 1 = 8388607: two steps would pass it
    assert run_neuron([-65535, -65535, 65535, 1], threshold=0, dv=0) == [0, 0, 0, 1]
    assert run_neuron([-65535, -65535, 65535, 0], threshold=0, dv=0) == [0, 0, 0, 0]
    assert naive_lif([-65535, -65535, 65535, 1], 0, 0) == [0, 0, 0, 1]


@given(st.integers(-MEMBRANE_MAX, MEMBRANE_MAX), st.integers(0, 4095))
def test_decay_rounds_toward_zero_on_both_sides(v, dv):
    (down,), (up,) = decay(np.array([v]), dv).tolist(), decay(np.array([-v]), dv).tolist()
    assert down == -up
    assert abs(down) == abs(v) * (4096 - dv) // 4096


@pytest.mark.parametrize("timesteps", TIMESTEPS)
@pytest.mark.parametrize("dv", DECAYS)
def test_every_neuron_of_a_tensor_is_its_own(timesteps, dv):
    rng = np.random.default_rng(dv + timesteps)
    current = rng.integers(-400, 401, (timesteps, 2, 3, 5))
    threshold = rng.integers(0, 500, 5)
    spikes = lif(current, threshold, dv, 7)
    for b, n, d in np.ndindex(2, 3, 5):
        assert spikes[:, b, n, d].tolist() == naive_lif(current[:, b, n, d].tolist(), int(threshold[d]), dv)


def test_linear_is_the_sum_it_says():
    rng = np.random.default_rng(0)
    x, weight, bias = rng.integers(0, 4, (2, 2, 3, 5)), rng.integers(-127, 128, (4, 5)), rng.integers(-999, 999, 4)
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    out = linear(x, weight.astype(np.int8), bias.astype(np.int32), mask)
    for t, b, n, o in np.ndindex(2, 2, 3, 4):
        total = sum(int(weight[o, i]) * int(x[t, b, n, i]) for i in range(5)) + int(bias[o]) * int(mask[b, n])
        assert out[t, b, n, o] == total


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
@pytest.mark.parametrize("similarity", ["and", "xnor"])
@pytest.mark.parametrize("maps", ["none", "one", "each"])
def test_attention_is_the_sum_it_says(heads, similarity, maps):
    """Texts of 3 and of 1 token in a batch 3 wide, of a graph that takes 4."""
    rng = np.random.default_rng(heads)
    mask = np.array([[1, 1, 1], [1, 0, 0]])
    q, k, v = rng.integers(0, 2, (3, 2, 2, 3, 6)) * mask[:, :, None]
    bias = None if maps == "none" else rng.integers(-9, 10, (1 if maps == "one" else heads, 4, 4))
    out = attention(Attention("a", ("q", "k", "v"), heads, similarity, bias), q, k, v, mask[None])
    width = 6 // heads
    for t, b, n, j in np.ndindex(2, 2, 3, 6):
        first = j // width * width
        total = 0
        for p in range(3):
            both = [(int(q[t, b, n, i]), int(k[t, b, p, i])) for i in range(first, first + width)]
            score = sum(x == y if similarity == "xnor" else x * y for x, y in both)
            score += 0 if bias is None else int(bias[0 if maps == "one" else j // width, n, p])
            total += score * int(mask[b, p]) * int(v[t, b, p, j])
        assert out[t, b, n, j] == int(mask[b, n]) * total


@pytest.mark.parametrize("node", [Attention("a", ("q", "k", "v"), 1, "xnor"),
                                  Attention("a", ("q", "k", "v"), 1, "and", np.ones((1, 2, 2), int))])  # fmt: skip
def test_without_the_valid_lane_padding_would_answer(node):
    """A padded query is silent: it equals every silent key, and a bias acts on it."""
    silent, v = np.zeros((1, 1, 2, 3), int), np.array([[[[1, 0, 1], [0, 0, 0]]]])
    masked = attention(node, silent, silent, v, np.array([[[1, 0]]]))
    unmasked = attention(node, silent, silent, v, np.array([[[1, 1]]]))
    assert masked[0, 0, 0].any() and not masked[0, 0, 1].any()
    assert np.array_equal(unmasked[0, 0, 1], unmasked[0, 0, 0])


def test_a_coincidence_is_the_product_it_says():
    rng = np.random.default_rng(0)
    q, k = rng.integers(0, 2, (2, 2, 2, 3, 5))
    out = coincidence(q, k, 4)
    assert out.shape == (2, 2, 3, 4 * 5)
    for t, b, n, m, j in np.ndindex(2, 2, 3, 4, 5):
        assert out[t, b, n, m * 5 + j] == (q[t, b, n, j] * k[t, b, m, j] if m < 3 else 0)


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_a_product_is_the_product_it_says(heads):
    rng = np.random.default_rng(heads)
    scores, v = rng.integers(0, 9, (2, 2, 3, 4 * heads)), rng.integers(0, 2, (2, 2, 3, 6))
    out, size = product(scores, v, heads, 4), 6 // heads
    assert out.shape == (2, 2, 3, 4 * 6)
    for t, b, n, m, e in np.ndindex(2, 2, 3, 4, 6):
        score = scores[t, b, n, m * heads + e // size]
        assert out[t, b, n, m * 6 + e] == (score * v[t, b, m, e] if m < 3 else 0)


def test_what_passes_make_is_what_is_worked_out_by_hand():
    graph = machine_graph()
    execution = ReferenceEngine(graph).run(BATCH, VALUES)
    for name, values in VALUES.items():
        assert execution.values[name].tolist() == [values] * graph.timesteps, name
    assert execution.logits.tolist() == LOGITS


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), heads=st.sampled_from([1, 2, 3, 6]), n_max=st.integers(3, 5))
def test_attention_can_be_made_of_what_passes_make(seed, heads, n_max):
    """Sums over a coincidence are scores, sums over a product are the attention: with keys to spare, too."""
    q, k, v = np.random.default_rng(seed).integers(0, 2, (3, 2, 2, 3, 6))
    size = 6 // heads
    scores = coincidence(q, k, n_max).reshape(2, 2, 3, n_max * heads, size).sum(-1)
    attended = product(scores, v, heads, n_max).reshape(2, 2, 3, n_max, 6).sum(-2)
    node = Attention("a", ("q", "k", "v"), heads)
    assert np.array_equal(attended, attention(node, q, k, v, np.ones((1, 2, 3), int)))


def test_random_graphs_of_what_passes_make_are_alive():
    """Each kind is in each of them, and nearly always gives something; products and relays more than 0 and 1."""
    alive, graded = dict.fromkeys(MACHINE_KINDS, 0), 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        graph = random_machine_dag(rng)
        values = ReferenceEngine(graph).run(random_batch(rng, graph, 4), graph.spiking).values
        for kind in MACHINE_KINDS:
            alive[kind] += any(values[node.name].any() for node in graph if node.op == kind)
        graded += any(values[node.name].max() > 1 for node in graph if node.op == "product")
    assert min(alive.values()) >= 19 and graded >= 15


@pytest.mark.parametrize("kind", ["lif", "sign"])
@pytest.mark.parametrize("with_position", [False, True])
def test_the_source_is_what_it_says(kind, with_position):
    rng = np.random.default_rng(1)
    table = rng.integers(-9, 10, (5, 4))
    position = rng.integers(-9, 10, (3, 4)) if with_position else None
    node = Source("source", table, position, kind, threshold=4, dv=410)
    batch = TokenBatch(rng.integers(0, 5, (2, 3)), np.array([[1, 1, 1], [1, 0, 0]]))
    x = encode(node, batch, timesteps=4)
    for b, n, d in np.ndindex(2, 3, 4):
        c = int(table[batch.ids[b, n], d]) + (int(position[n, d]) if with_position else 0)
        c *= int(batch.mask[b, n])
        expected = naive_lif([c] * 4, 4, 410) if kind == "lif" else [int(c >= 0) * int(batch.mask[b, n])] * 4
        assert x[:, b, n, d].tolist() == expected


def test_an_add_gives_graded_spikes():
    table = np.full((2, 2), 50, dtype=np.int8)
    identity = np.eye(2, dtype=np.int8)
    nodes = (
        Source("source", table, kind="sign"),
        Add("sum", ("source", "source", "source")),
        Synapses("linear", ("sum",), identity, np.zeros(2, dtype=np.int32)),
        LIF("neuron", ("linear",), 2),
        Attention("attention", ("neuron",) * 3, 1),
        LIF("last", ("attention",), 100),
        Readout("readout", ("last",), identity, np.array([-1, 3])),
    )
    graph = Graph(2, 4, nodes)
    execution = ReferenceEngine(graph).run(TokenBatch([[0, 1, 0]], [[1, 1, 0]]), [node.name for node in nodes])
    assert execution.values["sum"][0, 0].tolist() == [[3, 3], [3, 3], [0, 0]]
    assert execution.values["neuron"].max() == 1
    assert execution.values["attention"][0, 0].tolist() == [[4, 4], [4, 4], [0, 0]]
    assert execution.logits.tolist() == [[-4, 12]]  # T * real tokens * bias
    assert execution.predictions.tolist() == [1]


def test_of_equal_logits_the_lowest_class_wins():
    source = Source("source", np.ones((1, 1), dtype=np.int8), kind="sign")
    readout = Readout("readout", ("source",), np.array([[1], [2], [2]]), np.zeros(3, dtype=int))
    execution = ReferenceEngine(Graph(1, 1, (source, readout))).run(TokenBatch([[0]], [[1]]))
    assert execution.logits.tolist() == [[1, 2, 2]]
    assert execution.predictions.tolist() == [1]


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10**6), st.sampled_from(TIMESTEPS), st.sampled_from(DECAYS), st.sampled_from(["lif", "sign"]),
    st.sampled_from([random_graph, random_machine_dag]), st.sampled_from([0.0, 0.5]), st.sampled_from(RULES),
)  # fmt: skip
def test_padding_changes_nothing_and_is_silent(seed, timesteps, dv, kind, make, norms, neurons):
    rng = np.random.default_rng(seed)
    graph = make(rng, n_max=6, timesteps=timesteps, dv=dv, source_kind=kind, norms=norms, neurons=neurons)
    short = random_batch(rng, graph, 3, tokens=3)
    padding = rng.integers(0, len(graph.source.table), (3, 3))
    long = TokenBatch(np.concatenate([short.ids, padding], axis=1), np.pad(short.mask, ((0, 0), (0, 3))))
    names = [node.name for node in graph]
    one, other = (ReferenceEngine(graph).run(batch, names) for batch in (short, long))
    assert np.array_equal(one.logits, other.logits)
    for name in names:
        assert np.array_equal(one.values[name], other.values[name][:, :, :3])
        assert not other.values[name][:, long.mask == 0].any()


@pytest.mark.parametrize("make", [random_graph, random_dag, random_machine_dag])
def test_samples_do_not_meet(make):
    rng = np.random.default_rng(5)
    graph = make(rng)
    batch = random_batch(rng, graph, 5)
    together = ReferenceEngine(graph).run(batch).logits
    apart = [ReferenceEngine(graph).run(batch[index : index + 1]).logits[0] for index in range(5)]
    assert np.array_equal(together, np.stack(apart))


def test_a_batch_of_nothing_but_padding_gives_zeros():
    graph = random_graph(np.random.default_rng(0))
    execution = ReferenceEngine(graph).run(TokenBatch(np.zeros((1, 3)), np.zeros((1, 3))), graph.spiking)
    assert execution.logits.tolist() == [[0, 0, 0]]
    assert not any(values.any() for values in execution.values.values())


def test_a_batch_that_does_not_fit_is_refused():
    graph = random_graph(np.random.default_rng(0), n_max=6, vocabulary=40)
    engine = ReferenceEngine(graph)
    with pytest.raises(ValueError, match="7 tokens, the graph takes 6"):
        engine.run(TokenBatch(np.zeros((1, 7)), np.ones((1, 7))))
    with pytest.raises(ValueError, match="the table has 40 rows"):
        engine.run(TokenBatch([[40]], [[1]]))
    with pytest.raises(ValueError, match="padding stands on the right"):
        TokenBatch([[1, 1]], [[0, 1]])


def test_the_independent_interpreter_is_independent():
    source = Path(interpret.__code__.co_filename).read_text(encoding="utf-8")
    assert not any(f"{word} {package}" in source for word in ("import", "from") for package in ("converters", "sim"))


def test_an_unknown_node_is_named():
    rng = np.random.default_rng(0)
    graph = random_graph(rng, blocks=1)
    with pytest.raises(ValueError, match="no such node in this graph: nothing, nowhere"):
        ReferenceEngine(graph).run(random_batch(rng, graph, 1), ["nowhere", "nothing", graph.output])
