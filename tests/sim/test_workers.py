"""Shards run elsewhere give what they give here, in order, also where workers die on the way."""

import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from random_graphs import random_graph
from small_bundles import small_bundle

from converters.bundle import read_bundle
from sim.shards import Job, Shard, model_digest
from sim.workers import AHEAD, ATTEMPTS, DaskWorkers, LocalWorkers, ThisProcess, _Kept, _portable
from spikebert.commands import CheckFailed, UserError
from targets.legality import IllegalGraphError, Violation

ROOT = Path(__file__).parents[2]
WORDS = ("a good film", "bad", "", "funny and bad", "film")
SHARDS = [Shard(3 * i, tuple(WORDS[(i + j) % len(WORDS)] for j in range(3))) for i in range(12)]


@pytest.fixture(scope="module")
def job(tmp_path_factory, compiled) -> Job:
    return Job(small_bundle(tmp_path_factory.mktemp("bundles") / "small").folder, "fast", verify=True)


@pytest.fixture(scope="module")
def expected(job):
    with closing(ThisProcess(job)) as workers:
        return list(workers.results(SHARDS))


class Deadly(str):
    """A text that ends whichever process receives it."""

    def __reduce__(self):
        return os._exit, (9,)


def check_equal(results, expected) -> None:
    assert len(results) == len(expected)
    for got, wanted in zip(results, expected):
        assert np.array_equal(got.logits, wanted.logits)
        assert np.array_equal(got.real_tokens, wanted.real_tokens)
        assert (got.notes, got.activity, got.comparison) == (wanted.notes, wanted.activity, wanted.comparison)


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def test_several_processes_give_the_same_in_order(job, expected):
    with closing(LocalWorkers(job, 2)) as workers:
        check_equal(list(workers.results(iter(SHARDS))), expected)
        check_equal(list(workers.results(SHARDS[:1])), expected[:1])  # they stay for more
        assert list(workers.results([])) == []
        pids = [worker.process.pid for worker in workers.workers]
    assert not any(map(is_running, pids))


def test_only_a_few_shards_are_asked_for_ahead(job):
    asked = []

    def shards():
        for i in range(100):
            asked.append(i)
            yield SHARDS[0]

    with closing(LocalWorkers(job, 2)) as workers:
        assert len(list(islice(workers.results(shards()), 3))) == 3
    assert len(asked) <= 2 * AHEAD + 2


def test_a_killed_worker_loses_nothing(job, expected):
    with closing(LocalWorkers(job, 2)) as workers:
        results = workers.results(SHARDS)
        got = [next(results)]
        for worker in list(workers.workers):
            os.kill(worker.process.pid, signal.SIGKILL)
        check_equal(got + list(results), expected)


def test_a_shard_that_kills_every_worker_ends_the_run(job):
    shards = [SHARDS[0], Shard(3, (Deadly("x"), "bad")), SHARDS[2]]
    message = rf"{ATTEMPTS} workers died running samples 3 \.\. 4 \(exit code 9\)"
    with closing(LocalWorkers(job, 2)) as workers, pytest.raises(RuntimeError, match=message):
        list(workers.results(shards))


def test_what_is_wrong_in_a_worker_is_said_here(job, tmp_path):
    with closing(LocalWorkers(Job(tmp_path / "none", "fast"), 2)) as workers, pytest.raises(UserError, match="none"):
        list(workers.results(SHARDS))
    with closing(LocalWorkers(Job(job.bundle, "nonsense"), 1)) as workers, pytest.raises(UserError, match="nonsense"):
        list(workers.results(SHARDS))


def test_long_texts_and_large_results_do_not_block_each_other(job):
    """More than a pipe holds, both ways at once."""
    long = Job(job.bundle, "fast", record=tuple(read_bundle(job.bundle).graph.spiking))
    texts = ("film " * 100_000,) + ("a good film",) * 3000
    shards = [Shard(len(texts) * i, texts) for i in range(6)]
    with closing(ThisProcess(long)) as alone, closing(LocalWorkers(long, 1)) as workers:
        expected = next(alone.results(shards[:1]))
        assert sum(values.nbytes for values in expected.recorded.values()) > 2**20
        for result in workers.results(shards):
            assert all(np.array_equal(values, expected.recorded[name]) for name, values in result.recorded.items())


def test_a_check_that_fails_in_a_worker_is_one_here():
    violation = Violation("node", "rule", 3, 2, "spikes", "a book", "less")
    raised = IllegalGraphError("chip", [violation])
    again = pickle.loads(pickle.dumps(raised))
    assert (str(again), again.violations) == (str(raised), (violation,))
    assert isinstance(_portable(raised), CheckFailed) and str(_portable(raised)) == str(raised)
    assert isinstance(_portable(ValueError("x")), RuntimeError)


def test_another_bundle_at_the_same_place_is_noticed(tmp_path):
    bundle = small_bundle(tmp_path / "small")
    job = Job(bundle.folder, "reference", digest=bundle.manifest["digest"])
    with closing(ThisProcess(job)) as workers:
        before = next(workers.results(SHARDS[:1]))
    kept = _Kept()
    assert np.array_equal(kept.run(job, SHARDS[0]).logits, before.logits)
    other = small_bundle(bundle.folder, random_graph(np.random.default_rng(7), blocks=1), overwrite=True)
    with pytest.raises(UserError, match=r"small is another bundle here, or now, than when the run began: run it again"):
        ThisProcess(job)
    assert np.array_equal(kept.run(job, SHARDS[0]).logits, before.logits), "what is open is that of the job"
    later = replace(job, digest=other.manifest["digest"])
    closed: list[bool] = []
    kept.runner.opened.callback(closed.append, True)
    after = kept.run(later, SHARDS[0])
    assert closed == [True] and not np.array_equal(after.logits, before.logits)


def test_other_weights_of_a_model_are_noticed(tmp_path):
    bundle, run = small_bundle(tmp_path / "small"), tmp_path / "run"
    assert model_digest(None) == model_digest(run) == ""
    (run / "integer").mkdir(parents=True)
    weights = run / "integer" / "model.safetensors"
    weights.write_bytes(b"one")
    job = Job(bundle.folder, "reference", run, model_digest=model_digest(run))
    weights.write_bytes(b"two")
    with pytest.raises(UserError, match=r"run: its weights are not here, or others than when the run began"):
        ThisProcess(job)
    weights.unlink()
    with pytest.raises(UserError, match=r"run: its weights are not here, or others than when the run began"):
        ThisProcess(job)


COUNT_TO_DEATH = """
import sys
from pathlib import Path
from sim.shards import Job, Shard
from sim.workers import LocalWorkers
workers = LocalWorkers(Job(Path(sys.argv[1]), "fast"), 2)
list(workers.results([Shard(0, ("bad",))] * 4))
print(*(worker.process.pid for worker in workers.workers), flush=True)
sys.stdin.read()
"""


def test_workers_end_with_their_parent(job):
    command = [sys.executable, "-c", COUNT_TO_DEATH, str(job.bundle)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2 and all(map(is_running, pids))
        process.kill()
    deadline = time.monotonic() + 30
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster:
        yield cluster


def test_a_dask_cluster_gives_the_same(job, expected, cluster):
    with closing(DaskWorkers(job, cluster.scheduler_address)) as workers:
        check_equal(list(workers.results(iter(SHARDS))), expected)


def test_a_worker_lost_by_the_cluster_loses_nothing(job, expected, cluster):
    with closing(DaskWorkers(job, cluster.scheduler_address)) as workers:
        results = workers.results(SHARDS)
        got = [next(results)]
        os.kill(next(iter(workers.client.run(os.getpid).values())), signal.SIGKILL)
        check_equal(got + list(results), expected)


def test_a_scheduler_that_is_not_there(job):
    pytest.importorskip("distributed")
    with pytest.raises(UserError, match="no Dask scheduler answers there"):
        DaskWorkers(job, "tcp://127.0.0.1:1")
