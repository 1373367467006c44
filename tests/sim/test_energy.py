"""Counts to joules: against arithmetic by hand, for every shipped table and tables of one's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from machine_graphs import machine_graph
from random_graphs import random_batch, random_graph
from small_bundles import small_bundle

from converters.graph import LIF, Add, Attention, Graph, Readout, Source, Synapses
from converters.passes.expand_attention import ExpandAttention
from converters.passes.lay_out_bias_lanes import LayOutBiasLanes
from converters.passes.merge_query_key_value import MergeQueryKeyValue
from sim.energy import (
    SHIPPED,
    WORK,
    Tokens,
    Work,
    dense_operations,
    energy_of,
    estimate,
    read_cost_table,
    work_of,
)
from sim.fast.engine import FastEngine
from sim.reference import ReferenceEngine
from sim.report import energy_report, joules
from sim.run_command import main
from spikebert.commands import UserError

PRICE = {"picojoules": 2.0, "what": "something", "source": "a book"}
TABLE = {
    "name": "mine", "version": 3, "title": "a table", "kind": "chip", "prices": {"spikes": PRICE}, "dense": None,
    "left_out": "all else",
}  # fmt: skip


def network() -> Graph:
    """Two features; both neurons of `a` fire at every step where the token is 1, none where it is 0."""
    one = np.eye(2, dtype=int)
    nodes = (
        Source("source", [[-1, -1], [1, 1]], [[0, 0], [0, 0], [0, 0]], kind="sign"),
        Synapses("x", ("source",), [[9, 0], [9, 9]], [0, 0]),
        LIF("a", ("x",), 5, 4095),
        Add("sum", ("source", "a")),
        Attention("match", ("a", "a", "a"), 1),
        LIF("last", ("match",), 0, 4095),
        Synapses("y", ("sum",), one, [0, 0]),
        LIF("b", ("y",), 0, 4095),
        Readout("readout", ("b",), one, [0, 0]),
    )
    return Graph(timesteps=2, n_max=3, nodes=nodes)


def run(graph: Graph, ids: list[list[int]]) -> tuple[dict[str, Work], Tokens]:
    from converters.execution import TokenBatch
    from sim.activity import count_activity

    batch = TokenBatch(np.array(ids), np.ones_like(ids))
    tokens = Tokens()
    for row in ids:
        tokens = tokens.with_sentence(len(row))
    values = ReferenceEngine(graph).run(batch, graph.spiking).values
    return work_of(graph, count_activity(graph, values, batch), tokens), tokens


def test_work_by_hand() -> None:
    """Two sentences of two tokens, one of which is 1 in each: four events a timestep in `source`, `a` and `b`."""
    graph = network()
    work, tokens = run(graph, [[1, 0], [0, 1]])
    assert tokens == Tokens(sentences=2, real=4, squares=8)
    updates, resident = 2 * 4 * 2, 2 * 3 * 2 * 2  # T x tokens x neurons, T x n_max x sentences x neurons
    fired = 2 * 2 * 2  # T x sentences x neurons
    common = {"neuron_updates": updates, "resident_updates": resident, "spikes": fired}
    assert work["source"] == Work(
        messages=2 * fired, host_lookups=8, host_additions=8, **common
    )  # `x` and `sum` read it
    assert work["x"] == Work(synaptic_operations=12, weighted_operations=12)  # 2 x 2 tokens with 3 weights
    assert work["a"] == Work(messages=4 * fired, **common)  # q, k, v and `sum`
    assert work["sum"] == Work(messages=fired)  # sums of 2, one message each
    assert work["y"] == Work(synaptic_operations=8, weighted_operations=16)
    # q k^T of one token with itself: 2 products, and its score reaches 2 v: 4, at 2 timesteps of 2 sentences
    assert work["match"] == Work(attention_operations=16, weighted_attention_operations=4 * (2 + 2 * 2))
    assert work["last"] == Work(messages=0, **common)  # nobody reads it
    assert work["readout"] == Work(synaptic_operations=8, weighted_operations=8)


def test_wiring_sends_nothing_and_passes_messages_on() -> None:
    graph = machine_graph()
    readers = {"neuron": 3 + 1 + 1, "sum": 1}  # of neuron: sum twice, match twice, product; through side_by_side nobody
    work, _ = run(graph, [[3, 3]])
    fired = work["neuron"].spikes
    assert work["neuron"].messages == readers["neuron"] * fired
    assert work["second"] == work["all"] == work["side_by_side"] == Work()


def test_the_dense_network_by_hand() -> None:
    graph, tokens = network(), Tokens(sentences=2, real=5, squares=13)  # of 2 and 3 tokens
    assert dense_operations(graph, tokens) == 2 * 4 * 5 + 2 * 13 * 2 + 4 * 2


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("attention", ["plain", "unbiased"])
def test_passes_make_no_other_dense_network(seed: int, attention: str) -> None:
    """Neither attention made of neurons, nor biases on lanes, nor layers that were put side by side."""
    tokens = Tokens(sentences=2, real=5, squares=13)
    graph = random_graph(np.random.default_rng(seed), blocks=2, attention=attention)
    rows = next(node for node in graph if isinstance(node, Synapses) and ".fc1" in node.name)
    pruned = rows.weight.copy()
    pruned[:3] = 0  # neurons that have a bias alone
    graph = Graph(
        graph.timesteps, graph.n_max, tuple(replace(rows, weight=pruned) if node is rows else node for node in graph)
    )
    dense = dense_operations(graph, tokens)
    assert any(isinstance(node, Attention) for node in graph) and any(
        isinstance(node, Synapses) and node.bias.any() for node in graph
    )
    for passes in (
        [ExpandAttention()],
        [LayOutBiasLanes()],
        [MergeQueryKeyValue()],
        [ExpandAttention(), LayOutBiasLanes()],
        [MergeQueryKeyValue(), ExpandAttention(), LayOutBiasLanes()],
        [MergeQueryKeyValue(), LayOutBiasLanes()],
        [LayOutBiasLanes(), ExpandAttention()],
    ):
        lowered = graph
        for each in passes:
            lowered = each.rewrite(lowered).graph
        assert dense_operations(lowered, tokens) == dense, passes


def test_positions_in_spikes_are_neither_looked_up_nor_neurons() -> None:
    code = np.ones((2, 3, 5), np.uint8)
    nodes = (
        Source("source", [[9, 9], [9, 9]], [[0, 0], [0, 0], [0, 0]], threshold=1, code=code),
        Synapses("x", ("source",), np.ones((2, 7), int), [0, 0]),
        LIF("a", ("x",), 5, 4095),
        Readout("readout", ("a",), np.eye(2, dtype=int), [0, 0]),
    )
    work, _ = run(Graph(timesteps=2, n_max=3, nodes=nodes), [[1, 0], [0, 1]])
    own = work["source"]
    assert (own.host_lookups, own.host_additions) == (4 * 2, 4 * 2)
    assert (own.neuron_updates, own.resident_updates) == (2 * 4 * 2, 2 * 2 * 3 * 2)
    assert own.spikes == 2 * 4 * 7, "they are spikes all the same"


def test_energy_by_hand() -> None:
    table = read_cost_table("45nm")
    energy = energy_of({"x": Work(weighted_operations=10, spikes=5), "y": Work()}, table, dense=3)
    assert energy.per_node == {"x": {"weighted_operations": pytest.approx(9e-12)}, "y": {}}
    assert energy.total == pytest.approx(9e-12)
    assert energy.dense == pytest.approx(3 * 4.6e-12)
    assert energy.of_dense == pytest.approx(9 / 13.8)
    assert energy_of({}, read_cost_table("loihi1")).of_dense is None


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_tables(name: str) -> None:
    table = read_cost_table(name)
    assert table.name == name
    assert set(table.prices) <= set(WORK)
    assert all(price.picojoules > 0 for price in table.prices.values())


def test_hala_point_is_its_power_over_its_rate() -> None:
    assert read_cost_table("hala_point").prices["synaptic_operations"].picojoules == 2600 / 380e12 * 1e12


def test_the_papers_row_of_bert() -> None:
    """22.23 G x 4.6 pJ: 102.24 mJ as printed, to the rounding of 22.23."""
    dense = read_cost_table("45nm").dense
    assert dense is not None
    assert abs(22.23e9 * dense.picojoules * 1e-9 - 102.24) < 0.005e9 * 4.6 * 1e-9


@pytest.mark.parametrize(
    "change, text",
    [
        ({"prices": {}}, "at least one kind"),
        ({"prices": {"thoughts": PRICE}}, "'thoughts' is no kind of work"),
        ({"prices": {"spikes": {"picojoules": 2.0, "what": "x"}}}, "must have picojoules, what and source"),
        ({"prices": {"spikes": PRICE | {"source": " "}}}, "its source"),
        ({"prices": {"spikes": PRICE | {"picojoules": -1}}}, "costs -1 picojoules"),
        ({"prices": {"spikes": PRICE | {"picojoules": True}}}, "costs True picojoules"),
        ({"prices": {"spikes": PRICE | {"picojoules": float("nan")}}}, "costs nan picojoules"),
        ({"prices": {"neuron_updates": PRICE, "resident_updates": PRICE}}, "the same work counted in two ways"),
        ({"kind": "guess"}, "'kind' is 'guess'"),
        ({"version": 0}, "'version'"),
        ({"left_out": ""}, "'left_out'"),
        ({"dense": {"picojoules": 1}}, "'dense' must have"),
        ({"colour": "red"}, "and nothing else"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, change: dict, text: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(TABLE | change))
    with pytest.raises(UserError, match=text) as raised:
        read_cost_table(str(path))
    assert str(path) in str(raised.value)


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("{")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for name, text in (("text", "not JSON"), ("bytes", "not UTF-8"), ("none", "one of 45nm")):
        with pytest.raises(UserError, match=text):
            read_cost_table(str(tmp_path / name))


def test_every_engine_counts_the_same_energy() -> None:
    from sim.activity import count_activity

    rng = np.random.default_rng(0)
    graph = random_graph(rng, blocks=2, hidden=8, n_max=5)
    batch = random_batch(rng, graph, 6)
    tokens = Tokens()
    for count in batch.mask.sum(1).tolist():
        tokens = tokens.with_sentence(count)
    tables = [read_cost_table(name) for name in SHIPPED]
    values = ReferenceEngine(graph).run(batch, graph.spiking).values
    engine = FastEngine(graph)
    counted, reference = engine.run(batch).activity, count_activity(graph, values, batch)
    engine.close()
    assert counted is not None
    both = [
        [energy.to_json(len(batch)) for energy in estimate(graph, activity, tokens, tables)]
        for activity in (counted, reference)
    ]
    assert both[0] == both[1]
    assert all(energy["joules"] > 0 for energy in both[0])


@pytest.mark.parametrize(
    "amount, text",
    [
        (0, "0 J"),
        (7.05e-5, "70.5 uJ"),
        (1e-3, "1.00 mJ"),
        (9.99e-13, "999 fJ"),
        (123.0, "123 J"),
        (2e-18, "0.00200 fJ"),
    ],
)
def test_joules_in_words(amount: float, text: str) -> None:
    assert joules(amount) == text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = small_bundle(tmp_path / "bundle").folder
    own = tmp_path / "mine.json"
    own.write_text(json.dumps(TABLE))
    base = [str(bundle), "--text", "a good film", "--text", "bad"]
    assert main([*base, "--energy", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["energy"]) == list(SHIPPED)
    assert main([*base, "--energy", str(own), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    mine = result["energy"]["mine"]
    assert mine["version"] == 3
    assert mine["joules"] == pytest.approx(2e-12 * result["activity"]["spikes"])
    assert mine["joules_per_sentence"] == mine["joules"] / 2
    assert (
        mine["joules"] == pytest.approx(sum(mine["per_node"].values())) == pytest.approx(sum(mine["by_work"].values()))
    )
    assert main([*base, "--json"]) == 0
    assert "energy" not in json.loads(capsys.readouterr().out)
    assert main([*base, "--energy"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{name} (" in text for name in SHIPPED) and "dense network" in text and "not in it:" in text
    assert main([*base, "--energy", "45nm", "45nm"]) == 2
    assert "twice" in capsys.readouterr().err
    same = tmp_path / "same.json"
    same.write_text(json.dumps(TABLE | {"name": "45nm"}))
    assert main([*base, "--energy", "45nm", str(same)]) == 2
    assert f"45nm and {same} both have the name '45nm'. Change 'name'" in capsys.readouterr().err
    assert main([*base, "--energy", "46nm"]) == 2
    assert "46nm" in capsys.readouterr().err


def test_a_report_of_a_network_that_did_nothing() -> None:
    text = energy_report([energy_of({"x": Work()}, read_cost_table("45nm"), dense=0)], 1)
    assert "in all" in text and "0 J" in text
