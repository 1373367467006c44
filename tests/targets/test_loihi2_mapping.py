"""Placing: every mapping is held against the limits by a check that counts anew, and that check against broken ones."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import random_batch, random_dag, random_graph
from small_bundles import small_bundle

from benchmarks.mapping import network_of
from benchmarks.networks import random_network
from converters.graph import Graph
from converters.passes.expand_attention import ExpandAttention
from sim.activity import count_activity
from sim.reference import ReferenceEngine
from spikebert.commands import CHECK_FAILED, OK, WRONG_USE, CheckFailed, UserError
from targets.loihi2.mapping import command
from targets.loihi2.mapping.boxes import Box, Use, list_bits
from targets.loihi2.mapping.check import check_mapping, check_network
from targets.loihi2.mapping.chips import BOARDS, Board
from targets.loihi2.mapping.core_model import RESOURCES, CoreModel
from targets.loihi2.mapping.network import ChipNetwork, chip_network
from targets.loihi2.mapping.place import Mapping, place
from targets.loihi2.mapping.remedies import remedies
from targets.loihi2.mapping.report import to_json, to_text
from targets.loihi2.mapping.timing import EventTimes, estimate
from targets.loihi2.mapping.traffic import assumed_rates, measured_rates
from targets.loihi2.target import Loihi2Target

SMALL = CoreModel(neurons=60, memory_bytes=1500, axons_in=100, axons_out=120, cores=7)


def graph_of(seed: int) -> Graph:
    rng = np.random.default_rng(seed)
    return random_dag(rng) if seed % 2 else random_graph(rng, blocks=1, hidden=8, n_max=4)


def mapping_of(network: ChipNetwork, model: CoreModel = SMALL, board: Board | None = None) -> Mapping:
    return place(network, assumed_rates(network, 0.1), "assumed", board, model)


def document_of(mapping: Mapping) -> dict[str, Any]:
    return json.loads(json.dumps(to_json(mapping)))


@cache
def placed() -> tuple[ChipNetwork, Mapping]:
    """A network that takes several chips of SMALL."""
    network = chip_network(random_graph(np.random.default_rng(0), blocks=2, hidden=8, n_max=4))
    return network, mapping_of(network)


@pytest.fixture
def document() -> dict[str, Any]:
    return document_of(placed()[1])


# Placing


@pytest.mark.parametrize("seed", range(12))
def test_what_is_placed_keeps_to_the_limits(seed: int) -> None:
    network = chip_network(graph_of(seed))
    mapping = mapping_of(network)
    assert check_network(network, document_of(mapping), SMALL) == []
    assert mapping.cores >= mapping.fewest_cores
    assert mapping.chips == -(-mapping.cores // SMALL.cores)  # no chip more than it takes


@settings(max_examples=12, deadline=None)
@given(
    neurons=st.integers(4, 200),
    memory_bytes=st.integers(600, 4000),
    axons_in=st.integers(20, 300),
    axons_out=st.integers(20, 300),
    cores=st.integers(2, 20),
    channels_an_axon=st.integers(1, 40),
    seed=st.integers(0, 5),
)
def test_any_limits_are_kept_to(seed: int, **limits: int) -> None:
    """Or it is said that a single neuron is too much."""
    model, network = CoreModel(**limits), chip_network(graph_of(seed))
    try:
        mapping = mapping_of(network, model)
    except CheckFailed as error:
        assert "one neuron alone takes" in str(error)
        return
    assert check_network(network, document_of(mapping), model) == []


@pytest.mark.parametrize("tokens", [1, 16])
def test_a_network_of_the_size_of_a_chip_keeps_to_the_limits_of_the_chip(tokens: int) -> None:
    network = network_of("2x128").with_tokens(tokens)
    mapping = mapping_of(network, CoreModel())
    assert check_network(network, document_of(mapping)) == []
    assert mapping.chips == 1 and mapping.board == BOARDS[0] and mapping.fits


@pytest.mark.slow
def test_6_x_384_of_32_tokens_keeps_to_the_limits() -> None:
    graph = random_network(6, 384, 6, 32, 4, 0.15, one_threshold=True)
    network = chip_network(graph)
    mapping = place(network, assumed_rates(network, 0.15), "assumed")
    assert check_mapping(graph, document_of(mapping)) == []
    assert mapping.chips <= 7 and mapping.board is not None and mapping.board.name == "kapoho-point"


def test_the_same_is_placed_alike_each_time() -> None:
    network = chip_network(graph_of(4))
    assert document_of(mapping_of(network)) == document_of(mapping_of(chip_network(graph_of(4))))


def test_a_neuron_that_no_core_holds_is_named() -> None:
    with pytest.raises(CheckFailed, match=r"one neuron alone takes .* of the axons in of a core"):
        mapping_of(chip_network(graph_of(0)), replace(SMALL, axons_in=1))
    with pytest.raises(CheckFailed, match="a neuron reads"):
        mapping_of(chip_network(graph_of(0)), replace(SMALL, fan_in=2))
    with pytest.raises(CheckFailed, match="delay of"):
        mapping_of(chip_network(graph_of(0)), replace(SMALL, delay=0))


def test_weights_of_a_layer_are_stored_once_for_all_tokens_of_a_box() -> None:
    """Twice the tokens, not a byte of synapses more; a residual has synapses of its own for each token."""
    network = chip_network(graph_of(0))
    one = mapping_of(network.with_tokens(1), CoreModel())
    two = mapping_of(network.with_tokens(2), CoreModel())

    def synapse_bytes(mapping: Mapping, name: str) -> int:
        return sum(use.synapse_bytes for box, use in zip(mapping.boxes, mapping.uses) if box.population == name)

    assert synapse_bytes(one, "block0.q") == synapse_bytes(two, "block0.q") > 0
    assert 2 * synapse_bytes(one, "block0.add1") == synapse_bytes(two, "block0.add1") > 0


def test_lists_of_synapses_take_what_nengo_loihi_says() -> None:
    """Its `bits_per_axon`: 64 weights of 8 bits and 10 more, up to words of 64 bits."""
    found = list_bits(np.array([0, 1, 6, 7, 64, 65, 128]), 8, CoreModel())
    assert found.tolist() == [0, 64, 64, 128, 576, 640, 1152]


# Broken mappings


def rules_broken(document: dict[str, Any], model: CoreModel = SMALL) -> set[str]:
    return {problem.rule for problem in check_network(placed()[0], document, model)}


def test_the_mapping_of_these_tests_is_right(document: dict[str, Any]) -> None:
    assert rules_broken(document) == set()
    assert document["chips"] > 2


@pytest.mark.parametrize("axis", [1, 3, 5])
def test_a_neuron_left_out_is_found(document: dict[str, Any], axis: int) -> None:
    box = next(box for box in document["boxes"] if box[axis + 1] - box[axis] > 1)
    box[axis] += 1
    assert "placed once" in rules_broken(document)


def test_a_box_left_out_or_placed_twice_is_found(document: dict[str, Any]) -> None:
    without, twice = copy.deepcopy(document), copy.deepcopy(document)
    del without["boxes"][5]
    twice["boxes"].append(twice["boxes"][5])
    assert "placed once" in rules_broken(without) and "placed once" in rules_broken(twice)


@pytest.mark.parametrize(("place", "by"), [(1, -1), (2, 10), (4, 10), (6, 100)])
def test_a_box_outside_its_population_is_found(document: dict[str, Any], place: int, by: int) -> None:
    document["boxes"][0][place] += by
    assert rules_broken(document) == {"placed once"}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("schema", 2, "schema 2"),
        ("boxes", [[0, 1]], "a box has 8 numbers"),
        ("boxes", [[99, 0, 1, 0, 1, 0, 1, 0]], "a population that is not there"),
        ("core_chip", None, "not a mapping"),
        ("board", 3, "not a mapping"),
    ],
)
def test_what_is_no_mapping_is_refused(document: dict[str, Any], field: str, value: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        rules_broken(document | {field: value})
    with pytest.raises(UserError, match="not a mapping"):
        rules_broken({key: each for key, each in document.items() if key != field})


@pytest.mark.parametrize("resource", RESOURCES)
def test_a_core_with_too_much_of_something_is_found(document: dict[str, Any], resource: str) -> None:
    """A limit a little lower than what the fullest core takes, and only that."""
    index = RESOURCES.index(resource)
    most = max(use[index] for use in document["core_use"])
    field = ("neurons", "memory_bytes", "axons_in", "axons_out")[index]
    assert rules_broken(document, replace(SMALL, **{field: most})) == set()
    assert rules_broken(document, replace(SMALL, **{field: most - 1})) == {resource}


def test_boxes_moved_to_a_full_core_are_found(document: dict[str, Any]) -> None:
    fullest = max(range(document["cores"]), key=lambda core: document["core_use"][core][0])
    other = (fullest + 1) % document["cores"]
    for box in document["boxes"]:
        box[7] = fullest if box[7] == other else box[7]
    assert {"neurons", "cores", "counts"} <= rules_broken(document)  # "cores": one is empty now


@pytest.mark.parametrize("index", range(4))
def test_numbers_that_are_not_so_are_found(document: dict[str, Any], index: int) -> None:
    document["core_use"][3][index] += 1
    assert rules_broken(document) == {"counts"}


def test_a_chip_with_too_many_cores_is_found(document: dict[str, Any]) -> None:
    document["core_chip"][-1] = 0
    assert "cores" in rules_broken(document)


def test_a_board_that_is_too_small_is_found(document: dict[str, Any]) -> None:
    document["board"] = {"name": "oheo-gulch", "chips": 1}
    assert rules_broken(document) == {"chips"}
    document["fits"] = False  # it does not, and says so
    assert rules_broken(document) == set()
    document["board"]["chips"] = 1000
    assert rules_broken(document) == {"counts"}


@pytest.mark.parametrize("rule", ["fan-in", "delay"])
def test_a_neuron_that_reads_too_much_or_waits_too_long_is_found(document: dict[str, Any], rule: str) -> None:
    assert rules_broken(document, replace(SMALL, **{rule.replace("-", "_"): 1})) == {rule}


def test_a_mapping_of_another_network_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="another network"):
        check_mapping(graph_of(1), document)


# Messages


def sent_one_by_one(mapping: Mapping) -> np.ndarray:
    """[cores, cores]: what `Traffic.between` must be, from the boxes and every single neuron."""
    network = mapping.network
    between = np.zeros((mapping.cores, mapping.cores))
    owner: dict[tuple[str, int, int, int], int] = {}
    for box, core in zip(mapping.boxes, mapping.core):
        for n in range(*box.tokens):
            for m in range(*box.keys):
                for f in range(*box.features):
                    owner[box.population, n, m, f] = int(core)
    for box, core in zip(mapping.boxes, mapping.core):
        for one in network.into[box.population]:
            senders = set()
            for n in range(*box.tokens):
                for m in range(*box.keys):
                    for f in range(*box.features):
                        for i in np.flatnonzero(one.pattern[f]).tolist():
                            read = {"token": [(n, 0)], "key": [(m, 0)], "pair": [(n, m)]}.get(
                                one.reads, [(n, key) for key in range(network[one.source].keys)]
                            )
                            senders |= {(one.source, *place, i) for place in read}
            if not network[one.source].host:
                for sender in senders:
                    between[owner[sender], core] += mapping.rates[one.source]
    return between


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_messages_are_those_of_single_neurons(seed: int) -> None:
    network = chip_network(graph_of(seed))
    mapping = mapping_of(network)
    expected = sent_one_by_one(mapping)
    assert np.allclose(mapping.traffic.between.toarray(), expected)  # rates are floats
    assert np.isclose(sum(mapping.chip_links().values()), mapping.crossing)
    assert np.isclose(mapping.crossing, expected[mapping.chip[:, None] != mapping.chip[None]].sum())


def test_assumed_rates_of_what_attention_is_made_of() -> None:
    network = chip_network(random_graph(np.random.default_rng(0), blocks=1, hidden=8, heads=2, n_max=4, bias_max=0))
    rates = assumed_rates(network, 0.5)
    assert rates["block0.q"] == 0.5
    assert np.isclose(rates["block0.attention.match"], 0.25)
    assert np.isclose(rates["block0.attention.relay"], 1 - 0.75**4)  # 4 features a head
    assert np.isclose(rates["block0.attention.product"], 0.5 * (1 - 0.75**4))
    assert np.isclose(rates["block0.add1"], 0.75)


def run_of(graph: Graph, samples: int = 3) -> dict[str, Any]:
    """What spikebert-run --json would print of a run."""
    batch = random_batch(np.random.default_rng(5), graph, samples)
    activity = count_activity(graph, ReferenceEngine(graph).run(batch, graph.spiking).values, batch)
    sent = {name: {"messages": did.messages} for name, did in activity.per_node.items()}
    return {"samples": samples, "activity": {"timesteps": graph.timesteps, "per_node": sent}}


def test_measured_rates_are_those_of_the_run() -> None:
    graph = ExpandAttention().rewrite(graph_of(0)).graph
    network, run = chip_network(graph), run_of(graph)
    rates = measured_rates(network, run, "run.json")
    for each in network.on_chip:
        if each.node:
            own = each.size * (each.features - each.lanes) / each.features
            sent = rates[each.name] * each.size - (each.size - own)  # lanes apart
            messages = run["activity"]["per_node"][each.node]["messages"]
            assert np.isclose(sent * run["samples"] * graph.timesteps, messages)


def test_a_run_of_another_graph_is_refused() -> None:
    network = chip_network(graph_of(0))
    with pytest.raises(UserError, match="no activity"):
        measured_rates(network, {"samples": 1}, "run.json")
    with pytest.raises(UserError, match="another graph"):
        measured_rates(network, run_of(graph_of(1)), "run.json")
    with pytest.raises(UserError, match="timesteps"):
        run = run_of(graph_of(0))
        measured_rates(network, run | {"activity": run["activity"] | {"timesteps": 8}}, "run.json")


# Time, remedies, text


def test_time_is_that_of_the_slowest_core() -> None:
    mapping = placed()[1]
    only_neurons = EventTimes(10.0, 0, 0, 0, 0, 0, barrier=1000.0)
    times = estimate(mapping, only_neurons)
    most = int(mapping.core_use[:, 0].max())
    assert np.isclose(times.step_us, most * 0.01 + 1)
    assert mapping.core_use[times.slowest_core, 0] == most
    steps, depth = mapping.network.timesteps, mapping.network.depth_steps
    assert np.isclose(times.stream_ms, steps * times.step_us / 1000)
    assert np.isclose(times.alone_ms, (steps + depth) * times.step_us / 1000)


def test_events_are_synapses_that_messages_reach() -> None:
    """At a rate of 1 each synapse once: the total is that of the network, without those from the host's."""
    network = placed()[0]
    mapping = place(network, dict.fromkeys(assumed_rates(network, 1.0), 1.0), "assumed", None, SMALL)
    shared = sum(network.synapses(one) for one in network.connections if one.shared)
    others = sum(network.synapses(one) for one in network.connections if not one.shared)
    assert np.allclose(mapping.traffic.events.sum(axis=1), [shared, others])
    assert np.isclose(mapping.traffic.spikes.sum(), network.neurons)
    assert np.isclose(mapping.traffic.from_host.sum(), network["source"].size)


def test_what_does_not_fit_is_told_with_what_would() -> None:
    network = placed()[0]
    board = Board("tiny", 2, "this test")
    mapping = mapping_of(network, board=board)
    assert not mapping.fits and mapping.chips > 2
    tried = {each.change: each for each in remedies(network, SMALL, board)}
    fewer = next(each for name, each in tried.items() if name.endswith("tokens"))
    assert fewer.fits and not fewer.change.startswith("4 ")
    assert {"weights of 4 bits", "weights of 2 bits", "attention not on cores", "token after token"} <= set(tried)
    assert tried["attention not on cores"].cores < mapping.cores
    steps = network.tokens * network.timesteps
    assert tried["token after token"].cost.startswith(f"{steps} steps a sentence in a stream")
    text = to_text(mapping, list(tried.values()))
    assert "IT DOES NOT FIT" in text and "token after token" in text


def test_a_box_and_a_use_add_up() -> None:
    assert Box("x", (1, 3), (0, 2), (4, 8)).neurons == 16
    assert Use(1, 2, 3, 4, 5, 6) + Use(1, 1, 1, 1, 1, 1) == Use(2, 3, 4, 5, 6, 7)


# The command and the target


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("bundles") / "bundle", graph_of(0)).folder


def test_the_command_writes_a_mapping_and_checks_it(bundle: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "mapping.json"
    assert command.main([str(bundle), "--out", str(path)]) == OK
    assert "1 chip (oheo-gulch has 1)" in capsys.readouterr().out
    assert command.main([str(bundle), "--check", str(path)]) == OK
    assert "every neuron is placed once" in capsys.readouterr().out
    broken = json.loads(path.read_text())
    broken["boxes"][0][2] -= 1
    path.write_text(json.dumps(broken))
    assert command.main([str(bundle), "--check", str(path), "--json"]) == CHECK_FAILED
    assert json.loads(capsys.readouterr().out)["problems"][0]["rule"] == "placed once"


def test_the_command_takes_the_activity_of_a_run(bundle: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run_of(graph_of(0))))
    assert command.main([str(bundle), "--activity", str(path), "--json"]) == OK
    printed = json.loads(capsys.readouterr().out)
    assert printed["traffic"]["rates"] == "measured in run.json" and printed["fits"]


def test_a_run_that_stopped_early_tells_no_rates(bundle: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run_of(graph_of(0)) | {"early_exit": {"margin_units": 3}}))
    assert command.main([str(bundle), "--activity", str(path)]) == WRONG_USE
    assert "run.json: a run whose sentences stopped early; a chip runs all timesteps" in capsys.readouterr().err


def test_the_command_says_where_a_network_does_not_fit(bundle: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(command, "place", partial(place, model=SMALL))
    assert command.main([str(bundle), "--board", "oheo-gulch"]) == CHECK_FAILED
    said = capsys.readouterr()
    assert "IT DOES NOT FIT" in said.out and "what would change it" in said.out
    assert said.err.endswith("oheo-gulch has 1\n") and said.err.startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "2"], "no share from 0 to 1"),
        (["--activity", "nowhere.json"], "nowhere.json: No such file"),
        (["--board", "desk"], "invalid choice"),
        (["--check", __file__], "not JSON"),
        (["--out", "nowhere/mapping.json"], "--out nowhere/mapping.json: there is no folder nowhere. Make it first"),
        (["--out", __file__], "exists. Give --overwrite to replace it"),
        (["--out", __file__, "--overwrite", "--activity", __file__], "--out and --activity both name"),
    ],
)
def test_wrong_use_is_told(bundle: Path, capsys, arguments: list[str], said: str) -> None:
    assert command.main([str(bundle), *arguments]) == WRONG_USE
    assert said in capsys.readouterr().err


def test_without_scipy_its_extra_is_named(bundle: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    assert command.main([str(bundle)]) == WRONG_USE
    assert "pip install 'spikebert[mapping]'" in capsys.readouterr().err


def test_a_bundle_for_the_chip_has_its_mapping(tmp_path: Path) -> None:
    graph = ExpandAttention().rewrite(graph_of(0)).graph
    Loihi2Target().emit(graph, tmp_path / "loihi2")
    stored = json.loads((tmp_path / "loihi2" / "mapping.json").read_text())
    assert check_mapping(graph, stored) == []
    schedule = json.loads((tmp_path / "loihi2" / "schedule.json").read_text())
    assert {each["name"] for each in schedule["processes"]} >= {each["name"] for each in stored["populations"]} - {
        "source#entry",
        *(each["name"] for each in stored["populations"] if each["name"].endswith(("#relay", "#probe"))),
    }
