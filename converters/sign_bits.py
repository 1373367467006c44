"""Weights of 1 bit, eight to a byte, as a bundle stores them: a set bit is 1, one that is not set -1.

Each row of a matrix stands for itself. Its input 0 is bit 0 of byte 0, the lowest, input 8 bit 0 of byte 1, and so on;
what is left of the last byte of a row is 0.
"""

from __future__ import annotations

import numpy as np


def pack_signs(weight: np.ndarray) -> np.ndarray:
    """int8 [out, in] of -1 and 1 -> uint8 [out, ceil(in / 8)]. Raises ValueError for another weight."""
    if not np.isin(weight, (-1, 1)).all():
        raise ValueError(f"weights {weight.min()} .. {weight.max()}, one of 1 bit is -1 or 1")
    return np.packbits(weight > 0, axis=1, bitorder="little")


def unpack_signs(packed: np.ndarray, columns: int) -> np.ndarray:
    """uint8 [out, ceil(columns / 8)] -> int8 [out, columns].

    Raises ValueError for another shape, and where the unused bits of a row are not 0.
    """
    if packed.ndim != 2 or packed.shape[1] != -(-columns // 8):
        raise ValueError(f"has shape {packed.shape}, rows of {columns} weights take {-(-columns // 8)} bytes")
    bits = np.unpackbits(packed, axis=1, bitorder="little")
    if bits[:, columns:].any():
        row = int(np.flatnonzero(bits[:, columns:].any(1))[0])
        raise ValueError(f"the last bits of row {row} belong to no weight and are not 0")
    return np.where(bits[:, :columns], np.int8(1), np.int8(-1))
