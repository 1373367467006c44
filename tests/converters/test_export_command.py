"""`spikebert-export` used wrongly, refused and stopped: a clear line, the right exit code, nothing half written."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_output import one_error

import converters.from_torch as bridge
from converters.bundle import GOLDEN_MAX, read_bundle
from converters.export_command import main
from converters.graph import LIF, Attention, Graph, GraphError, Node, Product, Readout
from converters.pipeline import CHINESE_GOLDEN_TEXTS, EXAMPLE, GOLDEN_TEXTS, golden_texts
from sim.find_bundle import known_bundles

ROOT = Path(__file__).parents[2]
ILLEGAL = ("blocks.0.query.lif", "blocks.0.up.lif")


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained integer model that a test may spoil."""
    return Path(shutil.copytree(trained / "run" / "integer", tmp_path / "model"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "place" / "bundle"


def nothing_written(out: Path) -> bool:
    """No bundle and no part of one, hidden or not."""
    return not out.parent.exists() or list(out.parent.iterdir()) == []


# Wrong use


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: --model, --out"),
        (["--model", "m", "--out", "o", "--engine", "lava"], "unrecognized arguments"),
    ],
)
def test_wrong_flags_exit_2(arguments: list[str], message: str, capfd) -> None:
    assert main(arguments) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and message in captured.err and "Traceback" not in captured.err


@pytest.mark.parametrize("place", ["file", "file/below", "file/below/further"])
def test_an_out_that_cannot_be_a_folder_is_refused(model: Path, tmp_path: Path, capfd, place: str) -> None:
    (tmp_path / "file").write_text("here already")
    assert main(["--model", str(model), "--out", str(tmp_path / place)]) == 2
    assert f"{tmp_path / 'file'} " in (line := one_error(capfd)) and "is not a folder" in line
    assert (tmp_path / "file").read_text() == "here already"


def test_an_out_without_write_permission_is_refused(model: Path, out: Path, capfd, monkeypatch) -> None:
    """Permission is refused by hand: tests may run as root, who may write everywhere."""
    monkeypatch.setattr("converters.bundle.os.access", lambda path, mode: False)
    assert main(["--model", str(model), "--out", str(out)]) == 2
    assert "may not be written to" in one_error(capfd)
    assert nothing_written(out)


def test_a_full_disk_leaves_nothing(model: Path, out: Path, capfd, monkeypatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["--model", str(model), "--out", str(out)]) == 2
    assert "No space left on device. Check the path, the rights and the space" in one_error(capfd)
    assert nothing_written(out)


def test_what_is_not_a_bundle_is_never_overwritten(model: Path, out: Path, capfd) -> None:
    out.mkdir(parents=True)
    (out / "thesis.tex").write_text("years of work")
    assert main(["--model", str(model), "--out", str(out), "--overwrite"]) == 2
    assert "is not a bundle, or a damaged one, so it is not overwritten" in one_error(capfd)
    assert (out / "thesis.tex").read_text() == "years of work"


# Bad models


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        ("model.safetensors", truncate, "cannot be loaded as a SpikeBERT"),
        ("model.safetensors", Path.unlink, "cannot be loaded as a SpikeBERT"),
        ("config.json", lambda path: path.write_bytes(b"\x80\xff\x00"), "config.json: cannot be read"),
        ("config.json", lambda path: path.write_text("[]"), "config.json: cannot be read"),
        ("config.json", lambda path: path.write_text('{"model_type": "bert"}'), "that of a 'bert', no SpikeBERT: give"),
        ("config.json", Path.unlink, "no model there"),
        ("tokenizer.json", truncate, "the tokenizer cannot be loaded"),
        ("tokenizer.json", Path.unlink, "no tokenizer.json"),
    ],
)
def test_a_damaged_model_is_named(model: Path, out: Path, capfd, file: str, spoil, message: str) -> None:
    spoil(model / file)
    assert main(["--model", str(model), "--out", str(out)]) == 2
    assert str(model) in (line := one_error(capfd)) and message in line
    assert nothing_written(out)


def test_damaged_results_are_named(model: Path, out: Path, capfd) -> None:
    run = model.parent / "run"
    shutil.copytree(model, run / "integer")
    (run / "integer" / "stage.json").write_text('{"made_from": {}}')
    (run / "results.json").write_text('{"accuracy": 3}')
    assert main(["--model", str(run), "--out", str(out)]) == 2
    assert f"{run / 'results.json'} is damaged" in one_error(capfd)
    assert nothing_written(out)


@pytest.mark.parametrize("module", ["torch", "transformers"])
def test_a_missing_library_names_the_extra(module: str, model: Path, out: Path) -> None:
    program = f"import sys; sys.modules['{module}'] = None; import converters.export_command as c; sys.exit(c.main())"
    command = [sys.executable, "-c", program, "--model", str(model), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: '{module}' is not installed. Install it with: pip install 'spikebert[train]'\n"


# Illegal graphs


@pytest.fixture
def illegal_for_lava(monkeypatch) -> None:
    """Two layers get a threshold for each neuron, which Lava's own LIF cannot hold, and the readout a weight of -128,
    which its synapses cannot. A trained model has neither."""
    honest = bridge.graph_from_model

    def spoil(graph: Graph, node: Node) -> Node:
        if isinstance(node, LIF) and node.name in ILLEGAL:
            return replace(node, threshold=node.threshold + np.arange(graph.features[node.name]) % 2)
        if isinstance(node, Readout):
            weight = node.weight.copy()
            weight[0, 0] = -128
            return replace(node, weight=weight)
        return node

    def graph_from_model(model) -> Graph:
        graph = honest(model)
        return Graph(graph.timesteps, graph.n_max, tuple(spoil(graph, node) for node in graph))

    monkeypatch.setattr(bridge, "graph_from_model", graph_from_model)


def test_an_illegal_graph_is_refused_with_every_reason(model: Path, out: Path, capfd, illegal_for_lava) -> None:
    assert main(["--model", str(model), "--out", str(out), "--target", "lava"]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "not legal for the target 'lava'" in captured.err
    for name in ILLEGAL:
        line = f"node '{name}': scalar-threshold: 2 thresholds in one LIF, the limit is 1: quantise with one threshold"
        assert line in captured.err
    assert "node 'readout': bounded-weight: 256 doubled weight units, the limit is 255: quantise to" in captured.err
    assert nothing_written(out)


def test_an_illegal_graph_as_json(model: Path, out: Path, capfd, illegal_for_lava) -> None:
    assert main(["--model", str(model), "--out", str(out), "--target", "lava", "--json"]) == 1
    report = json.loads(capfd.readouterr().out)
    assert report["bundle"] is None
    found = [(each["node"], each["rule"], each["value"], each["limit"]) for each in report["violations"]]
    assert found == [*((name, "scalar-threshold", 2, 1) for name in ILLEGAL), ("readout", "bounded-weight", 256, 255)]
    for violation in report["violations"]:
        assert list(violation) == ["node", "rule", "value", "limit", "unit", "source", "remedy"]
        assert violation["unit"] and violation["remedy"] and "lava-nc 0.10.0" in violation["source"]
    assert nothing_written(out)


def test_a_model_without_a_legal_graph_exits_1(model: Path, out: Path, capfd, monkeypatch) -> None:
    def refuse(model) -> Graph:
        raise GraphError("node 'blocks.0.up': an accumulator may reach 65536")

    monkeypatch.setattr(bridge, "graph_from_model", refuse)
    assert main(["--model", str(model), "--out", str(out)]) == 1
    assert "makes no legal graph: node 'blocks.0.up': an accumulator may reach 65536" in one_error(capfd)
    assert nothing_written(out)


# What goes well, and what is stopped


def test_json_is_exactly_one_object(model: Path, out: Path, capfd) -> None:
    assert main(["--model", str(model), "--out", str(out), "--target", "lava", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["bundle"] == str(out) and report["target"] == "lava"
    assert report["verify"]["mismatches"] == 0
    assert report["nodes"] == len(read_bundle(out).graph.nodes)
    assert main(["--model", str(model), "--out", str(out)]) == 2
    assert "exists" in one_error(capfd)


@pytest.mark.parametrize(
    ("flags", "weights"),
    [
        (["--attention", "stock"], 2**27),
        (["--attention", "stock", "--pass", "expand-attention"], 2**27),
        (["--pass", "expand-attention:most_weights=9", "--attention", "stock"], 9),  # its options stay
    ],
)
def test_attention_of_stock_neurons_is_the_pass_by_another_name(model, out, capfd, flags, weights) -> None:
    code = main(["--model", str(model), "--out", str(out), "--json", *flags])
    if weights == 9:
        assert code == 1 and "the limit is 9" in capfd.readouterr().err
        return
    assert code == 0
    report = json.loads(capfd.readouterr().out)
    assert [each["name"] for each in report["passes"]] == ["prove-ranges", "expand-attention"]
    graph = read_bundle(out).graph
    assert not any(isinstance(node, Attention) for node in graph)
    assert any(isinstance(node, Product) for node in graph)


def test_attention_stays_as_it_is_by_default(model: Path, out: Path) -> None:
    assert main(["--model", str(model), "--out", str(out), "--attention", "process"]) == 0
    assert any(isinstance(node, Attention) for node in read_bundle(out).graph)


STOPPED = """
import sys, time
import targets.lava.target as target

honest = target.LavaTarget.emit

def emit(self, graph, folder):
    honest(self, graph, folder)
    print("writing", file=sys.stderr, flush=True)
    time.sleep(60)

target.LavaTarget.emit = emit
import converters.export_command as command
sys.exit(command.main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_export_leaves_nothing(trained: Path, out: Path, number: signal.Signals) -> None:
    out.parent.mkdir()
    model = trained / "run"
    command = [sys.executable, "-c", STOPPED, "--model", str(model), "--out", str(out), "--target", "lava"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line == "writing\n":
                break
        assert not nothing_written(out), "nothing is half written yet, so there is nothing to clean up"
        process.send_signal(number)
        assert process.stderr.read() == "interrupted\n"
    assert process.returncode == 130
    assert nothing_written(out)


def test_recorded_inputs_and_the_cards_example_are_in_the_tokenizers_language() -> None:
    english, chinese = GOLDEN_TEXTS, CHINESE_GOLDEN_TEXTS
    assert len(english) == len(chinese) == GOLDEN_MAX
    assert golden_texts(["[PAD]", "good", "film", "好"]) == english
    assert golden_texts(["[PAD]", "a", "好", "##菜", "快"]) == chinese
    assert golden_texts(["好", "good"]) == english, "half is not most"
    for name, path in known_bundles().items():
        bundle = read_bundle(path)
        tokenizer = bundle.folder / "tokenizer" / "tokenizer.json"
        tokens = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
        example = bundle.config["example"]
        assert example == (chinese if name in ("chnsenti", "waimai") else english)[EXAMPLE]
        assert example == golden_texts(tokens)[EXAMPLE]
