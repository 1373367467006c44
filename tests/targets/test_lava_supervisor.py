"""The real runtime when things go wrong: a clear error, nothing left behind, and the next run works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lava.magma")

from random_graphs import random_batch, random_dag

from converters.execution import TokenBatch
from converters.graph import Graph
from sim.reference import ReferenceEngine
from targets.lava import resources
from targets.lava.child import session_members
from targets.lava.engine import FAST_MODELS, LavaEngine
from targets.lava.lowering import SynapsesSpec, lower
from targets.lava.resources import ResourceError, Resources
from targets.lava.supervisor import LavaRuntimeError, LavaTimeoutError

CONV = "lava.proc.conv.process:Conv"
SHARED_MEMORY = Path("/dev/shm")


def faulty(name: str) -> dict[str, str]:
    return {**FAST_MODELS, CONV: f"lava_faults:{name}"}


@pytest.fixture
def small() -> tuple[Graph, TokenBatch]:
    rng = np.random.default_rng(3)
    graph = random_dag(rng, nodes=2, hidden=4, n_max=2)
    return graph, random_batch(rng, graph, 2)


def segments(owner_pid: int) -> list[str]:
    return [path.name for path in SHARED_MEMORY.glob(f"psm_spikebert_{owner_pid}_*")]


def wait_for_child(parent: int) -> int:
    """The first child process of `parent`, as soon as there is one."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.02)
    raise AssertionError(f"process {parent} has started no child")


def wait_until_clean(leader: int, owner_pid: int, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while session_members(leader) or segments(owner_pid):
        assert time.monotonic() < deadline, (session_members(leader), segments(owner_pid))
        time.sleep(0.05)


@pytest.mark.parametrize(
    "fault, text",
    [
        ("RaisesBeforeSending", "a fault put here by a test, before sending"),
        ("RaisesAfterSending", "a fault put here by a test, after sending"),
        ("RaisesWhenMade", "a fault put here by a test, while building"),
    ],
)
def test_a_traceback_reaches_the_caller(small: tuple[Graph, TokenBatch], fault: str, text: str) -> None:
    graph, batch = small
    engine = LavaEngine(graph, faulty(fault))
    with pytest.raises(LavaRuntimeError) as raised:
        engine.run(batch)
    assert f"ArithmeticError: {text}" in str(raised.value) and "lava_faults.py" in str(raised.value)
    assert segments(os.getpid()) == []
    engine.close()


def test_the_failing_process_is_named(small: tuple[Graph, TokenBatch]) -> None:
    graph, batch = small
    with pytest.raises(LavaRuntimeError) as raised:
        LavaEngine(graph, faulty("KillsItself")).run(batch)
    assert "was killed by signal 9" in str(raised.value)
    layers = [spec.name for spec in lower(graph).specs if isinstance(spec, SynapsesSpec)]  # those that the fault is in
    assert any(f"'{name}'" in str(raised.value) for name in layers)


def test_a_hang_hits_the_deadline(small: tuple[Graph, TokenBatch]) -> None:
    graph, batch = small
    engine = LavaEngine(graph, faulty("Hangs"), step_seconds=0.1)
    begun = time.monotonic()
    with pytest.raises(LavaTimeoutError, match="did not answer within"):
        engine.run(batch)
    assert time.monotonic() - begun < 30
    assert segments(os.getpid()) == []


def test_a_start_that_takes_too_long_hits_the_deadline(small: tuple[Graph, TokenBatch]) -> None:
    graph, batch = small
    with pytest.raises(LavaTimeoutError):
        LavaEngine(graph, start_seconds=0.05).run(batch)
    assert segments(os.getpid()) == []


def test_a_killed_child_is_noticed_and_the_next_run_works(small: tuple[Graph, TokenBatch]) -> None:
    graph, batch = small
    expected = ReferenceEngine(graph).run(batch)
    engine = LavaEngine(graph)
    assert np.array_equal(engine.run(batch).logits, expected.logits)
    child = engine._session._program.pid
    os.kill(child, signal.SIGKILL)
    with pytest.raises(LavaRuntimeError, match="died"):
        engine.run(batch)
    wait_until_clean(child, os.getpid())
    assert np.array_equal(engine.run(batch).logits, expected.logits)
    engine.close()
    assert segments(os.getpid()) == []


def test_close_leaves_nothing_and_may_be_called_twice(small: tuple[Graph, TokenBatch]) -> None:
    graph, batch = small
    before = len(os.listdir("/proc/self/fd"))
    engine = LavaEngine(graph)
    engine.run(batch)
    child = engine._session._program.pid
    assert segments(os.getpid()) != []
    engine.close()
    engine.close()
    assert session_members(child) == [] and segments(os.getpid()) == []
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(RuntimeError, match="closed"):
        engine.run(batch)


def test_an_engine_that_is_dropped_leaves_nothing(small: tuple[Graph, TokenBatch]) -> None:
    graph, batch = small
    engine = LavaEngine(graph)
    engine.run(batch)
    child = engine._session._program.pid
    del engine
    assert session_members(child) == [] and segments(os.getpid()) == []


OWNER = """
import sys
sys.path[:] = {path!r}
import numpy as np
from random_graphs import random_batch, random_dag
from targets.lava.engine import LavaEngine
from test_lava_supervisor import faulty

rng = np.random.default_rng(3)
graph = random_dag(rng, nodes=2, hidden=4, n_max=2)
engine = LavaEngine(graph, faulty("IsSlow"))
engine.run(random_batch(rng, graph, 1))
print(engine._session._program.pid, flush=True)
engine.run(random_batch(rng, graph, 500))
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_owner_leaves_nothing(sent: signal.Signals) -> None:
    script = OWNER.format(path=[str(Path(__file__).parent), *sys.path])
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    child = int(owner.stdout.readline())
    time.sleep(0.5)  # in the midst of a run
    assert len(session_members(child)) > 3 and segments(owner.pid) != []
    owner.send_signal(sent)
    _, errors = owner.communicate(timeout=30)
    assert owner.returncode != 0
    assert ("KeyboardInterrupt" in errors) == (sent is signal.SIGINT)
    wait_until_clean(child, owner.pid)


@pytest.mark.parametrize("delay_seconds", [0.0, 0.03, 0.06, 0.1, 0.2, 1.0])
def test_an_owner_killed_while_the_network_starts_leaves_nothing(delay_seconds: float) -> None:
    """The model hangs while it is built, so the child's main thread is caught in Lava for good."""
    script = OWNER.format(path=[str(Path(__file__).parent), *sys.path]).replace("IsSlow", "HangsWhenMade")
    owner = subprocess.Popen([sys.executable, "-c", script])
    child = wait_for_child(owner.pid)
    while segments(owner.pid) == []:
        time.sleep(0.01)
    time.sleep(delay_seconds)
    owner.kill()
    owner.wait()
    wait_until_clean(child, owner.pid)


def test_owner_and_child_killed_together_leave_no_process() -> None:
    script = OWNER.format(path=[str(Path(__file__).parent), *sys.path])
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(owner.stdout.readline())
    os.kill(owner.pid, signal.SIGSTOP)  # it must not clean up
    os.kill(child, signal.SIGKILL)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    wait_until_clean(child, owner.pid)


def test_shared_memory_of_others_is_left_alone(small: tuple[Graph, TokenBatch]) -> None:
    graph, batch = small
    other = SHARED_MEMORY / f"psm_other_{os.getpid()}"
    other.write_bytes(b"x")
    try:
        engine = LavaEngine(graph)
        engine.run(batch)
        engine.close()
        assert other.exists()
    finally:
        other.unlink()


@pytest.mark.parametrize("short", ["file_descriptors", "shared_memory_bytes", "memory_bytes"])
def test_too_few_resources_are_refused(
    small: tuple[Graph, TokenBatch], short: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, batch = small
    plenty = {"file_descriptors": 1 << 40, "shared_memory_bytes": 1 << 40, "memory_bytes": 1 << 40}
    monkeypatch.setattr(resources, "available", lambda: Resources(**{**plenty, short: 50}))
    with pytest.raises(ResourceError, match=f"{short} .* needed, 50 available"):
        LavaEngine(graph).run(batch)


def test_the_estimate_of_resources_covers_what_is_used(small: tuple[Graph, TokenBatch]) -> None:
    graph, batch = small
    engine = LavaEngine(graph)
    engine.run(batch, [node.name for node in graph])
    want = resources.needed(engine.plan, engine._session.layout)
    descriptors = len(os.listdir(f"/proc/{engine._session._program.pid}/fd"))
    shared = sum((SHARED_MEMORY / name).stat().st_blocks * 512 for name in segments(os.getpid()))
    engine.close()
    assert 0 < descriptors <= want.file_descriptors
    assert 0 < shared <= want.shared_memory_bytes
