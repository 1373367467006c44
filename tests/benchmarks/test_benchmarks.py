"""The benchmarks measure what they say, and run. Nothing here depends on how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from random_graphs import random_batch, random_graph
from small_bundles import LABELS, small_bundle

from benchmarks import networks, timing
from benchmarks.networks import full_batch, random_network
from converters.execution import TokenBatch
from converters.graph import LIF, Add, Attention, Readout, Source
from sim.fast.engine import FastEngine
from sim.fast.vectors import BLOCK
from sim.reference import ReferenceEngine

SENTENCES = ("a good film", "bad", "funny", "a dull dull film", "good")


@pytest.mark.parametrize(("firing_rate", "timesteps"), [(0.03, 4), (0.2, 4), (0.1, 1)])
def test_every_neuron_of_a_random_network_fires_at_the_wanted_rate(firing_rate, timesteps):
    graph = random_network(2, 32, 2, n_max=16, timesteps=timesteps, firing_rate=firing_rate, seed=1)
    engine = FastEngine(graph, threads=1)
    activity = engine.run(full_batch(graph, 16, seed=2)).activity
    engine.close()
    assert activity.total.rate == pytest.approx(firing_rate, rel=0.1)
    for name, node in activity.per_node.items():
        if isinstance(graph[name], (Source, LIF)):
            assert node.rate == pytest.approx(firing_rate, rel=0.3), name


def test_a_random_network_has_the_shape_of_ours_and_runs_exactly():
    graph = random_network(2, 16, 2, n_max=5, timesteps=4, firing_rate=0.2)
    assert [type(node) for node in graph].count(Attention) == 2
    assert [type(node) for node in graph].count(Add) == 4
    assert isinstance(graph["readout"], Readout)
    assert graph["blocks.1.up"].weight.shape == (64, 16)
    batch = random_batch(np.random.default_rng(0), graph, 3)
    names = [node.name for node in graph]
    engine = FastEngine(graph, threads=1)
    got, expected = engine.run(batch, names), ReferenceEngine(graph).run(batch, names)
    engine.close()
    np.testing.assert_array_equal(got.logits, expected.logits)
    for name in names:
        np.testing.assert_array_equal(got.values[name], expected.values[name], err_msg=name)


def test_a_deep_network_has_smaller_weights_to_keep_its_bounds(monkeypatch):
    monkeypatch.setattr(networks, "WEIGHT_SPREAD", 120.0)
    graph = random_network(12, 64, 2, n_max=4, timesteps=1, firing_rate=0.3)
    assert max(graph.value_max.values()) > 40_000  # a graph would not be made with 65536 or more
    assert graph["blocks.11.up"].weight.std() < graph["blocks.0.up"].weight.std()


def tiny_bert():
    pytest.importorskip("onnxruntime")
    torch = pytest.importorskip("torch")
    from benchmarks.dense_bert import random_bert

    torch.manual_seed(0)
    model = random_bert(layers=2, hidden=32, heads=4, intermediate=64, vocabulary=50, n_max=12, classes=3)
    for parameter in model.parameters():  # biases and norms begin as 0 and 1, which would hide a confusion
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def test_the_onnx_model_is_the_torch_model():
    model = tiny_bert()
    from benchmarks.dense_bert import onnx_classifier, torch_classifier

    rng = np.random.default_rng(0)
    mask = np.arange(12) < np.array([12, 1, 5, 9])[:, None]
    batch = TokenBatch(rng.integers(0, 50, mask.shape), mask)
    expected = torch_classifier(model)(batch)
    assert expected.std() > 0.3
    np.testing.assert_allclose(onnx_classifier(model, int8=False)(batch), expected, atol=1e-5)
    rounded = onnx_classifier(model, int8=True)(batch)
    assert 0.95 < np.corrcoef(rounded.ravel(), expected.ravel())[0, 1] < 1 - 1e-6


def test_other_models_than_bert_are_refused():
    model = tiny_bert()
    from benchmarks.dense_bert import to_onnx

    model.config.hidden_act = "relu"
    with pytest.raises(ValueError, match="only a BERT"):
        to_onnx(model)


def model_config():
    pytest.importorskip("torch")
    from spikebert import SpikeBertConfig

    return SpikeBertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=6,
        mode="integer",
        num_labels=len(LABELS),
    )


def test_padding_does_not_change_the_logits_of_the_spikingjelly_model():
    config = model_config()
    from benchmarks.dense_bert import torch_classifier
    from benchmarks.spikingjelly_model import SpikingJellyBert

    classify = torch_classifier(SpikingJellyBert(config))
    ids = np.arange(12).reshape(2, 6)
    logits = classify(TokenBatch(ids, [[1] * 6, [1] * 4 + [0] * 2]))
    assert logits.shape == (2, 3)
    np.testing.assert_allclose(logits[1:], classify(TokenBatch(ids[1:, :4], np.ones((1, 4)))), atol=1e-5)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, compiled) -> Path:
    config = {"labels": list(LABELS), "model": json.loads(model_config().to_json_string(use_diff=False))}
    graph = random_graph(np.random.default_rng(0), blocks=1, dv=2048)
    return small_bundle(tmp_path_factory.mktemp("benchmarks") / "bundle", graph, config=config).folder


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("benchmarks") / "texts.tsv"
    path.write_text("\n".join(("text", *SENTENCES)) + "\n")
    return path


def test_engine_runs(bundle, file, capsys):
    pytest.importorskip("onnxruntime")
    from benchmarks import engine

    rows = [name for name in engine.ROWS if name not in (*engine.TEACHERS, "lava", "lava-inline")]
    engine.main([str(bundle), "--file", str(file), "--seconds", "0.01", "--rows", *rows])
    out = capsys.readouterr().out
    assert all(f"| {name} " in out for name in rows)
    assert "5 sentences of 4." in out


def test_engine_asks_for_the_run_of_a_teacher(bundle, file, capsys):
    pytest.importorskip("onnxruntime")
    from benchmarks import engine

    with pytest.raises(SystemExit):
        engine.main([str(bundle), "--file", str(file), "--rows", "teacher-onnx"])
    assert "give --run" in capsys.readouterr().err


def test_rates_and_ratios_are_those_of_the_same_batches():
    pytest.importorskip("onnxruntime")
    from benchmarks.engine import compare

    batches = [TokenBatch(np.ones((size, 1)), np.ones((size, 1))) for size in (4, 2, 2)]
    measured = compare([3.0, 1.0], [1.0, 1.0, 5.0], batches)
    assert (measured.rate, measured.slower) == (1.5, 2.0)


def test_engine_floor_runs(bundle, file, capsys, monkeypatch):
    from benchmarks import engine_floor, peak

    monkeypatch.setattr(peak, "REPEAT_SECONDS", 0.001)
    monkeypatch.setattr(peak, "MEMORY", 1 << 16)
    engine_floor.main([str(bundle), "--file", str(file), "--seconds", "0.01"])
    assert "share reached" in capsys.readouterr().out


def test_the_loops_of_the_peak_add_what_they_say():
    from benchmarks import peak

    for loop, width in peak.loops().values():
        weight, sums = peak.aligned_weights(16, width), np.zeros(width, np.int16)
        assert weight.ctypes.data % BLOCK == 0
        loop(weight, sums, 3)
        np.testing.assert_array_equal(np.sort(sums), np.sort(3 * weight.sum(0, dtype=np.int16)))


def test_engine_break_even_runs(capsys):
    pytest.importorskip("onnxruntime")
    from benchmarks import engine_break_even

    size = "--depth 1 --hidden 16 --heads 2 --tokens 6 --rates 20 5 --batch 2 --seconds 0.01"
    engine_break_even.main(size.split())
    out = capsys.readouterr().out
    rates = [float(line.split("%")[0].strip("| ")) for line in out.splitlines() if "%  " in line]
    assert rates == pytest.approx([5, 20], rel=0.3)
    assert "break-even with BERT int8" in out


def test_break_even_lies_between_the_ratios_around_one():
    pytest.importorskip("onnxruntime")
    from benchmarks.engine_break_even import break_even

    assert break_even([0.05, 0.1, 0.4], [3.0, 2.0, 0.5]) == pytest.approx(0.2)
    assert break_even([0.1, 0.4], [3.0, 2.0]) is None
    assert break_even([0.1, 0.4], [0.9, 0.5]) is None


def test_engine_scaling_measures_and_draws(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.engine_scaling import Shape, draw, measure, scaled

    base = Shape(rate=20, tokens=4, hidden=8, depth=1, timesteps=2)
    panels = {name: measure(base, name, [getattr(base, name)], 2, 0.01) for name in ("rate", "hidden")}
    panels["timesteps"] = points = measure(base, "timesteps", [1, 2], 2, 0.01)
    assert points[0].operations < points[1].operations
    assert scaled(points, base=2)[1] == pytest.approx(points[1].milliseconds)
    draw(panels, base, tmp_path / "img" / "scaling.png")
    assert (tmp_path / "img" / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_rivals_take_turns_and_each_piece_is_timed():
    calls = []
    rivals = {name: [lambda name=name, i=i: calls.append((name, i)) for i in range(2)] for name in "ab"}
    taken = timing.side_by_side(rivals, seconds=0)
    assert {name: len(of_pieces) for name, of_pieces in taken.items()} == {"a": 2, "b": 2}
    assert calls[:2] == [("a", 0), ("b", 0)]  # untimed
    assert [name for name, _ in calls[2:]] == ["a", "b"] * timing.TURNS
    assert [i for name, i in calls[2:] if name == "a"] == [0, 1, 0, 1, 0]


def test_a_table_is_markdown():
    assert timing.table(["", "n"], [["a", "1,000"]]) == "|   |     n |\n|---|------:|\n| a | 1,000 |"


@pytest.mark.slow
def test_engine_runs_the_models_of_a_run(bundle, file, trained, capsys):
    pytest.importorskip("onnxruntime")
    from benchmarks import engine

    rows = ("torch-float", "torch-integer", *engine.TEACHERS)
    run = str(trained / "run")
    engine.main([str(bundle), "--file", str(file), "--seconds", "0.01", "--run", run, "--rows", *rows])
    out = capsys.readouterr().out
    assert all(f"| {name} " in out for name in rows)
    assert "their own" in out


def test_the_kernel_of_events_gives_what_a_dense_product_gives() -> None:
    pytest.importorskip("torch")
    from benchmarks.engine_dense import compare, draw_spikes

    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (64, 64)).astype(np.int8)
    times = compare(draw_spikes(rng, 3, 64, 0.2, regular=False), weight, seconds=0.0)  # raises where they differ
    assert set(times) == {"events", "float32", "int8"}


@pytest.mark.slow  # a BERT-base is made and quantised
def test_rivals_runs(bundle, file, capsys):
    pytest.importorskip("onnxruntime")
    from benchmarks.paper_energy import transformer_operations
    from benchmarks.rivals import Dense, main

    dense = Dense("", 3, 8, 2, 16)
    assert dense.operations([2, 4]) == (transformer_operations(3, 8, 16, 2) + transformer_operations(3, 8, 16, 4)) / 2
    main([str(bundle), "--file", str(file), "--seconds", "0.01"])
    table = capsys.readouterr().out
    ours, same, *others, paper = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")][1:]
    assert "this bundle" in ours[0] and "of its size" in same[0] and len(others) == 2 and "28,540.0" in paper[2]
    assert all(each[3].strip().endswith("%") and float(each[4]) > 0 for each in (same, *others))
    assert "loihi1: " in table and "hala_point: " in table
