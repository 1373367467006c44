"""A share of one sample as one compiled call, which other threads help with.

Calling compiled functions one by one from Python takes a tenth of the time of a sentence, and needs the interpreter's
lock each time. Here their arguments are written down as numbers beforehand, a table of *works*, and one compiled
function goes through them all. A work of several units is shared with helpers, threads that wait for it: whoever is
free takes the next unit. Nobody waits for a helper to come, only for units that one has begun. (On a busy machine that
may take a while, when the system has another program run in the midst of one.)
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numba import carray, cfunc, types
from numba.extending import overload

from sim.fast import atomics, kernels, vectors
from sim.fast.atomics import add, call, exchange, load, pause, pointer, real, store
from sim.fast.vectors import aligned
from spikebert.compiled import compiled

BUILT_ON = "cddd7e346c7b"  # see CONTRIBUTING.md, "Changing the fast engine"
PATIENCE = 30_000  # pauses until a helper goes to sleep, about a millisecond on x86

# Words of a board; those before FUNCTION each have a cache line of their own. TICKET: which work is shared, how many
# units it has, and the next one to be taken; DONE: how many are finished. Those two are changed by atomic operations.
TICKET, DONE, STOP, FUNCTION, WORDS, EPOCH = 0, 8, 16, 24, 25, 26
BOARD = 32
FAILED = 0  # the first of a work's words: whether a unit of it raised an error
WORDS_MOST = 100  # of a work, for what it has is known from its layout
UNIT_BITS = 15
UNIT_MASK = (1 << UNIT_BITS) - 1

KINDS = {
    "b": np.int8, "h": np.int16, "i": np.int32, "l": np.int64, "L": np.uint64, "I": np.uint32, "f": np.float32,
    "d": np.float64,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Work:
    """A kernel and its arguments; with `units`, the kernel takes the number of one as its last argument."""

    kernel: Callable
    arguments: tuple
    units: int = 0

    def __call__(self) -> None:
        """All of it, here and now."""
        if not self.units:
            self.kernel(*self.arguments)
        for unit in range(self.units):
            self.kernel(*self.arguments, unit)


class Team:
    """Helpers for one thread that has a sentence: threads of their own, started when they are first wanted.

    shared  whether they may help now
    """

    def __init__(self, helpers: int) -> None:
        self.board = aligned((BOARD,), np.int64)
        self.helpers, self.shared = helpers, False
        self._awake = [threading.Event() for _ in range(helpers)]
        self._started = False

    def begin(self, shared: bool) -> None:
        """A sentence begins. If it may be shared, helpers that sleep look for work."""
        self.shared = shared and self.helpers > 0
        if not self.shared:
            return
        if not self._started:
            self._started = True
            _help_out(np.ones(BOARD, np.int64))  # compiles it here: a program that ends must not find a thread at that
            for event in self._awake:
                threading.Thread(target=_help, args=(self.board, event), name="fast-helper", daemon=True).start()
        for event in self._awake:
            if not event.is_set():
                event.set()

    def close(self) -> None:
        """Ends the threads."""
        self.board[STOP] = 1
        for event in self._awake:
            event.set()


class Program:
    """Works one after another. The arrays in their arguments are read and written where they lie.

    team  helps with works of several units, where it may
    """

    def __init__(self, works: Sequence[Work], team: Team) -> None:
        self._works, self._team = tuple(works), team  # keeps their arrays
        self._functions = [_function_of(work) for work in works]
        size = max(_places(layout)[-1] for _, layout in self._functions)
        self._words = np.zeros((len(works), size), np.int64)
        self._table = np.zeros((len(works), 3), np.int64)
        for words, row, work, (function, layout) in zip(self._words, self._table, works, self._functions):
            _write(work, layout, words)
            row[:] = function.address, words.ctypes.data, work.units
        if max(work.units for work in works) > UNIT_MASK:
            raise ValueError(f"a work of more than {UNIT_MASK} units")

    def __call__(self) -> None:
        _run(self._table, self._team.board, self._team.shared)
        if self._words[:, FAILED].any():  # what a C function raises goes nowhere
            self._words[:, FAILED] = 0
            raise MemoryError("the fast engine has too little memory for a sentence")


def team_of(owner: object, helpers: int) -> Team:
    """A team whose threads end with its owner, or with the program."""
    team = Team(helpers)
    weakref.finalize(owner, team.close)
    return team


def _help(board: np.ndarray, awake: threading.Event) -> None:
    while not board[STOP]:
        awake.wait()
        awake.clear()  # before it helps, so that no call is lost
        _help_out(board)


@compiled(nogil=True)
def _help_out(board: np.ndarray) -> None:
    """Take units of what is shared, until there has been nothing to do for a while."""
    idle = 0
    while idle < PATIENCE and load(board, STOP) == 0:
        ticket = load(board, TICKET)
        unit = ticket & UNIT_MASK
        if unit >= (ticket >> UNIT_BITS) & UNIT_MASK:
            pause()
            idle += 1
            continue
        # These belong to the ticket if it is still valid below: its work can't be finished while a unit is left.
        function, words = board[FUNCTION], board[WORDS]
        if exchange(board, TICKET, ticket, ticket + 1):
            call(function, words, unit)
            add(board, DONE, 1)
            idle = 0


@compiled(nogil=True)
def _run(table: np.ndarray, board: np.ndarray, shared: bool) -> None:
    """All works of table int64 [works, 3]: the function's address, that of its arguments, and how many units."""
    for row in range(table.shape[0]):
        function, words, units = table[row]
        if units < 2 or not shared:
            for unit in range(max(1, units)):
                call(function, words, unit)
            continue
        board[FUNCTION], board[WORDS], board[EPOCH] = function, words, board[EPOCH] + 1
        store(board, DONE, 0)
        store(board, TICKET, (board[EPOCH] << (2 * UNIT_BITS)) | (units << UNIT_BITS))
        while True:
            ticket = load(board, TICKET)
            unit = ticket & UNIT_MASK
            if unit >= units:
                break
            if exchange(board, TICKET, ticket, ticket + 1):
                call(function, words, unit)
                add(board, DONE, 1)
        while load(board, DONE) < units:
            pause()


# How a kernel's arguments are written down, one word each: "?" a boolean, "n" an integer, "f" or "d" a real number,
# "u" the number of the unit, else an array: the type of its elements and how many dimensions it has. Then what kernels
# they are: numba keeps what it compiled until this file changes or the layout does, and the kernels are in other files.
_FILES = [Path(str(module.__file__)) for module in (kernels, vectors, atomics)]
SOURCES = sha256(b"".join(file.read_bytes() for file in _FILES)).hexdigest()


def unpack(words: np.ndarray, layout: str, unit: int) -> tuple:
    """The arguments of such a layout, in compiled code."""
    raise NotImplementedError("compiled code alone can do this")


@overload(unpack, prefer_literal=True, strict=False)  # not strict: hints may differ
def _unpack(words: Any, layout: Any, unit: Any) -> Callable | None:
    if not isinstance(layout, types.StringLiteral):
        return None  # numba tries that too, to tell of an error
    values = []
    for at, kind in zip(_places(layout.literal_value), _arguments(layout.literal_value)):
        if kind == "u":
            values.append("unit")
        elif kind == "n":
            values.append(f"words[{at}]")
        elif kind == "?":
            values.append(f"words[{at}] != 0")
        elif kind in ("f", "d"):
            values.append(f"{KINDS[kind].__name__}(real(words[{at}]))")
        else:
            shape = "".join(f"words[{at + 1 + axis}]," for axis in range(int(kind[1])))
            values.append(f"carray(pointer(words[{at}]), ({shape}), {KINDS[kind[0]].__name__})")
    space: dict[str, Any] = {"carray": carray, "pointer": pointer, "real": real}
    space.update((kind.__name__, kind) for kind in KINDS.values())
    exec(f"def arguments(words, layout, unit):\n    return ({', '.join(values)},)\n", space)
    made: Callable = space["arguments"]
    return made


def _layout(arguments: str) -> str:
    return f"{arguments} # {SOURCES}"


def _arguments(layout: str) -> list[str]:
    return layout.split("#")[0].split()


def _places(layout: str) -> list[int]:
    """Where each argument begins in a work's words, behind FAILED; at last, how many words there are. A number takes
    one, an array one for its address and one for each dimension."""
    sizes = [1 + int(kind[1:] or 0) for kind in _arguments(layout)]
    return list(accumulate(sizes, initial=FAILED + 1))


def _write(work: Work, layout: str, words: np.ndarray) -> None:
    """A work's arguments into its words. Raises TypeError where they are not of the layout."""
    kinds = [kind for kind in _arguments(layout) if kind != "u"]  # that comes last
    if len(kinds) != len(work.arguments):
        raise TypeError(f"{work.kernel.__name__} takes {len(kinds)} arguments, not {len(work.arguments)}")
    for number, (at, kind, value) in enumerate(zip(_places(layout), kinds, work.arguments)):
        if isinstance(value, np.ndarray):
            dtype, fits = np.dtype(KINDS.get(kind[0], object)), value.flags.c_contiguous and kind[1:] == str(value.ndim)
            if not fits or value.dtype != dtype:
                raise TypeError(f"{work.kernel.__name__}, argument {number}: {value.dtype} of {value.ndim}, not {kind}")
            words[at], words[at + 1 : at + 1 + value.ndim] = value.ctypes.data, value.shape
        elif kind in ("f", "d"):
            words[at : at + 1].view(np.float64)[0] = value
        elif kind in "n?":
            words[at] = value
        else:
            raise TypeError(f"{work.kernel.__name__}, argument {number}: {value!r}, not an array")


def _kind(values: np.ndarray) -> str:
    """The letter of KINDS."""
    return next(letter for letter, kind in KINDS.items() if values.dtype == kind)


def _function_of(work: Work) -> tuple[Any, str]:
    """The C function that calls a work's kernel, and the layout of its arguments."""
    kernel, arguments = work.kernel, work.arguments
    if kernel is kernels.add_block:
        return _add_block(_kind(arguments[3]), _kind(arguments[8]))
    if kernel is kernels.synapses:
        return _synapses(_kind(arguments[3]), _kind(arguments[8]))
    if kernel is kernels.attention:
        return _attention(_kind(arguments[10]), _kind(arguments[14]))
    if kernel is kernels.encode:
        return _encode(_kind(arguments[8]))
    others = {
        kernels.list_spikes: _list_spikes,
        kernels.count_spikes: _count_spikes,
        kernels.add: _add,
        kernels.read_out: _read_out,
    }
    return others[kernel]()


def c_function(function: Callable) -> Any:
    """A function of two int64 for `call`: the address of a work's words, and a unit. Kept on disk as in `compiled`."""
    signature = types.void(types.int64, types.int64)
    try:
        return cfunc(signature, cache=True)(function)
    except RuntimeError:  # numba's "no locator available"
        return cfunc(signature)(function)


@compiled(nogil=True, inline="always")
def _words(address: int) -> np.ndarray:
    return carray(pointer(address), WORDS_MOST, np.int64)


# One for each kernel, and the types of the sums and of the thresholds in it. They are alike, but numba keeps on disk no
# function that is given its kernel: it knows functions by what they hold, and a kernel is another in each process.


@lru_cache(None)
def _list_spikes() -> tuple[Any, str]:
    layout = _layout("L4 n n n n I1 l2 l2 u")

    @c_function
    def run(address: int, unit: int) -> None:
        arguments = unpack(_words(address), layout, unit)
        try:
            kernels.list_spikes(*arguments)
        except Exception:
            _words(address)[FAILED] = 1

    return run, layout


@lru_cache(None)
def _add_block(cells: str, level: str) -> tuple[Any, str]:
    layout = _layout(f"L4 b3 n {cells}1 ? ? ? ? {level}1 {level} l2 L1 i3 I1 l2 l2 l1 {level}2 l1 ? n n u")

    @c_function
    def run(address: int, unit: int) -> None:
        arguments = unpack(_words(address), layout, unit)
        try:
            kernels.add_block(*arguments)
        except Exception:
            _words(address)[FAILED] = 1

    return run, layout


@lru_cache(None)
def _synapses(cells: str, level: str) -> tuple[Any, str]:
    layout = _layout(f"L4 b3 n {cells}1 ? ? ? ? {level}1 {level} l2 L1 i3 I1 l2 l2 l1 {level}2 l1 ?")

    @c_function
    def run(address: int, unit: int) -> None:
        arguments = unpack(_words(address), layout, unit)
        try:
            kernels.synapses(*arguments)
        except Exception:
            _words(address)[FAILED] = 1

    return run, layout


@lru_cache(None)
def _count_spikes() -> tuple[Any, str]:
    layout = _layout("L1 l2 n l1")

    @c_function
    def run(address: int, unit: int) -> None:
        arguments = unpack(_words(address), layout, unit)
        try:
            kernels.count_spikes(*arguments)
        except Exception:
            _words(address)[FAILED] = 1

    return run, layout


@lru_cache(None)
def _attention(scores: str, level: str) -> tuple[Any, str]:
    layout = _layout(f"L4 L4 L4 L3 l1 n n n ? i3 {scores}1 ? ? ? {level}1 {level} L3 i3 i1 l1 l1 {level}2 l1 ? n u")

    @c_function
    def run(address: int, unit: int) -> None:
        arguments = unpack(_words(address), layout, unit)
        try:
            kernels.attention(*arguments)
        except Exception:
            _words(address)[FAILED] = 1

    return run, layout


@lru_cache(None)
def _encode(level: str) -> tuple[Any, str]:
    layout = _layout(f"l1 l1 b2 i2 L3 ? ? ? {level}1 {level} L3 l1 l1 {level}2 l1 ?")

    @c_function
    def run(address: int, unit: int) -> None:
        arguments = unpack(_words(address), layout, unit)
        try:
            kernels.encode(*arguments)
        except Exception:
            _words(address)[FAILED] = 1

    return run, layout


@lru_cache(None)
def _add() -> tuple[Any, str]:
    layout = _layout("L4 L4 L4 l1 l1 l1 l1")

    @c_function
    def run(address: int, unit: int) -> None:
        arguments = unpack(_words(address), layout, unit)
        try:
            kernels.add(*arguments)
        except Exception:
            _words(address)[FAILED] = 1

    return run, layout


@lru_cache(None)
def _read_out() -> tuple[Any, str]:
    layout = _layout("l2 l2 l1 l1 l2 l2")

    @c_function
    def run(address: int, unit: int) -> None:
        arguments = unpack(_words(address), layout, unit)
        try:
            kernels.read_out(*arguments)
        except Exception:
            _words(address)[FAILED] = 1

    return run, layout
