"""The norm: the reference and the fast engine against the definition in Python's own integers."""

from __future__ import annotations

import math
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_cases import BATCH, EXTREME, Case, cases, naive_norm, norm_graph

from converters.execution import NodeActivity, TokenBatch
from converters.graph import GAMMA_FRACTION, LIF, Concat, Graph, Norm, Readout, Source, Synapses, ValidLane, normed_max
from sim.activity import count_activity
from sim.energy import Tokens, work_of
from sim.fast import kernels
from sim.fast.engine import FastEngine
from sim.reference import ReferenceEngine, integer_root, norm
from sim.verify import compare


def by_reference(case: Case, m: int = 1) -> np.ndarray:
    return norm(case.a, case.node, np.full((len(case.a), 1), m))


def by_kernel(case: Case, lane: int | None = None) -> np.ndarray:
    """The compiled loop; where `lane` is given, the valid lane is read from spikes."""
    width = len(case.gamma)
    blocks = -(-width // 64)
    out = np.full((len(case.a), 1, 64 * blocks), 77, np.int32)  # what the memory held before
    lanes = np.full((len(case.a), 1, 1), lane or 0, np.uint64)
    kernels.norm(
        case.a[:, None].astype(np.int32), case.kind == "layer", case.eps, case.gamma.astype(np.int64),
        case.beta.astype(np.int64), lane is not None, lanes, out,
    )  # fmt: skip
    assert not out[:, :, width:].any()
    return out[:, 0, :width]


@settings(deadline=None)
@given(cases(), st.sampled_from([0, 1]))
def test_the_reference_obeys_the_equations(case: Case, m: int) -> None:
    assert np.array_equal(by_reference(case, m), case.expected(m))


@settings(deadline=None)
@given(cases())
def test_the_compiled_loop_obeys_the_equations(case: Case) -> None:
    assert np.array_equal(by_kernel(case), case.expected())
    for lane in (0, 1, 2, 3):  # its bit 0 counts
        assert np.array_equal(by_kernel(case, lane), case.expected(lane % 2))


@settings(deadline=None)
@given(cases())
def test_no_value_passes_what_is_proven(case: Case) -> None:
    node, y = case.node, case.expected()
    assert (np.abs(y - case.beta) <= node.scaled_reach).all() and (np.abs(y) <= node.reach).all()
    assert node.reach.max() <= EXTREME


@pytest.mark.parametrize("width", [2, 3, 64, 2**14])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_what_is_proven_is_nearly_reached(kind: str, width: int) -> None:
    """By a token of which one feature alone is unlike the others: nothing is farther from the mean than that."""
    a = np.zeros((1, width), int)
    a[0, 0] = EXTREME
    gamma = np.full(width, ((EXTREME + 1) * 2**32 - 2**31 - 1) // normed_max(kind, width))  # the largest there can be
    case = Case(a, gamma, np.zeros(width, int), 1, kind)
    reached = int(by_reference(case)[0, 0])
    assert EXTREME - 1 <= reached <= case.node.reach[0] == EXTREME
    if width <= 64:
        assert np.array_equal(by_reference(case), case.expected())


def test_widest_and_largest_numbers_pass_no_64_bits() -> None:
    width, half = 2**14, 2**13
    rows = [np.repeat([EXTREME, -EXTREME], half), np.full(width, EXTREME), np.eye(1, width)[0].astype(int) * -EXTREME]
    for kind in ("layer", "rms"):
        case = Case(np.array(rows), np.full(width, 2**17), np.full(width, -7), 2**60, kind)
        assert np.array_equal(by_reference(case), case.expected())
        assert np.array_equal(by_kernel(case), case.expected())


@given(st.integers(0, 2**62 - 1) | st.integers(0, 2**31 - 1).flatmap(lambda r: st.sampled_from([r * r, r * r - 1])))
def test_the_root_is_rounded_down(number: int) -> None:
    number = max(number, 0)
    assert integer_root(np.array([number])).tolist() == [math.isqrt(number)]


def test_a_norm_worked_out_by_hand() -> None:
    """Mean 400, standard deviation 200: the features are -1 and 1 of it away; gamma is 100, beta 3."""
    node = Norm("n", ("a",), [100 << GAMMA_FRACTION] * 2, [3, 3])
    assert norm(np.array([[200, 600]]), node, np.array([[1]])).tolist() == [[-97, 103]]
    assert norm(np.array([[5, 5]]), node, np.array([[1]])).tolist() == [[3, 3]]  # no variance
    assert norm(np.array([[0, 0]]), node, np.array([[0]])).tolist() == [[0, 0]]  # padding
    rms = Norm("n", ("a",), [100 << GAMMA_FRACTION] * 2, [0, 0], kind="rms")
    assert norm(np.array([[300, -300]]), rms, np.array([[1]])).tolist() == [[100, -100]]
    assert norm(np.array([[500, 0]]), rms, np.array([[1]])).tolist() == [[141, 0]]  # sqrt(2)


@pytest.mark.parametrize("width", [16, 384, 768, 3072])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_it_is_the_float_norm_but_for_the_last_rounding(kind: str, width: int) -> None:
    """Within 0.51 accumulator units, where 1.0 is a thousand: half a unit is the last rounding."""
    rng = np.random.default_rng(width)
    a = rng.integers(-900, 901, (200, width)) + rng.integers(-2000, 2001, (200, 1))
    gamma, beta, eps = rng.integers(0, 1000 << GAMMA_FRACTION, width), rng.integers(-300, 301, width), width**2
    y = norm(a, Norm("n", ("a",), gamma, beta, eps, kind), np.ones((200, 1), int))
    x = a.astype(np.float64)
    centred = x - x.mean(1, keepdims=True) if kind == "layer" else x
    spread = np.sqrt((centred**2).mean(1, keepdims=True) + eps / width**2)
    assert np.abs(centred / spread * (gamma / 2**GAMMA_FRACTION) + beta - y).max() <= 0.51


MUTANTS = {
    "the mean is rounded": lambda a, g, b: naive_norm([v - sum(a) // len(a) for v in a], g, b, 900, "rms"),
    "the root is of the sum alone": lambda a, g, b: naive_norm(a, g, b, 900, "rms"),
    "no eps": lambda a, g, b: naive_norm(a, g, b, 1, "layer"),
    "rounded otherwise": lambda a, g, b: [y // 2 for y in naive_norm(a, [2 * v for v in g], b, 900, "layer")],
}


@pytest.mark.parametrize("name", MUTANTS)
def test_other_norms_are_told_apart(name: str) -> None:
    """Negative controls: each is nearly the norm, and the comparison of the tests above notices it."""
    rng = np.random.default_rng(1)
    a, gamma = rng.integers(-9, 30, 50).tolist(), rng.integers(1, 999 * 256, 50).tolist()
    assert MUTANTS[name](a, gamma, [0] * 50) != naive_norm(a, gamma, [0] * 50, 900, "layer")


def assert_equal(graph: Graph, batch: TokenBatch) -> None:
    names = [node.name for node in graph]
    expected = ReferenceEngine(graph).run(batch, names)
    with closing(FastEngine(graph, 2)) as engine:
        everything, nothing = engine.run(batch, names), engine.run(batch)
    comparison = compare(graph, expected, everything)
    assert comparison.mismatches == 0, str(comparison.first_mismatch)
    assert np.array_equal(nothing.logits, expected.logits)
    counted = count_activity(graph, expected.values, batch)
    assert everything.activity == counted and nothing.activity == counted


@pytest.mark.parametrize("timesteps", [1, 4])
@pytest.mark.parametrize("width", [1, 5, 64, 70])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_network_of_norms_on_the_fast_engine(kind: str, width: int, timesteps: int) -> None:
    graph = norm_graph(kind, timesteps, width)
    assert_equal(graph, BATCH)
    assert_equal(graph, TokenBatch([[3]], [[1]]))


def test_padding_is_silent_and_changes_nothing() -> None:
    graph, names = norm_graph(), [node.name for node in norm_graph()]
    run = ReferenceEngine(graph).run(BATCH, names)
    assert any(np.abs(run.values["up.norm"][:, BATCH.mask == 1]).ravel() > 0)
    for name in names:
        assert not run.values[name][:, BATCH.mask == 0].any(), name
    alone = ReferenceEngine(graph).run(TokenBatch([[8]], [[1]]), names)
    assert np.array_equal(alone.logits, run.logits[2:])


def with_lane(graph: Graph) -> Graph:
    """The same graph, its norms read the valid lane from a node; the second from one of two kinds of lanes."""
    nodes = []
    for node in graph:
        if isinstance(node, Source):
            nodes += [node, ValidLane("valid", 3), Concat("lanes", ("valid", "source"))]
        elif isinstance(node, Norm):
            nodes.append(Norm(node.name, (*node.inputs, "valid" if node.name == "up.norm" else "lanes"),
                              node.gamma, node.beta, node.eps, node.kind))  # fmt: skip
        else:
            nodes.append(node)
    return Graph(graph.timesteps, graph.n_max, tuple(nodes))


def test_a_lane_of_its_own_is_the_mask() -> None:
    graph = norm_graph()
    laid = with_lane(graph)
    assert_equal(laid, BATCH)
    one, other = (ReferenceEngine(each).run(BATCH, ["up.norm", "down.norm"]) for each in (graph, laid))
    assert all(np.array_equal(one.values[name], other.values[name]) for name in one.values)


def test_two_neurons_read_a_norm_and_one_reads_past_it() -> None:
    eye = np.eye(3, dtype=int)
    nodes = (
        Source("source", [[-1, 5, 9], [30, -9, 2]], threshold=3),
        Synapses("a", ("source",), 40 * eye - 9, [4, -4, 0]),
        Norm("a.norm", ("a",), [9000, 20000, -70000], [5, 0, -5], 81),
        LIF("one", ("a.norm",), np.array([9, 20, 100]), 410),
        LIF("two", ("a.norm",), 0, 0),
        LIF("past", ("a",), 20, 0),
        Concat("all", ("one", "two", "past")),
        Readout("readout", ("all",), np.arange(18).reshape(2, 9) - 8, [0, 0]),
    )
    assert_equal(Graph(4, 2, nodes), TokenBatch([[0, 1], [1, 0]], [[1, 1], [1, 0]]))


def test_a_membrane_behind_a_norm_that_is_cut_is_counted() -> None:
    """The neuron is run once more on its current, which follows from the synapses before the norm."""
    nodes = (
        Source("source", [[9, 9]], kind="sign"),
        Synapses("a", ("source",), [[100, 0], [-100, 0]], [0, 0]),
        Norm("a.norm", ("a",), [2**24 - 2**18, 2**24 - 2**18], [0, 0]),
        LIF("s", ("a.norm",), 65535, 0),
        Readout("readout", ("s",), [[1, 1]], [0]),
    )
    graph, batch = Graph(4, 1, nodes), TokenBatch([[0]], [[1]])
    values = ReferenceEngine(graph).run(batch, graph.spiking).values
    assert count_activity(graph, values, batch).per_node["s"].saturations > 0
    assert_equal(graph, batch)


def test_its_work_is_counted_and_not_free() -> None:
    graph = norm_graph(timesteps=2, width=5)
    values = ReferenceEngine(graph).run(BATCH, graph.spiking).values
    activity = count_activity(graph, values, BATCH)
    assert activity.per_node["up.norm"] == NodeActivity(normalised_values=2 * 7 * 10)  # T, real tokens, features
    work = work_of(graph, activity, Tokens(3, 7, 21))
    assert work["up.norm"].normalised_values == 2 * 7 * 10 and work["up"].normalised_values == 0
    assert (work["up"] + work["down.norm"]).normalised_values == 2 * 7 * 5
