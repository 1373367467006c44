"""The compiled loops of the nodes that only passes make: slice, concat, coincidence, relay, product.

They are rare and take little time, so they are plain. Spikes are bits as in `kernels`, and bits beyond the width of a
value are 0 in all that is read and written here.
"""

from __future__ import annotations

import numpy as np

from sim.fast.kernels import bits_at
from sim.fast.vectors import BLOCK
from spikebert.compiled import compiled

BUILT_ON = "5102c59dc46e"  # see CONTRIBUTING.md, "Changing the fast engine"


@compiled(nogil=True)
def _put_bits(x: np.ndarray, start: int, count: int, out: np.ndarray, at: int) -> None:
    """Set bits at .. at + count - 1 of out uint64 [W'], all 0 before, to bits start .. start + count - 1 of x [W]."""
    for done in range(0, count, BLOCK):
        piece = min(BLOCK, count - done)
        word = bits_at(x, start + done, piece)
        w, bit = (at + done) // BLOCK, (at + done) % BLOCK
        out[w] |= word << np.uint64(bit)
        if bit + piece > BLOCK:
            out[w + 1] |= word >> np.uint64(BLOCK - bit)


@compiled(nogil=True)
def copy_features(x: np.ndarray, start: int, count: int, out: np.ndarray, at: int) -> None:
    """`count` features of x uint64 [P, R, T, W], from `start` on, to out [P', R, T, W'], from `at` on.

    They are 0 there before. Planes that only one of the two has are left out: those of x are 0 where `out` has none.
    """
    for p in range(min(x.shape[0], out.shape[0])):
        for r in range(x.shape[1]):
            for t in range(x.shape[2]):
                _put_bits(x[p, r, t], start, count, out[p, r, t], at)


@compiled(nogil=True)
def coincidence(q: np.ndarray, k: np.ndarray, starts: np.ndarray, width: int, out: np.ndarray) -> None:
    """out[n, m*width + j] = q[n, j] and k[m, j], for the tokens n and m of each sample.

    q, k   uint64 [R, T, W] of `width` neurons
    starts int64 [B + 1]: sample b has tokens starts[b] .. starts[b + 1] - 1
    out    uint64 [R, T, W'] of n_max * width neurons, set; keys beyond those of a sample are silent
    """
    met = np.empty(q.shape[2], np.uint64)
    out[:] = 0
    for b in range(starts.shape[0] - 1):
        for n in range(starts[b], starts[b + 1]):
            for t in range(q.shape[1]):
                for m in range(starts[b], starts[b + 1]):
                    for w in range(met.shape[0]):
                        met[w] = q[n, t, w] & k[m, t, w]
                    _put_bits(met, 0, width, out[n, t], (m - starts[b]) * width)


@compiled(nogil=True)
def _value_at(x: np.ndarray, at: int) -> int:
    """Feature `at` of x uint64 [P, W]."""
    value = 0
    for p in range(x.shape[0]):
        value += int(bits_at(x[p], at, 1)) << p
    return value


@compiled(nogil=True)
def _put_value(value: int, out: np.ndarray, at: int) -> None:
    """Set feature `at` of out uint64 [P, W'], 0 before, to a value that is not negative."""
    p = 0
    while value > 0:
        out[p, at // BLOCK] |= np.uint64(value & 1) << np.uint64(at % BLOCK)
        value >>= 1
        p += 1


@compiled(nogil=True)
def relay(currents: np.ndarray, width: int, out: np.ndarray) -> None:
    """Currents int32 [R, T, at least width], none negative -> out uint64 [P, R, T, W], set."""
    out[:] = 0
    for r in range(out.shape[1]):
        for t in range(out.shape[2]):
            for j in range(width):
                _put_value(currents[r, t, j], out[:, r, t], j)


@compiled(nogil=True)
def product(
    scores: np.ndarray, v: np.ndarray, starts: np.ndarray, width: int, heads: int, out: np.ndarray
) -> None:  # fmt: skip
    """out[n, m*width + e] = scores[n, m*heads + e // d] * v[m, e], d = width / heads, for n and m of each sample.

    scores uint64 [P, R, T, W] of n_max * heads features; v uint64 [Q, R, T, W''] of `width`
    starts as in `coincidence`
    out    uint64 [P, R, T, W'] of n_max * width features, set; keys beyond those of a sample bring nothing
    """
    size = width // heads
    out[:] = 0
    for b in range(starts.shape[0] - 1):
        for n in range(starts[b], starts[b + 1]):
            for t in range(v.shape[2]):
                for m in range(starts[b], starts[b + 1]):
                    for h in range(heads):
                        score, feature = (m - starts[b]) * heads + h, h * size
                        if v.shape[0] == 1:  # of bits a whole head at a time
                            for p in range(scores.shape[0]):
                                if bits_at(scores[p, n, t], score, 1) != 0:
                                    at = (m - starts[b]) * width + feature
                                    _put_bits(v[0, m, t], feature, size, out[p, n, t], at)
                            continue
                        value = _value_at(scores[:, n, t], score)
                        if value == 0:
                            continue
                        for e in range(feature, feature + size):
                            sent = _value_at(v[:, m, t], e)
                            if sent > 0:
                                _put_value(value * sent, out[:, n, t], (m - starts[b]) * width + e)
