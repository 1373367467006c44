"""The Lava benchmark runs what it says and notices wrong logits. Nothing here depends on how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from random_graphs import random_batch, random_graph

pytest.importorskip("lava.magma")

from benchmarks import lava, lava_first
from benchmarks.lava_arithmetic import PartsNetwork, blas_seconds
from benchmarks.lava_processes import family, shared_out_bytes
from benchmarks.lava_worker import FIRST, INLINE, PARTS, Result, Task, Took, measure, read_graph
from benchmarks.networks import full_batch, random_network
from converters.graph import LIF, Graph
from sim.reference import ReferenceEngine
from spikebert.commands import CHECK_FAILED, WRONG_USE, run_command
from targets.lava.program import LavaProgram


@pytest.fixture(scope="module")
def graph() -> Graph:
    return random_network(1, 16, 2, n_max=4, timesteps=2, firing_rate=0.2, one_threshold=True)


def subject_of(graph: Graph, sentences: int = 4) -> lava.Subject:
    return lava.Subject("tiny", graph, full_batch(graph, sentences), 1)


def test_a_network_with_one_threshold_is_one_for_lava(graph):
    neurons = [node for node in graph if isinstance(node, LIF)]
    assert all(isinstance(node.threshold, int) for node in neurons)
    values = ReferenceEngine(graph).run(full_batch(graph, 16), [node.name for node in neurons]).values
    for node in neurons:
        assert values[node.name].mean() == pytest.approx(0.2, rel=0.35), node.name


def test_the_parts_alone_give_the_logits_and_note_their_products():
    rng = np.random.default_rng(3)
    graph = random_graph(rng, blocks=1, hidden=12, heads=3, n_max=5, timesteps=2, dv=2048)
    networks: list[PartsNetwork] = []

    def open_network(*of_network) -> PartsNetwork:
        networks.append(PartsNetwork(*of_network))
        return networks[-1]

    program = LavaProgram(graph, open_network)
    program.open()
    [network] = networks
    batch = random_batch(rng, graph, 3)
    network.noting = True
    assert np.array_equal(program.classify(batch).logits, ReferenceEngine(graph).run(batch).logits)
    noted = len(network.rows_multiplied)
    assert noted == 3 * 2 + program.plan.schedule.drain_steps
    lengths = set(batch.mask.sum(axis=1).tolist())
    assert {rows[graph.output] for rows in network.rows_multiplied} == {0, *lengths}, "as many rows as tokens"
    layers = sum(type(spec).__name__ == "SynapsesSpec" for spec in program.plan.specs)
    assert len(network.products()) == 3 * 2 * (layers + 2), "a layer makes one product, attention two"
    assert network.seconds > 0 and blas_seconds(network.products()) > 0
    network.noting = False
    program.classify(batch)
    assert len(network.rows_multiplied) == noted


def test_the_files_of_a_task_hold_the_graph(graph, tmp_path):
    lava.write_task_files(subject_of(graph), tmp_path)
    batch = full_batch(graph, 3, seed=1)
    again = ReferenceEngine(read_graph(tmp_path)).run(batch)
    assert np.array_equal(again.logits, ReferenceEngine(graph).run(batch).logits)


def task_of(way: str) -> Task:
    return Task(str(lava.ROOT), way, cores=2, singles=1, stream_size=2, hold=False)


@pytest.mark.parametrize("way", [INLINE, PARTS])
def test_what_is_measured_in_one_process(graph, tmp_path, way):
    lava.write_task_files(subject_of(graph), tmp_path)
    result = measure(task_of(way), tmp_path)
    drain = 8  # the block is 7 deep, so 4 samples of 2 steps
    assert result.wrong == 0 and result.start_seconds > 0
    assert (result.whole.steps, result.whole.sentences) == (4 * 2 + drain, 4)
    if way == PARTS:
        assert result.arithmetic_seconds > 0 and result.blas_seconds > 0
    else:
        assert [(took.steps, took.sentences) for took in result.single] == [(2 + drain, 1)]
        assert (result.stream.steps, result.stream.sentences) == (4 * 2, 4), "T steps a sentence, whatever the depth"


def test_it_measures_where_a_start_method_is_set(graph, tmp_path):
    """A DataLoader that ran before sets one, and then an import of Lava fails if nobody sees to it."""
    lava.write_task_files(subject_of(graph), tmp_path)
    script = f"""
import multiprocessing, sys
sys.path[:] = {sys.path!r}
from pathlib import Path
from benchmarks.lava_worker import INLINE, Task, measure

multiprocessing.set_start_method("spawn")
task = Task({str(lava.ROOT)!r}, INLINE, cores=1, singles=1, stream_size=2, hold=False)
assert measure(task, Path({str(tmp_path)!r})).wrong == 0
assert multiprocessing.get_start_method() == "spawn"
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_wrong_logits_are_counted(graph, tmp_path):
    subject = subject_of(graph)
    lava.write_task_files(subject, tmp_path)
    logits = ReferenceEngine(graph).run(subject.batch).logits
    logits[2, 1] += 1
    np.savez(tmp_path / "sentences.npz", ids=subject.batch.ids, mask=subject.batch.mask, logits=logits)
    # once in the batch of all, and three times in the stream, which has 4 batches of 2 more to fill the network
    assert measure(task_of(INLINE), tmp_path).wrong == 4


def test_figures_are_those_of_the_definitions(graph):
    def result(seconds: float, **more) -> Result:
        took = Took(seconds, steps=100, sentences=10)
        return Result(1.0, whole=took, single=[took], stream=took, **more)

    measured = {
        FIRST: lava.Measured(40, 8, [result(6.0), result(8.0), result(1.0)]),
        "core": lava.Measured(8, 4, [result(2.0), result(4.0), result(1.0)]),
        PARTS: lava.Measured(1, 1, [result(9.0, arithmetic_seconds=1.5, blas_seconds=1.0)] * 3),
    }
    for one in measured[FIRST].rounds:
        one.stream = None
    found = lava.summarise(subject_of(graph), measured, cores=2)
    assert set(found) == {FIRST, "core"}
    core = found["core"]
    assert (core["processes_a_block"], core["step_ms"], core["times_first"]) == (8, 20, 2)
    assert (core["stream_sentences_a_second"], core["stream_steps_a_sentence"]) == (5, 10)
    assert found[FIRST]["stream_sentences_a_second"] is None
    assert (core["total_core_ms"], core["arithmetic_core_ms"], core["blas_core_ms"]) == (40, 15, 10)
    assert (core["arithmetic_per_blas"], core["overhead_core_ms"], core["overhead_share"]) == (1.5, 25, 0.625)
    text = lava.report(subject_of(graph), found, "about")
    assert "first version" in text and "not in this clone" not in text
    del found[FIRST]
    assert "first version: not in this clone (first-lava and a547f25" in lava.report(subject_of(graph), found, "about")


def test_without_a_history_there_is_no_first_version(tmp_path, monkeypatch):
    assert lava_first.extract_first(tmp_path, tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert lava_first.extract_first(lava.ROOT, tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_family_is_a_process_and_what_it_started():
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        members = family(parent.pid)
        assert members[0] == parent.pid and len(members) == 2
        assert shared_out_bytes(members) > shared_out_bytes(members[:1]) > 1 << 20
        parent.communicate(b"\n")
    assert family(parent.pid) == [parent.pid] and shared_out_bytes(members) == 0


def test_wrong_use_is_told(capsys):
    assert run_command(lava.body, ["--bundle", "here"]) == WRONG_USE
    assert run_command(lava.body, ["--rounds", "0"]) == WRONG_USE
    assert "--bundle and --file belong together" in capsys.readouterr().err


@pytest.mark.slow
def test_every_way_is_run_and_reported(graph, monkeypatch, capsys):
    monkeypatch.setitem(lava.SIZES, "2x128", lava.Size(1, 16, 2, 4, 4))
    assert run_command(lava.body, ["--networks", "2x128", "--rounds", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    [network] = told["networks"]
    ways = network["ways"]
    assert set(ways) == {"process", "layer", "core", INLINE} | ({FIRST} if network["first"] else set())
    assert ways[INLINE]["processes"] == 1
    assert ways["process"]["processes"] > 22 > ways["layer"]["processes"] > ways["core"]["processes"] > 5
    for way, figures in ways.items():
        assert figures["memory_bytes"] > 1 << 20, way
        assert way == FIRST or figures["stream_steps_a_sentence"] == 4


@pytest.mark.slow
def test_wrong_logits_fail_the_benchmark(graph, monkeypatch, capsys):
    monkeypatch.setitem(lava.SIZES, "2x128", lava.Size(1, 16, 2, 4, 2))
    monkeypatch.setattr(lava, "TODAY", (INLINE,))
    monkeypatch.setattr(lava, "extract_first", lambda *_: None)

    class Liar(ReferenceEngine):
        def run(self, batch, observe=()):
            execution = super().run(batch, observe)
            execution.logits[0] += 1
            return execution

    monkeypatch.setattr(lava, "ReferenceEngine", Liar)
    assert run_command(lava.body, ["--networks", "2x128", "--rounds", "1"]) == CHECK_FAILED
    assert "'inline': the logits of 1 sentences differ" in capsys.readouterr().err


def test_a_way_that_cannot_run_says_so(graph, tmp_path):
    lava.write_task_files(subject_of(graph), tmp_path)
    task = Task(str(tmp_path), INLINE, 2, 1, 2, True)  # there is no code
    with lava.worker(task, tmp_path) as process, pytest.raises(RuntimeError, match="'inline' could not be measured"):
        lava.finish(process, task, tmp_path)
