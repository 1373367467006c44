"""What threads need to share work without locks, in LLVM's terms: numba has no atomic operations of its own.

Words are elements of int64 arrays. What one thread wrote before `store` (or `add`, `exchange`) of a word, another one
sees after its `load` of that value ("release" and "acquire" of the C++ memory model).
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

INT32, INT64 = ir.IntType(32), ir.IntType(64)
WORD_BYTES = 8
# Tells the processor that a loop waits: its other thread on the same core gets ahead. LLVM's name, and its argument.
X86, ARM = ("llvm.x86.sse2.pause", ()), ("llvm.aarch64.hint", (1,))
WAIT = {"x86_64": X86, "AMD64": X86, "aarch64": ARM, "arm64": ARM}.get(platform.machine())


def _place(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
    """Where element arguments[1] of the array arguments[0] is."""
    data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
    return builder.gep(data, [arguments[1]])


@intrinsic
def load(_: Any, words: Any, at: Any) -> Any:
    """words[at]"""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.load_atomic(_place(context, builder, signature, arguments), "acquire", WORD_BYTES)

    return types.int64(words, types.int64), codegen


@intrinsic
def store(_: Any, words: Any, at: Any, value: Any) -> Any:
    """words[at] = value"""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        builder.store_atomic(arguments[2], _place(context, builder, signature, arguments), "release", WORD_BYTES)
        return context.get_dummy_value()

    return types.void(words, types.int64, types.int64), codegen


@intrinsic
def add(_: Any, words: Any, at: Any, value: Any) -> Any:
    """words[at] += value"""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        builder.atomic_rmw("add", _place(context, builder, signature, arguments), arguments[2], "acq_rel")
        return context.get_dummy_value()

    return types.void(words, types.int64, types.int64), codegen


@intrinsic
def exchange(_: Any, words: Any, at: Any, old: Any, new: Any) -> Any:
    """words[at] = new if it is `old`; whether it was."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        place = _place(context, builder, signature, arguments)
        result = builder.cmpxchg(place, arguments[2], arguments[3], "acq_rel", "acquire")
        return builder.extract_value(result, 1)

    return types.boolean(words, types.int64, types.int64, types.int64), codegen


@intrinsic
def pause(_: Any) -> Any:
    """A moment of waiting."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        if WAIT is not None:
            name, hint = WAIT
            arguments = [ir.Constant(INT32, number) for number in hint]
            kind = ir.FunctionType(ir.VoidType(), [INT32] * len(hint))
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def pointer(_: Any, address: Any) -> Any:
    """An address (int64) as the pointer that `numba.carray` takes."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), codegen


@intrinsic
def real(_: Any, word: Any) -> Any:
    """The float64 whose bits are those of an int64."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), codegen


@intrinsic
def call(_: Any, function: Any, first: Any, second: Any) -> Any:
    """Call the C function at the address `function`, which takes two int64 and returns nothing."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        kind = ir.FunctionType(ir.VoidType(), [INT64, INT64])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen
