"""`spikebert-run --check`, and bundles in a zip, through `main` and as a process."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from command_output import one_error, without_compiling
from random_graphs import random_graph
from safetensors.numpy import load_file, save_file
from small_bundles import rewrite_as_schema_1, sign_again, small_bundle, zip_bundle

import sim.check
from converters.bundle import read_bundle
from converters.graph import ACCUMULATOR_MAX
from converters.ranges import largest_current, prove_ranges
from sim.find_bundle import known_bundles
from sim.run_command import main

ROOT = Path(__file__).parents[2]
CHECKS = ["manifest", "files", "graph", "ranges", "tokenizer", "golden vectors"]
LAST = "block0.fc2"  # the last LIF of the small bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, compiled):
    return small_bundle(tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """Where temporary folders are made during a test, by this process and those that it starts."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def record_another_spike(folder: Path) -> None:
    """A recording of another network: one spike of LAST, in the first value, and everything signed."""
    tensors = load_file(folder / "golden.safetensors")
    tensors[f"spikes.{LAST}"][0] ^= 0x80
    save_file(tensors, folder / "golden.safetensors")
    sign_again(folder)


# What is said


def test_every_check_has_a_line(bundle, capfd):
    assert main([str(bundle.folder), "--check"]) == 0
    captured = capfd.readouterr()
    lines = captured.out.splitlines()
    assert captured.err == ""
    assert all(line.startswith(f"ok      {name} ") for line, name in zip(lines, CHECKS)) and len(lines) == len(CHECKS)
    assert "schema 2" in lines[0] and bundle.manifest["digest"][:16] in lines[0]
    assert f"{len(bundle.manifest['files'])} files" in lines[1]
    assert f"{len(bundle.graph.nodes)} nodes" in lines[2]
    assert f"of {ACCUMULATOR_MAX:,}" in lines[3]
    recorded = sum(spikes.size for spikes in bundle.golden.spikes.values()) + bundle.golden.logits.size
    assert f"3 samples, {recorded:,} spikes and logits" in lines[5]


def test_json_is_exactly_one_object(bundle, capfd):
    assert main([str(bundle.folder), "--check", "--json"]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    report = json.loads(captured.out)
    assert list(report) == ["bundle", "ok", "error", "checks"]
    assert (report["bundle"], report["ok"], report["error"]) == (str(bundle.folder), True, None)
    checks = {check["check"]: check for check in report["checks"]}
    assert list(checks) == CHECKS and all(check["ok"] is True for check in checks.values())
    assert checks["manifest"]["schema"] == 2 and checks["manifest"]["digest"] == bundle.manifest["digest"]
    files = [bundle.folder / name for name in bundle.manifest["files"]]
    assert checks["files"]["bytes"] == sum(path.stat().st_size for path in files)
    assert (checks["ranges"]["node"], checks["ranges"]["largest"]) == largest_current(
        bundle.graph, prove_ranges(bundle.graph)
    )
    assert checks["golden vectors"]["mismatches"] == 0 and checks["golden vectors"]["first_mismatch"] is None


@pytest.mark.parametrize("name", sorted(known_bundles()))
def test_bundles_known_by_name_are_sound(name, capfd):
    assert main([name, "--check"]) == 0
    assert "schema 2" in capfd.readouterr().out


def test_research_bundles_say_so():
    """What was taught on texts, or by a teacher, for research alone is kept apart, and its card names both."""
    for name, path in known_bundles().items():
        bundle = read_bundle(path)
        card = (bundle.folder / "README.md").read_text(encoding="utf-8")
        assert "- Learnt from the texts: " in card and "- and from the teacher: " in card
        assert ("research" in card) == (path.parent.name == "research"), name
        assert path.suffix != ".zip" or path.with_suffix(".md").read_text(encoding="utf-8") == card


@pytest.mark.parametrize("bits", [3, 8])
def test_a_bundle_of_schema_1_is_checked(tmp_path, capfd, bits):
    graph = random_graph(np.random.default_rng(0), blocks=1, weight_bits=bits)
    rewrite_as_schema_1(small_bundle(tmp_path / "bundle", graph))
    assert main([str(tmp_path / "bundle"), "--check"]) == 0
    assert "schema 1" in capfd.readouterr().out


def test_it_needs_neither_torch_nor_lava_nor_the_fast_engine(bundle):
    program = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'lava', 'scipy'): sys.modules[name] = None\n"
        "import sim.run_command as command\n"
        "code = command.main(sys.argv[1:])\n"
        "assert 'sim.fast.engine' not in sys.modules\n"
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", program, str(bundle.folder), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == len(CHECKS)


# What fails


@pytest.mark.parametrize("schema", [1, 2])
def test_a_recording_that_is_not_repeated_exits_1(tmp_path, capfd, schema):
    bundle = small_bundle(tmp_path / "bundle")
    if schema == 1:
        bundle = rewrite_as_schema_1(bundle)
    record_another_spike(bundle.folder)
    assert main([str(bundle.folder), "--check"]) == 1
    captured = capfd.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()] == ["ok"] * 5 + ["FAILED"]
    place = f"sample 0, node '{LAST}', timestep 0, token 0, feature 0: expected"
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and place in captured.err
    assert main([str(bundle.folder), "--check", "--json"]) == 1
    report = json.loads(capfd.readouterr().out)
    assert report["ok"] is False and place in report["error"]
    failed = report["checks"][-1]
    assert failed["ok"] is False and failed["mismatches"] == 1 and failed["first_mismatch"]["node"] == LAST
    assert all(check["ok"] for check in report["checks"][:-1])


def test_a_recorded_logit_that_is_not_repeated_exits_1(tmp_path, capfd):
    bundle = small_bundle(tmp_path / "bundle")
    tensors = load_file(bundle.folder / "golden.safetensors")
    tensors["logits"][2, 1] += 1
    save_file(tensors, bundle.folder / "golden.safetensors")
    sign_again(bundle.folder)
    assert main([str(bundle.folder), "--check"]) == 1
    assert "sample 2, node 'logits', class 1" in capfd.readouterr().err


def test_a_machine_that_computes_something_else_exits_1(bundle, capfd, monkeypatch):
    """The machine at fault, not the bundle: one threshold is compared with >= instead of >."""
    honest = sim.check.walk

    def walk(graph, batch):
        for node, value in honest(graph, batch):
            if node.name == "block0.q":
                value[1, 1, 0, 3] ^= 1
            yield node, value

    monkeypatch.setattr(sim.check, "walk", walk)
    assert main([str(bundle.folder), "--check"]) == 1
    assert "sample 1, node 'block0.q', timestep 1, token 0, feature 3" in capfd.readouterr().err


@pytest.mark.parametrize("json_option", [[], ["--json"]])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: flip(folder / "weights.safetensors"), "weights.safetensors is damaged"),
        (lambda folder: flip(folder / "manifest.json"), "manifest.json"),
        (lambda folder: (folder / "graph.json").unlink(), "graph.json is missing"),
        (lambda folder: (folder / "tokenizer" / "vocab.txt").write_text("a"), "vocab.txt is not listed"),
        (lambda folder: sign_again(folder, schema=8), "schema 8 is newer than 7"),
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
    ],
)
def test_a_damaged_bundle_exits_2_as_ever(tmp_path, capfd, spoil, message, json_option):
    folder = small_bundle(tmp_path / "bundle").folder
    spoil(folder)
    assert main([str(folder), "--text", "a"]) == 2
    line = one_error(capfd)
    assert message in line
    assert main([str(folder), "--check", *json_option]) == 2
    captured = capfd.readouterr()
    assert captured.err.strip() == line
    if json_option:
        report = json.loads(captured.out)
        assert report == {"bundle": str(folder), "ok": False, "error": line.removeprefix("error: "), "checks": []}
    else:
        assert captured.out == ""


def test_a_bundle_that_is_not_there_exits_2(capfd):
    assert main(["no-such-bundle", "--check"]) == 2
    assert "those known by name are" in one_error(capfd)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--text", "a"], "--text"),
        (["--text", ""], "--text"),
        (["--file", "x.tsv"], "--file"),
        (["--verify"], "--verify"),
        (["--engine", "reference"], "--engine"),
        (["--workers", "2"], "--workers"),
        (["--limit", "3", "--batch-size", "2"], "--limit, --batch-size"),
        (["--predictions", "x.tsv", "--overwrite"], "--predictions, --overwrite"),
        (["--model", "runs"], "--model"),
        (["--scheduler", "tcp://x:1"], "--scheduler"),
    ],
)
def test_it_goes_with_nothing_that_runs_texts(bundle, capfd, options, named):
    assert main([str(bundle.folder), "--check", *options]) == 2
    line = one_error(capfd)
    assert "--check goes with --json and --debug alone" in line
    assert sorted(line.rpartition("Leave out ")[2].split(", ")) == sorted(named.split(", "))


# In a zip


@pytest.mark.parametrize("top", ["", "small/"])
def test_a_zip_runs_like_its_folder(bundle, tmp_path, temporary, capfd, top):
    path = zip_bundle(bundle.folder, tmp_path / "bundle.zip", top)
    results = []
    for place in (bundle.folder, path):
        assert main([str(place), "--text", "a good film", "--text", "bad", "--json"]) == 0
        captured = capfd.readouterr()
        assert captured.err == ""
        results.append({key: value for key, value in json.loads(captured.out).items() if "second" not in key})
    assert results[0] == results[1]
    assert main([str(path), "--check"]) == 0
    assert capfd.readouterr().out.count("ok ") == len(CHECKS)
    assert list(temporary.iterdir()) == []


def test_workers_run_a_zip_that_is_unpacked_once(bundle, tmp_path, temporary, capfd):
    path = zip_bundle(bundle.folder, tmp_path / "bundle.zip")
    data = tmp_path / "data.tsv"
    data.write_text("text\n" + "a good film\nbad\n" * 4)
    results = []
    for options in ([], ["--workers", "2", "--batch-size", "2", "--verify"]):
        assert main([str(path), "--file", str(data), "--json", *options]) == 0
        results.append(json.loads(capfd.readouterr().out))
    assert results[0]["logits"] == results[1]["logits"]
    assert results[1]["verify"]["mismatches"] == 0
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("options", [["--text", "a"], ["--check"], ["--text", "a", "--engine", "no-such-engine"], []])
def test_a_zip_leaves_nothing_behind_when_all_goes_wrong(tmp_path, temporary, capfd, options):
    bundle = small_bundle(tmp_path / "bundle")
    if "no-such-engine" not in options and options:
        flip(bundle.folder / "weights.safetensors")
    path = zip_bundle(bundle.folder, tmp_path / "bundle.zip")
    assert main([str(path), *options]) == 2
    assert "temporary" not in one_error(capfd)
    assert list(temporary.iterdir()) == []


def test_a_recording_in_a_zip_is_named_by_the_zip(tmp_path, temporary, capfd):
    bundle = small_bundle(tmp_path / "bundle")
    record_another_spike(bundle.folder)
    path = zip_bundle(bundle.folder, tmp_path / "bundle.zip")
    assert main([str(path), "--verify"]) == 1
    assert f"{path}/golden.safetensors: the reference differs" in one_error(capfd)
    assert main([str(path), "--check"]) == 1
    capfd.readouterr()
    assert list(temporary.iterdir()) == []


def test_an_engine_finds_the_files_of_its_target_in_a_zip(tmp_path, temporary, capfd):
    pytest.importorskip("lava.magma")
    from targets.lava.target import LavaTarget

    graph = random_graph(np.random.default_rng(0), blocks=1, n_max=4)
    emit = LavaTarget().emit
    bundle = small_bundle(tmp_path / "bundle", graph, target="lava", add_target=lambda folder: emit(graph, folder))
    path = zip_bundle(bundle.folder, tmp_path / "bundle.zip")
    assert main([str(path), "--engine", "lava-inline", "--verify", "--text", "a"]) == 0
    (bundle.folder / "lava" / "schedule.json").write_text("{}")
    sign_again(bundle.folder)
    path = zip_bundle(bundle.folder, tmp_path / "other.zip")
    capfd.readouterr()
    assert main([str(path), "--engine", "lava-inline", "--text", "a"]) == 2
    assert list(temporary.iterdir()) == []


def test_a_cluster_needs_the_folder(bundle, tmp_path, temporary, capfd):
    path = zip_bundle(bundle.folder, tmp_path / "bundle.zip")
    assert main([str(path), "--text", "a", "--scheduler", "tcp://127.0.0.1:1"]) == 2
    assert f"--scheduler: {path} is a zip. Unpack it" in one_error(capfd)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_of_a_zip_leaves_nothing(bundle, tmp_path, temporary, number, workers):
    path = zip_bundle(bundle.folder, tmp_path / "bundle.zip")
    data = tmp_path / "many.tsv"
    data.write_text("text\n" + "a good film\n" * 200_000)
    out = tmp_path / "out.tsv"
    command = [sys.executable, "-m", "sim.run_command", path, "--file", data, "--workers", workers]
    with subprocess.Popen(
        [*map(str, command), "--predictions", str(out)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ},
    ) as process:  # fmt: skip
        partial = tmp_path / f".out.tsv.{process.pid}.partial"
        while not (partial.exists() and partial.stat().st_size > 10_000):
            assert process.poll() is None
            time.sleep(0.01)
        assert any(folder.name.startswith("spikebert-") for folder in temporary.iterdir())
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, without_compiling(stderr)) == (130, "", "interrupted\n")
    assert not [folder for folder in temporary.iterdir() if folder.name.startswith("spikebert-")]
