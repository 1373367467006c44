"""Small weights two to a byte, as a bundle stores them: half the bytes for weights of at most 4 bits.

Each row of a matrix stands for itself. Its input 0 is the low half of byte 0, input 1 the high half, input 2 the low
half of byte 1, and so on; a half is a number of 4 bits in two's complement. In a row of odd length the high half of
the last byte is 0.
"""

from __future__ import annotations

import numpy as np

NIBBLE_BITS = 4
NIBBLE_MAX = 7  # weights are symmetric, so -8 is none


def pack(weight: np.ndarray) -> np.ndarray:
    """int8 [out, in] of -7 .. 7 -> uint8 [out, ceil(in / 2)]. Raises ValueError for a weight beyond that."""
    if weight.size and max(-int(weight.min()), int(weight.max())) > NIBBLE_MAX:
        raise ValueError(f"weights {weight.min()} .. {weight.max()}, {NIBBLE_BITS} bits hold +- {NIBBLE_MAX}")
    rows, columns = weight.shape
    halves = np.zeros((rows, columns + columns % 2), np.uint8)
    halves[:, :columns] = weight.view(np.uint8) & 0x0F
    return halves[:, 0::2] | halves[:, 1::2] << 4


def unpack(packed: np.ndarray, columns: int) -> np.ndarray:
    """uint8 [out, ceil(columns / 2)] -> int8 [out, columns].

    Raises ValueError for another shape, for a half of -8, and where the unused half of a row is not 0.
    """
    if packed.ndim != 2 or packed.shape[1] != -(-columns // 2):
        raise ValueError(f"has shape {packed.shape}, rows of {columns} weights take {-(-columns // 2)} bytes")
    halves = np.empty((packed.shape[0], 2 * packed.shape[1]), np.uint8)
    halves[:, 0::2], halves[:, 1::2] = packed & 0x0F, packed >> 4
    if halves[:, columns:].any():
        row = int(np.flatnonzero(halves[:, columns:])[0])
        raise ValueError(f"the last half of row {row} belongs to no weight and is not 0")
    weight = (halves[:, :columns] ^ 8).view(np.int8) - np.int8(8)  # 0 .. 7, 8 .. 15 -> 0 .. 7, -8 .. -1
    illegal = weight < -NIBBLE_MAX
    if illegal.any():
        row, column = np.argwhere(illegal)[0]
        raise ValueError(f"the weight in row {row}, column {column} is -8, {NIBBLE_BITS} bits hold +- {NIBBLE_MAX}")
    return weight
