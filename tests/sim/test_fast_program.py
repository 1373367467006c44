"""Works as one compiled call, and the threads that share them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from numba import carray

from sim.fast import kernels, program
from sim.fast.atomics import pointer
from sim.fast.program import FAILED, STOP, UNIT_MASK, Program, Team, Work, _run, c_function

UNITS, SLOWEST = 13, 2000


@c_function
def _count(address: int, unit: int) -> None:
    """counts[unit] += 1, after a while that is another one for each unit; no unit may run twice at a time."""
    counts = carray(pointer(address), UNITS, np.int64)
    before, total = counts[unit], 0
    for i in range(SLOWEST * (unit % 3)):
        total += counts[i % UNITS] & i
    counts[unit] = before + 1 + (total < 0)


@pytest.fixture(params=[0, 1, 4])
def team(request: pytest.FixtureRequest) -> Iterator[Team]:
    team = Team(request.param)
    yield team
    team.close()


def test_every_unit_is_done_once(team: Team) -> None:
    """By helpers that wait, that sleep, that come late: with 4 there are more threads than most machines have cores."""
    counts = np.zeros((3, UNITS), np.int64)
    table = np.array([(_count.address, row.ctypes.data, UNITS) for row in counts])
    for times in range(1, 1001):
        if times % 50 == 1:
            team.begin(True)
        _run(table, team.board, times % 7 != 0)
        assert np.array_equal(counts, np.full_like(counts, times))


def test_helpers_take_units() -> None:
    """A negative control of the test above: were they never to come, it would tell nothing. The main thread is made to
    wait for them: it only publishes, with the last unit taken by somebody else."""
    from sim.fast.program import DONE, FUNCTION, TICKET, UNIT_BITS, WORDS

    team, counts = Team(2), np.zeros(UNITS, np.int64)
    team.board[FUNCTION], team.board[WORDS] = _count.address, counts.ctypes.data
    team.board[TICKET] = (1 << 2 * UNIT_BITS) | (UNITS << UNIT_BITS)
    deadline = time.monotonic() + 30
    while team.board[DONE] < UNITS:
        assert time.monotonic() < deadline
        team.begin(True)
        time.sleep(0.001)
    team.close()
    assert np.array_equal(counts, np.ones(UNITS, np.int64))
    assert team.board[TICKET] & UNIT_MASK == UNITS


def test_no_thread_is_started_before_it_is_wanted() -> None:
    before = set(threading.enumerate())
    team = Team(3)
    assert set(threading.enumerate()) <= before and team.board[STOP] == 0


def test_what_a_kernel_raises_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """C functions have nobody to raise it to."""

    @c_function
    def run(address: int, unit: int) -> None:
        words = carray(pointer(address), 1, np.int64)
        try:
            if unit == 0:
                raise ValueError
        except Exception:
            words[FAILED] = 1

    monkeypatch.setattr(program, "_function_of", lambda work: (run, "n"))
    failing = Program([Work(kernels.add, (1,))], Team(0))
    with pytest.raises(MemoryError, match="too little memory for a sentence"):
        failing()


@pytest.mark.parametrize(
    ("file", "sources"),
    [("kernels", ("vectors", "atomics")), ("wiring", ("vectors", "kernels")), ("program", ("atomics", "kernels"))],
)
def test_files_name_what_they_are_built_on(file: str, sources: tuple[str, ...]) -> None:
    """Else numba would run what it compiled before from other sources."""
    folder = Path(program.__file__).parent
    made = sha256(b"".join((folder / f"{name}.py").read_bytes() for name in sources)).hexdigest()[:12]
    text = (folder / f"{file}.py").read_text()
    assert f'BUILT_ON = "{made}"' in text, f"write it in sim/fast/{file}.py: {', '.join(sources)} changed"


ADD = tuple(np.zeros((1, 2, 3, 1), np.uint64) for _ in range(3)) + tuple(np.zeros(64, np.int64) for _ in range(4))


@pytest.mark.parametrize(
    ("number", "value", "words"),
    [
        (0, ADD[0].astype(np.int64), "argument 0: int64"),
        (1, ADD[1][0], "argument 1: uint64 of 3"),
        (2, np.zeros((1, 2, 3, 2), np.uint64)[..., :1], "argument 2"),
        (3, 5, "argument 3: 5, not an array"),
    ],
)
def test_arguments_of_another_kind_are_refused(number: int, value: object, words: str) -> None:
    """Compiled code would read other memory."""
    arguments = (*ADD[:number], value, *ADD[number + 1 :])
    with pytest.raises(TypeError, match=f"add.*{words}"):
        Program([Work(kernels.add, arguments)], Team(0))


def test_arguments_that_are_missing_are_refused() -> None:
    with pytest.raises(TypeError, match="takes 7 arguments, not 6"):
        Program([Work(kernels.add, ADD[:-1])], Team(0))


def test_a_number_for_an_array_is_refused() -> None:
    with pytest.raises(TypeError, match="list_spikes, argument 1"):
        arguments = ADD[0], ADD[3], 9, 9, 9, *(ADD[3] for _ in range(3))
        Program([Work(kernels.list_spikes, arguments)], Team(0))


def test_what_a_work_does_is_what_its_kernel_does() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2**63, (1, 2, 3, 1)).astype(np.uint64) for _ in range(2))
    results = []
    for way in ("call", "program"):
        out, counts = np.zeros((2, 2, 3, 1), np.uint64), [np.full(64, i) for i in range(4)]
        work = Work(kernels.add, (a, b, out, *counts))
        if way == "call":
            work()
        else:
            Program([work], Team(0))()
        results.append([out, *counts])
    assert all(np.array_equal(*pair) for pair in zip(*results))
    assert results[0][0].any()
