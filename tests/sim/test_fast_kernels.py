"""The parts of the fast engine on their own, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from random_graphs import random_dag, random_machine_dag

from sim.fast import kernels, vectors, wiring
from sim.fast.plan import assign_rooms, make_plan, nodes_of, reads_of

WORDS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**63, 2**64 - 1]))


def bits_of(words: np.ndarray) -> np.ndarray:
    """uint64 [..., W] -> 0 and 1 [..., W * 64], neuron j at bit j % 64 of word j // 64."""
    return np.unpackbits(words.astype("<u8").view(np.uint8), axis=-1, bitorder="little")


def words_of(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits.astype(np.uint8), axis=-1, bitorder="little").view("<u8")


@njit
def list_bits(word, index):
    return vectors.list_bits(word, 640, vectors.BIT_PLACES, index, 2)


@settings(deadline=None)  # the first call compiles
@given(WORDS)
def test_list_bits(word: int) -> None:
    index = np.zeros(2 + 64 + kernels.SLACK, np.uint32)
    end = list_bits(np.uint64(word), index)
    assert np.array_equal(index[2:end], 640 + 64 * np.flatnonzero(bits_of(np.array([word], np.uint64))))


def make_add_rows(add):
    @njit
    def add_rows(weight, at, index, cells, t, steps, shift):
        add(weight.reshape(-1), at, index, 0, index.shape[0], cells, t, steps, shift)

    return add_rows


ADD_ROWS = {1: make_add_rows(vectors.add_rows_1), 4: make_add_rows(vectors.add_rows_4)}


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    inputs=st.integers(1, 300),
    largest=st.sampled_from([0, 1, 7, 31, 32, 127]),
    wide=st.booleans(),
    steps=st.integers(1, 15),
    shift=st.integers(0, 3),
)
def test_add_rows(seed: int, inputs: int, largest: int, wide: bool, steps: int, shift: int) -> None:
    """At the edges of each group too: all weights the largest, or the smallest."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-largest, largest + 1, (inputs, 128)).astype(np.int8)
    weight[:, 70:90], weight[:, 110:120] = largest, -largest
    group = vectors.group_of(weight)
    assert group == (4 if largest <= 31 else 1)
    spiked = np.flatnonzero(rng.random(inputs) < 0.5)[: vectors.LIST_MAX]
    before = rng.integers(-100, 100, (5, 64))
    cells = (before.astype(np.int32) if wide else vectors.pack_cells(before)).reshape(-1)
    packed = vectors.pack_weight(weight, group)
    ADD_ROWS[group](packed, inputs * 64, (64 * spiked).astype(np.uint32), cells, 1, steps, shift)
    expected = before.copy()
    for i in range(4):
        expected[1 + i] += (steps >> i & 1) * (weight[spiked, 64:].astype(int).sum(0) << shift)
    if not wide:  # the same numbers modulo 2^16
        expected = vectors.pack_cells(expected)
    assert np.array_equal(cells.reshape(5, 64), expected)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(0, 70), words=st.integers(1, 3), density=st.floats(0, 1))
def test_count_bits(seed: int, rows: int, words: int, density: float) -> None:
    bits = np.random.default_rng(seed).random((rows, words * 64)) < density
    counts = np.empty(words * 64, np.int64)
    kernels.count_bits(words_of(bits), counts)
    assert np.array_equal(counts, bits.sum(0))


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), planes=st.lists(st.integers(0, 3), min_size=2, max_size=4), words=st.integers(1, 3))
def test_add(seed: int, planes: list[int], words: int) -> None:
    """Of nodes that are always 0 too, which have no planes: a relay of weights that are 0."""
    rng, shape = np.random.default_rng(seed), (3, 2, words * 64)
    values = [rng.integers(0, 2**count, shape) * (rng.random(shape) < 0.5) for count in planes]
    bits = [np.array([value >> p & 1 for p in range(count)], bool).reshape(count, *shape)
            for value, count in zip(values, planes)]  # fmt: skip
    nodes = [words_of(each).reshape(len(each), *shape[:2], words) for each in bits]
    payloads = [value.sum((0, 1)) for value in values]
    most = int(sum(2**count - 1 for count in planes)).bit_length()
    out, payload, events = np.ones((most, *shape[:2], words), np.uint64), *np.ones((2, words * 64), np.int64)
    kernels.add(nodes[0], nodes[1], out, payloads[0], payloads[1], payload, events)
    for node, own in zip(nodes[2:], payloads[2:]):
        kernels.add(out, node, out, payload, own, payload, events)
    total = sum(values)
    expected = np.array([total >> p & 1 for p in range(most)], bool).reshape(most, *shape)
    assert np.array_equal(out, words_of(expected).reshape(out.shape))
    assert np.array_equal(payload, total.sum((0, 1))) and np.array_equal(events, (total != 0).sum((0, 1)))


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6), planes=st.integers(1, 4), timesteps=st.integers(1, 9), words=st.integers(1, 4),
    density=st.sampled_from([0.01, 0.2, 0.6, 1.0]), longest=st.sampled_from([3, 10**6]),
)  # fmt: skip
def test_lists_hold_every_spike_once(
    seed: int, planes: int, timesteps: int, words: int, density: float, longest: int
) -> None:
    """Summing up the lists gives the values again, whatever was put together."""
    tokens = 3
    rng = np.random.default_rng(seed)
    bits = rng.random((planes, tokens, timesteps, words * 64)) < density * rng.random(words * 64)
    expected = (bits * 2 ** np.arange(planes)[:, None, None, None]).sum(0)
    index = np.zeros(kernels.CHUNKS * kernels.chunk_entries(words * 64, planes, timesteps), np.uint32)
    lists = np.zeros((100 * kernels.CHUNKS * kernels.chunk_lists(words * 64, planes, timesteps), 5), np.int64)
    spans = np.zeros((kernels.TILE, 2), np.int64)
    kernels._list_spikes(words_of(bits), 0, tokens, longest, index, 0, lists, 0, spans)
    found = np.zeros_like(expected)
    for r, (low, high) in enumerate(spans[:tokens]):
        for start, end, t, steps, plane in lists[low:high]:
            assert 0 < end - start <= longest
            for i in range(4):
                if steps >> i & 1:
                    np.add.at(found[r, t + i], index[start:end] // 64, 1 << plane)
    assert np.array_equal(found, expected)


def test_a_list_for_several_timesteps_where_it_pays() -> None:
    """100 inputs that spike at all four steps need 100 rows, not 400; two that do need no list of their own."""
    for inputs, rows in ((100, 100), (2, 8)):
        bits = np.zeros((1, 1, 4, 128), bool)
        bits[..., :inputs] = True
        index, lists = np.zeros(2000, np.uint32), np.zeros((99, 5), np.int64)
        spans = np.zeros((kernels.TILE, 2), np.int64)
        kernels._list_spikes(words_of(bits), 0, 1, 10**6, index, 0, lists, 0, spans)
        assert (lists[: spans[0, 1], 1] - lists[: spans[0, 1], 0]).sum() == rows


def test_the_room_that_lists_are_given_suffices() -> None:
    """Every input spikes at every step, in every plane, in pieces of LIST_MAX."""
    for planes, timesteps, words in ((1, 1, 1), (3, 5, 9), (4, 16, 5)):
        inputs = words * 64
        bits = np.ones((planes, kernels.TILE, timesteps, inputs), bool)
        assert_room_suffices(words_of(bits), inputs)


def assert_room_suffices(x: np.ndarray, inputs: int) -> np.ndarray:
    """Of a tile, listed at once and chunk by chunk. The lists that were written at once."""
    planes, timesteps = x.shape[0], x.shape[2]
    entries, count = (room(inputs, planes, timesteps) for room in (kernels.chunk_entries, kernels.chunk_lists))
    index, lists = np.zeros(kernels.CHUNKS * entries, np.uint32), np.zeros((kernels.CHUNKS * count, 5), np.int64)
    spans = np.zeros((kernels.TILE, 2), np.int64)
    for part in range(kernels.CHUNKS):
        kernels.list_spikes(x, 0, vectors.LIST_MAX, entries, count, index, lists, spans, part)
        own = spans[part * kernels.CHUNK : (part + 1) * kernels.CHUNK]
        assert own[0, 0] == part * count and own[-1, 1] <= (part + 1) * count
        assert lists[own[0, 0], 0] == part * entries
        assert lists[own[-1, 1] - 1, 1] + kernels.SLACK <= (part + 1) * entries
    kernels._list_spikes(x, 0, kernels.TILE, vectors.LIST_MAX, index, 0, lists, 0, spans)
    assert spans[-1, 1] <= len(lists)
    assert lists[: spans[-1, 1], 1].max() + kernels.SLACK <= len(index)
    return lists[: spans[-1, 1]]


def test_the_room_of_lists_suffices_for_planes_of_few_spikes() -> None:
    """Every input spikes in the lowest plane; each plane above has as many spikes as still go with that one."""
    planes, inputs = 6, kernels.PLANE_COST - 1
    bits = np.zeros((planes, kernels.TILE, 1, 64), bool)
    bits[0, ..., :inputs] = True
    for p in range(1, planes):
        bits[p, ..., : (kernels.PLANE_COST - 1) // (2**p - 1)] = True
    lists = assert_room_suffices(words_of(bits), inputs)
    assert set(lists[:, 4]) == {0}, "all go with the lowest plane"
    assert (lists[:, 1] - lists[:, 0]).sum() > kernels.TILE * inputs * planes


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6), width=st.integers(1, 200), to_width=st.integers(1, 300), planes=st.integers(1, 3),
    to_planes=st.integers(1, 3), data=st.data(),
)  # fmt: skip
def test_copy_features(seed: int, width: int, to_width: int, planes: int, to_planes: int, data: st.DataObject) -> None:
    """From anywhere to anywhere: of what was there before nothing is lost, and nothing else is set."""
    rng = np.random.default_rng(seed)
    count = data.draw(st.integers(1, min(width, to_width)))
    start, at = data.draw(st.integers(0, width - count)), data.draw(st.integers(0, to_width - count))
    x = np.zeros((planes, 2, 3, 64 * -(-width // 64)), bool)
    out = np.zeros((to_planes, 2, 3, 64 * -(-to_width // 64)), bool)
    x[..., :width], out[..., :to_width] = rng.random((*x.shape[:3], width)) < 0.5, rng.random(to_width) < 0.5
    out[..., at : at + count] = False
    words, shared = np.ascontiguousarray(words_of(out)), min(planes, to_planes)
    wiring.copy_features(np.ascontiguousarray(words_of(x)), start, count, words, at)
    out[:shared, ..., at : at + count] = x[:shared, ..., start : start + count]
    assert np.array_equal(bits_of(words), out)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), width=st.integers(1, 130), largest=st.sampled_from([0, 1, 6, 65535]))
def test_relay(seed: int, width: int, largest: int) -> None:
    """What stands behind the currents of a layer is left alone."""
    currents = np.random.default_rng(seed).integers(0, largest + 1, (2, 3, 64 * -(-width // 64))).astype(np.int32)
    out = np.ones((16, 2, 3, currents.shape[-1] // 64), np.uint64)
    wiring.relay(currents, width, out)
    values = (bits_of(out).astype(np.int64) << np.arange(16)[:, None, None, None]).sum(0)
    assert np.array_equal(values[..., :width], currents[..., :width])
    assert not values[..., width:].any()


@pytest.mark.parametrize("make", [random_dag, random_machine_dag])
@pytest.mark.parametrize("seed", range(5))
def test_a_room_is_used_again_only_when_nobody_reads_on(make, seed: int) -> None:
    steps = make_plan(make(np.random.default_rng(seed), nodes=12))
    rooms = assign_rooms(steps)
    assert len(set(rooms)) < len(rooms)
    for index, step in enumerate(steps):
        for later in range(index + 1, len(steps)):
            if set(reads_of(steps[later])) & set(nodes_of(step)):
                assert rooms[index] not in rooms[index + 1 : later + 1]
