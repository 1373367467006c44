"""What SANA-FE is given: machine, network and spikes; and the counts that must come of them. Needs no sanafe."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from random_graphs import random_dag
from sanafe_runs import SMALL, recorded, transformer

from converters.graph import Attention
from converters.passes.expand_attention import ExpandAttention
from converters.passes.lay_out_bias_lanes import LayOutBiasLanes
from converters.passes.merge_query_key_value import MergeQueryKeyValue
from converters.passes.split_wide_layers import SplitWideLayers
from spikebert.commands import CheckFailed, UserError
from targets.legality import IllegalGraphError
from targets.loihi2.mapping.network import chip_network
from targets.sanafe import layout as layouts
from targets.sanafe import target as targets_of
from targets.sanafe.expected import Difference, events_by_node, expected_counts, first_difference
from targets.sanafe.layout import make_layout, play_that_fits, synapses
from targets.sanafe.machine import Machine, architecture, core_name
from targets.sanafe.report import require_same_work
from targets.sanafe.target import ARCHITECTURE_FILE, MAPPING_FILE, SanafeTarget


def test_every_neuron_is_on_a_core_of_a_chip() -> None:
    layout = make_layout(transformer(0), "whole", replace(SMALL, cores=7))
    assert layout.mapping.chips > 1
    for each in layout.network.on_chip:
        cores = layout.core_of(each.name)
        assert cores.shape == (each.tokens, each.keys, each.features)
        assert ((cores >= 0) & (cores < layout.cores)).all()
    chip, place = np.divmod(layout.core, layout.machine.cores_a_chip)
    assert np.array_equal(chip, layout.mapping.chip[layout.mapping.core])
    assert place.max() < 7


def test_a_token_has_the_neurons_of_the_network_without_attention() -> None:
    graph = transformer(1)
    layout = make_layout(graph, "token", SMALL)
    assert not any(each.keyed for each in layout.network.populations)
    whole = chip_network(graph).without_attention()
    assert layout.network.neurons * graph.n_max == whole.neurons


@pytest.mark.parametrize("play", ["whole", "token"])
@pytest.mark.parametrize("seed", range(6))
def test_events_are_the_synaptic_operations_that_every_run_counts(seed: int, play: layouts.Play) -> None:
    graph = random_dag(np.random.default_rng(seed)) if seed % 2 else None
    layout, _, sent, activity = recorded(seed, play, graph)
    _, by_connection = expected_counts(layout, sent)
    assert require_same_work(layout, by_connection, activity) == sum(events_by_node(layout, by_connection).values()) > 0


@pytest.mark.parametrize("seed", range(3))
def test_one_token_after_the_other_comes_to_the_same_events(seed: int) -> None:
    whole, token = (recorded(seed, play) for play in ("whole", "token"))
    of_all, of_one = (expected_counts(layout, sent)[1] for layout, _, sent, _ in (whole, token))
    assert {one.name for one in token[0].connections} == of_one.keys() < of_all.keys()
    assert {name: each.sum() for name, each in of_one.items()} == {name: of_all[name].sum() for name in of_one}


def test_another_count_of_a_node_is_told() -> None:
    layout, _, sent, activity = recorded(0, "whole")
    _, by_connection = expected_counts(layout, sent)
    one = next(one for one in layout.connections if one.name.startswith("block0.fc1"))
    by_connection[one.name][0] += 1
    with pytest.raises(CheckFailed, match=r"node 'block0\.fc1\.synapses': .* spikebert-run counts"):
        require_same_work(layout, by_connection, activity)


def test_padding_is_silent_and_lanes_are_those_of_real_tokens() -> None:
    layout, batch, sent, _ = recorded(2, "whole")
    steps = layout.network.timesteps
    for each in layout.network.on_chip:
        shaped = sent[each.name].reshape(len(batch), steps, each.tokens, each.keys, each.features)
        for sample, real in enumerate(batch.mask.sum(axis=1)):
            assert not shaped[sample, :, real:].any()
            assert shaped[sample, :, :real, :, each.features - each.lanes :].all()


def test_a_token_after_the_other_plays_each_real_token() -> None:
    layout, batch, sent, _ = recorded(2, "token")
    assert {len(each) for each in sent.values()} == {layout.network.timesteps * batch.mask.sum()}


def test_the_first_step_that_differs_is_told() -> None:
    layout, _, sent, _ = recorded(0, "token")
    counts, _ = expected_counts(layout, sent)
    assert first_difference(counts, counts) is None
    hops = counts.hops.copy()
    hops[3] += 2
    assert first_difference(counts, replace(counts, hops=hops)) == Difference(3, "hops", hops[3] - 2, hops[3])


def test_too_many_synapses_are_refused_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = transformer(0)
    whole = synapses(chip_network(graph))
    monkeypatch.setattr(layouts, "SYNAPSES", whole - 1)
    with pytest.raises(UserError, match=f"{whole:,} synapses.*limit is {whole - 1:,}.*--play token"):
        make_layout(graph, "whole")
    assert play_that_fits(graph) == "token"
    monkeypatch.setattr(targets_of, "LARGEST", replace(targets_of.LARGEST, value=10))
    (violation,) = SanafeTarget().check(graph)
    assert (violation.rule, violation.limit) == ("sanafe-synapses", 10)
    with pytest.raises(IllegalGraphError):
        SanafeTarget().emit(graph, Path("nowhere"))


def test_what_a_bundle_gets(tmp_path: Path) -> None:
    graph = ExpandAttention().rewrite(transformer(0)).graph
    assert not any(isinstance(node, Attention) for node in graph)
    SanafeTarget().emit(graph, tmp_path / "sanafe")
    mapping = json.loads((tmp_path / "sanafe" / MAPPING_FILE).read_text(encoding="utf-8"))
    layout = make_layout(graph, "whole")
    assert mapping["play"] == "whole"
    assert [box[7] for box in mapping["boxes"]] == layout.core.tolist()
    text = (tmp_path / "sanafe" / ARCHITECTURE_FILE).read_text(encoding="utf-8")
    assert text == architecture(layout.mapping.chips, Machine())


@pytest.mark.parametrize("change", [MergeQueryKeyValue(), SplitWideLayers(most_features=6)])
def test_layers_that_are_merged_or_split_are_played(change: MergeQueryKeyValue | SplitWideLayers) -> None:
    graph = change.rewrite(transformer(0)).graph
    layout, _, sent, activity = recorded(0, "whole", graph)
    require_same_work(layout, expected_counts(layout, sent)[1], activity)


def test_neurons_that_no_node_tells_of_are_refused(tmp_path: Path) -> None:
    graph = LayOutBiasLanes().rewrite(transformer(0)).graph
    with pytest.raises(CheckFailed, match=r"no node of the graph has the values.*without passes"):
        SanafeTarget().emit(graph, tmp_path / "sanafe")
    assert not (tmp_path / "sanafe").exists()


def test_a_machine_of_two_chips() -> None:
    yaml = pytest.importorskip("yaml")
    machine = Machine()
    described = yaml.safe_load(architecture(2, machine))["architecture"]
    assert (described["attributes"]["width"], described["attributes"]["height"]) == (16, 4)
    assert described["tile"][0]["name"] == "loihi_tile[0..63]"
    assert core_name(129, machine) == "loihi_tile[32].loihi_core[1]"
    assert machine.place(129) == (8, 0)
