"""`spikebert-run --probe` and `--record`: what nodes did, in words and in a file, the same whoever runs the samples."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from random_graphs import random_graph
from small_bundles import small_bundle

import sim.shards
from converters.execution import Execution
from sim.record import read_record
from sim.reference import ReferenceEngine
from sim.run_command import main

ROOT = Path(__file__).parents[2]
TEXTS = ("a good film", "bad", "", "funny and bad", "film", "dull")
PROBED = ("block0.q.synapses", "block0.q", "block0.attention", "block0.add1", "readout")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, compiled):
    return small_bundle(tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture
def data(tmp_path):
    """Lines 3 and 6 are bad."""
    path = tmp_path / "data.jsonl"
    lines = [json.dumps({"text": text, "label": number % 3}) for number, text in enumerate(TEXTS)]
    path.write_text("\n".join([*lines[:2], "{", *lines[2:4], "[]", *lines[4:]]), encoding="utf-8")
    return path


def expected_values(bundle, nodes):
    batch, _ = bundle.encode(TEXTS, pad_to=bundle.graph.n_max)
    return batch, ReferenceEngine(bundle.graph).run(batch, nodes)


def check_record(record, bundle, nodes):
    batch, execution = expected_values(bundle, nodes)
    assert record.nodes == tuple(nodes)
    assert record.rows.tolist() == [1, 2, 4, 5, 7, 8] and record.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert np.array_equal(record.mask, batch.mask) and np.array_equal(record.token_ids, batch.ids)
    assert np.array_equal(record.logits, execution.logits)
    for node in nodes:
        assert np.array_equal(record[node], execution.values[node].swapaxes(0, 1))


WAYS = {
    "fast": [],
    "reference": ["--engine", "reference"],
    "batches of one": ["--batch-size", "1"],
    "verified": ["--verify"],
    "two workers": ["--workers", "2", "--batch-size", "2"],
    "two workers, verified": ["--workers", "2", "--verify", "--engine", "reference"],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_record_holds_every_value_of_every_sample(bundle, data, tmp_path, capsys, way):
    out = tmp_path / "out.npz"
    arguments = [str(bundle.folder), "--file", str(data), "--record", str(out), *WAYS[way]]
    assert main([*arguments, "--probe", "block0.q*", "readout", "block0.a*1", "block0.attention", "--json"]) == 2
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    check_record(read_record(out), bundle, PROBED)
    assert result["record"] == {"file": str(out), "bytes": out.stat().st_size, "nodes": list(PROBED)}
    assert list(result["probes"]) == list(PROBED)
    batch, execution = expected_values(bundle, PROBED)
    for name, probe in result["probes"].items():
        real = execution.values[name][:, batch.mask == 1]
        assert (probe["low"], probe["high"], probe["sum"]) == (real.min(), real.max(), real.sum())
        assert probe["rate"] == np.count_nonzero(real) / real.size
        assert probe["nonzero_by_timestep"] == np.count_nonzero(real, axis=(1, 2)).tolist()
        assert probe["silent_features"] == int((real == 0).all((0, 1)).sum())
    if "--verify" in arguments:
        assert result["verify"]["mismatches"] == 0


@pytest.mark.parametrize("engine", ["lava-inline", "lava"])
def test_lava_records_the_same(bundle, data, tmp_path, capsys, engine):
    pytest.importorskip("lava.magma")
    out = tmp_path / "out.npz"
    arguments = [str(bundle.folder), "--file", str(data), "--record", str(out), "--engine", engine]
    assert main([*arguments, "--probe", *PROBED, "--batch-size", "2"]) == 2
    check_record(read_record(out), bundle, PROBED)


def test_torch_records_the_same(trained, tmp_path, capsys):
    """The integer PyTorch model and the fast engine, on a bundle that was exported from it."""
    from converters.export_command import main as export

    folder, data = tmp_path / "bundle", tmp_path / "data.tsv"
    assert export(["--model", str(trained / "run"), "--out", str(folder)]) == 0
    data.write_text("text\na good film\n\nwhat a waste of an evening\n")
    records = []
    for engine in ("torch", "fast"):
        out = tmp_path / f"{engine}.npz"
        model = ["--model", str(trained / "run" / "integer")] if engine == "torch" else []
        arguments = ["--engine", engine, *model, "--probe", "*"]
        assert main([str(folder), "--file", str(data), "--record", str(out), *arguments]) == 0
        records.append(read_record(out))
    assert records[0].nodes == records[1].nodes and len(records[0].nodes) > 10
    for node in records[0].nodes:
        assert np.array_equal(records[0][node], records[1][node])


def test_a_dask_cluster_records_the_same(bundle, data, tmp_path, capsys):
    distributed = pytest.importorskip("distributed")
    out = tmp_path / "out.npz"
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, dashboard_address=None) as cluster:
        arguments = [str(bundle.folder), "--file", str(data), "--record", str(out), "--batch-size", "2"]
        assert main([*arguments, "--probe", *PROBED, "--scheduler", cluster.scheduler_address]) == 2
    check_record(read_record(out), bundle, PROBED)


def test_without_probe_all_spiking_nodes_are_recorded(bundle, data, tmp_path, capsys):
    out = tmp_path / "out.npz"
    assert main([str(bundle.folder), "--file", str(data), "--record", str(out)]) == 2
    check_record(read_record(out), bundle, bundle.graph.spiking)
    captured = capsys.readouterr()
    assert f"recorded {len(bundle.graph.spiking)} nodes, 6 samples: {out}" in captured.err
    assert "at each timestep" not in captured.out


def test_a_record_tells_what_it_is(bundle, data, tmp_path, capsys):
    out = tmp_path / "out.npz"
    arguments = [str(bundle.folder), "--file", str(data), "--record", str(out), "--probe", "block0.*"]
    assert main(arguments) == 2
    about = read_record(out).about
    assert about["bundle"] == {"name": "small", "digest": bundle.manifest["digest"]}
    assert about["command"] == f"spikebert-run {bundle.folder} --file {data} --record {out} --probe 'block0.*'"
    assert (about["engine"], about["input"], about["numbers"]) == ("fast", str(data), "lines, from 1")
    assert (about["timesteps"], about["n_max"], about["samples"]) == (bundle.graph.timesteps, bundle.graph.n_max, 6)
    assert about["labels"] == list(bundle.labels)


@pytest.mark.parametrize(
    ("given", "numbers", "rows"),
    [
        (["--text", "a", "--text", "good film"], "texts, from 0", [0, 1]),
        (["--verify"], "golden samples, from 0", [0, 1, 2]),
    ],
)
def test_texts_and_golden_samples_are_recorded_too(bundle, tmp_path, capsys, given, numbers, rows):
    out = tmp_path / "out.npz"
    assert main([str(bundle.folder), *given, "--record", str(out)]) == 0
    record = read_record(out)
    assert record.about["numbers"] == numbers and record.rows.tolist() == rows
    assert record.labels.tolist() == [-1] * len(rows)
    if "--verify" in given:
        assert np.array_equal(record["block0.q"], bundle.golden.spikes["block0.q"].swapaxes(0, 1))


def test_a_probe_is_told_in_a_line(bundle, capsys):
    assert main([str(bundle.folder), "--text", "a good film", "--probe", "block0.q", "block0.q.synapses"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[next(i for i, line in enumerate(lines) if line.startswith("probe")) :]
    assert [line.split()[0] for line in table] == ["probe", "block0.q.synapses", "block0.q"]
    batch, _ = bundle.encode(["a good film"])
    spikes = ReferenceEngine(bundle.graph).run(batch, ["block0.q"]).values["block0.q"]
    rates = " ".join(f"{rate:.3f}" for rate in spikes.mean((1, 2, 3)))
    silent = int((spikes == 0).all((0, 1, 2)).sum())
    fields = f"{spikes.mean():.4f} 0 .. 1 {spikes.mean():,.3f} {silent} of 16 {rates}".split()
    assert table[2].split()[1:] == fields and 0 < spikes.mean() < 1


def test_the_object_of_json_has_no_more_keys_without_the_flags(bundle, capsys):
    assert main([str(bundle.folder), "--text", "a", "--json"]) == 0
    assert {"probes", "record", "attention", "stock_models"}.isdisjoint(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--probe", "blok0.q"], "no node is called 'blok0.q'. Did you mean block0.q"),
        (["--record", "out.txt"], "ends with .npz"),
        (["--record", "none/out.npz"], "there is no folder"),
        (["--record", "out.npz", "--predictions", "out.npz"], "both name out.npz"),
        (["--check", "--record", "out.npz"], "--check goes with --json and --debug alone. Leave out --text, --record"),
        (["--check", "--probe", "source"], "Leave out --text, --probe"),
    ],
)
def test_wrong_use_is_one_clear_line_and_exits_2(bundle, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main([str(bundle.folder), "--text", "a", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and message in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_record_is_not_written_over(bundle, tmp_path, capsys):
    out = tmp_path / "out.npz"
    out.write_text("mine")
    arguments = [str(bundle.folder), "--text", "a", "--record", str(out)]
    assert main(arguments) == 2
    assert "exists. Give --overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main([*arguments, "--overwrite"]) == 0
    assert len(read_record(out)) == 1


class Flawed(ReferenceEngine):
    """One spike of the first sample is wrong, by as much as `wrong`."""

    wrong = 1

    def run(self, batch, observe=()):
        execution = super().run(batch, observe)
        values = {name: array.copy() for name, array in execution.values.items()}
        values["block0.q"][1, 0, 0, 3] += self.wrong * (1 - 2 * values["block0.q"][1, 0, 0, 3])
        return Execution(execution.logits, values)


def test_what_a_wrong_engine_did_is_recorded(bundle, tmp_path, monkeypatch, capsys):
    """So that it can be looked into."""
    monkeypatch.setattr(sim.shards, "open_engine", lambda name, graph, options: Flawed(graph))
    out = tmp_path / "out.npz"
    assert main([str(bundle.folder), "--text", "a", "--verify", "--probe", "block0.q", "--record", str(out)]) == 1
    assert "node 'block0.q', timestep 1, token 0, feature 3" in capsys.readouterr().err
    batch, _ = bundle.encode(["a"], bundle.graph.n_max)
    right = ReferenceEngine(bundle.graph).run(batch, ["block0.q"]).values["block0.q"].swapaxes(0, 1)
    assert np.argwhere(read_record(out)["block0.q"] != right).tolist() == [[0, 1, 0, 3]]


def test_values_that_cannot_be_are_not_recorded(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Flawed, "wrong", 300)
    monkeypatch.setattr(sim.shards, "open_engine", lambda name, graph, options: Flawed(graph))
    arguments = [str(bundle.folder), "--text", "a", "--verify"]
    assert main(arguments) == 1  # without a record the comparison tells it
    assert main([*arguments, "--record", str(tmp_path / "out.npz")]) == 3
    assert "for node 'block0.q', where only 0 .. 1 is possible: --verify without --record" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_nothing(bundle, tmp_path, number):
    path, out = tmp_path / "many.tsv", tmp_path / "out" / "out.npz"
    out.parent.mkdir()
    path.write_text("text\n" + "a good film\n" * 200_000)
    command = [sys.executable, "-m", "sim.run_command", str(bundle.folder), "--file", str(path), "--record", str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        spool = Path(f"/proc/{process.pid}/fd")
        while not any(spooled_bytes(file) > 100_000 for file in spool.iterdir()):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors.splitlines()[-1]) == (130, "", "interrupted")
    assert list(out.parent.iterdir()) == []


def spooled_bytes(file: Path) -> int:
    """The size of a file without a name that a process has open."""
    try:
        return os.stat(file).st_size if "(deleted)" in os.readlink(file) else 0
    except OSError:
        return 0


MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_of(*command: object) -> tuple[int, int]:
    """Exit code and peak memory of a process in kilobytes, measured by one of its own: a peak counts from the size of
    the process that started it."""
    words = [sys.executable, "-c", MEASURED, sys.executable, *map(str, command)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    code, kilobytes = map(int, done.stdout.split())
    return code, kilobytes


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_record_of_a_large_file_takes_little_memory(tmp_path, workers):
    """10,000 samples with 450 MB of spikes."""
    graph = random_graph(np.random.default_rng(0), blocks=1, hidden=64, n_max=16)
    assert 10_000 * sim.shards.sample_bytes(graph, graph.spiking) // sim.shards.VALUE_BYTES > 450_000_000
    folder, path, out = small_bundle(tmp_path / "wide", graph).folder, tmp_path / "many.tsv", tmp_path / "out.npz"
    path.write_text("text\n" + "a good film\n" * 10_000)
    command = ["-m", "sim.run_command", folder, "--file", path, "--record", out, "--workers", workers]
    code, kilobytes = peak_of(*command)
    assert code == 0 and kilobytes < 400_000
    record = read_record(out)
    assert np.array_equal(record.rows, np.arange(2, 10_002))
    first = next(record.each("block0.fc1"))
    assert first.any() and all(np.array_equal(values, first) for values in record.each("block0.fc1"))
