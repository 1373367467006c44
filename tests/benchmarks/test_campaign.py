"""The campaign counts what it compares, and finds a mistake that is put in."""

from __future__ import annotations

from dataclasses import replace

import pytest

import benchmarks.campaign as campaign
from converters.graph import LIF, Graph, GraphError
from spikebert.commands import MissingExtra


def test_a_campaign_of_a_few_models_finds_nothing(capsys) -> None:
    assert campaign.main(["--models", "3", "--seed", "1", "--checks", "torch,fast,early-exit,passes"]) == 0
    told = capsys.readouterr().out
    assert "seed 1, 3 models" in told and "| engines together" in told and "| all passes" in told
    assert "| early-exit" in told


def test_a_check_that_does_not_exist_is_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        campaign.main(["--models", "1", "--checks", "torch,lavva"])
    assert "--checks: lavva is none of torch, fast" in capsys.readouterr().err


def test_a_graph_that_is_not_the_model_is_found(monkeypatch, capsys) -> None:
    honest = campaign.graph_from_model

    def forgetful(model) -> Graph:
        graph = honest(model)
        nodes = (replace(node, threshold=node.threshold + 1) if isinstance(node, LIF) else node for node in graph)
        return Graph(graph.timesteps, graph.n_max, tuple(nodes))

    monkeypatch.setattr(campaign, "graph_from_model", forgetful)
    assert campaign.main(["--models", "2", "--kind", "spikebert", "--checks", "torch"]) == 1
    assert "values differ, first sample" in capsys.readouterr().out


def test_a_refusal_is_counted_by_its_reason(monkeypatch, capsys) -> None:
    def refuse(model) -> Graph:
        raise GraphError("node 'up': too wide")

    monkeypatch.setattr(campaign, "graph_from_model", refuse)
    assert campaign.main(["--models", "2", "--kind", "own"]) == 0
    assert "refused by export (own), 2 times: node 'up': too wide" in capsys.readouterr().out


@pytest.mark.parametrize("check", ["lava", "lava-stock", "fast"])
def test_an_engine_that_is_not_installed_is_no_refusal(monkeypatch, check: str) -> None:
    def missing(*_) -> None:
        raise MissingExtra("lava")

    monkeypatch.setattr(campaign, "open_engine", missing)
    with pytest.raises(MissingExtra):
        campaign.main(["--models", "20", "--kind", "chain", "--seed", "7", "--checks", check])


@pytest.mark.parametrize("kind", campaign.KINDS)
def test_random_models_are_alive(kind: str) -> None:
    run = campaign.Campaign(set(), print)
    rng = campaign.np.random.default_rng(0)
    for _ in range(30):
        run.run(campaign.draw_shape(rng, kind=kind, depth=2))
    rates = campaign.np.array(run.rates[kind])
    assert 0.02 < rates.mean() < 0.7 and (rates == 0).mean() < 0.3
