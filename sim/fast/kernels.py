"""The compiled loops of the fast engine. Each takes packed tokens: R real tokens of some samples, no padding.

Spikes are bits: uint64 [P, R, T, W], 64 neurons a word (neuron j is bit j % 64 of word j // 64, the rest of the last
word is 0). Plane p counts `2^p`, so plain spikes have one plane, and sums of spikes a few. Kernels release the
interpreter's lock, so that each thread runs its share of the samples.
"""

from __future__ import annotations

import numpy as np

from sim.fast.vectors import (
    BLOCK,
    LIST_MAX,
    add_rows,
    add_rows_to_four,
    add_scored,
    fill_cells,
    fire,
    fire_free,
    lowest_bit,
    popcount,
    spread_bits,
)
from spikebert.compiled import compiled

TILE = 32  # tokens whose spikes wait while a block of weights is in the first-level cache
SLACK = 4  # entries that `_list_bits` may write past its end


def tile_entries(inputs: int, planes: int, timesteps: int) -> int:
    """The most entries that the lists of a tile of tokens can have."""
    return TILE * inputs * planes * timesteps + SLACK


def attention_cells(tokens: int, timesteps: int, width: int, heads: int) -> int:
    """Entries of the currents of one sample, with what a head may write beyond its own."""
    words, slices = -(-width // BLOCK), -(-(width // heads) // BLOCK)
    return tokens * timesteps * (words + slices) * BLOCK


@compiled(nogil=True, inline="always")
def _fire(
    cells: np.ndarray, at: int, stride: int, steps: int, free: bool, level: np.ndarray, level_at: int, keep: float,
    words: np.ndarray, word_at: int, word_stride: int,
) -> None:  # fmt: skip
    if free:
        fire_free(cells, at, stride, steps, level, level_at, keep, words, word_at, word_stride)
    else:
        fire(cells, at, stride, steps, level, level_at, keep, words, word_at, word_stride)


@compiled(nogil=True, inline="always")
def _list_bits(word: int, first: int, index: np.ndarray, at: int) -> int:
    """Write `first` + 64 times the place of each set bit to index [at ..]; where the next entry goes.

    Four at a time: what is written too much is overwritten later, and fewer branches are guessed wrong.
    """
    end = at + popcount(word)
    while True:
        for i in range(4):
            index[at + i] = first + BLOCK * lowest_bit(word)
            word &= word - np.uint64(1)
        at += 4
        if word == 0:
            return end


@compiled(nogil=True)
def _list_spikes(
    x: np.ndarray, first: int, tokens: int, pairs: np.ndarray, index: np.ndarray, all_four: np.ndarray,
    cuts: np.ndarray,
) -> None:  # fmt: skip
    """What spiked in `tokens` tokens from `first` on, so that a row of weights is read once for several timesteps.

    For each token, plane and four timesteps 4 g .. 4 g + 3 a list of the inputs that spiked at all of them; then, of
    the others, for each pair of timesteps three lists, one after another: spiked at the first alone, at both, at the
    second alone.

    pairs    int64 [K, 2], two equal timesteps where one has no partner
    all_four int64 [tokens, planes, T // 4, 2]: where the list begins in `index`, and where it ends
    cuts     int64 [tokens, planes, K, 4]: where the three lists begin, and where the last one ends
    """
    planes, words = x.shape[0], x.shape[3]
    fours, every = all_four.shape[2], np.zeros(words, np.uint64)
    at = 0
    for r in range(tokens):
        for p in range(planes):
            bits = x[p, first + r]
            for k in range(pairs.shape[0]):
                t, u = pairs[k, 0], pairs[k, 1]
                group = t // 4
                if t == 4 * group:  # the first pair of its four timesteps
                    every[:] = 0
                    if group < fours:
                        all_four[r, p, group, 0] = at
                        for w in range(words):
                            every[w] = bits[t, w] & bits[t + 1, w] & bits[t + 2, w] & bits[t + 3, w]
                            at = _list_bits(every[w], w * BLOCK * BLOCK, index, at)
                        all_four[r, p, group, 1] = at
                for part in range(3):
                    cuts[r, p, k, part] = at
                    if part > 0 and t == u:
                        continue
                    for w in range(words):
                        one, other = bits[t, w] & ~every[w], bits[u, w] & ~every[w]
                        if part == 0:
                            chosen = one if t == u else one & ~other
                        else:
                            chosen = one & other if part == 1 else other & ~one
                        at = _list_bits(chosen, w * BLOCK * BLOCK, index, at)
                cuts[r, p, k, 3] = at


@compiled(nogil=True, inline="always")
def _add_lists(
    weight: np.ndarray, at: int, index: np.ndarray, cuts: np.ndarray, wide: bool, cells: np.ndarray, pair: np.ndarray,
    plane: int,
) -> None:  # fmt: skip
    """Add the rows of one pair of timesteps; in pieces of LIST_MAX where the sums need more than 16 bits."""
    t, u = pair[0], pair[1]
    a, b, c, d = cuts[0], cuts[1], cuts[2], cuts[3]
    if a == d:
        return
    if not wide or max(b - a, c - b, d - c) <= LIST_MAX:
        add_rows(weight, at, index, a, b, c, d, cells, t, u, plane)
        return
    for start in range(a, b, LIST_MAX):
        end = min(start + LIST_MAX, b)
        add_rows(weight, at, index, start, end, end, end, cells, t, u, plane)
    for start in range(b, c, LIST_MAX):
        end = min(start + LIST_MAX, c)
        add_rows(weight, at, index, start, start, end, end, cells, t, u, plane)
    for start in range(c, d, LIST_MAX):
        end = min(start + LIST_MAX, d)
        add_rows(weight, at, index, start, start, start, end, cells, t, u, plane)


@compiled(nogil=True, inline="always")
def _add_to_four(
    weight: np.ndarray, at: int, index: np.ndarray, cuts: np.ndarray, wide: bool, cells: np.ndarray, t: int, plane: int
) -> None:
    """Add the rows of inputs that spiked at four timesteps from t on, in pieces likewise."""
    piece = LIST_MAX if wide else cuts[1] - cuts[0] + 1
    for start in range(cuts[0], cuts[1], piece):
        add_rows_to_four(weight, at, index, start, min(start + piece, cuts[1]), cells, t, plane)


@compiled(nogil=True)
def synapses(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, wide: bool, pairs: np.ndarray, fires: bool, free: bool,
    level: np.ndarray, keep: float, places: np.ndarray, spikes: np.ndarray, currents: np.ndarray, index: np.ndarray,
) -> None:  # fmt: skip
    """`a = W x + b` of every token and timestep, then a LIF where `fires`, for layers that read the same x.

    x        uint64 [P, R, T, W]
    weight   int8 [blocks, in, 64] from `pack_weight`
    bias     [blocks * 64], in the form of cells that the sums are made in; `wide`: int32
    pairs    int64 [K, 2]: the timesteps, two by two (`pair_timesteps`)
    level    [blocks * 64], keep: see `Neurons`
    places   int64 [blocks, 3]: words of the layers before that of this block, words of its own, its place there
    spikes   uint64 [R * T * blocks], written where `fires`: all of the first layer [R, T, its words], then the next
    currents int32 [R, T, blocks * 64], written where it is not empty
    index    uint32, room for `tile_entries`
    """
    planes, tokens, steps = x.shape[0], x.shape[1], x.shape[2]
    blocks, inputs = weight.shape[0], weight.shape[1]
    flat, flat_currents = weight.reshape(-1), currents.reshape(-1)
    keeps = currents.size > 0
    cells = np.empty(steps * BLOCK, bias.dtype)
    cuts = np.empty((TILE, planes, pairs.shape[0], 4), np.int64)
    all_four = np.empty((TILE, planes, steps // 4, 2), np.int64)
    for first in range(0, tokens, TILE):
        tile = min(TILE, tokens - first)
        _list_spikes(x, first, tile, pairs, index, all_four, cuts)
        for block in range(blocks):
            place = tokens * steps * places[block, 0] + places[block, 2]
            stride, row = places[block, 1], block * inputs * BLOCK
            for r in range(tile):
                fill_cells(bias, block * BLOCK, cells, steps)
                for p in range(planes):
                    for g in range(steps // 4):
                        _add_to_four(flat, row, index, all_four[r, p, g], wide, cells, 4 * g, p)
                    for k in range(pairs.shape[0]):
                        _add_lists(flat, row, index, cuts[r, p, k], wide, cells, pairs[k], p)
                at = (first + r) * steps
                if keeps:
                    for t in range(steps):
                        _copy_cell(cells, t * BLOCK, wide, flat_currents, ((at + t) * blocks + block) * BLOCK)
                if fires:
                    _fire(
                        cells, 0, BLOCK, steps, free, level, block * BLOCK, keep, spikes, place + at * stride, stride
                    )  # fmt: skip


@compiled(nogil=True)
def _copy_cell(cells: np.ndarray, at: int, wide: bool, out: np.ndarray, to: int) -> None:
    """The currents of a cell in order: int32 out [to .. to + 63]."""
    half = BLOCK // 2
    for j in range(half):
        if wide:
            out[to + j], out[to + half + j] = cells[at + j], cells[at + half + j]
        else:
            low, high = np.int32(cells[at + j]), np.int32(cells[at + half + j])
            out[to + j], out[to + half + j] = np.int16(low - 256 * high), high


@compiled(nogil=True)
def encode(
    ids: np.ndarray, places: np.ndarray, table: np.ndarray, position: np.ndarray, sign: bool, free: bool,
    level: np.ndarray, keep: float, spikes: np.ndarray,
) -> None:  # fmt: skip
    """The source: a constant current for each token, then a LIF, or `>= 0` where `sign`.

    ids, places int64 [R]: token ids, and where in its sample a token stands
    table int8 [vocabulary, D]; position int32 [n_max, D], of no rows where there is none
    level [W * 64]; spikes uint64 [R, T, W]
    """
    tokens, steps, words = spikes.shape
    width = table.shape[1]
    out, current = spikes.reshape(-1), np.zeros(words * BLOCK, np.int32)
    for r in range(tokens):
        row = table[ids[r]]
        for j in range(width):
            current[j] = row[j]
        if position.shape[0] > 0:
            extra = position[places[r]]
            for j in range(width):
                current[j] += extra[j]
        for w in range(words):
            if not sign:
                _fire(
                    current, w * BLOCK, 0, steps, free, level, w * BLOCK, keep, out, r * steps * words + w, words
                )  # fmt: skip
                continue
            word = np.uint64(0)
            for j in range(min(BLOCK, width - w * BLOCK)):
                word |= np.uint64(current[w * BLOCK + j] >= 0) << np.uint64(j)
            spikes[r, :, w] = word


@compiled(nogil=True)
def lif(currents: np.ndarray, free: bool, level: np.ndarray, keep: float, spikes: np.ndarray) -> None:
    """A LIF on stored currents int32 [R, T, W * 64] -> spikes uint64 [R, T, W]."""
    tokens, steps, words = spikes.shape
    flat, out = currents.reshape(-1), spikes.reshape(-1)
    for r in range(tokens):
        for w in range(words):
            place = r * steps * words + w
            _fire(flat, place * BLOCK, words * BLOCK, steps, free, level, w * BLOCK, keep, out, place, words)


@compiled(nogil=True, inline="always")
def _head_bits(x: np.ndarray, low: int, count: int) -> int:
    """Bits low .. low + count - 1 of x uint64 [W], at most 64, as a word."""
    w, bit = low // BLOCK, low % BLOCK
    word = x[w] >> np.uint64(bit)
    if bit + count > BLOCK:
        word |= x[w + 1] << np.uint64(BLOCK - bit)
    return word if count == BLOCK else word & ((np.uint64(1) << np.uint64(count)) - np.uint64(1))


@compiled(nogil=True)
def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, starts: np.ndarray, width: int, heads: int, scores: np.ndarray,
    fires: bool, free: bool, level: np.ndarray, keep: float, spikes: np.ndarray, currents: np.ndarray,
    cells: np.ndarray, operations: np.ndarray,
) -> None:  # fmt: skip
    """`a = (q k^T) v` for each head of each sample, then a LIF where `fires`.

    q, k, v    uint64 [1, R, T, W] of `width` neurons
    starts     int64 [B + 1]: sample b has tokens starts[b] .. starts[b + 1] - 1
    scores     [n_max], of the type that sums are made in: int16 or int32
    level      [W * 64]; spikes uint64 [R, T, W], written where `fires`
    currents   int32 [R, T, W * 64], written where it is not empty
    cells      int32, room for `attention_cells`
    operations int64 [2], added to: synaptic, weighted
    """
    steps, words = q.shape[2], q.shape[3]
    size = width // heads  # of a head
    slices = (size + BLOCK - 1) // BLOCK
    longest = 0
    for b in range(starts.shape[0] - 1):
        longest = max(longest, starts[b + 1] - starts[b])
    queries, keys = np.empty((longest, slices), np.uint64), np.empty((longest, slices), np.uint64)
    masks, index = np.empty(slices * longest * BLOCK, np.int16), np.empty(longest, np.uint16)
    targets = np.empty(longest, np.int64)
    stride = (words + slices) * BLOCK  # a head writes whole blocks; what it writes too much, the next one overwrites
    out = spikes.reshape(-1)
    plain = weighted = 0
    for b in range(starts.shape[0] - 1):
        first, count = starts[b], starts[b + 1] - starts[b]
        for t in range(steps):
            for h in range(heads):
                for m in range(count):
                    targets[m] = 0
                    for s in range(slices):
                        low, bits = h * size + s * BLOCK, min(BLOCK, size - s * BLOCK)
                        queries[m, s] = _head_bits(q[0, first + m, t], low, bits)
                        keys[m, s] = _head_bits(k[0, first + m, t], low, bits)
                        value = _head_bits(v[0, first + m, t], low, bits)
                        targets[m] += popcount(value)
                        spread_bits(value, masks, (s * longest + m) * BLOCK)
                for n in range(count):
                    found = 0
                    for m in range(count):
                        score = popcount(queries[n, 0] & keys[m, 0])
                        for s in range(1, slices):
                            score += popcount(queries[n, s] & keys[m, s])
                        plain += score + (score > 0) * targets[m]
                        weighted += score + score * targets[m]
                        index[found], scores[found] = m, score
                        found += (score > 0) & (targets[m] > 0)  # no branch to be guessed
                    for s in range(slices):
                        target = (n * steps + t) * stride + h * size + s * BLOCK
                        add_scored(masks, s * longest * BLOCK, index, scores, found, cells, target)
        for n in range(count):
            r = first + n
            if currents.size > 0:
                for t in range(steps):
                    start = (n * steps + t) * stride
                    currents[r, t, :width] = cells[start : start + width]
            if fires:
                for w in range(words):
                    _fire(
                        cells, n * steps * stride + w * BLOCK, stride, steps, free, level, w * BLOCK, keep, out,
                        r * steps * words + w, words,
                    )  # fmt: skip
    operations[0] += plain
    operations[1] += weighted


@compiled(nogil=True)
def add(x: np.ndarray, out: np.ndarray) -> None:
    """out += x, both [P, R, T, W] words: each plane is added with its carries to those above."""
    words = out.reshape(out.shape[0], -1)
    for p in range(x.shape[0]):
        carries = x[p].reshape(-1)
        for i in range(carries.shape[0]):
            carry, plane = carries[i], p
            while carry != 0:
                before = words[plane, i]
                words[plane, i] = before ^ carry
                carry &= before
                plane += 1


@compiled(nogil=True)
def any_plane(x: np.ndarray, out: np.ndarray) -> None:
    """Where x [P, R, T, W] is not 0: out [R, T, W]."""
    words = out.reshape(-1)
    words[:] = 0
    for p in range(x.shape[0]):
        plane = x[p].reshape(-1)
        for i in range(words.shape[0]):
            words[i] |= plane[i]


@compiled(nogil=True)
def count_bits(rows: np.ndarray, times: int, counts: np.ndarray) -> None:
    """counts int64 [W * 64] += times * in how many of the rows uint64 [M, W] each bit is set.

    The counters are kept digit by digit in words too, 64 side by side, and four rows are added at a time.
    """
    count, words = rows.shape
    digits = 3
    while count >> digits:
        digits += 1
    counter = np.zeros((digits, words), np.uint64)
    zero = np.uint64(0)
    for m in range(0, count, 4):
        for w in range(words):
            a, b = rows[m, w], rows[m + 1, w] if m + 1 < count else zero
            c, d = rows[m + 2, w] if m + 2 < count else zero, rows[m + 3, w] if m + 3 < count else zero
            ab, cd = a ^ b, c ^ d
            ones, and_ab, and_cd, and_abcd = ab ^ cd, a & b, c & d, ab & cd
            twos = and_ab ^ and_cd ^ and_abcd
            fours = (and_ab & and_cd) | (and_abcd & (and_ab ^ and_cd))
            carry = counter[0, w] & ones
            counter[0, w] ^= ones
            half = counter[1, w] ^ twos
            next_carry = (counter[1, w] & twos) | (half & carry)
            counter[1, w] = half ^ carry
            half = counter[2, w] ^ fours
            carry = (counter[2, w] & fours) | (half & next_carry)
            counter[2, w] = half ^ next_carry
            place = 3
            while carry != 0:
                before = counter[place, w]
                counter[place, w] = before ^ carry
                carry &= before
                place += 1
    for w in range(words):
        for j in range(BLOCK):
            for place in range(digits):
                digit = (counter[place, w] >> np.uint64(j)) & np.uint64(1)
                counts[w * BLOCK + j] += times * (np.int64(digit) << place)


@compiled(nogil=True)
def sum_samples(x: np.ndarray, starts: np.ndarray, payload: np.ndarray) -> None:
    """For each sample and neuron, the sum of its values in x [P, R, T, W]; added to int64 [B, W * 64]."""
    planes, tokens, steps, words = x.shape
    rows = x.reshape(planes, tokens * steps, words)
    for b in range(starts.shape[0] - 1):
        for p in range(planes):
            count_bits(rows[p, steps * starts[b] : steps * starts[b + 1]], 1 << p, payload[b])
