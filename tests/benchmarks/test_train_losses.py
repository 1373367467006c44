"""The comparison of losses notices a way that learns something else. Nothing depends on how fast anything is."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from benchmarks import train_losses  # noqa: E402, it needs torch
from benchmarks.train_losses import STANDARD, Variant, astray  # noqa: E402
from spikebert.commands import CHECK_FAILED, WRONG_USE, run_command  # noqa: E402

FUSED = Variant("fused", mixed=False)
SMALL = ["--shape", "1x16", "--steps", "4", "--batch", "4", "--seeds", "0", "1", "2"]


def test_a_mean_further_away_than_the_seeds_spread_is_astray():
    standard = [0.5, 0.6, 0.7]
    for losses, wrong in (
        ([0.61, 0.7, 0.79], False),
        ([0.7, 0.8, 0.91], True),
        ([0.4, 0.4, 0.39], True),
        ([0.6, 0.6, float("nan")], True),
    ):
        assert astray({STANDARD: standard, FUSED: losses}) == ([FUSED] if wrong else [])


def test_every_way_starts_from_the_same_weights():
    sentences = train_losses.read_sentences(train_losses.REVIEWS, train_losses.TOKENIZER, 64)
    shape = train_losses.Shape.parse("1x16")
    models = [train_losses.make(way, shape, sentences, 3) for way in train_losses.ways(torch.device("cpu"))]
    assert len(models) == 6
    for model in models:
        assert torch.equal(model.state_dict()["blocks.0.up.linear.weight"], models[0].blocks[0].up.linear.weight)
    other = train_losses.make(STANDARD, shape, sentences, 4)
    assert not torch.equal(other.blocks[0].up.linear.weight, models[0].blocks[0].up.linear.weight)
    assert models[1].blocks[0].up.lif.path == "fused" and models[0].blocks[0].up.lif.path == "plain"


@pytest.mark.parametrize("wrong", [False, True])
def test_it_trains_and_judges(wrong, monkeypatch, capsys):
    make = train_losses.make

    def make_wrong(way, *arguments):
        model = make(way, *arguments)
        if wrong and way == FUSED:
            model.readout.linear.bias.data[0] += 5
        return model

    monkeypatch.setattr(train_losses, "make", make_wrong)
    monkeypatch.setattr(train_losses, "ways", lambda device: [STANDARD, FUSED])
    monkeypatch.setattr(train_losses, "prepare_torch", lambda: torch.device("cpu"))
    assert run_command(train_losses.body, SMALL) == (CHECK_FAILED if wrong else 0)
    told = capsys.readouterr()
    assert "| ours, plain, float32 |" in told.out and "spread of the seeds" in told.out
    assert ("than its seeds spread: ours, fused, float32" in told.err) == wrong


def test_wrong_use_is_told(capsys):
    assert run_command(train_losses.body, ["--seeds", "1", "1"]) == WRONG_USE
    assert "two different ones" in capsys.readouterr().err
