"""`spikebert-run --attention` and `--stock-models`: they reach the engines of Lava, and no other engine takes them."""

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from random_graphs import random_graph
from small_bundles import small_bundle

import sim.engines
from converters.execution import EngineOptions
from sim.engines import BUNDLE_ENGINES, LAVA_ENGINES, engine_names, open_engine
from sim.record import read_record
from sim.reference import ReferenceEngine
from sim.run_command import main
from spikebert.commands import UserError

FLAGS = ["--attention", "stock", "--stock-models"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, compiled):
    return small_bundle(tmp_path_factory.mktemp("bundles") / "small")


def test_the_engines_of_lava_are_registered():
    assert set(LAVA_ENGINES) < set(engine_names())


@pytest.mark.parametrize("name", sorted(set(engine_names()) - set(LAVA_ENGINES)))
@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (EngineOptions(attention="stock"), "--attention stock: "),
        (EngineOptions(stock_models=True), "--stock-models: "),
        (EngineOptions(attention="stock", stock_models=True), "--attention stock --stock-models: "),
    ],
)
def test_another_engine_refuses_them_by_name_before_it_is_loaded(name, options, flag):
    message = f"^{flag}engine '{name}' does not run on Lava. Leave it out, or take --engine lava or lava-inline$"
    with pytest.raises(UserError, match=message):
        open_engine(name, random_graph(np.random.default_rng(0), blocks=1), options)


@pytest.mark.parametrize("name", BUNDLE_ENGINES)
def test_an_engine_that_runs_no_model_refuses_one(name):
    assert set(BUNDLE_ENGINES) == set(engine_names()) - {"torch"}
    with pytest.raises(UserError, match=f"^--model: engine '{name}' runs the bundle, no model. Leave it out"):
        open_engine(name, random_graph(np.random.default_rng(0), blocks=1), EngineOptions(model=Path("runs/mr")))


@pytest.mark.parametrize("workers", [[], ["--workers", "2"]])
def test_the_command_exits_2(bundle, capsys, workers):
    assert main([str(bundle.folder), "--text", "a", *FLAGS, *workers]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: --attention stock --stock-models: engine 'fast' does not run on Lava")


def test_an_unknown_kind_of_attention_exits_2(bundle, capsys):
    assert main([str(bundle.folder), "--text", "a", "--engine", "lava", "--attention", "soft"]) == 2
    assert "invalid choice: 'soft'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {}),
        (["--attention", "process"], {}),
        (["--attention", "stock"], {"attention": "stock"}),
        (["--stock-models"], {"stock_models": True}),
        (FLAGS, {"attention": "stock", "stock_models": True}),
    ],
)
def test_they_reach_the_engine_and_the_report(bundle, monkeypatch, capsys, flags, options):
    given = []

    def open_it(graph, options):
        given.append(options)
        return ReferenceEngine(graph)

    monkeypatch.setattr(sim.engines, "_fake", open_it, raising=False)
    point = EntryPoint("lava", "sim.engines:_fake", sim.engines.GROUP)
    monkeypatch.setattr(sim.engines, "entry_points", lambda group: [point])
    assert main([str(bundle.folder), "--text", "a", "--engine", "lava", "--json", *flags]) == 0
    assert given == [EngineOptions(bundle=bundle.folder, **options)]
    result = json.loads(capsys.readouterr().out)
    assert {key: result[key] for key in ("attention", "stock_models") if key in result} == options


# With Lava itself


@pytest.fixture
def built(monkeypatch):
    """What `lava-inline` has built: the names of the stages of each plan, and the modules of its ProcessModels."""
    pytest.importorskip("lava.magma")
    import targets.lava.engine

    honest, seen = targets.lava.engine._import_inline_network, []

    def import_told():
        class Told(honest()):
            def __init__(self, setup, *others):
                super().__init__(setup, *others)
                stages = {type(spec).__name__ for spec in setup.plan.specs}
                seen.append((stages, {type(model).__module__ for model in self.models}))

        return Told

    monkeypatch.setattr(targets.lava.engine, "_import_inline_network", import_told)
    return seen


@pytest.mark.parametrize("flags", [[], ["--attention", "stock"], ["--stock-models"], FLAGS])
def test_lava_gives_the_same_values_of_the_same_nodes(bundle, tmp_path, capsys, built, flags):
    """Every node of the bundle's graph keeps its name and its values, whatever Lava's network is made of."""
    data, out = tmp_path / "data.tsv", tmp_path / "out.npz"
    data.write_text("text\na good film\nbad\n\nfunny and bad\n")
    arguments = [str(bundle.folder), "--engine", "lava-inline", "--file", str(data), "--verify", "--batch-size", "2"]
    assert main([*arguments, "--probe", "*", "--record", str(out), "--json", *flags]) == 0
    result, record = json.loads(capsys.readouterr().out), read_record(out)
    batch, _ = bundle.encode(["a good film", "bad", "", "funny and bad"], pad_to=bundle.graph.n_max)
    expected = ReferenceEngine(bundle.graph).run(batch, record.nodes)
    assert record.nodes == tuple(bundle.graph.features)
    assert result["verify"]["mismatches"] == 0
    assert all(np.array_equal(record[name], expected.values[name].swapaxes(0, 1)) for name in record.nodes)
    [(stages, models)] = built
    assert ("AttentionSpec" in stages) == ("--attention" not in flags)
    assert ("ProductSpec" in stages) == ("--attention" in flags)
    if "--stock-models" in flags:
        assert "lava.proc.conv.models" in models and "targets.lava.processes.fast_synapses" not in models


@pytest.mark.slow
def test_the_real_runtime_takes_both(bundle, capsys):
    pytest.importorskip("lava.magma")
    assert main([str(bundle.folder), "--engine", "lava", "--verify", "--json", *FLAGS]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["verify"]["mismatches"] == 0 and result["attention"] == "stock" and result["stock_models"]
    assert result["logits"] == bundle.golden.logits.tolist()
