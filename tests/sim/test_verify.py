"""A single planted difference is found, with its exact place."""

import numpy as np
import pytest
from random_graphs import random_batch, random_graph

from converters.execution import Execution
from sim.reference import ReferenceEngine
from sim.verify import Comparison, Mismatch, compare

RNG_SEED = 3


@pytest.fixture
def graph():
    return random_graph(np.random.default_rng(RNG_SEED), blocks=1)


@pytest.fixture
def execution(graph):
    batch = random_batch(np.random.default_rng(RNG_SEED), graph, 3)
    return ReferenceEngine(graph).run(batch, [node.name for node in graph])


def changed(execution: Execution, *places) -> Execution:
    """A copy in which the values at (node, t, b, n, d), or the logits at ("logits", b, class), have one bit flipped."""
    logits = execution.logits.copy()
    values = {name: array.copy() for name, array in execution.values.items()}
    for name, *index in places:
        array = logits if name == "logits" else values[name]
        array[tuple(index)] ^= 1
    return Execution(logits, values)


def test_equal_executions_are_equal(graph, execution):
    comparison = compare(graph, execution, execution)
    size = sum(array.size for array in execution.values.values()) + execution.logits.size
    assert comparison == Comparison(size, 0, None)


def test_a_single_bit_is_found_wherever_it_is(graph, execution):
    rng = np.random.default_rng(0)
    for name, array in execution.values.items():
        t, b, n, d = (int(rng.integers(size)) for size in array.shape)
        comparison = compare(graph, execution, changed(execution, (name, t, b, n, d)), first_sample=10)
        expected = int(array[t, b, n, d])
        assert comparison.mismatches == 1
        assert comparison.first_mismatch == Mismatch(10 + b, t, name, n, d, expected, expected ^ 1)


def test_a_wrong_logit_is_found(graph, execution):
    comparison = compare(graph, execution, changed(execution, ("logits", 1, 2)))
    expected = int(execution.logits[1, 2])
    assert comparison.first_mismatch == Mismatch(1, None, "logits", None, 2, expected, expected ^ 1)
    assert "class 2" in str(comparison.first_mismatch)


ORDERED = [  # of each pair the first is reported: sample, then timestep, then node, then token, then feature
    (("readout", 3, 0, 5, 2), ("source", 0, 1, 0, 0)),
    (("readout", 0, 1, 5, 2), ("source", 1, 1, 0, 0)),
    (("source", 1, 1, 5, 15), ("block0.q", 1, 1, 0, 0)),
    (("source", 1, 1, 2, 15), ("source", 1, 1, 3, 0)),
    (("source", 1, 1, 2, 14), ("source", 1, 1, 2, 15)),
    (("readout", 3, 1, 5, 2), ("logits", 1, 0)),
    (("logits", 0, 2), ("source", 0, 1, 0, 0)),
]


@pytest.mark.parametrize(("first", "second"), ORDERED)
def test_the_first_of_two_is_reported(graph, execution, first, second):
    comparison = compare(graph, execution, changed(execution, first, second))
    assert comparison.mismatches == 2
    assert comparison.first_mismatch == compare(graph, execution, changed(execution, first)).first_mismatch


def test_comparisons_add_up(graph, execution):
    fine, wrong = (
        compare(graph, execution, execution),
        compare(graph, execution, changed(execution, ("source", 0, 0, 0, 0))),
    )
    both = fine + wrong + compare(graph, execution, changed(execution, ("source", 0, 0, 0, 1)))
    assert both.values_compared == 3 * fine.values_compared
    assert both.mismatches == 2
    assert both.first_mismatch == wrong.first_mismatch
    assert both.to_json()["first_mismatch"] == {
        "sample": 0,
        "timestep": 0,
        "node": "source",
        "token": 0,
        "feature": 0,
        "expected": int(execution.values["source"][0, 0, 0, 0]),
        "got": int(execution.values["source"][0, 0, 0, 0]) ^ 1,
    }


def test_an_engine_that_leaves_a_node_out_is_no_match(graph, execution):
    less = {name: array for name, array in execution.values.items() if name != "source"}
    with pytest.raises(ValueError, match="'source'"):
        compare(graph, execution, Execution(execution.logits, less))


def test_floats_and_other_shapes_are_refused(graph, execution):
    with pytest.raises(ValueError, match="expected integers"):
        compare(graph, execution, Execution(execution.logits * 1.0, execution.values))
    with pytest.raises(ValueError, match="shape"):
        compare(graph, execution, Execution(execution.logits[:, :2], execution.values))
