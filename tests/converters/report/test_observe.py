"""Observations are what happened at real tokens, and the same however the samples are taken together."""

from __future__ import annotations

import numpy as np
import pytest
from random_graphs import random_batch, random_graph
from small_reports import observations

from converters.report.observe import Observations
from sim.reference import ReferenceEngine


def same(one: Observations, other: Observations) -> bool:
    whole = (one.samples, one.tokens, one.logit_low, one.logit_high)
    return whole == (other.samples, other.tokens, other.logit_low, other.logit_high) and all(
        (seen.low, seen.high, seen.sites) == (again.low, again.high, again.sites)
        and np.array_equal(seen.nonzero, again.nonzero)
        for seen, again in zip(one.nodes.values(), other.nodes.values())
    )


@pytest.mark.parametrize("seed", range(3))
def test_one_sample_after_another_gives_what_all_at_once_gives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = random_graph(rng, blocks=1)
    batch = random_batch(rng, graph, 4)
    added = observations(graph, batch[0:1]) + observations(graph, batch[1:2]) + observations(graph, batch[2:4])
    assert same(added, observations(graph, batch))


def test_padding_is_left_out() -> None:
    rng = np.random.default_rng(0)
    graph = random_graph(rng, blocks=1)
    batch = random_batch(rng, graph, 3)
    assert not batch.mask.all()
    values = ReferenceEngine(graph).run(batch, ["block0.fc1.synapses"]).values["block0.fc1.synapses"]
    real = [values[t, b, n] for t in range(4) for b in range(3) for n in range(batch.ids.shape[1]) if batch.mask[b, n]]
    seen = observations(graph, batch).nodes["block0.fc1.synapses"]
    assert seen.sites == len(real) == 4 * batch.mask.sum()
    assert (seen.low, seen.high) == (min(map(min, real)), max(map(max, real)))
    assert np.array_equal(seen.nonzero, np.sum([value != 0 for value in real], axis=0))
