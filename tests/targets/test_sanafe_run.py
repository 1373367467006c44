"""SANA-FE's own run: its counts are those that follow from the spikes, and a wrong network is found."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sanafe")
pytest.importorskip("yaml")

import sanafe
import yaml
from command_output import one_error
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import random_batch
from sanafe_runs import SMALL, recorded, transformer
from small_bundles import small_bundle

from converters.encoder import lif
from converters.graph import Coincidence, Product, Readout, Synapses
from converters.passes.expand_attention import ExpandAttention
from sim.energy import Tokens, estimate, read_cost_table
from spikebert.commands import CHECK_FAILED, OK, WRONG_USE
from targets.loihi2.mapping.network import chip_network
from targets.sanafe import command, simulate
from targets.sanafe.expected import expected_counts, first_difference, reached
from targets.sanafe.layout import Layout, Play, make_layout, spans
from targets.sanafe.machine import CORE, DENDRITE, DENSE, SOMA, Machine, architecture
from targets.sanafe.report import put_beside
from targets.sanafe.run import Run
from targets.sanafe.simulate import Chip
from targets.sanafe.target import SanafeTarget


def play(layout: Layout, sent: dict[str, np.ndarray], folder: Path) -> Run:
    path = folder / "arch.yaml"
    path.write_text(architecture(layout.mapping.chips, layout.machine), encoding="utf-8")
    return Chip(layout, path).play(sent)


def test_prices_are_those_of_the_package() -> None:
    text = (resources.files("sanafe.examples") / "loihi.yaml").read_text(encoding="utf-8")
    theirs, ours = (yaml.safe_load(each)["architecture"] for each in (text, architecture(1, Machine())))
    assert ours["attributes"] == {key: theirs["attributes"][key] for key in ours["attributes"]}
    (tile,), (their_tile,) = ours["tile"], theirs["tile"]
    assert tile["attributes"] == pytest.approx(their_tile["attributes"])
    (core,), (their_core,) = tile["core"], their_tile["core"]
    assert core["attributes"] == {**their_core["attributes"], "log_energy": True}
    for part in ("axon_in", "soma", "dendrite", "synapse", "axon_out"):
        units = {unit["name"]: unit["attributes"] for unit in their_core[part]}
        for unit in core[part]:
            assert unit["attributes"].keys() == units[unit["name"]].keys()
            for key, value in unit["attributes"].items():
                assert value == units[unit["name"]][key] or float(value) == pytest.approx(
                    float(units[unit["name"]][key])
                )


@pytest.mark.parametrize("which", ["whole", "token"])
@pytest.mark.parametrize(("seed", "neurons"), [(0, "stock"), (1, "stock"), (2, "stock"), (3, "graded source")])
def test_its_counts_are_those_that_follow_from_the_spikes(
    seed: int, neurons: str, which: Play, tmp_path: Path
) -> None:  # fmt: skip
    graph = transformer(seed, neurons=neurons)
    assert SanafeTarget().check(graph) == []
    layout, _, sent, _ = recorded(seed, which, graph)
    run = play(layout, sent, tmp_path)
    expected, _ = expected_counts(layout, sent)
    assert first_difference(expected, run.counts) is None
    assert expected.fired.sum() > 0 and (which == "token" or expected.hops.sum() > 0)
    assert (run.seconds > 0).all() and (run.last[expected.fired > 0] >= 0).all()


def test_energy_is_counts_times_prices(tmp_path: Path) -> None:
    layout, _, sent, _ = recorded(3, "whole")
    run = play(layout, sent, tmp_path)
    counts, machine = run.counts, layout.machine
    soma = (
        machine.access.picojoules + machine.update.picojoules
    ) * counts.updated + machine.spike.picojoules * counts.fired
    assert run.joules["soma"] == pytest.approx(soma * 1e-12)
    low, high = (
        machine.message_out.picojoules * counts.packets + hop.picojoules * counts.hops
        for hop in (machine.hop_x, machine.hop_y)
    )
    assert (run.joules["network"] >= low * 1e-12 * (1 - 1e-9)).all()
    assert (run.joules["network"] <= high * 1e-12 * (1 + 1e-9)).all()
    parts = sum(run.joules[kind] for kind in ("synapse", "dendrite", "soma", "network"))
    assert run.joules["total"] == pytest.approx(parts)
    hops = run.joules["network"].sum() - machine.message_out.picojoules * 1e-12 * counts.packets.sum()
    assert run.core_joules.sum() + hops == pytest.approx(run.joules["total"].sum())


def test_each_core_has_the_energy_of_what_lies_on_it(tmp_path: Path) -> None:
    layout, _, sent, _ = recorded(4, "whole")
    run = play(layout, sent, tmp_path)
    machine, steps = layout.machine, len(run.seconds)
    each_step = machine.access.picojoules + machine.update.picojoules
    expected, outgoing = np.zeros(layout.cores), {}
    for each in layout.network.on_chip:
        cores = [reached(layout, one).cores for one in layout.network.out_of[each.name]]
        readers = np.any(cores, axis=0).sum(axis=1) if cores else np.zeros(each.size)
        outgoing[each.name] = readers.reshape(each.tokens, each.keys, each.features)
    for source, core in zip(layout.mapping.boxes, layout.core):
        spikes = sent[source.population].sum(axis=0)[spans(source)]
        messages = (spikes * outgoing[source.population][spans(source)]).sum()
        expected[core] += steps * source.neurons * each_step + spikes.sum() * machine.spike.picojoules
        expected[core] += messages * machine.message_out.picojoules
        for one in layout.network.out_of[source.population]:
            price = machine.dense if one.target in layout.dense else machine.sparse
            for target, reader in zip(layout.mapping.boxes, layout.core):
                if target.population == one.target:
                    senders, _ = simulate.synapses_between(one, source, target)
                    expected[reader] += spikes.reshape(-1)[senders].sum() * price.picojoules
    assert run.core_joules == pytest.approx(expected * 1e-12)
    assert set(np.flatnonzero(run.sending.sum(axis=0))) == set(layout.names)


def test_a_run_leaves_nothing_behind(tmp_path: Path) -> None:
    layout, _, sent, _ = recorded(0, "token")
    path = tmp_path / "arch.yaml"
    path.write_text(architecture(layout.mapping.chips, layout.machine), encoding="utf-8")
    chip = Chip(layout, path)
    first, second = chip.play(sent), chip.play(sent)
    assert first_difference(first.counts, second.counts) is None
    assert np.array_equal(first.seconds, second.seconds)


def test_a_spike_more_is_found(tmp_path: Path) -> None:
    layout, _, sent, _ = recorded(0, "whole")
    expected, _ = expected_counts(layout, sent)
    name = layout.connections[0].source
    quiet = np.argwhere(~sent[name][2])[0]
    sent[name][(2, *quiet)] = True
    found = first_difference(expected, play(layout, sent, tmp_path).counts)
    assert found is not None and (found.step, found.count, found.got - found.expected) == (2, "fired", 1)


def test_a_synapse_less_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, _, sent, _ = recorded(0, "whole")
    expected, by_connection = expected_counts(layout, sent)
    one = next(one for one in layout.connections if by_connection[one.name][0])
    whole = simulate.synapses_between

    def without_one(connection, source, target):
        senders, readers = whole(connection, source, target)
        first = connection is one and source.tokens[0] == source.features[0] == 0
        keep = senders != 0 if first else np.ones(len(senders), dtype=bool)
        return senders[keep], readers[keep]

    monkeypatch.setattr(simulate, "synapses_between", without_one)
    found = first_difference(expected, play(layout, sent, tmp_path).counts)
    assert found is not None and found.count in ("events", "packets") and found.got < found.expected


def test_a_box_on_another_core_is_found(tmp_path: Path) -> None:
    layout, _, sent, _ = recorded(0, "whole")
    expected, _ = expected_counts(layout, sent)
    layout.core[0] = layout.cores - 1  # what SANA-FE is told
    found = first_difference(expected, play(layout, sent, tmp_path).counts)
    assert found is not None and found.count in ("packets", "hops")


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dv=st.sampled_from([0, 410, 2048, 4095]),
    threshold=st.integers(0, 400),
    timesteps=st.sampled_from([1, 4, 8, 16]),
)
def test_its_neuron_is_ours(seed: int, dv: int, threshold: int, timesteps: int) -> None:
    """Weights and thresholds twice as large (a membrane is kept to 1/64 there, to 1/128 here) give the same spikes."""
    rng = np.random.default_rng(seed)
    spikes = rng.integers(0, 2, (timesteps, 6))
    weight = rng.integers(-128, 128, (6, 5))
    fired = computed_by_sanafe(spikes, 2 * weight, 2 * threshold, dv)
    assert np.array_equal(fired, lif(spikes @ weight, threshold, dv, 7))


def computed_by_sanafe(spikes: np.ndarray, weight: np.ndarray, threshold: int, dv: int) -> np.ndarray:
    """Spikes int64 [T, out] of neurons that SANA-FE runs itself, on spikes [T, in] that are replayed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arch.yaml"
        path.write_text(architecture(1, Machine()), encoding="utf-8")
        described = sanafe.load_arch(str(path))
    network = sanafe.Network()
    units = {"soma_hw_name": SOMA, "default_synapse_hw_name": DENSE, "default_dendrite_hw_name": DENDRITE}
    neuron = {"threshold": float(threshold), "leak_decay": (4096 - dv) / 4096, "reset_mode": "hard"}
    sources = network.create_neuron_group("in", len(weight), model_attributes=simulate.NEURON, **units)
    readers = network.create_neuron_group("out", weight.shape[1], model_attributes=neuron, log_spikes=True, **units)
    sources.map_to_core(described.cores()[0])
    readers.map_to_core(described.cores()[1])
    sources.connect_neurons_dense(readers, {"weight": [float(each) for each in weight.reshape(-1)]})
    chip = sanafe.SpikingChip(described)
    chip.load(network)
    fired = np.zeros((len(spikes) + 1, weight.shape[1]), dtype=np.int64)
    for step in range(len(fired)):  # a spike reaches the next step
        for index, source in enumerate(chip.mapped_neuron_groups["in"]):
            on = step < len(spikes) and spikes[step, index]
            source.set_attributes(model_attributes=simulate.FIRES if on else simulate.SILENT)
        with contextlib.redirect_stdout(io.StringIO()):
            told = chip.sim(1, processing_threads=1, spike_trace=True)
        for address in told["spike_trace"][0]:
            fired[step, address.neuron_offset] = 1
    return fired[1:]


@pytest.mark.parametrize("expanded", [False, True])
def test_beside_ours_work_of_one_kind_is_the_same_work(expanded: bool, tmp_path: Path) -> None:
    graph = ExpandAttention().rewrite(transformer(5)).graph if expanded else transformer(5)
    layout = make_layout(graph, "whole", SMALL)
    batch = random_batch(np.random.default_rng(5), graph, 2)
    sent, _, activity = command.record(layout, graph, batch)
    run = play(layout, sent, tmp_path)
    _, by_connection = expected_counts(layout, sent)
    tokens = Tokens().with_sentence(int(batch.mask[0].sum())).with_sentence(int(batch.mask[1].sum()))
    beside = put_beside(layout, graph, run, by_connection, activity, tokens, read_cost_table("loihi1"))
    rows = {row.work: row for row in beside.rows}
    own = [activity.per_node[node.name] for node in graph if isinstance(node, (Synapses, Readout))]
    assert rows["synapses of layers"].count == sum(each.weighted_operations for each in own)
    assert rows["synapses of layers"].sanafe_count == sum(each.synaptic_operations for each in own)
    pairs = [activity.per_node[node.name] for node in graph if isinstance(node, (Coincidence, Product))]
    assert not expanded or rows["attention"].sanafe_count == sum(each.synaptic_operations for each in pairs)
    assert sum(row.sanafe_joules for row in beside.rows) == pytest.approx(beside.total)
    assert sum(row.joules for row in beside.rows) == pytest.approx(
        estimate(graph, activity, tokens, [read_cost_table("loihi1")])[0].total
    )
    (slowest, *_), steps = beside.hot_spots, len(run.seconds)
    assert slowest.populations and sum(spot.last for spot in beside.hot_spots) <= steps


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    out = tmp_path / "sanafe.json"
    assert command.main([str(bundle.folder), "--json", "--out", str(out)]) == OK
    told = json.loads(capfd.readouterr().out)
    assert told == json.loads(out.read_text(encoding="utf-8"))
    assert (told["play"], told["sentences"]) == ("whole", 3)
    assert told["joules"]["total"] == pytest.approx(sum(row["sanafe_joules"] for row in told["beside"]), rel=1e-9)
    assert sum(core["joules"] for core in told["core_load"]) <= told["joules"]["total"]
    assert len(told["seconds"]["each_step"]) == told["steps"] == 3 * bundle.graph.timesteps


def test_the_command_in_words(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    arguments = [str(bundle.folder), "--play", "token", "--text", "a good film", "--text", "dull"]
    assert command.main(arguments) == OK
    captured = capfd.readouterr()
    assert "SANA-FE's counts of all" in captured.err
    for word in (
        "valid lanes",
        "attention",
        "hops",
        "our price is in its total",
        "a step: mean",
        "one token after",
        "ended last",
    ):
        assert word in captured.out


def test_a_count_that_differs_fails_the_command(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    monkeypatch.setattr(simulate, "NEURON", {**simulate.NEURON, "force_update": False})
    assert command.main([str(bundle.folder), "--play", "token"]) == CHECK_FAILED
    assert "another count than the spikes say, first at step 0: updated" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--file", "nowhere.tsv"], "cannot read nowhere.tsv"),
        (["--out", "nowhere/there.json"], "--out nowhere/there.json: there is no folder nowhere. Make it first"),
        (["--out", __file__], "exists. Give --overwrite to replace it"),
        (["--out", __file__, "--overwrite", "--file", __file__], "--out and --file both name"),
    ],
)
def test_wrong_use(arguments: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    assert command.main([str(bundle.folder), "--play", "token", *arguments]) == WRONG_USE
    assert message in capfd.readouterr().err


def test_without_sanafe_the_extra_is_named(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sanafe", None)
    assert command.main(["reviews"]) == WRONG_USE
    assert "pip install 'spikebert[sanafe]'" in one_error(capfd)


def test_another_version_is_refused(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "VERSION", "2.2.8")
    assert command.main(["reviews"]) == WRONG_USE
    assert "sanafe 2.2.9 is installed, this is made for 2.2.8" in one_error(capfd)


def test_the_shipped_bundle_is_too_large_as_a_whole(capfd: pytest.CaptureFixture[str]) -> None:
    assert command.main(["reviews"]) == WRONG_USE
    assert "--play token" in one_error(capfd)


def test_a_bundle_for_sanafe_plays_on_its_own_machine(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    graph = transformer(0)
    target = SanafeTarget()
    bundle = small_bundle(
        tmp_path / "bundle", graph, target="sanafe", add_target=lambda folder: target.emit(graph, folder)
    )
    assert sanafe.load_arch(str(bundle.folder / "sanafe" / "arch.yaml")).cores()
    assert command.main([str(bundle.folder), "--limit", "1", "--json"]) == OK
    assert json.loads(capfd.readouterr().out)["neurons"] == chip_network(graph).neurons
    assert CORE.neurons == 1024
