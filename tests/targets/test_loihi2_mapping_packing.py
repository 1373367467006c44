"""Boxes share cores, and cores are dealt out to chips: nothing is over-full, and what can be saved is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from targets.loihi2.mapping import packing
from targets.loihi2.mapping.chips import BOARDS, crossing, deal, smallest_board, swap
from targets.loihi2.mapping.packing import fewest, pack, pack_amounts, repack, valid


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(0.01, 1), min_size=4, max_size=4), min_size=1, max_size=16))
def test_no_core_is_over_full(shares: list[list[float]]) -> None:
    array = np.array(shares)
    core = pack(array)
    assert valid(array, core)
    assert set(core.tolist()) == set(range(int(core.max()) + 1))
    assert fewest(array) <= core.max() + 1 <= len(array)


def test_large_boxes_have_a_core_each_and_small_ones_fill_what_is_left() -> None:
    shares = np.array([[0.9, 0.1], [0.1, 0.9], [0.1, 0.1], [0.8, 0.8], [0.2, 0.2]])
    assert pack(shares).tolist() == [0, 1, 1, 2, 2]  # the nearest with room


# Of 3 cores in all. First fit, the largest first, takes a fourth: 45 + 45, 35 + 35 + 30, then 30 + 20 + 20 + 20, 20
SIZES = np.array([0.45, 0.45, 0.35, 0.35, 0.2, 0.2, 0.2, 0.2, 0.3, 0.3])[:, None]


def test_the_solver_saves_a_core_that_first_fit_does_not() -> None:
    core = pack(SIZES)
    assert valid(SIZES, core) and core.max() + 1 == fewest(SIZES) == 3


def test_without_the_solver_it_would_be_one_more(monkeypatch) -> None:
    monkeypatch.setattr(packing, "SOLVED_MOST", 0)
    assert pack(SIZES).max() + 1 == 4


def test_the_solver_is_not_asked_where_no_core_can_be_saved() -> None:
    assert repack(np.full((4, 1), 0.5), 2) is None
    assert repack(np.full((3, 1), 0.4), 2) is None


def test_whole_amounts_may_fill_a_core_to_the_last() -> None:
    assert pack_amounts([(3, 1), (3, 1), (1, 1), (1, 1), (2, 1)], (10, 5)).tolist() == [0, 0, 0, 0, 0]
    assert pack_amounts([(3, 1), (3, 1), (1, 1), (1, 1), (2, 1), (1, 1)], (10, 5)).max() == 1


# Chips


def cliques() -> csr_matrix:
    """Cores 0, 2, 4, 6 talk among each other, and so do 1, 3, 5, 7; a little goes from the ones to the others."""
    cores = np.arange(8)
    between = np.where(cores[:, None] % 2 == cores % 2, 10.0, 0.1)
    return csr_matrix(between)


def test_cores_that_talk_are_put_on_one_chip() -> None:
    between = cliques()
    start = np.arange(8) // 4
    found = swap(between, start)
    assert np.bincount(found).tolist() == [4, 4]
    assert len({*found[::2].tolist()}) == len({*found[1::2].tolist()}) == 1
    assert crossing(between, found) < crossing(between, start)


def test_of_several_orders_the_best_is_taken() -> None:
    orders = [np.arange(8), np.array([0, 2, 4, 6, 1, 3, 5, 7])]
    chip = deal(cliques(), orders, 4)
    assert np.isclose(crossing(cliques(), chip), 32 * 0.1)


@pytest.mark.parametrize("seed", range(4))
def test_chips_stay_full_and_messages_do_not_grow(seed: int) -> None:
    rng = np.random.default_rng(seed)
    between = csr_matrix(rng.random((23, 23)) * (rng.random((23, 23)) < 0.3))
    start = np.arange(23) // 5
    found = deal(between, [np.arange(23)], 5)
    assert np.bincount(found).tolist() == np.bincount(start).tolist() == [5, 5, 5, 5, 3]
    assert crossing(between, found) <= crossing(between, start)


def test_the_smallest_board_that_has_enough_chips() -> None:
    assert [smallest_board(chips) for chips in (1, 2, 8, 9, 1152)] == [
        BOARDS[0], BOARDS[1], BOARDS[1], BOARDS[2], BOARDS[2]
    ]  # fmt: skip
    assert smallest_board(1153) is None
