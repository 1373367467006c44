"""The network that is mapped: the same populations and synapses as the plan that a chip would run, one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from random_graphs import random_dag, random_graph, random_machine_dag

from converters.graph import Attention, Graph, Source, Synapses
from converters.passes.expand_attention import ExpandAttention
from converters.passes.lay_out_bias_lanes import LayOutBiasLanes
from converters.passes.merge_query_key_value import MergeQueryKeyValue
from converters.passes.split_wide_layers import SplitWideLayers
from spikebert.commands import CheckFailed
from targets.lava.plan import FanSpec, Plan, RouteSpec, SynapsesSpec, fan_entries
from targets.legality import IllegalGraphError
from targets.loihi2.chip_plan import for_chip, with_probes
from targets.loihi2.mapping.network import ChipNetwork, Connection, chip_network
from targets.loihi2.target import Loihi2Target


def transformer(seed: int, n_max: int = 3, **options: object) -> Graph:
    return random_graph(np.random.default_rng(seed), blocks=2, hidden=8, n_max=n_max, **options)


def expand(graph: Graph) -> Graph:
    return ExpandAttention().rewrite(graph).graph


def plan_of(graph: Graph) -> Plan:
    """What `ChipNetwork` of the engine `loihi2` builds for a run that records the readout alone."""
    plan = for_chip(Loihi2Target().lower(graph))
    return with_probes(plan, [segment.process for segment in plan.homes[graph.output]])[0]


def describe(network: ChipNetwork) -> tuple[dict, dict]:
    """All of a network, in a form that can be compared."""
    connections = {
        one.name: (
            one.source, one.target, one.reads, one.shared, one.weight_bits, one.delay_steps, one.pattern.tolist()
        )
        for one in network.connections
    }  # fmt: skip
    return {each.name: replace(each, node="") for each in network.populations}, connections


def synapses_of_plan(plan: Plan, name: str) -> set[tuple[int, int]]:
    """(target neuron, source neuron) of every synapse of a process, as numbers on flat vectors [tokens * channels]."""
    spec = plan[name]
    if isinstance(spec, FanSpec):
        return set(zip(*(each.tolist() for each in fan_entries(spec, plan.tokens))))
    assert isinstance(spec, (SynapsesSpec, RouteSpec))
    whole = np.kron(np.eye(plan.tokens, dtype=np.int32), spec.weight)
    return set(zip(*(each.tolist() for each in np.nonzero(whole))))


def synapses_of_network(network: ChipNetwork, one: Connection) -> set[tuple[int, int]]:
    """The same of a connection, by what `reads` is said to mean."""
    target, source = network[one.target], network[one.source]
    found = set()
    for n in range(target.tokens):
        for m in range(target.keys):
            for f, i in zip(*np.nonzero(one.pattern)):
                read = {
                    "token": [(n, 0)], "key": [(m, 0)], "pair": [(n, m)], "row": [(n, k) for k in range(source.keys)]
                }[one.reads]  # fmt: skip
                for token, key in read:
                    number = (token * source.keys + key) * source.features + i
                    found.add(((n * target.keys + m) * target.features + int(f), int(number)))
    return found


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("attention", ["plain", "unbiased"])
def test_attention_is_taken_as_the_pass_would_make_it(seed: int, attention: str) -> None:
    make = random_dag if seed % 2 else random_graph
    graph = make(np.random.default_rng(seed), hidden=8, n_max=3, attention=attention)
    assert describe(chip_network(graph)) == describe(chip_network(expand(graph)))


@pytest.mark.parametrize("seed", range(8))
def test_every_synapse_is_one_of_the_plan_for_the_chip(seed: int) -> None:
    attention = ("plain", "unbiased")[seed // 4]
    rng = np.random.default_rng(seed)
    graph = expand(random_dag(rng, attention=attention) if seed % 2 else transformer(seed, attention=attention))
    plan, network = plan_of(graph), chip_network(graph)
    neurons = {
        spec.name: spec.channels for spec in plan.specs if not isinstance(spec, (SynapsesSpec, RouteSpec, FanSpec))
    }
    assert {each.name: each.keys * each.features for each in network.populations} == neurons
    assert all(each.tokens == plan.tokens for each in network.populations)
    for one in network.connections:
        assert plan[one.name].inputs == (one.source,)
        assert one.name in plan[one.target].inputs
        assert getattr(plan[one.name], "delay_steps", 0) == one.delay_steps
        listed = synapses_of_plan(plan, one.name)
        assert synapses_of_network(network, one) == listed
        assert network.synapses(one) == len(listed)
    assert len(network.connections) == sum(isinstance(spec, (SynapsesSpec, RouteSpec, FanSpec)) for spec in plan.specs)


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_another_length_of_text_is_the_same_network_with_other_tokens(tokens: int) -> None:
    graph = transformer(3, n_max=5)
    source = replace(graph.source, position=graph.source.position[:tokens])
    nodes = tuple(source if isinstance(node, Source) else node for node in graph)
    shorter = Graph(graph.timesteps, tokens, nodes)
    assert describe(chip_network(graph).with_tokens(tokens)) == describe(chip_network(shorter))


@pytest.mark.parametrize("seed", range(6))
def test_other_passes_change_nothing_that_a_mapping_needs(seed: int) -> None:
    """Merged or split layers, and lanes that are laid out already, before and after attention is expanded."""
    graph = transformer(seed, attention=("plain", "unbiased")[seed // 3])
    graph = MergeQueryKeyValue().rewrite(graph).graph if seed % 2 else graph
    graph = LayOutBiasLanes().rewrite(graph).graph if seed % 3 == 0 else graph
    graph = SplitWideLayers(most_features=5).rewrite(graph).graph if seed > 3 else graph
    assert describe(chip_network(graph)) == describe(chip_network(expand(graph)))


def test_a_position_bias_is_refused_by_its_rule() -> None:
    graph = transformer(0)
    bias = np.ones((1, 3, 3), int)
    nodes = tuple(replace(node, bias=bias) if isinstance(node, Attention) else node for node in graph)
    with pytest.raises(IllegalGraphError) as error:
        chip_network(Graph(graph.timesteps, graph.n_max, nodes))
    assert {each.rule for each in error.value.violations} == {"no-position-bias"}


@pytest.mark.parametrize("seed", range(8))
def test_a_graph_of_any_nodes_is_read_or_refused(seed: int) -> None:
    """Coincidences and products of other shapes than an attention's have no pattern that is known."""
    graph = expand(random_machine_dag(np.random.default_rng(seed)))
    try:
        assert chip_network(graph).neurons > 0
    except IllegalGraphError as error:
        assert error.violations
    except CheckFailed as error:
        assert "expand-attention" in str(error)


def test_valid_lanes_are_known() -> None:
    network = chip_network(transformer(1))
    plan = plan_of(expand(transformer(1)))
    for each in network.on_chip:
        if each.name.endswith("with_lanes#1#relay"):
            assert each.lanes == each.features  # carries lanes past an attention, and nothing else
        else:
            assert each.lanes == plan.lanes.get(each.name, 0)
    assert network["source"].lanes == network["source#entry"].lanes > 0


def test_narrow_weights_and_no_attention() -> None:
    network = chip_network(transformer(1))
    assert max(one.weight_bits for one in network.with_weight_bits(4).connections) == 4
    without = network.without_attention()
    assert {each.name for each in network.populations} - {each.name for each in without.populations} == {
        f"block{index}.attention.{part}" for index in range(2) for part in ("match", "relay", "product")
    }
    assert network.attentions == 2 and without.attentions == 0


def test_what_the_target_refuses_is_refused_here_but_not_attention() -> None:
    with pytest.raises(IllegalGraphError, match="power-of-two-timesteps"):
        chip_network(transformer(0, timesteps=3))


def test_weights_that_differ_from_key_to_key_are_refused() -> None:
    """Of the scores of an attention, one is gone: no pattern for all keys is left."""
    graph = expand(transformer(0, bias_max=0))
    nodes = []
    for node in graph:
        if isinstance(node, Synapses) and node.name.endswith(".scores"):
            weight = node.weight.copy()
            weight[0, 0] = 0
            node = replace(node, weight=weight)
        nodes.append(node)
    with pytest.raises(CheckFailed, match="differ from key to key"):
        chip_network(Graph(graph.timesteps, graph.n_max, tuple(nodes)))


def test_attentions_of_both_kinds_are_refused() -> None:
    graph = transformer(0)
    first = next(node for node in graph if isinstance(node, Attention))
    kept = [node for node in expand(graph) if not node.name.startswith(f"{first.name}.")]
    both = Graph(graph.timesteps, graph.n_max, tuple(first if node.name == first.name else node for node in kept))
    with pytest.raises(CheckFailed, match="attentions of both kinds"):
        chip_network(both)
