"""`spikebert-run` end to end, through `main` and as a process."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_output import without_compiling
from random_graphs import random_graph
from small_bundles import small_bundle

import sim.rows
import sim.run_command
import sim.shards
from converters.execution import Execution
from converters.graph import LIF, Graph
from sim.reference import ReferenceEngine
from sim.run_command import main

FIELDS = [
    "engine",
    "samples",
    "seconds",
    "samples_per_second",
    "predictions",
    "logits",
    "accuracy",
    "labelled",
    "verify",
    "activity",
    "bad_rows",
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, compiled):
    return small_bundle(tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.tsv"
    path.write_text("text\tlabel\na good film\tpositive\nbad\t0\n\tneutral\nfunny\t2\n", encoding="utf-8")
    return path


class EngineWithAFlaw(ReferenceEngine):
    """Like the reference, but one spike of the second sample is wrong."""

    closed = 0

    def run(self, batch, observe=()):
        execution = super().run(batch, observe)
        values = {name: array.copy() for name, array in execution.values.items()}
        values["block0.q"][1, 1, 0, 3] ^= 1
        return Execution(execution.logits, values)

    def close(self):
        EngineWithAFlaw.closed += 1


def use_engine(monkeypatch, engine_class):
    def open_engine(name, graph, options=None):
        return ReferenceEngine(graph) if name == "reference" else engine_class(graph)

    monkeypatch.setattr(sim.shards, "open_engine", open_engine)


def run_process(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sim.run_command", *map(str, arguments)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, **options)


def test_a_text_is_classified(bundle, capsys):
    assert main([str(bundle.folder), "--text", "a good film"]) == 0
    captured = capsys.readouterr()
    expected = ReferenceEngine(bundle.graph).run(bundle.encode(["a good film"])[0]).predictions[0]
    assert '"a good film"' in captured.out
    assert f"  {bundle.labels[expected]}, probability" in captured.out
    assert captured.err == ""


def test_json_is_exactly_one_object(bundle, data, capsys):
    assert main([str(bundle.folder), "--file", str(data), "--json", "--verify"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert list(result) == FIELDS
    batch, _ = bundle.encode(["a good film", "bad", "", "funny"])
    expected = ReferenceEngine(bundle.graph).run(batch)
    assert result["logits"] == expected.logits.tolist()
    assert result["predictions"] == expected.predictions.tolist()
    assert result["accuracy"] == float(np.mean(expected.predictions == [2, 0, 1, 2]))
    assert result["verify"]["against"] == "reference"
    assert result["verify"]["mismatches"] == 0
    assert result["verify"]["first_mismatch"] is None
    per_token = sum(bundle.graph.features.values()) * bundle.graph.timesteps
    assert result["verify"]["values_compared"] == 4 * (per_token * bundle.graph.n_max + 3)
    assert set(result["activity"]["per_node"]) == {node.name for node in bundle.graph}
    counted = ["spikes", "synaptic_operations", "weighted_operations", "saturations", "messages", "normalised_values"]
    assert list(result["activity"]) == ["timesteps", *counted, "per_node"]
    assert all(list(node) == [*counted, "rate"] for node in result["activity"]["per_node"].values())
    for total in ("spikes", "synaptic_operations"):
        assert result["activity"][total] == sum(node[total] for node in result["activity"]["per_node"].values()) > 0


def test_batches_and_padding_change_no_number(bundle, data, capsys):
    results = []
    for options in ([], ["--batch-size", "1"], ["--batch-size", "3", "--verify"]):
        assert main([str(bundle.folder), "--file", str(data), "--json", *options]) == 0
        results.append(json.loads(capsys.readouterr().out))
    for result in results[1:]:
        assert result["logits"] == results[0]["logits"]
        assert result["activity"] == results[0]["activity"]


def test_a_file_gives_accuracy_with_its_interval(bundle, data, capsys):
    assert main([str(bundle.folder), "--file", str(data)]) == 0
    out = capsys.readouterr().out
    assert "95 % interval" in out
    assert "true, predicted" in out
    assert "synaptic operations" in out


def test_limit(bundle, data, capsys):
    assert main([str(bundle.folder), "--file", str(data), "--limit", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 2


def test_without_labels_there_is_no_accuracy(bundle, tmp_path, capsys):
    (tmp_path / "texts.tsv").write_text("text\ngood\n")
    assert main([str(bundle.folder), "--file", str(tmp_path / "texts.tsv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] is None


def test_a_text_without_a_label_is_classified_and_said(bundle, tmp_path, capsys):
    (tmp_path / "data.tsv").write_text("text\tlabel\na good film\t2\nbad\t\n")
    assert main([str(bundle.folder), "--file", str(tmp_path / "data.tsv"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    right = told["predictions"][0] == 2
    assert (told["samples"], told["labelled"], told["accuracy"]) == (2, 1, float(right))
    assert main([str(bundle.folder), "--file", str(tmp_path / "data.tsv")]) == 0
    accuracy = capsys.readouterr().out.splitlines()[0]
    assert f"({int(right)} of 1)" in accuracy and accuracy.endswith("; 1 without a label")


def test_verify_alone_runs_the_golden_samples(bundle, capsys):
    assert main([str(bundle.folder), "--verify", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["logits"] == bundle.golden.logits.tolist()


def test_unusual_texts_are_classified_with_a_note(bundle, capsys):
    texts = ["", "xyz", "good " * 10_010]
    arguments = [argument for text in texts for argument in ("--text", text)]
    assert main([str(bundle.folder), *arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["predictions"]) == 3
    assert "an empty text" in captured.err
    assert "does not know" in captured.err
    assert "cut to 6 tokens of 10,012" in captured.err


@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_a_wrong_spike_is_found_and_exits_1(bundle, data, monkeypatch, capsys, json_option):
    use_engine(monkeypatch, EngineWithAFlaw)
    closed = EngineWithAFlaw.closed
    arguments = [str(bundle.folder), "--file", str(data), "--engine", "flawed", "--verify", *json_option]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert "sample 1, node 'block0.q', timestep 1, token 0, feature 3" in captured.err
    assert EngineWithAFlaw.closed == closed + 1
    if json_option:
        first = json.loads(captured.out)["verify"]["first_mismatch"]
        place = {"sample": 1, "timestep": 1, "node": "block0.q", "token": 0, "feature": 3}
        assert {key: first[key] for key in place} == place
        assert {first["expected"], first["got"]} == {0, 1}


def test_a_wrong_recording_is_found(bundle, monkeypatch, capsys):
    bundle.golden.logits.flags.writeable = True
    changed = bundle.golden.logits.copy()
    changed[0, 0] += 1
    flawed = type(bundle)(
        bundle.graph,
        bundle.manifest,
        bundle.tokenizer,
        type(bundle.golden)(bundle.golden.batch, changed, bundle.golden.spikes),
        bundle.folder,
    )
    monkeypatch.setattr(sim.run_command, "read_bundle", lambda folder: flawed)
    assert main([str(bundle.folder), "--verify"]) == 1
    assert "golden.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to run"),
        (["--text", "a", "--engine", "none"], "no engine 'none'"),
        (["--file", "missing.tsv"], "missing.tsv"),
        (["--text", "a", "--file", "x.tsv"], "not allowed with"),
        (["--text", "a", "--limit", "0"], "above 0"),
        (["--text", "a", "--batch-size", "-1"], "above 0"),
        (["--text", "a", "--colour", "red"], "unrecognized arguments"),
    ],
)
def test_wrong_use_is_one_clear_line_and_exits_2(bundle, capsys, arguments, message):
    assert main([str(bundle.folder), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_a_bundle_that_is_not_there_lists_the_shipped_ones(capsys):
    assert main(["no-such-bundle", "--text", "a"]) == 2
    assert "those known by name are" in capsys.readouterr().err


def is_one_error(captured, message: str) -> bool:
    return (
        captured.out == ""
        and captured.err.startswith("error: ")
        and captured.err.count("\n") == 1
        and (message in captured.err)
    )


BUNDLE_FILES = ["graph.json", "weights.safetensors", "encoder.safetensors", "golden.safetensors", "README.md"]


@pytest.mark.parametrize("flag", ["--predictions", "--record", "--report"])
def test_what_is_written_takes_nothing_away(bundle, tmp_path, capsys, flag):
    """No pipe, no device, and not the texts; a link stays one."""
    texts, pipe, link, far = (tmp_path / name for name in ("texts.npz", "pipe.npz", "link.npz", "far.npz"))
    texts.write_text("text\na good film\n")
    os.mkfifo(pipe)
    (tmp_path / "other").mkdir()
    link.symlink_to(far)
    run = [str(bundle.folder), "--file", str(texts), "--overwrite", flag]
    assert main([*run, str(pipe)]) == 2
    assert is_one_error(capsys.readouterr(), f"{flag} {pipe} is no regular file")
    assert main([*run, str(tmp_path / "other" / ".." / "texts.npz")]) == 2
    assert is_one_error(capsys.readouterr(), "the texts would be lost. Give two files")
    assert texts.read_text() == "text\na good film\n" and pipe.is_fifo()
    assert main([*run, str(link)]) == 0
    assert link.is_symlink() and far.stat().st_size > 0


@pytest.mark.parametrize("name", [*BUNDLE_FILES, "tokenizer/tokenizer.json"])
def test_a_bundle_with_a_flipped_bit_is_refused(tmp_path, capsys, name):
    bundle = small_bundle(tmp_path / "bundle")
    content = bytearray((bundle.folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle.folder / name).write_bytes(content)
    assert main([str(bundle.folder), "--text", "a"]) == 2
    assert is_one_error(capsys.readouterr(), f"{name} is damaged")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text\n\x7fELF\x00\x01", "line 2: a zero byte, so this is a binary file"),
        (b"\x89PNG\xff\n", "line 1: not UTF-8"),
        (b"sentence\tlabel\na\t1\n", "line 1: no column 'text'"),
        (b"", "line 1: no column 'text'"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(bundle, tmp_path, capsys, content, message):
    path = tmp_path / "data.tsv"
    path.write_bytes(content)
    assert main([str(bundle.folder), "--file", str(path), "--json"]) == 2
    assert is_one_error(capsys.readouterr(), f"{path}, {message}")


@pytest.mark.parametrize("refused", ["weights.safetensors", "data.tsv"])
def test_files_that_may_not_be_read_are_named(bundle, data, capsys, monkeypatch, refused):
    """Refused by hand: tests may run as root, who may read everything."""

    def refuse(honest):
        def opened(path, *arguments, **options):
            if Path(path).name == refused:
                raise PermissionError(13, "Permission denied", str(path))
            return honest(path, *arguments, **options)

        return opened

    monkeypatch.setattr(Path, "read_bytes", refuse(Path.read_bytes))
    monkeypatch.setattr(sim.rows, "open", refuse(open), raising=False)
    assert main([str(bundle.folder), "--file", str(data)]) == 2
    captured = capsys.readouterr()
    assert is_one_error(captured, "Permission denied") and refused in captured.err


def test_debug_prints_the_traceback(tmp_path, capsys):
    assert main([str(tmp_path), "--text", "a", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


class EngineThatFails(ReferenceEngine):
    """Dies in the first batch."""

    closed = False

    def run(self, batch, observe=()):
        raise RuntimeError("the chip is gone")

    def close(self):
        EngineThatFails.closed = True


def test_a_runtime_failure_exits_3_and_closes_the_engine(bundle, monkeypatch, capsys):
    use_engine(monkeypatch, EngineThatFails)
    assert main([str(bundle.folder), "--text", "a", "--engine", "failing"]) == 3
    assert "the chip is gone" in capsys.readouterr().err
    assert EngineThatFails.closed


class EngineThatPrints(ReferenceEngine):
    """Writes to standard output as some runtimes do, from Python and from below it."""

    def run(self, batch, observe=()):
        print("noise")
        os.system("echo noise from a child")
        return super().run(batch, observe)


def test_what_an_engine_prints_does_not_reach_standard_output(bundle, monkeypatch, capfd):
    use_engine(monkeypatch, EngineThatPrints)
    assert main([str(bundle.folder), "--text", "a", "--engine", "loud", "--json"]) == 0
    captured = capfd.readouterr()
    json.loads(captured.out)
    assert "noise" in captured.err


def test_as_a_process(bundle, data):
    done = run_process(bundle.folder, "--file", data, "--json")
    assert done.returncode == 0
    assert done.stderr == f"note: {data}, line 4: an empty text, classified as such\n"
    assert json.loads(done.stdout)["samples"] == 4


def test_help_has_an_example_and_the_exit_codes():
    done = run_process("--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout
    assert "130 interrupted" in done.stdout


def test_a_text_that_is_not_utf8_is_refused(bundle):
    done = run_process(bundle.folder, "--text", os.fsdecode(b"\xff"))
    assert done.returncode == 2
    assert "not valid UTF-8" in done.stderr


def test_a_reader_that_goes_away_is_no_traceback(bundle):
    command = [sys.executable, "-m", "sim.run_command", str(bundle.folder), "--text", "a"]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert without_compiling(process.stderr.read()) == ""
    assert process.returncode == 130


SLOW_ENGINE = """
import sys, time
import sim.run_command
import sim.shards
from sim.reference import ReferenceEngine

class Slow(ReferenceEngine):
    def run(self, batch, observe=()):
        print("running", file=sys.stderr, flush=True)
        time.sleep(60)
    def close(self):
        print("closed", file=sys.stderr, flush=True)

sim.shards.open_engine = lambda name, graph, options=None: Slow(graph)
sys.exit(sim.run_command.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_closes_the_engine_and_exits_130(bundle, number):
    command = [sys.executable, "-c", SLOW_ENGINE, str(bundle.folder), "--text", "a"]
    start = time.monotonic()
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "running\n"
        process.send_signal(number)
        assert process.stderr.read() == "closed\ninterrupted\n"
    assert process.returncode == 130
    assert time.monotonic() - start < 30


def processes_below(parent: int) -> set[int]:
    """The children of a process, theirs, and so on."""
    children = {int(child) for path in Path(f"/proc/{parent}/task").glob("*/children") for child in read_ids(path)}
    return children.union(*map(processes_below, children))


def read_ids(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # it ended just now
        return []


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("delay_seconds", [0.0, 1.0])
def test_ctrl_c_on_the_lava_engine_leaves_nothing(bundle, tmp_path, delay_seconds):
    """The command as a user gives it, stopped while the network is built, and a moment later."""
    pytest.importorskip("lava.magma")
    path = tmp_path / "many.tsv"
    path.write_text("text\n" + "a good film\n" * 5_000)
    command = [sys.executable, "-m", "sim.run_command", str(bundle.folder), "--engine", "lava", "--verify", "--json"]
    with subprocess.Popen(
        [*command, "--file", str(path)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 240
        while len(processes_below(process.pid)) < 4:  # the keeper, the runtime, and the first of Lava's own
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(delay_seconds)
        started = processes_below(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, without_compiling(errors)) == (130, "", "interrupted\n")
    assert started and not any(map(running, started))


LAVA_INLINE = """
import sys
import targets.lava.inline as inline

honest = inline.InlineNetwork.run

def run(self, steps):
    print("running", file=sys.stderr, flush=True)
    honest(self, steps)

inline.InlineNetwork.run = run
import sim.run_command as command
sys.exit(command.main())
"""


def test_ctrl_c_on_the_inline_engine(bundle, tmp_path):
    pytest.importorskip("lava.magma")
    path = tmp_path / "many.tsv"
    path.write_text("text\n" + "a good film\n" * 5_000)
    command = [sys.executable, "-c", LAVA_INLINE, str(bundle.folder), "--engine", "lava-inline", "--file", str(path)]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None and process.stdout is not None
        assert "running\n" in iter(process.stderr.readline, "")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().removeprefix("running\n").splitlines()[-1] == "interrupted"
        assert process.stdout.read() == ""
    assert process.returncode == 130


@pytest.mark.parametrize("engine", ["lava", "lava-inline"])
def test_a_graph_that_lava_cannot_hold_exits_1(tmp_path, capsys, engine):
    pytest.importorskip("lava.magma")
    graph = random_graph(np.random.default_rng(0), blocks=1)
    nodes = [
        replace(node, threshold=node.threshold + np.arange(graph.features[node.name]) % 2)
        if isinstance(node, LIF)
        else node
        for node in graph
    ]
    bundle = small_bundle(tmp_path / "bundle", Graph(graph.timesteps, graph.n_max, tuple(nodes)))
    assert main([str(bundle.folder), "--text", "a", "--engine", engine]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("scalar-threshold: 2 thresholds in one LIF, the limit is 1") == sum(
        isinstance(node, LIF) for node in graph
    )


@pytest.fixture
def mixed(tmp_path):
    """Five rows, two of them bad."""
    path = tmp_path / "mixed.jsonl"
    texts = [
        '{"text": "a good film", "label": 2}',
        "{",
        '{"text": "bad", "label": 0}',
        "[]",
        '{"text": "", "label": 1}',
    ]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


@pytest.mark.parametrize("workers", [[], ["--workers", "2", "--batch-size", "1"]])
def test_a_bad_row_never_loses_the_rest(bundle, mixed, tmp_path, capsys, workers):
    out = tmp_path / "out.jsonl"
    assert main([str(bundle.folder), "--file", str(mixed), "--json", "--predictions", str(out), *workers]) == 2
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    expected = ReferenceEngine(bundle.graph).run(bundle.encode(["a good film", "bad", ""])[0])
    classes = expected.predictions.tolist()
    assert result["predictions"] == [classes[0], None, classes[1], None, classes[2]]
    assert [row for row in result["logits"] if row is not None] == expected.logits.tolist()
    assert [row is None for row in result["logits"]] == [False, True, False, True, False]
    assert result["samples"] == 3 and result["accuracy"] == float(np.mean(expected.predictions == [2, 0, 1]))
    assert [row["number"] for row in result["bad_rows"]["first"]] == [2, 4] and result["bad_rows"]["count"] == 2
    assert f"error: {mixed}: 2 of 5 rows could not be read: line 2: not JSON" in captured.err
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line["row"] for line in lines] == [1, 2, 3, 4, 5] and "error" in lines[1]
    assert [line["prediction"] for line in lines if "error" not in line] == [bundle.labels[i] for i in classes]
    assert all(0 < line["probability"] <= 1 for line in lines if "error" not in line)


def test_workers_change_no_number(bundle, data, capsys):
    results = []
    for options in ([], ["--workers", "2", "--batch-size", "1"], ["--workers", "2", "--verify"]):
        assert main([str(bundle.folder), "--file", str(data), "--json", *options]) == 0
        results.append(json.loads(capsys.readouterr().out))
    for result in results[1:]:
        assert result["logits"] == results[0]["logits"]
        assert result["activity"] == results[0]["activity"]
    assert results[2]["verify"]["mismatches"] == 0


def test_a_file_without_a_good_row_is_refused(bundle, tmp_path, capsys):
    path, out = tmp_path / "data.tsv", tmp_path / "out.tsv"
    path.write_bytes(b"text\tlabel\na\tgreat\n")
    assert main([str(bundle.folder), "--file", str(path), "--predictions", str(out), "--json"]) == 2
    message = f"{path}: 1 of 1 rows could not be read: line 2: label 'great' is no class"
    assert is_one_error(capsys.readouterr(), message)


def test_predictions_are_not_written_over(bundle, data, tmp_path, capsys):
    out = tmp_path / "out.tsv"
    out.write_text("mine")
    arguments = [str(bundle.folder), "--file", str(data), "--predictions", str(out)]
    assert main(arguments) == 2
    assert is_one_error(capsys.readouterr(), "exists. Give --overwrite")
    assert out.read_text() == "mine"
    assert main([*arguments, "--overwrite"]) == 0
    assert len(out.read_text(encoding="utf-8").splitlines()) == 5


def test_many_unusual_texts_are_counted(bundle, tmp_path, capsys):
    path = tmp_path / "empty.tsv"
    path.write_text("text\n" + "\n" * 25)
    assert main([str(bundle.folder), "--file", str(path)]) == 0
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 11 and "15 more texts are unusual" in notes[-1]


def test_ctrl_c_ends_the_workers(bundle, tmp_path):
    path = tmp_path / "many.tsv"
    path.write_text("text\n" + "a good film\n" * 200_000)
    out = tmp_path / "out.tsv"
    command = [sys.executable, "-m", "sim.run_command", str(bundle.folder), "--file", str(path), "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--predictions", str(out)],
        cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    partial = tmp_path / f".out.tsv.{process.pid}.partial"
    while not (partial.exists() and partial.stat().st_size > 10_000):
        assert process.poll() is None
        time.sleep(0.01)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) >= 2
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout, without_compiling(stderr)) == (130, "", "interrupted\n")
    deadline = time.monotonic() + 30  # Python's own helper for shared memory ends a moment later
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert sorted(tmp_path.iterdir()) == [path]


# A process of its own: the peak of a child counts from the size of the process that started it.
MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_file_of_200_000_rows_takes_little_memory(bundle, tmp_path, workers):
    """Every thousandth row is bad. Measured is the largest of all processes."""
    path, out = tmp_path / "many.tsv", tmp_path / "out.tsv"
    path.write_text("text\tlabel\n" + ("a good film\t2\n" * 999 + "bad row\n") * 200)
    command = [sys.executable, "-m", "sim.run_command", str(bundle.folder), "--file", str(path)]
    command += ["--predictions", str(out), "--workers", workers]
    measured = [sys.executable, "-c", MEASURED, *command]
    done = subprocess.run(measured, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    code, kilobytes = map(int, done.stdout.split())
    assert code == 2 and kilobytes < 1_000_000
    lines = out.read_text(encoding="utf-8").splitlines()[1:]
    assert [int(line.split("\t")[0]) for line in lines] == list(range(2, 200_002))
    assert sum("columns, the header has 2" in line for line in lines) == 200


def test_a_file_name_that_is_no_utf8_is_spelled_out(bundle, tmp_path, capfd):
    data = tmp_path / os.fsdecode(b"caf\xe9.tsv")
    data.write_text("text\na good film\n")
    report = tmp_path / "report.html"
    assert main([str(bundle.folder), "--engine", "reference", "--file", str(data), "--report", str(report)]) == 0
    assert "caf\\udce9.tsv" in report.read_text(encoding="utf-8")


def test_an_empty_scheduler_is_none(bundle, capfd):
    pytest.importorskip("distributed")
    assert main([str(bundle.folder), "--text", "a good film", "--scheduler", ""]) == 2
    assert "--scheduler : no Dask scheduler answers there" in capfd.readouterr().err
