"""The real runtime when things go wrong: a clear error, in time, nothing left behind, and the next run works.

Every fault here is a real one. See lava_faults.py for those of ProcessModels, lava_owners.py for the processes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lava.magma")

from lava_owners import WITHIN_SECONDS, command, environment, finished, running_below, wait_until_clean
from random_graphs import random_batch, random_dag, random_graph
from small_bundles import small_bundle

from benchmarks.lava_kills import _Belongings, _leftovers, kill_runs
from converters.execution import TokenBatch
from converters.graph import Graph
from sim.reference import ReferenceEngine
from targets.lava import resources
from targets.lava.cgroups import left_in_cgroups
from targets.lava.engine import FAST_MODELS, LavaEngine
from targets.lava.grouping import group
from targets.lava.keeper import session_members
from targets.lava.lowering import lower
from targets.lava.plan import SynapsesSpec
from targets.lava.resources import ResourceError, Resources, needed
from targets.lava.stepfile import StepFile
from targets.lava.supervisor import LavaRuntimeError, LavaTimeoutError

CONV = "lava.proc.conv.process:Conv"
GROUPS = Path("/sys/fs/cgroup")
MEMORY_LIMIT = "memory.max" if (GROUPS / "cgroup.controllers").exists() else "memory.limit_in_bytes"  # version 2, 1


def faulty(name: str) -> dict[str, str]:
    return {**FAST_MODELS, CONV: f"lava_faults:{name}"}


@pytest.fixture
def small() -> tuple[Graph, TokenBatch]:
    rng = np.random.default_rng(3)
    graph = random_dag(rng, nodes=2, hidden=4, n_max=2)
    return graph, random_batch(rng, graph, 2)


@pytest.fixture
def moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file to which a fault writes when it happens."""
    path = tmp_path / "moment"
    monkeypatch.setenv("LAVA_FAULT_FILE", str(path))
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("bundles") / "bundle").folder


def nothing_is_left() -> bool:
    return running_below(os.getpid()) == []


# ---- ProcessModels that fail


@pytest.mark.parametrize(
    "fault, text",
    [
        ("RaisesBeforeSending", "a fault put here by a test, before sending"),
        ("RaisesAfterSending", "a fault put here by a test, after sending"),
        ("RaisesAndTellsLate", "a fault put here by a test, told late"),
        ("RaisesWhenMade", "a fault put here by a test, while building"),
        ("StartsADaemon", "a fault put here by a test, after a daemon was started"),
    ],
)
def test_a_traceback_reaches_the_caller(small: tuple[Graph, TokenBatch], fault: str, text: str) -> None:
    graph, batch = small
    engine = LavaEngine(graph, faulty(fault))
    with pytest.raises(LavaRuntimeError) as raised:
        engine.run(batch)
    assert f": {text}" in str(raised.value) and "lava_faults.py" in str(raised.value)
    assert nothing_is_left()
    engine.close()


@pytest.mark.parametrize(
    "fault, text",
    [
        ("KillsItself", r"was killed by signal 9 \(SIGKILL; the kernel does that when memory runs out\)"),
        ("KillsItselfWhenMade", r"was killed by signal 9 \(SIGKILL"),
        ("Segfaults", r"was killed by signal 11 \(SIGSEGV\)"),
        ("TouchesLostMemory", r"was killed by signal 7 \(SIGBUS; memory that it shared could not be had\)"),
        ("ExitsAtOnce", "ended by itself, with exit code 7"),
        ("OpensTooManyFiles", "Too many open files.*: raise the hard limit"),
        ("KillsTheRuntime", r"Lava's runtime died: it was killed by signal 9 \(SIGKILL"),
        ("KillsTheKeeper", r"Lava's runtime died: its keeper was killed by signal 9 \(SIGKILL"),
    ],
)
def test_a_process_that_dies_is_noticed_at_once(
    small: tuple[Graph, TokenBatch], moment: Path, fault: str, text: str
) -> None:
    graph, batch = small
    expected = ReferenceEngine(graph).run(batch)
    engine = LavaEngine(graph, faulty(fault))
    with pytest.raises(LavaRuntimeError, match=text) as raised:
        engine.run(batch)
    assert time.monotonic() - float(moment.read_text()) < WITHIN_SECONDS
    assert "Traceback" not in str(raised.value)
    assert nothing_is_left()
    engine._models = dict(FAST_MODELS)
    assert np.array_equal(engine.run(batch).logits, expected.logits)
    engine.close()


def test_what_is_left_is_looked_for_among_programs_whose_arguments_are_no_text() -> None:
    other = [sys.executable.encode(), b"-c", b"input()", b"\xff"]
    with subprocess.Popen(other, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        while b"\xff" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.01)
        assert nothing_is_left() and _leftovers(_Belongings.now()) == ""
        process.kill()


def test_the_failing_process_is_named(small: tuple[Graph, TokenBatch]) -> None:
    graph, batch = small
    with pytest.raises(LavaRuntimeError) as raised:
        LavaEngine(graph, faulty("KillsItself")).run(batch)
    layers = [spec.name for spec in lower(graph).specs if isinstance(spec, SynapsesSpec)]  # those that the fault is in
    assert any(f"'{name}'" in str(raised.value) for name in layers)


# ---- deadlines


@pytest.mark.parametrize("fault", ["Hangs", "Spins", "StopsItself", "StopsTheRuntime"])
def test_a_hang_in_a_long_run_is_noticed_within_the_deadline_of_one_step(
    small: tuple[Graph, TokenBatch], moment: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAVA_FAULT_STEP", "200")
    graph, _ = small
    many = random_batch(np.random.default_rng(0), graph, 256)
    engine = LavaEngine(graph, faulty(fault), step_seconds=2.0)
    with pytest.raises(LavaTimeoutError, match=r"did not get beyond time_step \d+ within 2 s and was ended") as raised:
        engine.run(many)
    waited = time.monotonic() - float(moment.read_text())
    assert 1.5 < waited < 2.0 + WITHIN_SECONDS
    if fault != "StopsTheRuntime":  # there the network goes on to the end of the run, and only its answer never comes
        assert "beyond time_step 200 " in str(raised.value)
    assert nothing_is_left()


def test_a_run_may_take_longer_than_a_step(small: tuple[Graph, TokenBatch]) -> None:
    graph, _ = small
    engine = LavaEngine(graph, faulty("IsSlow"), step_seconds=1.0)  # 0.1 s a step
    begun = time.monotonic()
    result = engine.run(random_batch(np.random.default_rng(0), graph, 8))
    assert time.monotonic() - begun > 3.0 and result.logits.shape[0] == 8
    engine.close()


def test_a_start_that_takes_too_long_hits_the_deadline(small: tuple[Graph, TokenBatch]) -> None:
    graph, batch = small
    with pytest.raises(LavaTimeoutError, match=r"did not start within 0\.05 s"):
        LavaEngine(graph, start_seconds=0.05).run(batch)
    assert nothing_is_left()


def test_a_keeper_that_stands_still_from_its_first_moment_hits_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job larger than a socket's buffer must not hold the owner up either."""

    class StoppedAtOnce(subprocess.Popen):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            os.kill(self.pid, signal.SIGSTOP)

    monkeypatch.setattr(subprocess, "Popen", StoppedAtOnce)
    rng = np.random.default_rng(0)
    graph = random_graph(rng, blocks=2, hidden=192, heads=6, n_max=8)
    begun = time.monotonic()
    with pytest.raises(LavaTimeoutError, match=r"did not start within 2 s"):
        LavaEngine(graph, start_seconds=2.0).run(random_batch(rng, graph, 1))
    assert time.monotonic() - begun < 2.0 + WITHIN_SECONDS
    assert nothing_is_left()


def test_a_step_file_tells_how_far_the_network_has_come() -> None:
    steps = StepFile.create(3)
    assert steps.reached == 0
    steps.begin(first_step=5, steps=4)
    steps.row(7)
    with pytest.raises(IndexError):
        steps.row(9)
    assert steps.reached == 7
    steps.close()


# ---- processes that are killed from outside


@pytest.mark.parametrize("who", ["keeper", "runtime"])
def test_a_killed_process_is_noticed_at_the_next_run_and_the_one_after_works(
    small: tuple[Graph, TokenBatch], who: str
) -> None:
    graph, batch = small
    expected = ReferenceEngine(graph).run(batch)
    engine = LavaEngine(graph)
    assert np.array_equal(engine.run(batch).logits, expected.logits)
    keeper = engine._session.network.pid
    [runtime] = [int(pid) for pid in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()]
    os.kill({"keeper": keeper, "runtime": runtime}[who], signal.SIGKILL)
    with pytest.raises(LavaRuntimeError, match="died"):
        engine.run(batch)
    assert nothing_is_left()
    assert np.array_equal(engine.run(batch).logits, expected.logits)
    engine.close()
    assert nothing_is_left()


def test_an_actor_killed_between_two_runs_is_named(small: tuple[Graph, TokenBatch]) -> None:
    graph, batch = small
    engine = LavaEngine(graph)
    engine.run(batch)
    keeper = engine._session.network.pid
    os.kill(max(session_members(keeper)), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while session_members(keeper):  # the keeper has ended all, and itself
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(LavaRuntimeError, match="' failed: it was killed by signal 9"):
        engine.run(batch)


def test_a_stopped_keeper_does_not_stand_in_the_way(small: tuple[Graph, TokenBatch]) -> None:
    graph, batch = small
    engine = LavaEngine(graph)
    engine.run(batch)
    os.kill(engine._session.network.pid, signal.SIGSTOP)
    engine.run(batch)
    begun = time.monotonic()
    engine.close()
    assert time.monotonic() - begun < WITHIN_SECONDS
    assert nothing_is_left()


def test_close_leaves_nothing_and_may_be_called_twice(
    small: tuple[Graph, TokenBatch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, batch = small
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # for all that runs below
    engine = LavaEngine(graph)
    engine.run(batch)
    keeper = engine._session.network.pid
    started = session_members(keeper)
    assert len(started) > 4 and set(started) == set(running_below(os.getpid()))
    engine.close()
    engine.close()
    assert nothing_is_left() and session_members(keeper) == []
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="closed"):
        engine.run(batch)


@pytest.mark.parametrize("fault", ["RaisesWhenMade", "KillsTheRuntime"])
def test_failures_leave_no_descriptor(small: tuple[Graph, TokenBatch], fault: str) -> None:
    graph, batch = small
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        with pytest.raises(LavaRuntimeError):
            LavaEngine(graph, faulty(fault)).run(batch)
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_engine_that_is_dropped_leaves_nothing(small: tuple[Graph, TokenBatch]) -> None:
    graph, batch = small
    engine = LavaEngine(graph)
    engine.run(batch)
    del engine
    assert nothing_is_left()


def test_a_fork_of_the_owner_ends_nothing_and_keeps_nothing_alive(small: tuple[Graph, TokenBatch]) -> None:
    graph, batch = small
    engine = LavaEngine(graph)
    expected = engine.run(batch).logits
    fork = os.fork()
    if fork == 0:  # it has the socket too
        engine.close()
        time.sleep(60)
        os._exit(0)
    try:
        time.sleep(0.5)
        assert np.array_equal(engine.run(batch).logits, expected)
        engine.close()
        assert nothing_is_left()
    finally:
        os.kill(fork, signal.SIGKILL)
        os.waitpid(fork, 0)


# ---- owners that are killed or interrupted


@contextmanager
def owner_in_a_run(fault: str = "IsSlow") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """An owner in the midst of a run that takes long, and the id of its keeper."""
    owner = subprocess.Popen(
        command(fault, 500), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout is not None
        keeper = int(owner.stdout.readline())
        time.sleep(0.5)
        assert len(session_members(keeper)) > 4
        yield owner, keeper
    finally:
        owner.kill()
        owner.communicate()


@pytest.mark.parametrize(
    "sent",
    [
        signal.SIGINT,
        signal.SIGHUP,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGQUIT, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_owner_leaves_nothing(sent: signal.Signals) -> None:
    with owner_in_a_run() as (owner, _):
        begun = time.monotonic()
        owner.send_signal(sent)
        _, errors = owner.communicate(timeout=60)
        wait_until_clean(owner.pid)
        assert time.monotonic() - begun < WITHIN_SECONDS
    assert owner.returncode == -sent
    assert ("KeyboardInterrupt" in errors) == (sent is signal.SIGINT)


@pytest.mark.parametrize("who", ["keeper", "runtime"])
def test_an_owner_killed_while_one_below_is_stopped_leaves_nothing(who: str) -> None:
    with owner_in_a_run() as (owner, keeper):
        [runtime] = [int(pid) for pid in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()]
        os.kill({"keeper": keeper, "runtime": runtime}[who], signal.SIGSTOP)
        owner.kill()
        owner.wait()
        if who == "keeper":
            os.kill(keeper, signal.SIGCONT)
        wait_until_clean(owner.pid)


def test_owner_and_keeper_killed_together_leave_nothing() -> None:
    with owner_in_a_run() as (owner, keeper):
        os.kill(owner.pid, signal.SIGSTOP)  # it must not clean up
        os.kill(keeper, signal.SIGKILL)
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        wait_until_clean(owner.pid)


def test_all_killed_together_leave_nothing() -> None:
    with owner_in_a_run() as (owner, keeper):
        os.kill(owner.pid, signal.SIGSTOP)
        os.killpg(keeper, signal.SIGKILL)
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        wait_until_clean(owner.pid)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("delay_seconds", [0.0, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.03, 0.3, 1, 2))])
def test_an_owner_ended_while_the_network_starts_leaves_nothing(delay_seconds: float, sent: signal.Signals) -> None:
    """The model hangs while it is built, so the runtime is caught in Lava for good."""
    owner = subprocess.Popen(command("HangsWhenMade", 1), env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not running_below(owner.pid):
        assert time.monotonic() < deadline and owner.poll() is None
        time.sleep(0.01)
    time.sleep(delay_seconds)
    owner.send_signal(sent)
    assert owner.wait(timeout=60) == -sent
    wait_until_clean(owner.pid)


# ---- the command


def run_arguments(bundle: Path, *more: str) -> list[str]:
    return ["command", str(bundle), "--engine", "lava", "--text", "a good film", *more]


@pytest.mark.parametrize(
    "fault, text",
    [
        ("Segfaults", "was killed by signal 11 (SIGSEGV)"),
        pytest.param("KillsItself", "was killed by signal 9 (SIGKILL", marks=pytest.mark.slow),
        pytest.param("KillsTheRuntime", "it was killed by signal 9 (SIGKILL", marks=pytest.mark.slow),
        pytest.param("KillsTheKeeper", "its keeper was killed by signal 9 (SIGKILL", marks=pytest.mark.slow),
        pytest.param("ExitsAtOnce", "ended by itself, with exit code 7", marks=pytest.mark.slow),
        pytest.param("TouchesLostMemory", "was killed by signal 7 (SIGBUS", marks=pytest.mark.slow),
        pytest.param("OpensTooManyFiles", "raise the hard limit (ulimit -Hn)", marks=pytest.mark.slow),
        pytest.param("StopsItself", "did not get beyond time_step 3 within 1 s", marks=pytest.mark.slow),
        pytest.param("Hangs", "did not get beyond time_step 3 within 1 s", marks=pytest.mark.slow),
    ],
)
def test_a_fault_ends_the_command_with_one_clear_message(bundle: Path, moment: Path, fault: str, text: str) -> None:
    step_seconds = 1 if "within 1 s" in text else 60
    owner = subprocess.Popen(
        command(fault, *run_arguments(bundle)),
        env=environment(LAVA_STEP_SECONDS=step_seconds),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert owner.stderr is not None
    error = owner.stderr.readline()
    came = time.monotonic()
    assert running_below(owner.pid) == []
    assert (*owner.communicate(timeout=60), owner.returncode) == ("", "", 3)
    assert error.startswith("error: Lava") and text in error and "Traceback" not in error
    assert came - float(moment.read_text()) < WITHIN_SECONDS + (1 if step_seconds == 1 else 0)


@pytest.mark.slow
@pytest.mark.parametrize("sent, times", [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 10)])
def test_an_interrupted_command_leaves_nothing(bundle: Path, tmp_path: Path, sent: signal.Signals, times: int) -> None:
    """Once, and by somebody who presses Ctrl-C again and again."""
    path = tmp_path / "many.tsv"
    path.write_text("text\n" + "a good film\n" * 5_000)
    arguments = ["command", str(bundle), "--engine", "lava", "--file", str(path)]
    owner = subprocess.Popen(command("IsSlow", *arguments), env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(running_below(owner.pid)) < 5:
        assert time.monotonic() < deadline and owner.poll() is None
        time.sleep(0.02)
    begun = time.monotonic()
    for _ in range(times):
        owner.send_signal(sent)
        time.sleep(0.01)
    _, errors = owner.communicate(timeout=60)
    assert time.monotonic() - begun < WITHIN_SECONDS
    if times == 1:
        assert (owner.returncode, errors) == (130, "interrupted\n")
    assert owner.returncode in (130, -signal.SIGINT)
    assert running_below(owner.pid) == []


# ---- too little of something


@pytest.mark.parametrize("short", ["file_descriptors", "tasks", "memory_bytes"])
def test_all_that_is_short_is_named(
    small: tuple[Graph, TokenBatch], short: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, batch = small
    plenty = Resources(1 << 40, 1 << 40, 1 << 40, 1 << 40)
    monkeypatch.setattr(resources, "available", lambda: Resources(**{**vars(plenty), short: 50}))
    with pytest.raises(ResourceError, match=f"{short} .* needed, 50 available: {resources.REMEDIES[short][:12]}"):
        LavaEngine(graph).run(batch)


def may(*arguments: str) -> bool:
    """Whether a command can be run here: namespaces need a right that not every container has."""
    return shutil.which(arguments[0]) is not None and not subprocess.run(arguments, capture_output=True).returncode


def without_shared_memory() -> tuple[str, ...]:
    """Put before a command: no file can be made in its /dev/shm."""
    if not may("unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"):
        pytest.skip("needs the right to make a mount namespace")
    return ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o ro tmpfs /dev/shm && exec "$@"', "sh")


@contextmanager
def control_group(controller: str, name: str, value: int) -> Iterator[tuple[str, ...]]:
    """Put before a command: it runs in a control group with this limit (of version 1 or 2)."""
    top = GROUPS if MEMORY_LIMIT == "memory.max" else GROUPS / controller
    folder = top / f"spikebert_test_{os.getpid()}"
    try:
        folder.mkdir()
        (folder / name).write_text(str(value))
    except OSError:
        pytest.skip(f"needs the right to make a control group with a limit {name}")
    try:
        yield ("sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh")
    finally:
        deadline = time.monotonic() + 10
        while (folder / "cgroup.procs").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        folder.rmdir()


def refused(prefix: tuple[str, ...], text: str, *, checked: bool, fault: str = "none") -> None:
    """An owner with too little says so in one message: before it starts, or, unchecked, when it meets the lack."""
    begun = time.monotonic()
    done = finished(fault, 4, prefix=prefix, **({} if checked else {"LAVA_UNCHECKED": 1}))
    assert time.monotonic() - begun < 60
    error = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and text in error, done.stderr
    assert ("targets.lava.resources.ResourceError: this machine has too little to start Lava" in error) == checked


def test_too_few_descriptors() -> None:
    refused(("prlimit", "--nofile=60:60"), "file_descriptors", checked=True)


@pytest.mark.parametrize("limit", [25, 40])
def test_too_few_descriptors_met_late(limit: int) -> None:
    refused(("prlimit", f"--nofile={limit}:{limit}"), "Too many open files", checked=False)


def test_too_little_address_space() -> None:
    refused(("prlimit", f"--as={2 << 30}"), "address_space_bytes", checked=True)


def test_nothing_is_made_in_shared_memory() -> None:
    """So nothing can be left there, whoever is killed when, and it may be as small as it likes."""
    script = """
import multiprocessing
import numpy as np
from random_graphs import random_batch, random_dag
from sim.reference import ReferenceEngine
from targets.lava.engine import LavaEngine

try:
    multiprocessing.Semaphore()
except OSError as error:
    print(error)
rng = np.random.default_rng(3)
graph = random_dag(rng, nodes=2, hidden=4, n_max=2)
batch = random_batch(rng, graph, 8)
engine = LavaEngine(graph)
assert np.array_equal(engine.run(batch).logits, ReferenceEngine(graph).run(batch).logits)
engine.close()
print("equal")
"""
    arguments = [*without_shared_memory(), sys.executable, "-c", script]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True)
    assert done.stdout == "[Errno 30] Read-only file system\nequal\n", done.stderr


@pytest.mark.slow
def test_too_few_processes_in_a_control_group() -> None:
    with control_group("pids", "pids.max", 40) as prefix:
        refused(prefix, "tasks", checked=True)
        refused(prefix, "raise the limit of processes", checked=False)


@pytest.mark.slow
def test_too_little_memory_in_a_control_group() -> None:
    with control_group("memory", MEMORY_LIMIT, 150 << 20) as prefix:
        refused(prefix, "memory_bytes", checked=True)


@pytest.mark.slow
def test_memory_that_runs_out_in_a_control_group() -> None:
    """The kernel kills the actor that takes it all."""
    with control_group("memory", MEMORY_LIMIT, 1 << 30) as prefix:
        refused(prefix, "SIGKILL; the kernel does that when memory runs out", checked=False, fault="TakesAllMemory")


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="changes its user, and root has no such limit")
def test_too_few_processes_of_a_user() -> None:
    user = ("setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=+dac_override", "--ambient-caps=+dac_override")
    if not may(*user, sys.executable, "-c", "import targets.lava, lava.magma"):  # dac_override: it may read all files
        pytest.skip("needs the right to become another user")
    prefix = ("prlimit", "--nproc=20:20", *user)
    refused(prefix, "tasks", checked=True)
    refused(prefix, "raise the limit of processes", checked=False)


def test_limits_of_control_groups_are_read(tmp_path: Path) -> None:
    """Both versions, from the group of this process up to the topmost, the least counts."""
    first, second = tmp_path / "v1", tmp_path / "v2"
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text("5:pids:/docker/a\n4:memory:/docker/a\n0::/outer/inner\n")
    (proc / "mountinfo").write_text(
        f"40 31 0:37 /docker/a {first}/pids rw - cgroup cgroup rw,pids\n"
        f"41 31 0:37 /docker/a {first}/memory rw shared:9 - cgroup cgroup rw,memory\n"
        f"42 31 0:38 / {second} rw,relatime - cgroup2 cgroup2 rw\n"
    )
    (first / "pids").mkdir(parents=True)
    (first / "memory").mkdir()
    (second / "outer" / "inner").mkdir(parents=True)
    assert vars(left_in_cgroups(10**12, proc)) == {"memory_bytes": 10**12, "tasks": 10**12}
    (first / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (first / "memory" / "memory.usage_in_bytes").write_text("5000\n")
    (second / "outer" / "memory.max").write_text("9000\n")
    (second / "outer" / "memory.current").write_text("8000\n")
    (second / "outer" / "memory.stat").write_text("anon 7000\ninactive_file 600\nactive_file 100\n")
    (second / "outer" / "inner" / "memory.max").write_text("max\n")
    (second / "outer" / "inner" / "memory.current").write_text("8000\n")
    (second / "outer" / "inner" / "pids.max").write_text("100\n")
    (second / "outer" / "inner" / "pids.current").write_text("30\n")
    assert vars(left_in_cgroups(10**12, proc)) == {"memory_bytes": 1700, "tasks": 70}
    (first / "memory" / "memory.limit_in_bytes").write_text("6000\n")
    (first / "memory" / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 200\n")
    (first / "pids" / "pids.max").write_text("20\n")
    (first / "pids" / "pids.current").write_text("30\n")
    assert vars(left_in_cgroups(10**12, proc)) == {"memory_bytes": 1200, "tasks": 0}


class DescriptorsWatch(threading.Thread):
    """The most descriptors that a process below this one holds, from now until `done`: most of them while it starts."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.done, self.peak = threading.Event(), 0

    def run(self) -> None:
        while not self.done.wait(0.02):
            for pid in running_below(os.getpid()):
                with suppress(FileNotFoundError, ProcessLookupError):  # it ended just now
                    self.peak = max(self.peak, len(os.listdir(f"/proc/{pid}/fd")))


def bytes_of(pids: list[int], file: str, field: str) -> list[int]:
    """Bytes of a field in kB, of each process."""
    return [int(Path(f"/proc/{pid}/{file}").read_text().split(f"{field}:")[1].split()[0]) * 1024 for pid in pids]


def use_is_within_the_estimate(graph: Graph, models: dict[str, str] | None) -> None:
    """Start a network that records every node, and hold the estimate against what it takes."""
    watch = DescriptorsWatch()
    watch.start()
    engine = LavaEngine(graph, models)
    engine.run(random_batch(np.random.default_rng(0), graph, 2), [node.name for node in graph])
    watch.done.set()
    watch.join()
    session = engine._session
    below = session_members(session.network.pid)
    used = Resources(
        file_descriptors=watch.peak,
        tasks=sum(len(os.listdir(f"/proc/{pid}/task")) for pid in below),
        memory_bytes=sum(bytes_of(below, "smaps_rollup", "Pss")),
        address_space_bytes=max(bytes_of(below, "status", "VmPeak")),
    )
    groups = group(engine.plan, engine._grouping, session.layout.names, engine._cores)
    want = needed(engine.plan, groups, session.layout)
    engine.close()
    assert len(below) == resources.actors(groups, session.layout) + 2
    for name, value in vars(used).items():
        assert 0.3 * vars(want)[name] < value <= vars(want)[name], (name, value, want)


@pytest.mark.parametrize("models", [None, dict(FAST_MODELS)], ids=["grouped", "apart"])
def test_the_estimate_of_resources_covers_what_is_used(
    small: tuple[Graph, TokenBatch], models: dict[str, str] | None
) -> None:
    use_is_within_the_estimate(small[0], models)


@pytest.mark.slow
@pytest.mark.parametrize("models", [None, dict(FAST_MODELS)], ids=["grouped", "apart"])
def test_the_estimate_covers_a_large_network(models: dict[str, str] | None) -> None:
    graph = random_graph(np.random.default_rng(0), blocks=6, hidden=192, heads=6, n_max=32)
    use_is_within_the_estimate(graph, models)


@pytest.mark.slow
def test_the_first_command_of_the_readme_on_a_small_machine() -> None:
    """1024 descriptors and no /dev/shm."""
    arguments = ["command", "reviews", "--text", "a gripping , funny film", "--engine", "lava", "--verify"]
    done = finished("none", *arguments, prefix=(*without_shared_memory(), "prlimit", "--nofile=1024:1024"))
    assert done.returncode == 0, done.stderr
    assert "0 mismatches" in done.stdout or "0 differ" in done.stdout or "equal" in done.stdout, done.stdout


# ---- containers whose process 1 does not reap

FIRST = """
import os, subprocess, sys, time
from pathlib import Path
def zombies():
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try: found.append(stat.read_text().rpartition(")")[2].split()[0] == "Z")
        except (FileNotFoundError, ProcessLookupError): pass
    return sum(found)
owner = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
owner.wait()
time.sleep(0.5)
print(owner.returncode, zombies())
"""


def in_a_process_namespace() -> tuple[str, ...]:
    if not may("unshare", "--pid", "--fork", "--mount-proc", "true"):
        pytest.skip("needs the right to make a process namespace")
    return ("unshare", "--pid", "--fork", "--mount-proc")


@pytest.mark.parametrize("fault", ["KillsTheRuntime", "Segfaults"])
def test_no_zombie_is_left_where_process_1_does_not_reap(fault: str) -> None:
    done = subprocess.run(
        [*in_a_process_namespace(), sys.executable, "-c", FIRST, *command(fault, 4)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "1 0\n", done.stderr


def test_an_owner_that_is_process_1_reaps_what_a_killed_keeper_leaves() -> None:
    script = """
import os, sys
from pathlib import Path
import numpy as np
from random_graphs import random_batch, random_dag
from targets.lava.engine import FAST_MODELS, LavaEngine
rng = np.random.default_rng(3)
graph = random_dag(rng, nodes=2, hidden=4, n_max=2)
engine = LavaEngine(graph, {**FAST_MODELS, "lava.proc.conv.process:Conv": "lava_faults:KillsTheKeeper"})
try:
    engine.run(random_batch(rng, graph, 2))
except RuntimeError as error:
    print(error)
print(os.getpid(), sorted(path.name for path in Path("/proc").glob("[0-9]*")))
"""
    done = subprocess.run(
        [*in_a_process_namespace(), sys.executable, "-c", script], env=environment(), capture_output=True, text=True
    )
    assert "its keeper was killed by signal 9" in done.stdout and done.stdout.endswith("1 ['1']\n"), done


# ---- kills at random


@pytest.mark.slow
def test_random_kills() -> None:
    graph = random_graph(np.random.default_rng(0), blocks=1)
    rows = list(kill_runs(10, seed=7, graph=graph, batch=random_batch(np.random.default_rng(1), graph, 64)))
    assert len(rows) == 10
    for row in rows:
        assert row.is_right, row
    assert sum(row.error != "" for row in rows) >= 5  # the others were killed when the run was over
