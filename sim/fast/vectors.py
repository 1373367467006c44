"""The few loops that take nearly all the time, as vector code in LLVM's terms; numba makes them part of our kernels.

numba compiles plain loops over arrays well, but it has to find out at every call whether the arrays overlap, and it
keeps sums in memory. These loops are short and run millions of times: told to LLVM directly, sums stay in registers
(`benchmarks/engine_floor.py` measures both kinds). LLVM splits the vectors to what a processor has.

`BLOCK` neurons are worked on together: their spikes are one machine word (neuron j is bit j), and the int8 weights
from one input to them are one cache line. A *cell* is the currents of a block at one timestep, in one of two forms:

int32 [64]   the currents, in order. For sums that need more than 16 bits.
int16 [64]   32 entries `A` and 32 entries `B`, where the currents are `A - 256 B` (neurons 0 .. 31) and `B` (neurons
             32 .. 63), all modulo 2^16: exact where currents are proven to fit. Two neighbouring int8 weights are read
             as one 16-bit number, `A` adds it up, `B` adds up its upper byte: 3 instructions for 2 x 16 weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from converters.graph import MEMBRANE_MAX, SHIFT

BLOCK = 64
HALF = BLOCK // 2
LOW_BYTE_OFFSET = 128  # the lower byte of a pair of weights is stored as weight + 128, so that it never borrows
GROUPS = (4, 1)  # rows that may be added up as bytes first, where weights are small enough (16 gain no more)
LIST_MAX = 256  # rows that sums of 16 bits surely hold: 256 * 127 < 2^15, and 256 * 255 < 2^16


def _bit_places() -> np.ndarray:
    """uint16 [256 * 8]: for each byte 64 times the places of its set bits, in order."""
    table = np.zeros((256, 8), np.uint16)
    for byte in range(256):
        places = [BLOCK * place for place in range(8) if byte >> place & 1]
        table[byte, : len(places)] = places
    return table.reshape(-1)


BIT_PLACES = _bit_places()

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))


def group_of(weight: np.ndarray) -> int:
    """How many rows of such weights can be added up in 8 bits: one of GROUPS (4 for weights of up to 6 bits)."""
    largest = int(np.abs(weight.astype(np.int64)).max(initial=0))
    return next(group for group in GROUPS if group * largest <= 127)


def pack_weight(weight: np.ndarray, group: int) -> np.ndarray:
    """int8 [in, 64 * blocks] -> int8 [blocks, in, 64], aligned: each row as the pairs that `add_rows` takes.

    The lower byte of a pair is stored as weight + 128 / group: what is left of 128 when rows are added up as bytes.
    """
    inputs, width = weight.shape
    pairs = aligned((width // BLOCK, inputs, HALF, 2), np.uint8)
    halves = weight.reshape(inputs, width // BLOCK, 2, HALF).transpose(1, 0, 3, 2)  # [blocks, in, 32, low and high]
    pairs[..., 0] = halves[..., 0].astype(np.int16) + LOW_BYTE_OFFSET // group
    pairs[..., 1] = halves[..., 1].view(np.uint8)
    packed: np.ndarray = pairs.reshape(width // BLOCK, inputs, BLOCK).view(np.int8)
    return packed


def pack_cells(current: np.ndarray) -> np.ndarray:
    """Currents [..., 64 * blocks] that fit int16 -> the same as cells of int16."""
    halves = current.astype(np.int64).reshape(*current.shape[:-1], -1, 2, HALF)
    low, high = halves[..., 0, :], halves[..., 1, :]
    cells: np.ndarray = np.stack([low + 256 * high, high], axis=-2).astype(np.int16)  # wraps, as it should
    return np.ascontiguousarray(cells.reshape(current.shape))


def aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array of zeros that begins with a cache line."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.zeros(size + BLOCK, np.uint8)
    start = -room.ctypes.data % BLOCK
    return room[start : start + size].view(dtype).reshape(shape)


class _Code:
    """An LLVM builder with the words of this module.

    arguments  of the function; of an array, the pointer to its data
    elements   of each argument that is an array, the LLVM type of its elements
    """

    def __init__(self, context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> None:
        self.builder = builder
        self.arguments: list[Any] = []
        self.elements: list[Any] = []
        for kind, value in zip(signature.args, arguments):
            array = isinstance(kind, types.Array)
            self.arguments.append(context.make_array(kind)(context, builder, value).data if array else value)
            self.elements.append(context.get_data_type(kind.dtype) if array else None)

    def number(self, value: int) -> ir.Constant:
        return ir.Constant(I64, value)

    def constant(self, kind: ir.VectorType, value: float) -> ir.Constant:
        """A vector of one number."""
        return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)

    def splat(self, value: ir.Value, lanes: int) -> ir.Value:
        """A vector of one value."""
        undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, lanes), None))

    def load(self, pointer: ir.Value, at: ir.Value, kind: ir.Type, align: int) -> ir.Value:
        """What begins at element `at`."""
        place = self.builder.bitcast(self.builder.gep(pointer, [at]), kind.as_pointer())
        value = self.builder.load(place)
        value.align = align
        return value

    def store(self, value: ir.Value, pointer: ir.Value, at: ir.Value, align: int) -> None:
        place = self.builder.bitcast(self.builder.gep(pointer, [at]), value.type.as_pointer())
        self.builder.store(value, place).align = align

    def loop(self, start: ir.Value, end: ir.Value, values: list[ir.Value], body: Any) -> list[ir.Value]:
        """`for i in range(start, end): values = body(i, values)`, the values in registers."""
        builder, before = self.builder, self.builder.block
        head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        i = builder.phi(I64)
        i.add_incoming(start, before)
        carried = [builder.phi(value.type) for value in values]
        for phi, value in zip(carried, values):
            phi.add_incoming(value, before)
        builder.cbranch(builder.icmp_signed("<", i, end), inside, after)
        builder.position_at_end(inside)
        for phi, value in zip(carried, body(i, carried)):
            phi.add_incoming(value, builder.block)
        i.add_incoming(builder.add(i, self.number(1)), builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return list(carried)


@intrinsic
def popcount(_: Any, word: Any) -> Any:
    """How many bits of a uint64 are set: int64."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), codegen


@intrinsic
def lowest_bit(_: Any, word: Any) -> Any:
    """The place of the lowest set bit of a uint64, 64 where none is set: int64."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.cttz(arguments[0], ir.Constant(I1, 0))

    return types.int64(types.uint64), codegen


@intrinsic
def list_bits(_: Any, word: Any, first: Any, places: Any, index: Any, at: Any) -> Any:
    """Write `first` + 64 times the place of each set bit of a uint64 to index [at ..]; where the next entry goes.

    places  `BIT_PLACES`
    index   uint32; up to 8 entries behind the last one are overwritten

    A byte at a time without a branch: how many bits are set can't be guessed, and a wrong guess takes longer.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        code = _Code(context, builder, signature, arguments)
        bits, start, table, entries, at = code.arguments
        small, wide = ir.VectorType(I16, 8), ir.VectorType(I32, 8)
        for part in range(8):
            byte = builder.and_(builder.lshr(bits, code.number(8 * part)), code.number(255))
            row = builder.zext(code.load(table, builder.mul(byte, code.number(8)), small, align=2), wide)
            base = builder.add(builder.trunc(start, I32), ir.Constant(I32, 8 * part * BLOCK))
            code.store(builder.add(row, code.splat(base, 8)), entries, at, align=4)
            at = builder.add(at, builder.ctpop(byte))
        return at

    number = types.int64
    return number(types.uint64, number, places, index, number), codegen


@intrinsic
def fetch(_: Any, values: Any, at: Any) -> Any:
    """Have the cache line of element `at` brought near, without waiting for it."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        pointer, place = _Code(context, builder, signature, arguments).arguments
        byte = I8.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        read, second_level, data = (ir.Constant(I32, number) for number in (0, 2, 1))
        builder.call(prefetch, [builder.bitcast(builder.gep(pointer, [place]), byte), read, second_level, data])
        return context.get_dummy_value()

    return types.void(values, types.int64), codegen


@intrinsic
def spread_bits(_: Any, word: Any, out: Any, at: Any) -> Any:
    """out int16 [at .. at + 63] = -1 where the bit of the word is set, else 0."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        code = _Code(context, builder, signature, arguments)
        bits, target, place = code.arguments
        mask = builder.bitcast(bits, ir.VectorType(I1, BLOCK))
        code.store(builder.sext(mask, ir.VectorType(I16, BLOCK)), target, place, align=2)
        return context.get_dummy_value()

    return types.void(types.uint64, out, types.int64), codegen


@intrinsic
def expand_digits(_: Any, digits: Any, at: Any, stride: Any, count: Any, out: Any, to: Any) -> Any:
    """out int64 [to .. to + 63] = 64 numbers below 2^31 that are kept side by side: digit p of number j is bit j of
    digits uint64 [at + p * stride], p < count."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        code = _Code(context, builder, signature, arguments)
        words, first, step, number, target, place = code.arguments
        lanes = ir.VectorType(I32, BLOCK)
        zeros = ir.Constant(lanes, None)

        def add_digit(p: ir.Value, so_far: list[ir.Value]) -> list[ir.Value]:
            word = builder.load(builder.gep(words, [builder.add(first, builder.mul(p, step))]))
            worth = code.splat(builder.shl(ir.Constant(I32, 1), builder.trunc(p, I32)), BLOCK)
            set_ = builder.bitcast(word, ir.VectorType(I1, BLOCK))
            return [builder.add(so_far[0], builder.select(set_, worth, zeros))]

        (total,) = code.loop(code.number(0), number, [zeros], add_digit)
        code.store(builder.zext(total, ir.VectorType(I64, BLOCK)), target, place, align=8)
        return context.get_dummy_value()

    number = types.int64
    return types.void(digits, number, number, number, out, number), codegen


@intrinsic
def fill_cells(_: Any, value: Any, at: Any, cells: Any, count: Any) -> Any:
    """The first `count` cells = value [at .. at + 63], which has their form."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        code = _Code(context, builder, signature, arguments)
        source, start, target, number = code.arguments
        cell = code.load(source, start, ir.VectorType(code.elements[0], BLOCK), align=2)

        def body(i: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            code.store(cell, target, builder.mul(i, code.number(BLOCK)), align=2)
            return []

        code.loop(code.number(0), number, [], body)
        return context.get_dummy_value()

    return types.void(value, types.int64, cells, types.int64), codegen


def _add_rows(group: int) -> Any:
    """Makes `add_rows`, for one of GROUPS."""

    def add_rows(
        _: Any, weight: Any, at: Any, index: Any, start: Any, end: Any, cells: Any, t: Any, steps: Any, shift: Any
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
            code = _Code(context, builder, signature, arguments)
            rows, first, inputs, low, high, currents, cell, wanted, amount = code.arguments
            element, block = code.elements[5], builder.gep(rows, [first])
            pairs, half_cell = ir.VectorType(I16, HALF), ir.VectorType(element, HALF)
            row_kind = pairs if group == 1 else ir.VectorType(I8, BLOCK)
            eight = code.constant(pairs, 8)

            def row(i: ir.Value) -> ir.Value:
                return code.load(block, builder.zext(builder.load(builder.gep(inputs, [i])), I64), row_kind, BLOCK)

            def widen(added: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                added = builder.bitcast(added, pairs)
                return [builder.add(sums[0], added), builder.add(sums[1], builder.ashr(added, eight))]

            def add_group(k: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                i = builder.add(low, builder.mul(k, code.number(group)))
                added = row(i)
                for place in range(1, group):
                    added = builder.add(added, row(builder.add(i, code.number(place))))
                return widen(added, sums)

            def add_one(i: ir.Value, added: list[ir.Value]) -> list[ir.Value]:
                return [builder.add(added[0], row(i))]

            count = builder.sub(high, low)
            groups = count if group == 1 else builder.sdiv(count, code.number(group))
            sums = code.loop(code.number(0), groups, [ir.Constant(pairs, None)] * 2, add_group)
            if group > 1:
                rest = builder.add(low, builder.mul(groups, code.number(group)))
                (added,) = code.loop(rest, high, [ir.Constant(row_kind, None)], add_one)
                sums = widen(added, sums)
            offset = builder.mul(builder.trunc(count, I16), ir.Constant(I16, LOW_BYTE_OFFSET // group))
            halves = [builder.sub(sums[0], code.splat(offset, HALF)), sums[1]]
            if element != I16:
                halves[0] = builder.sub(halves[0], builder.shl(halves[1], eight))
                halves = [builder.sext(half, half_cell) for half in halves]
            bits = code.splat(builder.trunc(amount, element), HALF)
            halves = [builder.shl(half, bits) for half in halves]
            for step in range(4):
                chosen = builder.and_(wanted, code.number(1 << step))
                with builder.if_then(builder.icmp_signed("!=", chosen, code.number(0))):
                    place = builder.mul(builder.add(cell, code.number(step)), code.number(BLOCK))
                    for half in halves:
                        total = builder.add(code.load(currents, place, half_cell, align=2), half)
                        code.store(total, currents, place, align=2)
                        place = builder.add(place, code.number(HALF))
            return context.get_dummy_value()

        number = types.int64
        return types.void(weight, number, index, number, number, cells, number, number, number), codegen

    return intrinsic(add_rows)


# Add the weights of spikes, summed up once, to the currents of a block at up to four timesteps:
#     add_rows(weight, at, index, start, end, cells, t, steps, shift)
# weight  int8 from `pack_weight`; the rows of this block begin at element `at`
# index   uint32 [start .. end - 1], 64 times an input that spiked
# cells   cell t + i gets `2^shift` times the sum where bit i of `steps` is set; if int32, of at most LIST_MAX rows
# The number in the name is the group that the weights were packed for.
add_rows_1, add_rows_4 = _add_rows(1), _add_rows(4)


@intrinsic
def add_scored(_: Any, masks: Any, at: Any, index: Any, scores: Any, count: Any, out: Any, to: Any) -> Any:
    """out int32 [to .. to + 63] = for each neuron, the sum of the scores whose mask is set there.

    masks   int16, 0 or -1; those of entry e are masks[at + 64 * index[e] ..]
    scores  int16 or int32 [count], the type that the sums are made in
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        code = _Code(context, builder, signature, arguments)
        rows, block, places, values, number, target, place = code.arguments
        sums = ir.VectorType(code.elements[3], BLOCK)

        def add_score(i: ir.Value, so_far: list[ir.Value]) -> list[ir.Value]:
            row_number = builder.zext(builder.load(builder.gep(places, [i])), I64)
            at_row = builder.add(block, builder.mul(row_number, code.number(BLOCK)))
            mask = code.load(rows, at_row, ir.VectorType(I16, BLOCK), align=2)
            mask = mask if sums.element == I16 else builder.sext(mask, sums)
            score = code.splat(builder.load(builder.gep(values, [i])), BLOCK)
            return [builder.add(so_far[0], builder.and_(mask, score))]

        (total,) = code.loop(code.number(0), number, [ir.Constant(sums, None)], add_score)
        wide = ir.VectorType(I32, BLOCK)
        code.store(builder.sext(total, wide) if sums.element == I16 else total, target, place, align=4)
        return context.get_dummy_value()

    number = types.int64
    return types.void(masks, number, index, scores, number, out, number), codegen


def _fire(free: bool, subtract: bool) -> Any:
    """Makes `fire`, `fire_free`, or what resets by subtraction."""

    def fire(
        _: Any, cells: Any, at: Any, stride: Any, steps: Any, level: Any, level_at: Any, keep: Any, words: Any,
        word_at: Any, word_stride: Any, cuts: Any, cuts_at: Any, state: Any, state_at: Any, fresh: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
            code = _Code(context, builder, signature, arguments)
            currents, first, step, timesteps, levels, block, kept, spikes, word, next_word, counts, count = (
                code.arguments[:12]
            )
            membranes, membrane, begins = code.arguments[12:]
            element = code.elements[4]
            numbers = ir.VectorType(code.elements[0], HALF)
            real = ir.VectorType(element, HALF)
            places = [builder.add(block, code.number(half * HALF)) for half in range(2)]
            thresholds = [code.load(levels, place, real, align=4) for place in places]
            endless = code.constant(real, float("inf"))  # the threshold of padding, whose currents may be anything
            counted = [builder.fcmp_ordered("<", level, endless) for level in thresholds]
            keeps, gain = code.splat(kept, HALF), code.constant(real, 2**SHIFT)
            truncate = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(real, [real]), f"llvm.trunc.v{HALF}{element.intrinsic_name}"
            )

            def charge(v: ir.Value, a: ir.Value) -> ir.Value:
                if free:
                    return builder.fadd(builder.fmul(v, keeps, flags=["contract"]), a, flags=["contract"])
                return builder.fadd(builder.call(truncate, [builder.fmul(v, keeps)]), builder.fmul(a, gain))

            def saturate(charged: ir.Value, neurons: ir.Value, so_far: ir.Value) -> tuple[ir.Value, ir.Value]:
                """The membranes, and how many of these neurons' were cut."""
                v = charged
                for sign, limit in (("<", MEMBRANE_MAX), (">", -MEMBRANE_MAX)):
                    bound = code.constant(real, limit)
                    v = builder.select(builder.fcmp_ordered(sign, v, bound), v, bound)
                cut = builder.and_(builder.fcmp_ordered("!=", v, charged), neurons)
                return v, builder.add(so_far, builder.zext(builder.ctpop(builder.bitcast(cut, I32)), I64))

            def timestep(t: ir.Value, state: list[ir.Value]) -> list[ir.Value]:
                *membranes, cut = state
                place = builder.add(first, builder.mul(t, step))
                low = code.load(currents, place, numbers, align=2)
                high = code.load(currents, builder.add(place, code.number(HALF)), numbers, align=2)
                if numbers.element == I16:
                    low = builder.sub(low, builder.shl(high, code.constant(numbers, 8)))
                bits, after = [], []
                for half, (v, a) in enumerate(zip(membranes, (low, high))):
                    v = charge(v, builder.sitofp(a, real))
                    if not free:
                        v, cut = saturate(v, counted[half], cut)
                    fired = builder.fcmp_ordered(">", v, thresholds[half])
                    bits.append(builder.zext(builder.bitcast(fired, I32), I64))
                    left = builder.fsub(v, thresholds[half]) if subtract else ir.Constant(real, None)
                    after.append(builder.select(fired, left, v))
                both = builder.or_(bits[0], builder.shl(bits[1], code.number(HALF)))
                code.store(both, spikes, builder.add(word, builder.mul(t, next_word)), align=8)
                return [*after, cut]

            carried = builder.icmp_signed(">=", membrane, code.number(0))
            halves = [builder.add(membrane, code.number(half * HALF)) for half in range(2)]
            begin = [cgutils.alloca_once_value(builder, ir.Constant(real, None)) for _ in halves]
            with builder.if_then(builder.and_(carried, builder.not_(begins))):
                for slot, place in zip(begin, halves):
                    builder.store(code.load(membranes, place, real, align=4), slot)
            before = [*map(builder.load, begin), code.number(0)]
            *after, cut = code.loop(code.number(0), timesteps, before, timestep)
            with builder.if_then(carried):
                for v, place in zip(after, halves):
                    code.store(v, membranes, place, align=4)
            if not free:
                code.store(builder.add(code.load(counts, count, I64, align=8), cut), counts, count, align=8)
            return context.get_dummy_value()

        number = types.int64
        signature = types.void(
            cells, number, number, number, level, number, level.dtype, words, number, number, cuts, number, state,
            number, types.boolean,
        )  # fmt: skip
        return signature, codegen

    return intrinsic(fire)


# The LIF rule of a block over some timesteps:
#     fire(cells, at, stride, steps, level, level_at, keep, words, word_at, word_stride, cuts, cuts_at, state, state_at,
#          fresh)
# cells   the currents at timestep t begin at element `at + t * stride`
# level   float32 or float64, the thresholds from element `level_at`; keep, the share of a membrane that stays
# words   uint64; the spikes at timestep t are written to element `word_at + t * word_stride`
# cuts    int64; to element `cuts_at` is added how often a membrane was cut at +-(2^23 - 1)
# state   of the type of `level`: membranes, from element `state_at`; they begin as they are there, or at 0 where
#         `fresh`, and are left there. Where `state_at` is negative they begin at 0 and are forgotten
# `fire` is the rule as it stands, in membrane units. `fire_free` leaves out what is proven never to happen, rounding
# and saturation (`Neurons.free`), and counts membranes and levels in accumulator units. A membrane that fires is reset
# to 0, or loses its level.
fire, fire_free = _fire(free=False, subtract=False), _fire(free=True, subtract=False)
fire_subtract, fire_free_subtract = _fire(free=False, subtract=True), _fire(free=True, subtract=True)
