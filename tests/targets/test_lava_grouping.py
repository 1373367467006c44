"""Which processes run together: all of them, each once, in an order that works, and no current between groups."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import random_dag, random_graph, random_machine_dag

from converters.passes.expand_attention import ExpandAttention
from targets.lava import grouping
from targets.lava.grouping import Connection, group
from targets.lava.lowering import lower
from targets.lava.plan import Plan, SourceSpec


def block_plan(blocks: int = 2) -> Plan:
    return lower(random_graph(np.random.default_rng(0), blocks=blocks))


def assert_is_partition(plan: Plan, groups: tuple[grouping.Group, ...]) -> None:
    """Every process but the source in one group, groups after those they read, ports where something crosses."""
    names = [spec.name for each in groups for spec in each.specs]
    assert sorted(names) == sorted(spec.name for spec in plan.specs if not isinstance(spec, SourceSpec))
    there = {plan.specs[0].name}
    for each in groups:
        assert set(each.inputs) <= there, each.name
        own = {spec.name for spec in each.specs}
        crossing = {name for spec in each.specs for name in spec.inputs} - own
        assert set(each.inputs) == crossing and len(each.inputs) == len(crossing)
        read = {name for spec in plan.specs if spec.name not in own for name in spec.inputs}
        assert set(each.outputs) == read & own
        there |= own
    assert len({each.name for each in groups}) == len(groups), "two groups of one name"


def test_a_block_is_five_layers() -> None:
    groups = group(block_plan(), "layer")
    neurons = [[spec.name for spec in each.specs if not isinstance(spec, Connection)] for each in groups]
    assert neurons[:5] == [
        ["block0.q", "block0.k", "block0.v"],
        ["block0.attention_lif"],
        ["block0.out", "block0.add1"],
        ["block0.fc1"],
        ["block0.fc2", "block0.add2"],
    ]
    assert len(groups) == 2 * 5 + 1, "and the readout"


@pytest.mark.parametrize("cores", [1, 2, 3, 100])
def test_a_group_for_each_core(cores: int) -> None:
    plan = block_plan(4)
    groups = group(plan, "core", cores=cores)
    assert_is_partition(plan, groups)
    assert len(groups) <= cores
    if cores in (1, 2, 3):
        assert len(groups) == cores
        weights = [sum(spec.weight.size for spec in each.specs if hasattr(spec, "weight")) for each in groups]
        assert max(weights) < 1.6 * sum(weights) / cores


def test_each_process_on_its_own() -> None:
    plan = block_plan()
    groups = group(plan, "process")
    assert_is_partition(plan, groups)
    assert all(len(each.specs) == 1 for each in groups) and len(groups) == len(plan.specs) - 1


def test_what_is_recorded_leaves_its_group() -> None:
    plan = block_plan()
    recorded = {"block1.fc1.synapses", "block1.fc1", "readout"}
    outputs = {name for each in group(plan, "layer", recorded) for name in each.outputs}
    assert recorded <= outputs
    assert not recorded <= {name for each in group(plan, "layer") for name in each.outputs}


def test_an_unknown_grouping_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'block'"):
        group(block_plan(), "block")


def test_a_group_with_too_many_ports_is_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = block_plan()
    monkeypatch.setattr(grouping, "PORTS_MAX", 2)
    groups = group(plan, "layer")
    assert_is_partition(plan, groups)
    assert any(each.name == "block0.q" for each in groups), "q, k and v have three outputs"
    assert any(len(each.specs) > 1 for each in groups)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    make=st.sampled_from([random_dag, random_machine_dag]),
    how=st.sampled_from(["process", "layer", "core"]),
    expand=st.booleans(),
)
def test_any_graph_is_parted_without_circles(seed: int, make, how, expand: bool) -> None:
    rng = np.random.default_rng(seed)
    graph = make(rng)
    if expand and make is random_dag:
        graph = ExpandAttention().rewrite(graph).graph
    plan = lower(graph)
    groups = group(plan, how, cores=3)
    assert_is_partition(plan, groups)
    if how != "process":
        currents = {spec.name for spec in plan.specs if isinstance(spec, Connection)}
        assert not any(currents & set(each.inputs) for each in groups), "a current travels between groups"


def test_parts_that_read_each_other_become_one() -> None:
    """The attention stands between q and its own LIF: if these two are one, it must be in there too."""
    plan = block_plan(1)
    sets = nx.utils.UnionFind(spec.name for spec in plan.specs)
    sets.union("block0.q", "block0.attention_lif")
    parts = [{spec.name for spec in part} for part in grouping._ordered(plan, sets)]
    assert {"block0.q", "block0.attention", "block0.attention_lif"} in parts
    assert sum(map(len, parts)) == len(plan.specs) - 1
