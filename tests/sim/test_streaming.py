"""Shards on an engine whose pipeline stays full between them: the same results, times and errors as one by one."""

import time
from contextlib import closing
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from random_graphs import random_graph
from small_bundles import small_bundle
from streaming_engines import OneBehind

import sim.engines
import sim.shards
from sim.reference import ReferenceEngine
from sim.rows import BadRow, Row
from sim.run import Summary, run
from sim.run_command import main
from sim.shards import Job, Shard, ShardRunner, parts_of, sample_bytes
from sim.workers import LocalWorkers, ThisProcess
from spikebert.commands import UserError

WORDS = ("a good film", "bad", "", "funny and bad", "film")
SHARDS = [Shard(2 * i, tuple(WORDS[(i + j) % len(WORDS)] for j in range(2))) for i in range(5)]
NODES = ("block0.q.synapses", "block0.q", "block0.add1")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return small_bundle(tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture
def use(monkeypatch):
    """Registers an engine class of a test as the engine 'mine'."""

    def register(engine_class):
        monkeypatch.setattr(sim.engines, "_mine", lambda graph, options: engine_class(graph), raising=False)
        point = EntryPoint("mine", "sim.engines:_mine", sim.engines.GROUP)
        monkeypatch.setattr(sim.engines, "entry_points", lambda group: [point])

    return register


def results_of(job, shards, bundle):
    with closing(ThisProcess(job, bundle)) as workers:
        return list(workers.results(shards))


def check_equal(results, expected):
    assert len(results) == len(expected)
    for got, wanted in zip(results, expected):
        assert np.array_equal(got.logits, wanted.logits)
        assert np.array_equal(got.real_tokens, wanted.real_tokens)
        assert (got.notes, got.activity, got.comparison) == (wanted.notes, wanted.activity, wanted.comparison)
        assert got.recorded.keys() == wanted.recorded.keys() and got.probes.keys() == wanted.probes.keys()
        for name in wanted.recorded:
            assert np.array_equal(got.recorded[name], wanted.recorded[name])
        for name in wanted.probes:
            assert got.probes[name].to_json() == wanted.probes[name].to_json()


@pytest.mark.parametrize("verify", [False, True])
def test_streamed_shards_give_what_single_ones_give(bundle, use, verify):
    asked = {"verify": verify, "probe": NODES, "record": NODES}
    expected = results_of(Job(bundle.folder, "reference", **asked), SHARDS, bundle)
    use(OneBehind)
    job = Job(bundle.folder, "mine", **asked)
    check_equal(results_of(job, SHARDS, bundle), expected)
    with closing(ShardRunner(job, bundle)) as runner:
        check_equal([runner.run(shard) for shard in SHARDS], expected)
        assert runner.engine.streams == len(SHARDS)
    if verify:
        assert all(result.comparison.mismatches == 0 for result in expected)


def test_a_file_is_one_stream(bundle, use, tmp_path):
    engines = []

    class Told(OneBehind):
        def __init__(self, graph):
            super().__init__(graph)
            engines.append(self)

    use(Told)
    path = tmp_path / "data.tsv"
    path.write_text("text\n" + "a good film\n" * 7)
    assert main([str(bundle.folder), "--engine", "mine", "--file", str(path), "--batch-size", "2"]) == 0
    assert [engine.streams for engine in engines] == [1]


def test_seconds_are_those_of_the_engine_alone(bundle, use):
    class Slow(OneBehind):
        def run(self, batch, observe=()):
            time.sleep(0.05)
            return super().run(batch, observe)

    def slowly():
        for shard in SHARDS:
            time.sleep(0.3)
            yield shard

    use(Slow)
    seconds = 0.0
    with closing(ThisProcess(Job(bundle.folder, "mine"), bundle)) as workers:
        for result in workers.results(slowly()):
            seconds += result.seconds
            time.sleep(0.3)
    assert 0.05 * len(SHARDS) <= seconds < 0.3 * len(SHARDS)


class BreaksAtTheThird(OneBehind):
    """Its third batch fails, when the result of the first has been given."""

    def __init__(self, graph):
        super().__init__(graph)
        self.entered = 0

    def run(self, batch, observe=()):
        self.entered += 1
        if self.entered == 3:
            raise RuntimeError("the chip is gone")
        return super().run(batch, observe)


def test_a_failure_in_the_stream_comes_after_the_results_before_it(bundle, use):
    use(BreaksAtTheThird)
    told, rows = [], [Row(number, "bad") for number in range(10)]
    summary = Summary("mine", np.zeros((3, 3), np.int64))
    with (
        closing(ThisProcess(Job(bundle.folder, "mine"), bundle)) as workers,
        pytest.raises(RuntimeError, match="the chip is gone"),
    ):
        run(rows, workers, summary, 2, lambda outcome: told.append(outcome.row.number))
    assert told == [0, 1]


def test_a_failure_in_the_stream_exits_3(bundle, use, tmp_path, capsys):
    use(BreaksAtTheThird)
    path, out = tmp_path / "data.tsv", tmp_path / "out.npz"
    path.write_text("text\n" + "bad\n" * 10)
    arguments = [str(bundle.folder), "--engine", "mine", "--file", str(path), "--batch-size", "2"]
    assert main([*arguments, "--record", str(out)]) == 3
    assert "the chip is gone" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("engine_class", [OneBehind, ReferenceEngine])
def test_rows_that_cannot_be_read_on_are_told_of_after_all_results_before_them(bundle, use, engine_class):
    """The pipeline holds a batch when reading fails: its result is told first, as without a pipeline."""

    def rows():
        for number in range(5):
            yield Row(number, "bad")
        raise UserError("the disk is gone")

    use(engine_class)
    told, summary = [], Summary("mine", np.zeros((3, 3), np.int64))
    with (
        closing(ThisProcess(Job(bundle.folder, "mine"), bundle)) as workers,
        pytest.raises(UserError, match="the disk is gone"),
    ):
        run(rows(), workers, summary, 2, lambda outcome: told.append(outcome.row.number))
    assert told == [0, 1, 2, 3]


def test_bad_rows_keep_their_places(bundle, use):
    use(OneBehind)
    rows = [BadRow(i, "why") if i % 3 == 0 else Row(i, "bad") for i in range(11)]
    told, summary = [], Summary("mine", np.zeros((3, 3), np.int64))
    with closing(ThisProcess(Job(bundle.folder, "mine", verify=True), bundle)) as workers:
        run(rows, workers, summary, 2, lambda outcome: told.append(outcome.row))
    assert told == rows
    assert summary.comparison.mismatches == 0 and summary.bad == 4


def test_a_run_that_ends_early_ends_the_stream(bundle, use):
    use(OneBehind)

    def stop(outcome):
        raise KeyboardInterrupt

    summary = Summary("mine", np.zeros((3, 3), np.int64))
    with closing(ThisProcess(Job(bundle.folder, "mine"), bundle)) as workers:
        with pytest.raises(KeyboardInterrupt):
            run([Row(i, "bad") for i in range(9)], workers, summary, 2, stop)
        assert not workers.runner.engine.is_streaming


STREAMING_MODULE = """
from streaming_engines import OneBehind
def open_it(graph, options):
    return OneBehind(graph)
"""


def test_workers_stream_and_never_wait_for_each_other(bundle, tmp_path, monkeypatch):
    """In processes of their own: an engine that holds a result back until more comes must not stop the run."""
    (tmp_path / "streaming_module.py").write_text(STREAMING_MODULE)
    metadata = tmp_path / "mine-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[{sim.engines.GROUP}]\nmine = streaming_module:open_it\n")
    monkeypatch.syspath_prepend(tmp_path)  # a spawned process takes over the path
    expected = results_of(Job(bundle.folder, "reference", record=NODES), SHARDS, bundle)
    with closing(LocalWorkers(Job(bundle.folder, "mine", record=NODES), 2)) as workers:
        for count in (5, 1, 2):
            check_equal(list(workers.results(SHARDS[:count])), expected[:count])


# Networks whose values are too many to be held at a time


def test_parts_are_cut_where_they_would_be_too_large(monkeypatch):
    graph = random_graph(np.random.default_rng(0), blocks=2)
    names = tuple(graph.features)
    monkeypatch.setattr(sim.shards, "SAMPLE_BYTES", 20_000)
    parts = parts_of(graph, names)
    assert len(parts) > 1 and tuple(name for part in parts for name in part) == names
    assert all(sample_bytes(graph, part) <= 20_000 for part in parts)
    monkeypatch.setattr(sim.shards, "SAMPLE_BYTES", 1)
    assert parts_of(graph, names) == tuple((name,) for name in names)
    assert parts_of(graph, ()) == ((),)


@pytest.mark.parametrize("engine", ["reference", "fast"])
@pytest.mark.parametrize("limit", [1, 20_000])
def test_a_network_observed_part_by_part_gives_the_same(bundle, monkeypatch, engine, limit):
    job = Job(bundle.folder, engine, verify=True, probe=NODES, record=NODES)
    expected = results_of(job, SHARDS, bundle)
    monkeypatch.setattr(sim.shards, "SAMPLE_BYTES", limit)
    with closing(ThisProcess(job, bundle)) as workers:
        assert len(workers.runner.parts) > 1
        check_equal(list(workers.results(SHARDS)), expected)


def test_the_first_mismatch_is_the_same_part_by_part(bundle, use, monkeypatch):
    class Flawed(OneBehind):
        def run(self, batch, observe=()):
            execution = super().run(batch, observe)
            for name, place in {"block0.q": (2, 0, 0, 1), "block0.fc1": (1, 0, 1, 3), "block0.v": (1, 1, 0, 0)}.items():
                if name in execution.values:
                    execution.values[name] = execution.values[name].copy()
                    execution.values[name][place] ^= 1
            return execution

    use(Flawed)
    job = Job(bundle.folder, "mine", verify=True)
    whole = results_of(job, SHARDS[:1], bundle)[0].comparison
    assert whole.mismatches == 3
    first = whole.first_mismatch
    assert (first.sample, first.timestep, first.node) == (0, 1, "block0.fc1")
    monkeypatch.setattr(sim.shards, "SAMPLE_BYTES", 1)
    assert results_of(job, SHARDS[:1], bundle)[0].comparison == whole


def test_an_engine_that_leaves_a_node_out_is_told(bundle, use):
    class Lacking(OneBehind):
        def run(self, batch, observe=()):
            execution = super().run(batch, observe)
            del execution.values["block0.q"]
            return execution

    use(Lacking)
    with pytest.raises(ValueError, match=r"no values of node 'block0\.q'"):
        results_of(Job(bundle.folder, "mine", verify=True), SHARDS, bundle)
