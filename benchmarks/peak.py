"""How fast this machine adds: loops that do nothing but what a spike costs, with the operands in a cache of choice.

One *add* is: an int8 weight is read from the cache, widened and added to a 16-bit sum, as each synaptic operation of a
spike needs. No lists of spikes, no neurons, no counts. An engine that makes one add for each operation stays below
these rates; one that serves several operations by one add need not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from benchmarks.timing import cpu_flags
from sim.fast.vectors import aligned
from spikebert.commands import processors

Loop = Callable[[np.ndarray, np.ndarray, int], None]  # int8 [rows, width], int16 [width] added to, how many times

FIRST_LEVEL, SECOND_LEVEL = 16 << 10, 192 << 10  # bytes of weights a core goes through again and again
MEMORY = 128 << 20  # bytes a core reads from memory
WIDTH = 1536  # features of the plain loop: those of the widest layer of our networks
VECTORS, LANES = 12, 16  # sums of the other loop, all in registers: 12 vectors of 16
TRIAL = 200  # how often weights are added to see how long that takes
REPEATS = 5
REPEAT_SECONDS = 0.1


@njit(nogil=True, error_model="numpy")
def plain(weight: np.ndarray, sums: np.ndarray, times: int) -> None:
    """Adds the rows of a matrix, eight at a time; the compiler makes vectors of it."""
    rows, width = weight.shape
    for _ in range(times):
        for r in range(0, rows, 8):
            w0, w1, w2, w3 = weight[r], weight[r + 1], weight[r + 2], weight[r + 3]
            w4, w5, w6, w7 = weight[r + 4], weight[r + 5], weight[r + 6], weight[r + 7]
            for j in range(width):
                sums[j] += ((w0[j] + w1[j]) + (w2[j] + w3[j])) + ((w4[j] + w5[j]) + (w6[j] + w7[j]))


@intrinsic
def _add_pairs(_: Any, weight: Any, rows: Any, sums: Any) -> Any:
    """Addresses of int8 [rows, VECTORS * LANES] and int16 [VECTORS * LANES]: adds the rows, two at a time.

    AVX2 has an instruction for the sum of two neighbouring bytes, each times a factor: rows are interleaved, the
    factors are 1. That takes fewer instructions than widening each row. Sums stand in another order than features.
    """
    signature = types.void(types.int64, types.int64, types.int64)

    def generate(context: Any, b: ir.IRBuilder, _: Any, arguments: Any) -> Any:
        int8, int16, int64 = ir.IntType(8), ir.IntType(16), ir.IntType(64)
        bytes32, words16 = ir.VectorType(int8, 2 * LANES), ir.VectorType(int16, LANES)
        weight = b.inttoptr(arguments[0], int8.as_pointer())
        sums = b.inttoptr(arguments[2], int16.as_pointer())
        multiply_add = b.module.globals.get(name := "llvm.x86.avx2.pmadd.ub.sw") or ir.Function(
            b.module, ir.FunctionType(words16, [bytes32, bytes32]), name
        )
        ones = ir.Constant(bytes32, [1] * 2 * LANES)

        def load(offset: ir.Value, kind: ir.Type) -> ir.Value:
            return b.load(b.bitcast(b.gep(weight, [offset]), kind.as_pointer()), align=1)

        def interleaved(x: ir.Value, y: ir.Value, first: int) -> ir.Value:
            order = [place for low in (first, first + 16) for i in range(8) for place in (low + i, 2 * LANES + low + i)]
            return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), 2 * LANES), order))

        before, loop, after = b.block, b.append_basic_block("rows"), b.append_basic_block("done")
        b.branch(loop)
        b.position_at_end(loop)
        row, totals = b.phi(int64), [b.phi(words16) for _ in range(VECTORS)]
        new = []
        for pair in range(VECTORS // 2):
            place = b.add(b.mul(row, int64(VECTORS * LANES)), int64(2 * LANES * pair))
            x, y = load(place, bytes32), load(b.add(place, int64(VECTORS * LANES)), bytes32)
            for total, first in zip(totals[2 * pair : 2 * pair + 2], (0, 8)):
                new.append(b.add(total, b.call(multiply_add, [ones, interleaved(x, y, first)])))
        following = b.add(row, int64(2))
        row.add_incoming(int64(0), before)
        row.add_incoming(following, loop)
        for total, value in zip(totals, new):
            total.add_incoming(ir.Constant(words16, [0] * LANES), before)
            total.add_incoming(value, loop)
        b.cbranch(b.icmp_signed("<", following, arguments[1]), loop, after)
        b.position_at_end(after)
        for index, value in enumerate(new):
            place = b.bitcast(b.gep(sums, [int64(index * LANES)]), words16.as_pointer())
            b.store(b.add(b.load(place, align=2), value), place, align=2)
        return context.get_dummy_value()

    return signature, generate


@njit(nogil=True)
def pairs(weight: np.ndarray, sums: np.ndarray, times: int) -> None:
    """Adds the rows of a matrix with AVX2; of all `sums` it gives each at another place."""
    for _ in range(times):
        _add_pairs(weight.ctypes.data, weight.shape[0], sums.ctypes.data)


@njit(nogil=True, error_model="numpy")
def read(numbers: np.ndarray, totals: np.ndarray) -> None:
    """Sums int64 numbers."""
    total = 0
    for i in range(numbers.shape[0]):
        total += numbers[i]
    totals[0] = total


def loops() -> dict[str, tuple[Loop, int]]:
    """The loops this machine can run, each with the width of its rows."""
    found: dict[str, tuple[Loop, int]] = {"plain loop": (plain, WIDTH)}
    if "avx2" in cpu_flags():
        found["pairs of rows, AVX2"] = (pairs, VECTORS * LANES)
    return found


def adds_per_second(loop: Loop, width: int, size: int) -> float:
    """The best rate of all cores together, each with `size` bytes of weights of its own."""
    rows = max(8, size // width // 8 * 8)
    weights = [aligned_weights(rows, width) for _ in range(processors())]
    sums = [np.zeros(width, np.int16) for _ in weights]
    loop(weights[0], sums[0], 1)  # compiles
    start = time.perf_counter()
    loop(weights[0], sums[0], TRIAL)
    times = 1 + int(TRIAL * REPEAT_SECONDS / (time.perf_counter() - start))
    work = [partial(loop, weight, of_core, times) for weight, of_core in zip(weights, sums)]
    return rows * width * times * len(work) / min(on_all_cores(work) for _ in range(REPEATS))


def aligned_weights(rows: int, width: int) -> np.ndarray:
    """Random int8 [rows, width] that begin with a line of the cache: no vector lies across two."""
    weight = aligned((rows, width), np.int8)
    weight[:] = np.random.default_rng(0).integers(-127, 128, weight.shape)
    return weight


def bytes_per_second() -> float:
    """The best rate at which all cores together read memory."""
    numbers = [np.ones(MEMORY // 8, np.int64) for _ in range(processors())]
    work = [partial(read, own, np.zeros(1, np.int64)) for own in numbers]
    on_all_cores(work)
    return MEMORY * len(work) / min(on_all_cores(work) for _ in range(REPEATS))


def on_all_cores(work: Sequence[Callable[[], object]]) -> float:
    """Seconds until all is done, each in a thread of its own."""
    threads = [threading.Thread(target=one) for one in work]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start
