"""`spikebert-export` with passes, end to end on a trained model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from command_output import one_error

import converters.from_torch as bridge
from converters.bundle import read_bundle
from converters.export_command import main, make_parser
from converters.graph import LIF, Graph
from converters.passes.catalogue import PASS_NAMES
from sim.run_command import main as run
from sim.verify import Comparison

TEXTS = ("the film was good", "it was a very dull soup", "", "WARM , warm and cold ! [MASK] xyzzy", "sad " * 20)
CHANGES = {  # pass, as a person names it -> whether it finds something to do in the small model
    "prove-ranges": False,
    "remove-unread-nodes": False,
    "remove-unreachable-tokens": True,
    "remove-dead-neurons": False,
    "merge-query-key-value": True,
    "expand-attention:most_weights=1000000": True,
    "split-wide-layers:most_features=20": True,
    "lay-out-bias-lanes": True,
    "balance-delays": False,
}
ALL = [flag for each in CHANGES for flag in ("--pass", each)]


def export(folder: Path, out: Path, *flags: str) -> int:
    return main(["--model", str(folder / "run"), "--out", str(out), *flags])


@pytest.fixture(scope="module")
def model(trained: Path, tmp_path_factory) -> Path:
    """The trained model with a tokenizer as BERT's, of whose vocabulary no text leads to two words."""
    folder = tmp_path_factory.mktemp("bert")
    shutil.copytree(trained / "run", folder / "run")
    path = folder / "run" / "integer" / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["normalizer"] = {
        "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
        "lowercase": True,
    }  # fmt: skip
    for word, unreached in (("very", "Very"), ("dull", "[unused0]")):
        tokenizer["model"]["vocab"][unreached] = tokenizer["model"]["vocab"].pop(word)
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plain(model: Path, tmp_path_factory) -> Path:
    """The bundle without passes."""
    out = tmp_path_factory.mktemp("plain") / "bundle"
    assert export(model, out) == 0
    return out


def logits_of(bundle: Path, texts: Path, engine: str, capfd) -> list[list[int]]:
    capfd.readouterr()
    assert run([str(bundle), "--file", str(texts), "--engine", engine, "--json"]) == 0
    return json.loads(capfd.readouterr().out)["logits"]


def assert_the_same_network(plain: Path, bundle: Path, texts: Path, capfd) -> None:
    """The bundle repeats its golden vectors, all engines agree in it, and its logits are those without passes."""
    for engine in ("reference", "fast"):
        capfd.readouterr()
        assert run([str(bundle), "--verify", "--json", "--engine", engine]) == 0
        verified = json.loads(capfd.readouterr().out)["verify"]
        assert verified["mismatches"] == 0 and verified["values_compared"] > 1000
        assert logits_of(bundle, texts, engine, capfd) == logits_of(plain, texts, "reference", capfd)
    assert run([str(bundle), "--check"]) == 0


def saved_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_texts_tell_bundles_apart(plain: Path, texts: Path, capfd) -> None:
    logits = logits_of(plain, texts, "reference", capfd)
    assert len({tuple(each) for each in logits}) > 3 and any(any(each) for each in logits)


@pytest.mark.parametrize("named", CHANGES)
def test_each_pass_by_itself(named: str, model: Path, plain: Path, texts: Path, tmp_path: Path, capfd) -> None:
    out, saved = tmp_path / "bundle", tmp_path / "passes"
    name = named.partition(":")[0]
    assert export(model, out, "--pass", named, "--save-passes", str(saved), "--json") == 0
    told = json.loads(capfd.readouterr().out)["passes"]
    names = list(dict.fromkeys(["prove-ranges", name]))
    assert [each["name"] for each in told] == names
    stages = ["00-before", *(f"{number:02}-{each}" for number, each in enumerate(names, start=1))]
    expected = [f"{stage}.{kind}.txt" for stage in stages for kind in ("graph", "ranges")]
    expected += [f"{stages[-1]}.schedule.txt"] if name == "balance-delays" else []
    assert saved_names(saved) == sorted(expected)
    before, after = ((saved / f"{stage}.graph.txt").read_text() for stage in (stages[0], stages[-1]))
    assert (before != after) == CHANGES[named]
    assert (told[-1]["values_compared"] > 0) == (CHANGES[named] or name == "balance-delays")
    assert_the_same_network(plain, out, texts, capfd)


def test_all_passes_together(model: Path, plain: Path, texts: Path, tmp_path: Path, capfd) -> None:
    out, saved = tmp_path / "bundle", tmp_path / "passes"
    assert export(model, out, *ALL, "--save-passes", str(saved)) == 0
    told = capfd.readouterr().err
    assert all(f"{name}: " in told for name in PASS_NAMES)
    names = saved_names(saved)
    assert len(names) == 2 * (1 + len(PASS_NAMES)) + 1 and names[-1] == "09-balance-delays.schedule.txt"
    assert_the_same_network(plain, out, texts, capfd)
    bundle = read_bundle(out)
    assert {node.op for node in bundle.graph} >= {"slice", "concat", "valid_lane", "coincidence", "relay", "product"}
    assert list(bundle.manifest["provenance"]["passes"]) == list(PASS_NAMES)


def test_the_order_of_the_names_does_not_matter(model: Path, tmp_path: Path, capfd) -> None:
    texts = []
    for number, flags in enumerate((ALL, [flag for each in reversed(CHANGES) for flag in ("--pass", each)])):
        assert export(model, tmp_path / str(number), *flags, "--save-passes", str(tmp_path / f"passes{number}")) == 0
        texts.append((tmp_path / f"passes{number}" / "09-balance-delays.graph.txt").read_text())
    assert texts[0] == texts[1]


def test_the_tokenizer_of_the_bundle_gives_the_new_ids(model: Path, plain: Path, tmp_path: Path) -> None:
    """`Very` and `[unused0]` are gone, and what stood behind them has moved."""
    assert export(model, tmp_path / "bundle", "--pass", "remove-unreachable-tokens") == 0
    before, after = read_bundle(plain), read_bundle(tmp_path / "bundle")
    assert len(before.graph.source.table) - len(after.graph.source.table) == 2
    old, _ = before.encode(TEXTS)
    new, _ = after.encode(TEXTS)
    assert (new.ids != old.ids).any()
    rows_before, rows_after = before.graph.source.table[old.ids], after.graph.source.table[new.ids]
    assert (rows_before == rows_after)[old.mask == 1].all()
    with pytest.raises(AssertionError):  # the old tokenizer would not do
        assert (rows_before == after.graph.source.table[old.ids.clip(max=13)])[old.mask == 1].all()


def test_ranges_are_always_proven_and_told(trained: Path, tmp_path: Path, capfd) -> None:
    assert export(trained, tmp_path / "bundle", "--json") == 0
    told = json.loads(capfd.readouterr().out)["passes"]
    assert [each["name"] for each in told] == ["prove-ranges"]
    assert "of 65,535, at '" in told[0]["summary"] and told[0]["values_compared"] == 0  # it changed nothing
    assert read_bundle(tmp_path / "bundle").manifest["provenance"]["passes"] == {"prove-ranges": told[0]["summary"]}


@pytest.fixture
def dead(monkeypatch) -> None:
    """The bridge makes a graph in which no neuron of the first block's wide layer can fire."""
    honest = bridge.graph_from_model

    def with_dead_neurons(model) -> Graph:
        graph = honest(model)
        silent = {"blocks.0.up.lif"}
        nodes = tuple(
            replace(node, threshold=65535) if isinstance(node, LIF) and node.name in silent else node for node in graph
        )
        return Graph(graph.timesteps, graph.n_max, nodes)

    monkeypatch.setattr(bridge, "graph_from_model", with_dead_neurons)
    # what the torch model does is another network now, and not what is tested here
    monkeypatch.setattr("converters.pipeline.check_against_torch", lambda *_: Comparison())


def test_dead_neurons_go(trained: Path, texts: Path, tmp_path: Path, dead: None, capfd) -> None:
    assert export(trained, tmp_path / "whole") == 0
    assert export(trained, tmp_path / "bundle", "--pass", "remove-dead-neurons") == 0
    assert "remove-dead-neurons: " in capfd.readouterr().err
    whole, smaller = read_bundle(tmp_path / "whole").graph, read_bundle(tmp_path / "bundle").graph
    assert smaller.features["blocks.0.up"] == 1 < whole.features["blocks.0.up"]
    assert_the_same_network(tmp_path / "whole", tmp_path / "bundle", texts, capfd)


def test_passes_for_a_target(model: Path, plain: Path, texts: Path, tmp_path: Path, capfd) -> None:
    flags = ("--pass", "merge-query-key-value:scalar_thresholds=true", "--pass", "balance-delays", "--target", "lava")
    assert export(model, tmp_path / "bundle", *flags) == 0
    assert_the_same_network(plain, tmp_path / "bundle", texts, capfd)


# What cannot be done is one error, and no bundle is written


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("fuse", "there is no pass 'fuse'. Passes: prove-ranges, "),
        ("split-wide-layers:width=3", "pass 'split-wide-layers' has no option 'width'; its options: most_features"),
        ("split-wide-layers:most_features=x", "pass 'split-wide-layers': most_features is a whole number, not 'x'"),
        ("split-wide-layers:most_features=0", "pass 'split-wide-layers': most_features is 0, a layer has 1 or more"),
        ("merge-query-key-value:scalar_thresholds", "scalar_thresholds is true or false, not ''"),
        ("balance-delays:latency=1", "pass 'balance-delays' has no option 'latency'; it has none"),
    ],
)
def test_wrong_names_and_options(named: str, message: str, model: Path, tmp_path: Path, capfd) -> None:
    assert export(model, tmp_path / "bundle", "--pass", named, "--save-passes", str(tmp_path / "passes")) == 2
    assert message in one_error(capfd)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("expand-attention:most_weights=9", "pass 'expand-attention': 1 attentions of stock neurons would need 16,"),
        ("prove-ranges:limit=9", "pass 'prove-ranges': node 'blocks.0.query': a current may reach "),
    ],
)
def test_what_a_pass_refuses(named: str, message: str, model: Path, tmp_path: Path, capfd) -> None:
    assert export(model, tmp_path / "bundle", "--pass", named) == 1
    assert message in one_error(capfd)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_of_another_kind_is_refused(trained: Path, tmp_path: Path, capfd) -> None:
    flags = ("--pass", "remove-unreachable-tokens", "--save-passes", str(tmp_path / "passes"))
    assert export(trained, tmp_path / "bundle", *flags) == 2
    assert "its normalizer is Lowercase; which tokens a text can lead to is known for BertNormalizer only" in one_error(
        capfd
    )
    assert list(tmp_path.iterdir()) == []


def test_a_place_for_passes_that_is_a_file_is_refused(trained: Path, tmp_path: Path, capfd) -> None:
    (tmp_path / "file").write_text("here already")
    assert export(trained, tmp_path / "bundle", "--save-passes", str(tmp_path / "file")) == 2
    assert "file: " in one_error(capfd)
    assert not (tmp_path / "bundle").exists() and (tmp_path / "file").read_text() == "here already"


@pytest.mark.parametrize(
    ("to", "place", "bundle"),
    [
        ("there", "there", "there"),
        ("there", "there/passes", "there"),
        ("new", "there/passes", "there"),
        ("new", "new", "new"),
        ("new", "there/../new/passes", "new"),
    ],
)
def test_a_place_for_passes_in_a_bundle_is_refused(
    to: str, place: str, bundle: str, model: Path, tmp_path: Path, capfd
) -> None:
    """One that is there, or the one to be written: it would be spoilt, or the passes would be gone with the old one."""
    assert export(model, tmp_path / "there") == 0
    capfd.readouterr()
    before = {path: path.read_bytes() for path in (tmp_path / "there").rglob("*") if path.is_file()}
    assert export(model, tmp_path / to, "--overwrite", "--save-passes", str(tmp_path / place)) == 2
    assert f"is in the bundle {tmp_path / bundle}, which holds its own files only" in one_error(capfd)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_the_help_tells_of_every_pass_and_option() -> None:
    told = make_parser().format_help()
    assert all(name in told for name in PASS_NAMES)
    assert all(option in told for option in ("limit=", "scalar_thresholds=", "most_weights=", "most_features="))
