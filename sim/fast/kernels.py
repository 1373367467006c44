"""The compiled loops of the fast engine. Each takes packed tokens: R real tokens of some samples, no padding.

Spikes are `[R, T, D]`: the timesteps of a token stand side by side, so its membranes live in the first-level cache
for all of them. Kernels release the interpreter's lock, so that each thread runs its share of the samples.

Membranes are held in floats, which represent every integer that occurs: with a decay of 0 or 2048 in float32 (at
most 2^24), else in float64 (a product of 2^23 and 2^12). The type of `level` says which.
"""

from __future__ import annotations

import numpy as np

from converters.graph import MEMBRANE_MAX, SHIFT
from spikebert.compiled import compiled

GAIN = 2**SHIFT  # membrane units per accumulator unit


@compiled(nogil=True, inline="always")
def _fire(
    current: np.ndarray, membrane: np.ndarray, level: np.ndarray, keep: float, spikes: np.ndarray
) -> int:  # fmt: skip
    """One timestep of the LIF rule for [D] neurons; the number of spikes."""
    real = level.dtype.type
    zero, gain, limit = real(0), real(GAIN), real(MEMBRANE_MAX)
    fired = 0
    for j in range(level.shape[0]):
        v = np.trunc(membrane[j] * keep) + real(current[j]) * gain
        v = min(max(v, -limit), limit)
        s = v > level[j]
        spikes[j] = s
        fired += s
        membrane[j] = zero if s else v
    return fired


@compiled(nogil=True, inline="always")
def _events(x: np.ndarray, index: np.ndarray, value: np.ndarray) -> int:
    """The places and values of the nonzero entries of x [D]; how many there are."""
    found = 0
    for i in range(x.shape[0]):
        index[found] = i
        value[found] = x[i]
        found += x[i] != 0
    return found


@compiled(nogil=True, inline="always")
def _accumulate(
    weight: np.ndarray, index: np.ndarray, value: np.ndarray, events: int, graded: bool, sums: np.ndarray
) -> None:  # fmt: skip
    """sums [out] += value[e] * weight[index[e], :] for all events e, four rows at a time.

    The sums may wrap on their way, as integers do; the proven bound of the result makes it right in the end.
    """
    width = sums.shape[0]
    whole = events - events % 4
    for e in range(0, whole, 4):
        w0, w1, w2, w3 = weight[index[e]], weight[index[e + 1]], weight[index[e + 2]], weight[index[e + 3]]
        if graded:
            x0, x1, x2, x3 = value[e], value[e + 1], value[e + 2], value[e + 3]
            for j in range(width):
                sums[j] += w0[j] * x0 + w1[j] * x1 + w2[j] * x2 + w3[j] * x3
        else:
            for j in range(width):
                sums[j] += (w0[j] + w1[j]) + (w2[j] + w3[j])
    for e in range(whole, events):
        w0, x0 = weight[index[e]], value[e]
        for j in range(width):
            sums[j] += w0[j] * x0


@compiled(nogil=True)
def synapses(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, fan_out: np.ndarray, graded: bool, sums: np.ndarray,
    ends: np.ndarray, fires: bool, level: np.ndarray, keep: float, spikes: np.ndarray, currents: np.ndarray,
    operations: np.ndarray, fired: np.ndarray,
) -> None:  # fmt: skip
    """`a = W x + b` of every token and timestep, then a LIF where `fires`, for layers that read the same x.

    x          unsigned [R, T, in]
    weight     int8 [in, out]: the row of an input holds all that one of its spikes reaches
    bias       int32 [out]
    fan_out    int64 [in, layers]: nonzero weights of each input
    sums       [out], of the type that sums are made in: int16 or int32
    ends       int64 [layers]: where the features of each layer end
    level      float32 or float64 [out], membrane units; keep, share of the membrane that stays, of the same type
    spikes     uint8 [R * T * out], written where `fires`: all of the first layer [R, T, its out], then of the next
    currents   int32 [R, T, out], written where it is not empty
    operations int64 [layers, 2], added to: synaptic, weighted
    fired      int64 [layers], added to
    """
    tokens, steps, inputs = x.shape
    width = weight.shape[1]
    index, value = np.empty(inputs + 1, np.int32), np.empty(inputs + 1, sums.dtype)
    membrane, current = np.empty(width, level.dtype), np.empty(width, np.int32)
    keep_currents = currents.shape[0] > 0
    for r in range(tokens):
        membrane[:] = 0
        for t in range(steps):
            events = _events(x[r, t], index, value)
            for layer in range(ends.shape[0]):
                plain = weighted = 0
                for e in range(events):
                    reached = fan_out[index[e], layer]
                    plain += reached
                    weighted += reached * value[e]
                operations[layer, 0] += plain
                operations[layer, 1] += weighted
            sums[:] = 0
            _accumulate(weight, index, value, events, graded, sums)
            for j in range(width):
                current[j] = sums[j] + bias[j]
            if keep_currents:
                currents[r, t] = current
            if fires:
                low = 0
                for layer in range(ends.shape[0]):
                    high = ends[layer]
                    place = tokens * steps * low + (r * steps + t) * (high - low)
                    fired[layer] += _fire(
                        current[low:high], membrane[low:high], level[low:high], keep,
                        spikes[place : place + high - low],
                    )  # fmt: skip
                    low = high


@compiled(nogil=True)
def lif(currents: np.ndarray, level: np.ndarray, keep: float, spikes: np.ndarray, fired: np.ndarray) -> None:
    """currents int32 [R, T, D] -> spikes uint8 [R, T, D]; level, keep and fired as in `synapses`."""
    tokens, steps, width = currents.shape
    membrane = np.empty(width, level.dtype)
    for r in range(tokens):
        membrane[:] = 0
        for t in range(steps):
            fired[0] += _fire(currents[r, t], membrane, level, keep, spikes[r, t])


@compiled(nogil=True)
def encode(
    ids: np.ndarray, places: np.ndarray, table: np.ndarray, position: np.ndarray, sign: bool, level: np.ndarray,
    keep: float, spikes: np.ndarray, fired: np.ndarray,
) -> None:  # fmt: skip
    """The source. ids, places int64 [R]; table int8 [V, D]; position int32 [n_max, D], or [0, D]; spikes [R, T, D]."""
    tokens, steps, width = spikes.shape
    current, membrane = np.empty(width, np.int32), np.empty(width, level.dtype)
    for r in range(tokens):
        row = table[ids[r]]
        for j in range(width):
            current[j] = row[j]
        if position.shape[0]:
            for j in range(width):
                current[j] += position[places[r], j]
        if sign:
            for t in range(steps):
                for j in range(width):
                    spikes[r, t, j] = current[j] >= 0
                    fired[0] += current[j] >= 0
        else:
            membrane[:] = 0
            for t in range(steps):
                fired[0] += _fire(current, membrane, level, keep, spikes[r, t])


@compiled(nogil=True)
def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, starts: np.ndarray, heads: int, sums: np.ndarray, fires: bool,
    level: np.ndarray, keep: float, spikes: np.ndarray, currents: np.ndarray, operations: np.ndarray,
    fired: np.ndarray,
) -> None:  # fmt: skip
    """`a = (q k^T) v` for each head of each sample, then a LIF where `fires`.

    q, k, v    uint8 [R, T, D] of 0 and 1
    starts     int64 [B + 1]: sample b has tokens starts[b] .. starts[b + 1] - 1
    sums       [d], of the type that sums are made in
    the others as in `synapses`, of one layer
    """
    steps, width = q.shape[1], q.shape[2]
    size = width // heads
    longest = 0
    for b in range(starts.shape[0] - 1):
        longest = max(longest, starts[b + 1] - starts[b])
    keys = np.empty((size, longest), np.uint8)  # of one head at one timestep, features first
    scores, index, ones = np.empty(longest, np.int32), np.empty(size + 1, np.int32), np.empty(size + 1, np.int32)
    hits, totals, targets = np.empty(longest, np.int64), np.empty(longest, np.int64), np.empty(longest, np.int64)
    membranes, current = np.empty((longest, size), level.dtype), np.empty(size, np.int32)
    keep_currents = currents.shape[0] > 0
    for b in range(starts.shape[0] - 1):
        first, count = starts[b], starts[b + 1] - starts[b]
        for h in range(heads):
            low, high = h * size, (h + 1) * size
            membranes[:] = 0
            for t in range(steps):
                for m in range(count):
                    row = k[first + m, t, low:high]
                    for i in range(size):
                        keys[i, m] = row[i]
                    filled = 0
                    row = v[first + m, t, low:high]
                    for i in range(size):
                        filled += row[i]
                    targets[m] = filled
                    hits[m] = 0
                    totals[m] = 0
                for n in range(count):
                    scores[:count] = 0
                    events = _events(q[first + n, t, low:high], index, ones)
                    for e in range(events):
                        row = keys[index[e]]
                        for m in range(count):
                            scores[m] += row[m]
                    sums[:] = 0
                    for m in range(count):
                        score = scores[m]
                        if score > 0:
                            hits[m] += 1
                            totals[m] += score
                            if targets[m] > 0:
                                row = v[first + m, t, low:high]
                                for i in range(size):
                                    sums[i] += row[i] * score
                    for i in range(size):
                        current[i] = sums[i]
                    if keep_currents:
                        currents[first + n, t, low:high] = current
                    if fires:
                        fired[0] += _fire(current, membranes[n], level[low:high], keep, spikes[first + n, t, low:high])
                products = pairs = weighted = 0
                for m in range(count):
                    products += totals[m]
                    pairs += hits[m] * targets[m]
                    weighted += totals[m] * targets[m]
                operations[0, 0] += products + pairs
                operations[0, 1] += products + weighted


@compiled(nogil=True)
def add(x: np.ndarray, out: np.ndarray) -> None:
    """out [R, T, D] += x"""
    a, b = x.reshape(-1), out.reshape(-1)
    for i in range(a.shape[0]):
        b[i] += a[i]


@compiled(nogil=True)
def gather(x: np.ndarray, starts: np.ndarray, payload: np.ndarray, events: np.ndarray) -> None:
    """Sums of x [R, T, D] over the tokens and timesteps of each sample: payload int64 [B, D]; and how many entries
    of all samples are not 0: events int64 [D], added to."""
    steps, width = x.shape[1], x.shape[2]
    for b in range(starts.shape[0] - 1):
        row = payload[b]
        row[:] = 0
        for r in range(starts[b], starts[b + 1]):
            for t in range(steps):
                for j in range(width):
                    row[j] += x[r, t, j]
                    events[j] += x[r, t, j] != 0
