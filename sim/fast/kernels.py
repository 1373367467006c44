"""The compiled loops of the fast engine. Each takes packed tokens: R real tokens of some samples, no padding.

Spikes are bits: uint64 [P, R, T, W], 64 neurons a word (neuron j is bit j % 64 of word j // 64, the rest of the last
word is 0). Plane p counts `2^p`, so plain spikes have one plane, and sums of spikes a few. Kernels release the
interpreter's lock, so that each thread runs its share of the samples.
"""

from __future__ import annotations

import numpy as np

from converters.execution import COUNTS
from converters.graph import (
    DECAY_BITS,
    GAMMA_FRACTION,
    MEMBRANE_MAX,
    NORMED_FRACTION,
    RECIPROCAL_BITS,
    ROOT_BITS,
    SHIFT,
)
from sim.fast import atomics
from sim.fast.vectors import (
    BIT_PLACES,
    BLOCK,
    LIST_MAX,
    add_rows_1,
    add_rows_4,
    add_scored,
    expand_digits,
    fetch,
    fill_cells,
    fire,
    fire_free,
    fire_free_subtract,
    fire_subtract,
    list_bits,
    lowest_bit,
    popcount,
    spread_bits,
)
from spikebert.compiled import compiled

BUILT_ON = "d25d0dcdf3c0"  # see CONTRIBUTING.md, "Changing the fast engine"
TILE = 64  # tokens whose spikes wait while a block of weights is in the first-level cache
CHUNK = 4  # of these, how many are listed at a time where threads share a sample
CHUNKS = TILE // CHUNK
SPIKES, OPERATIONS, WEIGHTED, SATURATIONS, MESSAGES = map(
    COUNTS.index, ("spikes", "synaptic_operations", "weighted_operations", "saturations", "messages")
)
FEW_LEVELS = 16  # of graded spikes: so many are quicker compared one by one than divided
SLACK = 8  # entries that `list_bits` may write past its end

# Timesteps (bits) for which rows of weights may be summed up once, in the order in which they are tried; neurons with
# a constant input fire at every second step, hence 0 and 2, 1 and 3 before other pairs.
TOGETHER = np.array([0b1111, 0b0111, 0b1011, 0b1101, 0b1110, 0b0101, 0b1010, 0b0011, 0b1100, 0b1001, 0b0110])
# A list of its own takes as long as this many rows (a loop's end is guessed wrong, cells are written): worth it for
# the steps above where it saves more.
LIST_COST = np.array([0, 0, 14, 18, 21])  # by the number of its timesteps
FEWEST_SHARED = min(int(cost) // (several - 1) + 1 for several, cost in enumerate(LIST_COST) if several > 1)
PLANE_COST = 40  # the same for a plane of few spikes


def chunk_entries(inputs: int, planes: int, timesteps: int) -> int:
    """The most entries that the lists of a chunk of tokens can have."""
    return CHUNK * _token_entries(inputs, planes, timesteps) + SLACK


def chunk_lists(inputs: int, planes: int, timesteps: int) -> int:
    """The most lists of a chunk of tokens, with those that go on beyond LIST_MAX."""
    begun = planes * ((timesteps + 3) // 4) * (len(TOGETHER) + 4)
    return CHUNK * (begun + _token_entries(inputs, planes, timesteps) // LIST_MAX)


@compiled(inline="always")
def longest_list(wide: bool, index: np.ndarray) -> int:
    """How many entries a list may have: what sums of 16 bits surely hold, where currents need more than these."""
    return LIST_MAX if wide else index.shape[0]


def _token_entries(inputs: int, planes: int, timesteps: int) -> int:
    """Of one token: every spike once, and those of a plane that goes with another so often (`_bases`)."""
    return planes * (inputs * timesteps + 2 * PLANE_COST)


def heads_together(size: int, heads: int) -> int:
    """How many heads of `size` features can be worked on apart from others: as few as fill whole words of spikes."""
    whole = (count for count in range(1, heads) if heads % count == 0 and count * size % BLOCK == 0)
    return next(whole, heads)


@compiled(inline="always")
def _cell_stride(words: int, size: int) -> int:
    """Entries for the currents of some words at one timestep. A head of `size` features writes whole blocks; what it
    writes too much, the next one overwrites, and that of the last one has room here."""
    return (words if size % BLOCK == 0 else words + 1) * BLOCK


def attention_cells(tokens: int, timesteps: int, size: int, together: int) -> int:
    """Entries of the currents that heads of `size` features, so many together, give one sample."""
    return tokens * timesteps * _cell_stride(-(-together * size // BLOCK), size)


@compiled(nogil=True, inline="always")
def _fire(
    cells: np.ndarray, at: int, stride: int, steps: int, free: bool, subtract: bool, level: np.ndarray, level_at: int,
    keep: float, words: np.ndarray, word_at: int, word_stride: int, cuts: np.ndarray, cuts_at: int, state: np.ndarray,
    rows: np.ndarray, row: int, fresh: bool,
) -> None:  # fmt: skip
    """The LIF of a block of neurons of token `row`; the membranes of `level_at` on are those of state [rows[row]]."""
    state_at = rows[row] * level.shape[0] + level_at if rows.shape[0] > 0 else -1
    if free and subtract:
        fire_free_subtract(
            cells, at, stride, steps, level, level_at, keep, words, word_at, word_stride, cuts, cuts_at, state,
            state_at, fresh,
        )  # fmt: skip
    elif free:
        fire_free(
            cells, at, stride, steps, level, level_at, keep, words, word_at, word_stride, cuts, cuts_at, state,
            state_at, fresh,
        )  # fmt: skip
    elif subtract:
        fire_subtract(
            cells, at, stride, steps, level, level_at, keep, words, word_at, word_stride, cuts, cuts_at, state,
            state_at, fresh,
        )  # fmt: skip
    else:
        fire(
            cells, at, stride, steps, level, level_at, keep, words, word_at, word_stride, cuts, cuts_at, state,
            state_at, fresh,
        )  # fmt: skip


@compiled(nogil=True, inline="always")
def _end_list(
    lists: np.ndarray, count: int, start: int, end: int, t: int, steps: int, plane: int, longest: int
) -> int:  # fmt: skip
    """Write down the list index [start .. end - 1], in pieces of `longest`; how many lists there are then."""
    while start < end:
        piece = min(end, start + longest)
        lists[count, 0], lists[count, 1] = start, piece
        lists[count, 2], lists[count, 3], lists[count, 4] = t, steps, plane
        start = piece
        count += 1
    return count


@compiled(nogil=True)
def _bases(x: np.ndarray, row: int, base: np.ndarray) -> None:
    """Which planes of a token have so few spikes that they are added, several times each, with a lower plane: the
    plane that each one goes with, its own where it has many."""
    for p in range(x.shape[0]):
        base[p] = p
        if p == 0:
            continue
        below = base[p - 1]
        spikes = 0
        for t in range(x.shape[2]):
            for w in range(x.shape[3]):
                spikes += popcount(x[p, row, t, w])
        if spikes * ((1 << (p - below)) - 1) < PLANE_COST:
            base[p] = below


@compiled(nogil=True, inline="always")
def _list_word(word: int, first: int, index: np.ndarray, at: int) -> int:
    """`list_bits`, or for few bits one by one: which of them is quicker."""
    count = popcount(word)
    if count > 4:
        return list_bits(word, first, BIT_PLACES, index, at)
    for i in range(4):  # what is written too much is overwritten later
        index[at + i] = first + BLOCK * lowest_bit(word)
        word &= word - np.uint64(1)
    return at + count


@compiled(nogil=True)
def _choose(bits: np.ndarray, chosen: np.ndarray) -> int:
    """For which of TOGETHER a list pays, given the spikes of four timesteps uint64 [4, W]; how many were chosen."""
    again = 0  # inputs that spiked more than once: without enough of them no list pays
    for w in range(bits.shape[1]):
        a, b, c, d = bits[0, w], bits[1, w], bits[2, w], bits[3, w]
        again += popcount((a & b) | (c & d) | ((a | b) & (c | d)))
    if again < FEWEST_SHARED:
        return 0
    inputs = np.zeros(16, np.int64)  # for each set of timesteps, how many spiked at all of these ...
    for w in range(bits.shape[1]):
        a, b, c, d = bits[0, w], bits[1, w], bits[2, w], bits[3, w]
        ab, cd = a & b, c & d
        inputs[0b0011] += popcount(ab)
        inputs[0b1100] += popcount(cd)
        inputs[0b0101] += popcount(a & c)
        inputs[0b1010] += popcount(b & d)
        inputs[0b1001] += popcount(a & d)
        inputs[0b0110] += popcount(b & c)
        inputs[0b0111] += popcount(ab & c)
        inputs[0b1011] += popcount(ab & d)
        inputs[0b1101] += popcount(a & cd)
        inputs[0b1110] += popcount(b & cd)
        inputs[0b1111] += popcount(ab & cd)
    for i in range(4):  # ... and at no others
        for steps in range(16):
            if not steps >> i & 1:
                inputs[steps] -= inputs[steps | 1 << i]
    found = 0
    for steps in TOGETHER:
        several = (steps & 1) + (steps >> 1 & 1) + (steps >> 2 & 1) + (steps >> 3)
        shared = 0
        for other in range(steps, 16):
            if other & steps == steps:
                shared += inputs[other]
        if shared * (several - 1) > LIST_COST[several]:
            chosen[found] = steps
            found += 1
            for other in range(steps, 16):
                if other & steps == steps:  # what remains of those
                    inputs[other & ~steps] += inputs[other]
                    inputs[other] = 0
    return found


@compiled(nogil=True)
def _list_spikes(
    x: np.ndarray, first: int, tokens: int, longest: int, index: np.ndarray, at: int, lists: np.ndarray, count: int,
    spans: np.ndarray,
) -> None:  # fmt: skip
    """What spiked in `tokens` tokens from `first` on, in lists, so that each row of weights is read few times.

    Of each four timesteps, inputs that spiked at several go to one list for all of these where that pays, and all
    others to a list for each timestep.

    index uint32, the entries of all lists, written from `at` on
    lists int64 [.., 5], written from `count` on: start and end in `index`; the first of four timesteps, which of them
          (bits), and the plane
    spans int64 [tokens, 2], set: where the lists of each token begin and end
    """
    planes, steps, words = x.shape[0], x.shape[2], x.shape[3]
    rest = np.empty((4, words), np.uint64)
    base, chosen = np.empty(planes, np.int64), np.empty(len(TOGETHER), np.int64)
    for r in range(tokens):
        spans[r, 0] = count
        _bases(x, first + r, base)
        for p in range(planes):
            if base[p] != p:
                continue
            for t in range(0, steps, 4):
                here = min(4, steps - t)
                rest[:] = 0
                for i in range(here):
                    rest[i] = x[p, first + r, t + i]
                for one in chosen[: _choose(rest, chosen)]:
                    start = at
                    for w in range(words):
                        word = ~np.uint64(0)
                        for i in range(4):
                            if (one >> i) & 1:
                                word &= rest[i, w]
                        for i in range(4):
                            if (one >> i) & 1:
                                rest[i, w] &= ~word
                        at = _list_word(word, w * BLOCK * BLOCK, index, at)
                    count = _end_list(lists, count, start, at, t, one, p, longest)
                for i in range(here):
                    start = at
                    for w in range(words):
                        at = _list_word(rest[i, w], w * BLOCK * BLOCK, index, at)
                    for thin in range(p + 1, planes):
                        if base[thin] != p:
                            continue
                        for w in range(words):
                            word = x[thin, first + r, t + i, w]
                            if word != 0:  # a high plane may be empty
                                for _ in range(1 << (thin - p)):
                                    at = _list_word(word, w * BLOCK * BLOCK, index, at)
                    count = _end_list(lists, count, start, at, t, 1 << i, p, longest)
        spans[r, 1] = count


@compiled(nogil=True, inline="always")
def _add_rows(
    group: int, weight: np.ndarray, at: int, index: np.ndarray, start: int, end: int, cells: np.ndarray, t: int,
    steps: int, plane: int,
) -> None:  # fmt: skip
    if group == 1:
        add_rows_1(weight, at, index, start, end, cells, t, steps, plane)
    else:
        add_rows_4(weight, at, index, start, end, cells, t, steps, plane)


@compiled(nogil=True)
def list_spikes(
    x: np.ndarray, first: int, longest: int, entries: int, count: int, index: np.ndarray, lists: np.ndarray,
    spans: np.ndarray, part: int,
) -> None:  # fmt: skip
    """The spikes of chunk `part` of the tile that begins with token `first`, in lists.

    entries, count  room of a chunk in `index` and in `lists`; longest: a list has no more entries
    spans           int64 [TILE, 2], see `_list_spikes`
    """
    start = part * CHUNK
    end = min(start + CHUNK, x.shape[1] - first)
    _list_spikes(x, first + start, end - start, longest, index, part * entries, lists, part * count, spans[start:end])


@compiled(nogil=True)
def add_block(
    x: np.ndarray, weight: np.ndarray, group: int, bias: np.ndarray, wide: bool, fires: bool, free: bool,
    subtract: bool, level: np.ndarray, keep: float, places: np.ndarray, spikes: np.ndarray, currents: np.ndarray,
    index: np.ndarray, lists: np.ndarray, spans: np.ndarray, cuts: np.ndarray, state: np.ndarray, rows: np.ndarray,
    fresh: bool, first: int, threads: int, block: int,
) -> None:  # fmt: skip
    """`synapses` of the tile that begins with token `first`, for one block of neurons, from the lists of spikes.

    threads  how many do this for different blocks
    """
    tokens, steps, words = x.shape[1], x.shape[2], places[block, 1]
    tile = min(TILE, tokens - first)
    if fires and first == 0:
        cuts[block] = 0
    # Words side by side are of one cache line, for which threads would wait in turn: each collects what it has to write
    column = np.empty(tile * steps, np.uint64)
    _add_block(
        weight.reshape(-1), weight.shape[1], group, bias, wide, fires, free, subtract, level, keep, column, 0, 1,
        currents.reshape(-1), index, lists, spans, cuts, state, rows, fresh, first, tile, threads, block,
        np.empty(steps * BLOCK, bias.dtype),
    )  # fmt: skip
    if not fires:
        return
    own = tokens * steps * places[block, 0] + places[block, 2]  # its first word; then each `words`-th
    for i in range(tile * steps):
        spikes[own + (first * steps + i) * words] = column[i]


@compiled(nogil=True, inline="always")
def _add_block(
    weight: np.ndarray, inputs: int, group: int, bias: np.ndarray, wide: bool, fires: bool, free: bool,
    subtract: bool, level: np.ndarray, keep: float, sent: np.ndarray, sent_at: int, stride: int, currents: np.ndarray,
    index: np.ndarray, lists: np.ndarray, spans: np.ndarray, cuts: np.ndarray, state: np.ndarray, rows: np.ndarray,
    fresh: bool, first: int, tile: int, ahead: int, block: int, cells: np.ndarray,
) -> None:  # fmt: skip
    """The currents of a block in the `tile` tokens from `first` on, and what its neurons send: a word for each token
    and timestep, from sent[sent_at] on, `stride` apart.

    weight, currents  as in `synapses`, but flat
    ahead  the weights of so many blocks on are wanted next; cells: room for those of a token
    """
    steps, blocks, row = cells.shape[0] // BLOCK, bias.shape[0] // BLOCK, block * inputs * BLOCK
    keeps = currents.size > 0
    for r in range(tile):
        if block + ahead < blocks:  # its weights will be needed next, from farther away
            for i in range(inputs * r // tile, inputs * (r + 1) // tile):
                fetch(weight, row + (ahead * inputs + i) * BLOCK)
        fill_cells(bias, block * BLOCK, cells, steps)
        for number in range(spans[r, 0], spans[r, 1]):
            start, end, t, chosen, plane = lists[number]
            _add_rows(group, weight, row, index, start, end, cells, t, chosen, plane)
        at = (first + r) * steps
        if keeps:
            for t in range(steps):
                _copy_cell(cells, t * BLOCK, wide, currents, ((at + t) * blocks + block) * BLOCK)
        if fires:
            _fire(
                cells, 0, BLOCK, steps, free, subtract, level, block * BLOCK, keep, sent, sent_at + r * steps * stride,
                stride, cuts, block, state, rows, first + r, fresh,
            )  # fmt: skip


@compiled(nogil=True)
def count_spikes(spikes: np.ndarray, places: np.ndarray, sites: int, fired: np.ndarray) -> None:
    """How often each neuron of some layers fired at so many tokens times timesteps.

    spikes, places  see `synapses`
    fired           int64 [blocks * 64], set; of a layer whose neurons are not counted each, the first number is how
                    often all of them did, and the others are 0
    """
    first = 0
    while first < places.shape[0]:
        words = places[first, 1]
        own, count = spikes[sites * first : sites * (first + words)], fired[first * BLOCK : (first + words) * BLOCK]
        if places[first, 3]:
            count_bits(own.reshape(sites, words), count)
        else:
            total = 0
            for i in range(own.shape[0]):
                total += popcount(own[i])
            count[:] = 0
            count[0] = total
        first += words


@compiled(nogil=True)
def synapses(
    x: np.ndarray, weight: np.ndarray, group: int, bias: np.ndarray, wide: bool, fires: bool, free: bool,
    subtract: bool, level: np.ndarray, keep: float, places: np.ndarray, spikes: np.ndarray, currents: np.ndarray,
    index: np.ndarray, lists: np.ndarray, spans: np.ndarray, cuts: np.ndarray, state: np.ndarray, rows: np.ndarray,
    fresh: bool,
) -> None:  # fmt: skip
    """`a = W x + b` of every token and timestep, then a LIF where `fires`, for layers that read the same x.

    x        uint64 [P, R, T, W]
    weight   int8 [blocks, in, 64] from `pack_weight` for this group
    bias     [blocks * 64], in the form of cells that the sums are made in; `wide`: int32
    level    [blocks * 64], keep: see `Neurons`
    places   int64 [blocks, 4]: words of the layers before that of this block, words of its own, its place there, and
             whether each of its neurons is counted, see `count_spikes`
    spikes   uint64 [R * T * blocks], written where `fires`: all of the first layer [R, T, its words], then the next
    currents int32 [R, T, blocks * 64], written where it is not empty
    index    uint32, room for CHUNKS times `chunk_entries`; lists int64 [CHUNKS times `chunk_lists`, 5]
    spans    int64 [TILE, 2], room
    cuts     int64 [blocks]: how often membranes of each block were cut, set where `fires`
    state, rows, fresh  the membranes that are carried, see above
    """
    tokens, steps = x.shape[1], x.shape[2]
    blocks, longest = weight.shape[0], longest_list(wide, index)
    if fires:
        cuts[:] = 0  # also where there is no token
    flat, flat_currents, cells = weight.reshape(-1), currents.reshape(-1), np.empty(steps * BLOCK, bias.dtype)
    begin = np.int64(0)  # a plain 0 would be a type of its own, and compiled for it
    for first in range(0, tokens, TILE):
        tile = min(TILE, tokens - first)
        _list_spikes(x, first, tile, longest, index, begin, lists, begin, spans)
        for block in range(blocks):
            words = places[block, 1]
            own = tokens * steps * places[block, 0] + first * steps * words + places[block, 2]
            _add_block(
                flat, weight.shape[1], group, bias, wide, fires, free, subtract, level, keep, spikes, own, words,
                flat_currents, index, lists, spans, cuts, state, rows, fresh, first, tile, 1, block, cells,
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
    ids: np.ndarray, places: np.ndarray, table: np.ndarray, position: np.ndarray, code: np.ndarray, sign: bool,
    free: bool, subtract: bool, level: np.ndarray, keep: float, spikes: np.ndarray, fired: np.ndarray,
    cuts: np.ndarray, state: np.ndarray, rows: np.ndarray, fresh: bool,
) -> None:  # fmt: skip
    """The source: a constant current for each token, then a LIF, or `>= 0` where `sign`; and the code of its place.

    ids, places int64 [R]: token ids, and where in its sample a token stands
    table int8 [vocabulary, D]; position int32 [n_max, D], of no rows where there is none
    code uint64 [n_max, T, W], at the bits that follow those of D; of no rows where there is none
    level [W * 64]; spikes uint64 [R, T, W]; fired int64 [W * 64], set; cuts int64 [W], set
    state, rows, fresh: the membranes that are carried, see above
    """
    cuts[:] = 0
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
                    current, w * BLOCK, 0, steps, free, subtract, level, w * BLOCK, keep, out, r * steps * words + w,
                    words, cuts, w, state, rows, r, fresh,
                )  # fmt: skip
                continue
            word = np.uint64(0)
            for j in range(min(BLOCK, width - w * BLOCK)):
                word |= np.uint64(current[w * BLOCK + j] >= 0) << np.uint64(j)
            spikes[r, :, w] = word
        if code.shape[0] > 0:
            own = code[places[r]]
            for t in range(steps):
                for w in range(words):
                    spikes[r, t, w] |= own[t, w]
    count_bits(spikes.reshape(tokens * steps, words), fired)


@compiled(nogil=True)
def lif(
    currents: np.ndarray, free: bool, subtract: bool, level: np.ndarray, keep: float, spikes: np.ndarray,
    fired: np.ndarray, cuts: np.ndarray, state: np.ndarray, rows: np.ndarray, fresh: bool,
) -> None:  # fmt: skip
    """A LIF on stored currents int32 [R, T, W * 64] -> spikes uint64 [R, T, W], and how many: fired int64 [W * 64], and
    cuts int64 [W]. state, rows, fresh: the membranes that are carried, see above."""
    cuts[:] = 0
    tokens, steps, words = spikes.shape
    flat, out = currents.reshape(-1), spikes.reshape(-1)
    for r in range(tokens):
        for w in range(words):
            place = r * steps * words + w
            _fire(
                flat, place * BLOCK, words * BLOCK, steps, free, subtract, level, w * BLOCK, keep, out, place, words,
                cuts, w, state, rows, r, fresh,
            )  # fmt: skip
    count_bits(spikes.reshape(tokens * steps, words), fired)


@compiled(nogil=True)
def graded_lif(
    currents: np.ndarray, level: np.ndarray, keep: int, subtract: bool, ternary: bool, cap: int, spikes: np.ndarray,
    payload: np.ndarray, fired: np.ndarray, cuts: np.ndarray, state: np.ndarray, rows: np.ndarray, fresh: bool,
) -> None:  # fmt: skip
    """A LIF that sends more than bits, on stored currents, neuron by neuron as `converters.graph.LIF` has it.

    currents int32 [R, T, at least D]; level int64 [D], membrane units; keep: 4096 - dv
    spikes   uint64 [P, R, T, W] set, or [1, R, T, 2 W] where `ternary`: those below 0 in words of their own behind
    payload, fired int64 [a bit of `spikes` each], set: the sum of the sizes of what a neuron sent, and how often
    cuts     int64 [at least W], set: how often membranes of each word of neurons were cut
    state    int64 [rows kept, D]; rows, fresh: the membranes that are carried, see above
    """
    for counts in (payload, fired, cuts):
        counts[:] = 0
    spikes[:] = 0
    below = spikes.shape[3] // 2  # words, where those below 0 begin
    limit = np.int64(MEMBRANE_MAX)
    room = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    # each loop over the neurons of a word has one plain body, so that it becomes vector code
    for r in range(spikes.shape[1]):
        for w in range((level.shape[0] + BLOCK - 1) // BLOCK):
            at = level[w * BLOCK : (w + 1) * BLOCK]
            v, sent = room[0][: at.shape[0]], room[1][: at.shape[0]]
            v[:] = 0
            if rows.shape[0] > 0 and not fresh:
                v[:] = state[rows[r], w * BLOCK : (w + 1) * BLOCK]
            for t in range(spikes.shape[2]):
                row = currents[r, t, w * BLOCK : w * BLOCK + at.shape[0]]
                cut = 0
                for j in range(at.shape[0]):
                    kept = (abs(v[j]) * keep) >> DECAY_BITS
                    charged = (kept if v[j] >= 0 else -kept) + (np.int64(row[j]) << SHIFT)
                    v[j] = min(max(charged, -limit), limit)
                    cut += v[j] != charged
                cuts[w] += cut
                _count_levels(v, at, cap, sent)
                if ternary:
                    for j in range(at.shape[0]):
                        sent[j] -= v[j] < -at[j]
                for j in range(at.shape[0]):
                    left = v[j] - sent[j] * at[j] if subtract else 0
                    v[j] = v[j] if sent[j] == 0 else left
                _write_sent(sent, 1, spikes, r, t, w, payload, fired)
                if ternary:
                    _write_sent(sent, -1, spikes, r, t, below + w, payload, fired)
            if rows.shape[0] > 0:
                state[rows[r], w * BLOCK : (w + 1) * BLOCK] = v


@compiled(nogil=True, inline="always")
def _count_levels(v: np.ndarray, at: np.ndarray, cap: int, sent: np.ndarray) -> None:
    """sent = at how many of 1 .. cap times its threshold `at` each membrane v is above; all int64 [neurons]."""
    sent[:] = 0
    if cap <= FEW_LEVELS:
        for j in range(1, cap + 1):
            for i in range(v.shape[0]):
                sent[i] += v[i] > j * at[i]
        return
    for i in range(v.shape[0]):
        if v[i] > at[i]:
            sent[i] = min(cap, (v[i] - 1) // at[i]) if at[i] > 0 else cap


@compiled(nogil=True, inline="always")
def _write_sent(
    sent: np.ndarray, sign: int, spikes: np.ndarray, r: int, t: int, word: int, payload: np.ndarray, fired: np.ndarray
) -> None:  # fmt: skip
    """What neurons of one word sent of this sign: into the planes of its spikes, and counted."""
    own, times = payload[word * BLOCK : (word + 1) * BLOCK], fired[word * BLOCK : (word + 1) * BLOCK]
    for i in range(sent.shape[0]):
        size = max(sign * sent[i], 0)
        own[i] += size
        times[i] += size > 0
    for p in range(spikes.shape[0]):
        bits = np.uint64(0)
        for i in range(sent.shape[0]):
            bits |= np.uint64((max(sign * sent[i], 0) >> p) & 1) << np.uint64(i)
        spikes[p, r, t, word] = bits


@compiled(nogil=True)
def norm(
    currents: np.ndarray, centred: bool, eps: int, gamma: np.ndarray, beta: np.ndarray, has_lane: bool,
    lane: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """`converters.graph.Norm`, all in int64, of every token and timestep.

    currents    int32 [R, T, at least D]; centred: kind "layer"
    gamma, beta int64 [D]
    lane        uint64 [R, T, W']: bit 0 is the lane, where `has_lane`; else it is 1, for all tokens here are real
    out         int32 [R, T, W * 64], set; 0 beyond D
    """
    features = gamma.shape[0]
    half = np.int64(1) << (NORMED_FRACTION + GAMMA_FRACTION - 1)
    for r in range(out.shape[0]):
        for t in range(out.shape[1]):
            row, made = currents[r, t], out[r, t]
            total, squares = np.int64(0), np.int64(0)
            for j in range(features):
                a = np.int64(row[j])
                total += a
                squares += a * a
            if not centred:
                total = np.int64(0)
            scaled, doublings = features * squares - total * total + eps, np.int64(0)
            while scaled < np.int64(1) << (2 * ROOT_BITS - 2):
                scaled <<= 2
                doublings += 1
            root = np.int64(np.sqrt(np.float64(scaled)))  # off by 1 at most: float64 errs by < 2^-20
            if root * root > scaled:
                root -= 1
            elif (root + 1) * (root + 1) <= scaled:
                root += 1
            reciprocal = (np.int64(1) << RECIPROCAL_BITS) // root
            valid = np.int64(lane[r, t, 0] & np.uint64(1)) if has_lane else np.int64(1)
            for j in range(features):
                distance = (features * np.int64(row[j]) - total) << doublings
                z = (distance * reciprocal) >> (RECIPROCAL_BITS - NORMED_FRACTION)
                made[j] = ((gamma[j] * z + half) >> (NORMED_FRACTION + GAMMA_FRACTION)) + beta[j] * valid
            for j in range(features, made.shape[0]):
                made[j] = 0


@compiled(nogil=True, inline="always")
def bits_at(x: np.ndarray, low: int, count: int) -> int:
    """Bits low .. low + count - 1 of x uint64 [W], at most 64, as a word."""
    w, bit = low // BLOCK, low % BLOCK
    word = x[w] >> np.uint64(bit)
    if bit + count > BLOCK:
        word |= x[w + 1] << np.uint64(BLOCK - bit)
    return word if count == BLOCK else word & ((np.uint64(1) << np.uint64(count)) - np.uint64(1))


@compiled(nogil=True)
def _score(
    queries: np.ndarray, keys: np.ndarray, n: int, count: int, size: int, equal: bool, bias: np.ndarray, h: int,
    targets: np.ndarray, payload: np.ndarray, index: np.ndarray, scores: np.ndarray,
) -> tuple[int, int, int, int]:  # fmt: skip
    """Scores of query n with `count` keys, of head h of `size` features, with their bias.

    index, scores     set: the keys that bring something, and what
    targets, payload  int64: how many spikes of v each key has, and the sum of their sizes

    How many these keys are, how many features matched, and the spikes of v that met a score that is not 0: plain, and
    by its size.
    """
    found = matched = met = weight = 0
    row = h if bias.shape[0] > 1 else 0
    for m in range(count):
        score = 0
        if equal:
            for s in range(queries.shape[1]):
                score += popcount(queries[n, s] ^ keys[m, s])
            score = size - score
        else:
            for s in range(queries.shape[1]):
                score += popcount(queries[n, s] & keys[m, s])
        matched += score
        if bias.size > 0:
            score += bias[row, n, m]
        brings = (score != 0) & (targets[m] != 0)
        index[found], scores[found] = m, score
        found += brings  # no branch to be guessed
        met += brings * targets[m]
        weight += abs(score) * payload[m]
    return found, matched, met, weight


@compiled(nogil=True, inline="always")
def _by_plane(found: int, planes: int, longest: int, index: np.ndarray, scores: np.ndarray) -> int:
    """The keys that bring something once for each plane of v, with scores by what it counts; how many there are then.
    The masks of key m in plane p stand at place `p * longest + m`."""
    for p in range(1, planes):
        for e in range(found):
            index[p * found + e] = p * longest + index[e]
            scores[p * found + e] = scores[e] << p
    return found * planes


@compiled(nogil=True)
def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, lane: np.ndarray, starts: np.ndarray, width: int, heads: int,
    together: int, equal: bool, bias: np.ndarray, scores: np.ndarray, fires: bool, free: bool, subtract: bool,
    level: np.ndarray, keep: float, spikes: np.ndarray, currents: np.ndarray, cells: np.ndarray,
    operations: np.ndarray, cuts: np.ndarray, state: np.ndarray, rows: np.ndarray, fresh: bool, parts: int, part: int,
) -> None:  # fmt: skip
    """`a = (q k^T) v` for each head of each sample, then a LIF where `fires`. Scores may be of "xnor", or have a bias.

    Heads are worked on `together` at a time; this does part `part` of `parts` of them.

    q, k       uint64 [1, R, T, W] of `width` neurons; v uint64 [P, R, T, W]: its spikes may be graded
    lane       uint64 [R, T, 1]: where it is 0, a query gets nothing; empty where the node has none, for all tokens
               here are real
    starts     int64 [B + 1]: sample b has tokens starts[b] .. starts[b + 1] - 1
    together   as `heads_together` has it, or all
    equal      whether features match that are both 0
    bias       int32 [1 or heads, n_max, n_max], or empty
    scores     [0], of the type that sums are made in: int16 or int32
    level      [W * 64]; spikes uint64 [R, T, W], written where `fires`
    currents   int32 [R, T, W * 64], written where it is not empty
    cells      int32, room for `parts` times `attention_cells`
    operations int64 [2], added to: synaptic, weighted
    cuts       int64 [W], set where `fires`
    state, rows, fresh  the membranes that are carried, see above
    """
    size = width // heads  # of a head
    slices = (size + BLOCK - 1) // BLOCK
    longest = 0
    for b in range(starts.shape[0] - 1):
        longest = max(longest, starts[b + 1] - starts[b])
    queries, keys = np.empty((longest, slices), np.uint64), np.empty((longest, slices), np.uint64)
    entries = v.shape[0] * longest
    masks, index = np.empty(slices * entries * BLOCK, np.int16), np.empty(entries + 1, np.uint32)
    targets, payload = np.empty(longest, np.int64), np.empty(longest, np.int64)
    own_scores = np.empty(entries, scores.dtype)
    room = cells.shape[0] // parts
    own_cells = cells[part * room : (part + 1) * room]
    flat = spikes.reshape(-1)
    plain = weighted = 0
    first_head = part * together
    low, high = _words_of(first_head, together, size)
    cuts[low:high] = 0
    for b in range(starts.shape[0] - 1):
        added = _attend(
            q, k, v, lane, starts[b], starts[b + 1] - starts[b], first_head, together, size, equal, bias,
            fires, free, subtract, level, keep, flat, currents, own_cells, cuts, state, rows, fresh,
            queries, keys, masks, index, targets, payload, own_scores,
        )  # fmt: skip
        plain += added[0]
        weighted += added[1]
    atomics.add(operations, 0, plain)
    atomics.add(operations, 1, weighted)


@compiled(nogil=True, inline="always")
def _words_of(first: int, count: int, size: int) -> tuple[int, int]:
    """Between which words of spikes `count` heads of `size` features lie, from head `first` on."""
    return first * size // BLOCK, ((first + count) * size + BLOCK - 1) // BLOCK


@compiled(nogil=True, inline="always")
def _attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, lane: np.ndarray, first: int, count: int, first_head: int,
    together: int, size: int, equal: bool, bias: np.ndarray, fires: bool, free: bool,
    subtract: bool, level: np.ndarray, keep: float, spikes: np.ndarray, currents: np.ndarray, cells: np.ndarray,
    cuts: np.ndarray, state: np.ndarray, rows: np.ndarray, fresh: bool, queries: np.ndarray, keys: np.ndarray,
    masks: np.ndarray, index: np.ndarray, targets: np.ndarray, payload: np.ndarray, scores: np.ndarray,
) -> tuple[int, int]:  # fmt: skip
    """Attention of the sample of `count` tokens from `first` on, for `together` heads of `size` features; its
    operations, plain and weighted. `spikes` is flat here; from `queries` on, room for one head."""
    steps, words, slices, planes = q.shape[2], q.shape[3], queries.shape[1], v.shape[0]
    low, high = _words_of(first_head, together, size)
    longest = queries.shape[0]
    plainly = not equal and bias.size == 0  # then most scores are 0, and adding up leaves them out
    stride = _cell_stride(high - low, size)
    plain = weighted = 0
    for t in range(steps):
        for h in range(first_head, first_head + together):
            column = h * size - low * BLOCK
            targets[:count] = 0
            payload[:count] = 0
            for s in range(slices):
                bit, bits = h * size + s * BLOCK, min(BLOCK, size - s * BLOCK)
                for m in range(count):
                    queries[m, s] = bits_at(q[0, first + m, t], bit, bits)
                    keys[m, s] = bits_at(k[0, first + m, t], bit, bits)
                    sent = np.uint64(0)
                    for p in range(planes):
                        value = bits_at(v[p, first + m, t], bit, bits)
                        sent |= value
                        payload[m] += popcount(value) << p
                        spread_bits(value, masks, ((s * planes + p) * longest + m) * BLOCK)
                    targets[m] += popcount(sent)
            for n in range(count):
                found = 0
                if not plainly:
                    if lane.size == 0 or lane[first + n, t, 0] != 0:
                        found, matched, met, weight = _score(
                            queries, keys, n, count, size, equal, bias, h, targets, payload, index, scores
                        )
                        plain += matched + met
                        weighted += matched + weight
                        found = _by_plane(found, planes, longest, index, scores)
                    for s in range(slices):
                        target = (n * steps + t) * stride + column + s * BLOCK
                        add_scored(masks, s * planes * longest * BLOCK, index, scores, found, cells, target)
                    continue
                for m in range(count):
                    meet = queries[n, 0] & keys[m, 0]
                    for s in range(1, slices):
                        meet |= queries[n, s] & keys[m, s]
                    index[found] = m
                    found += meet != 0  # no branch to be guessed
                for e in range(found):
                    m, score = index[e], 0
                    for s in range(slices):
                        score += popcount(queries[n, s] & keys[m, s])
                    scores[e] = score
                    plain += score + targets[m]
                    weighted += score + score * payload[m]
                found = _by_plane(found, planes, longest, index, scores)
                for s in range(slices):
                    target = (n * steps + t) * stride + column + s * BLOCK
                    add_scored(masks, s * planes * longest * BLOCK, index, scores, found, cells, target)
    for n in range(count):
        r = first + n
        if currents.size > 0:
            for t in range(steps):
                start = (n * steps + t) * stride
                currents[r, t, first_head * size : (first_head + together) * size] = cells[
                    start : start + together * size
                ]
        if fires:
            for w in range(low, high):
                _fire(
                    cells, n * steps * stride + (w - low) * BLOCK, stride, steps, free, subtract, level, w * BLOCK,
                    keep, spikes, r * steps * words + w, words, cuts, w, state, rows, r, fresh,
                )  # fmt: skip
    return plain, weighted


@compiled(nogil=True)
def add(
    a: np.ndarray, b: np.ndarray, out: np.ndarray, payload_a: np.ndarray, payload_b: np.ndarray, payload: np.ndarray,
    events: np.ndarray,
) -> None:  # fmt: skip
    """out = a + b: uint64 [P, R, T, W], each with planes of its own number, out with enough. It may be a.

    payload int64 [W * 64], set: the sum of those of a and b; it may be that of a
    events  int64 [W * 64], set: how many values of each neuron in out are not 0
    """
    planes, tokens, steps, words = out.shape
    size = tokens * steps * words  # said, for what is always 0 has no planes at all
    sums, ones, others = out.reshape(planes, size), a.reshape(a.shape[0], size), b.reshape(b.shape[0], size)
    carry, active = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
    for p in range(planes):
        for i in range(size):
            x = ones[p, i] if p < ones.shape[0] else np.uint64(0)
            y = others[p, i] if p < others.shape[0] else np.uint64(0)
            either = x ^ y
            total = either ^ carry[i]
            carry[i] = (x & y) | (either & carry[i])
            active[i] |= total
            sums[p, i] = total
    count_bits(active.reshape(tokens * steps, words), events)
    for j in range(payload.shape[0]):
        payload[j] = payload_a[j] + payload_b[j]


@compiled(nogil=True)
def add_signed(x: np.ndarray, out: np.ndarray) -> None:
    """As `add`, where x [P, R, T, W or 2 W] may have fewer words than out [P', R, T, 2 W]: none below 0."""
    for p in range(x.shape[0]):
        for r in range(x.shape[1]):
            for t in range(x.shape[2]):
                for w in range(x.shape[3]):
                    carry, plane = x[p, r, t, w], p
                    while carry != 0:
                        before = out[plane, r, t, w]
                        out[plane, r, t, w] = before ^ carry
                        carry &= before
                        plane += 1


@compiled(nogil=True)
def cancel(out: np.ndarray) -> None:
    """Where a value has a part above 0 and one below, what is left of them: out [P, R, T, 2 W], changed.

    64 differences at a time, plane by plane with borrows; where the last one borrows it is below 0, and is negated.
    """
    planes, words = out.shape[0], out.shape[3] // 2
    difference = np.empty(planes, np.uint64)
    for r in range(out.shape[1]):
        for t in range(out.shape[2]):
            for w in range(words):
                borrow = np.uint64(0)
                for p in range(planes):
                    a, b = out[p, r, t, w], out[p, r, t, words + w]
                    difference[p] = a ^ b ^ borrow
                    borrow = (~a & b) | (~(a ^ b) & borrow)
                below, carry = borrow, borrow
                for p in range(planes):
                    out[p, r, t, w] = difference[p] & ~below
                    negated = ~difference[p] & below
                    out[p, r, t, words + w] = negated ^ carry
                    carry &= negated


@compiled(nogil=True)
def count_sums(x: np.ndarray, active: np.ndarray, events: np.ndarray) -> None:
    """How many values of each neuron in x [P, R, T, W] are not 0: events int64 [W * 64], set.

    active [R, T, W], room: where any plane is set
    """
    words = active.reshape(-1)
    words[:] = 0
    for p in range(x.shape[0]):
        plane = x[p].reshape(-1)
        for i in range(words.shape[0]):
            words[i] |= plane[i]
    count_bits(active.reshape(x.shape[1] * x.shape[2], x.shape[3]), events)


@compiled(nogil=True, inline="always")
def _total(x: np.ndarray) -> int:
    total = 0
    for i in range(x.shape[0]):  # from 0 on, so that it becomes vector code
        total += x[i]
    return total


@compiled(nogil=True, inline="always")
def _product(x: np.ndarray, y: np.ndarray) -> int:
    total = 0
    for i in range(x.shape[0]):
        total += x[i] * y[i]
    return total


@compiled(nogil=True)
def tally(
    counted: np.ndarray, senders: np.ndarray, cuts: np.ndarray, layers: np.ndarray, fan_out: np.ndarray,
    operations: np.ndarray, counts: np.ndarray,
) -> None:  # fmt: skip
    """What all nodes did, from what was counted of each neuron: counts int64 [nodes, len(COUNTS)], changed.

    counted    int64: how many values of each neuron of each node were not 0, then the sums of their sizes
    senders    int64 [.., 4]: the row of a node in `counts`, where its neurons begin in `counted` and where they end,
               and whether it is a node of neurons
    cuts       int64: for each 64 neurons of `counted`
    layers     int64 [.., 4]: the row of a layer; where in `counted` its inputs begin, where their sums, and how many
               there are; 0 of these where its operations were counted already: int64 [layers, 2], plain and weighted
    fan_out    int64: for each such input of each layer, its nonzero weights
    """
    for sender in range(senders.shape[0]):
        row, start, end, is_neuron = senders[sender]
        sent = _total(counted[start:end])
        counts[row, MESSAGES] = sent
        if is_neuron:
            counts[row, SPIKES], counts[row, SATURATIONS] = sent, _total(cuts[start // BLOCK : end // BLOCK])
    first = 0
    for layer in range(layers.shape[0]):
        row, events, payload, inputs = layers[layer]
        plain, weighted = operations[layer]
        if inputs > 0:
            reached = fan_out[first : first + inputs]
            first += inputs
            plain = weighted = _product(counted[events : events + inputs], reached)
            if payload != events:
                weighted = _product(counted[payload : payload + inputs], reached)
        counts[row, OPERATIONS], counts[row, WEIGHTED] = plain, weighted


@compiled(nogil=True)
def read_out(
    sums: np.ndarray, weight: np.ndarray, bias: np.ndarray, sites: np.ndarray, before: np.ndarray, logits: np.ndarray
) -> None:  # fmt: skip
    """Logits int64 [B, classes], set: `W x` and the bias, summed over tokens and timesteps, and the logits before.

    sums   int64 [B, at least in], of each sample the sum of x; sites int64 [B], tokens times timesteps
    weight int64 [in, classes]; bias int64 [classes]; before int64 [B, classes] or [1, 1]
    """
    for b in range(logits.shape[0]):
        for c in range(logits.shape[1]):
            total = sites[b] * bias[c]
            for i in range(weight.shape[0]):
                total += sums[b, i] * weight[i, c]
            logits[b, c] = total + before[b % before.shape[0], c % before.shape[1]]


@compiled(nogil=True)
def count_bits(rows: np.ndarray, counts: np.ndarray) -> None:
    """In how many of the rows uint64 [M, W] each bit is set: counts int64 [W * 64], set.

    The counters are kept digit by digit in words too, 64 side by side, and eight rows are added at a time: their sum
    has no carry beyond the digit for 8 but one (Harley and Seal; Warren, Hacker's Delight, 5-1).
    """
    count, words = rows.shape
    digits = 3
    while count >> digits:
        digits += 1
    counter, carry = np.zeros((digits, words), np.uint64), np.empty(words, np.uint64)
    whole = count - count % 8
    for m in range(0, whole, 8):
        _add_eight(rows[m : m + 8], counter, carry)
    if whole < count:
        last = np.zeros((8, words), np.uint64)
        last[: count - whole] = rows[whole:]
        _add_eight(last, counter, carry)
    flat = counter.reshape(-1)
    for w in range(words):
        expand_digits(flat, w, words, digits, counts, w * BLOCK)


@compiled(nogil=True, inline="always")
def _add_eight(rows: np.ndarray, counter: np.ndarray, carry: np.ndarray) -> None:
    """Counter uint64 [digits, W] += eight rows [8, W]; carry [W] is room."""
    for w in range(carry.shape[0]):  # no branches, so that it becomes vector code
        ones, two_a = _add_three(counter[0, w], rows[0, w], rows[1, w])
        ones, two_b = _add_three(ones, rows[2, w], rows[3, w])
        twos, four_a = _add_three(counter[1, w], two_a, two_b)
        ones, two_a = _add_three(ones, rows[4, w], rows[5, w])
        counter[0, w], two_b = _add_three(ones, rows[6, w], rows[7, w])
        counter[1, w], four_b = _add_three(twos, two_a, two_b)
        counter[2, w], carry[w] = _add_three(counter[2, w], four_a, four_b)
    for place in range(3, counter.shape[0]):
        for w in range(carry.shape[0]):
            before = counter[place, w]
            counter[place, w] = before ^ carry[w]
            carry[w] &= before


@compiled(nogil=True, inline="always")
def _add_three(a: int, b: int, c: int) -> tuple[int, int]:
    """The sum of three bits, in 64 places at once: its digit, and what is carried."""
    either = a ^ b
    return either ^ c, (a & b) | (either & c)


@compiled(nogil=True)
def sum_samples(x: np.ndarray, starts: np.ndarray, payload: np.ndarray) -> None:
    """For each sample and neuron, the sum of its values in x [P, R, T, W]; int64 [B, W * 64], added to."""
    planes, tokens, steps, words = x.shape
    rows, counts = x.reshape(planes, tokens * steps, words), np.empty(words * BLOCK, np.int64)
    for b in range(starts.shape[0] - 1):
        for p in range(planes):
            count_bits(rows[p, steps * starts[b] : steps * starts[b + 1]], counts)
            for j in range(words * BLOCK):
                payload[b, j] += counts[j] << p
