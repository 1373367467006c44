"""What the model card and the report say of a rule: each option shows."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from neuron_cases import KINDS, rule_graph
from random_graphs import random_graph

from converters.graph import LIF, Coincidence, Readout, Source
from converters.in_words import readout_in_words, rule_in_words
from converters.model_card import model_card


def lif(**options: object) -> LIF:
    return LIF("neuron", ("current",), 10, **options)


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (lif(dv=2048), "keeps 0.5 of its membrane, sends 0 or 1, then is set to 0"),
        (lif(dv=0, reset="subtract"), "keeps 1 of its membrane, sends 0 or 1, then loses the threshold"),
        (
            lif(dv=410, reset="subtract", spike="graded", cap=3),
            "keeps 0.8999 of its membrane, sends 0 to 3, then loses the threshold as often",
        ),
        (lif(dv=4095, spike="ternary"), "keeps 0.0002441 of its membrane, sends -1, 0 or 1, then is set to 0"),
        (Source("source", [[1]], kind="sign"), "sends 1 where the current is not below 0"),
        (Coincidence("met", ("q", "k")), "sends 1 where two spikes meet"),
    ],
)
def test_a_rule(node: LIF | Source | Coincidence, said: str) -> None:
    assert rule_in_words(node) == said


def test_no_two_rules_are_said_alike() -> None:
    rules = [
        lif(dv=dv, reset=reset, spike=spike, cap=cap)
        for dv, (reset, spike, cap) in itertools.product((0, 1024, 2048), KINDS)
    ]
    assert len(set(map(rule_in_words, rules))) == len(rules)


def test_a_readout() -> None:
    readout = Readout("readout", ("x",), [[1]], [0])
    assert readout_in_words(readout) == "the sum of the currents over timesteps and tokens"
    membrane = replace(readout, kind="membrane", dv=1024)
    assert readout_in_words(membrane) == "a membrane that keeps 0.75 from one timestep to the next"


def test_the_model_card_counts_the_neurons_of_each_rule() -> None:
    graph = random_graph(np.random.default_rng(0))
    card = model_card(graph, {}, {}, None, "bundle")
    neurons = [node for node in graph if isinstance(node, (LIF, Source))]
    for rule in set(map(rule_in_words, neurons)):
        count = sum(graph.features[node.name] for node in neurons if rule_in_words(node) == rule)
        assert f"| {rule} | {count:,} |" in card
    assert "Logits: the sum of the currents" in card
    assert "sends -1, 0 or 1" in model_card(rule_graph(("zero", "ternary", 1), 10, 0), {}, {}, None, "bundle")
