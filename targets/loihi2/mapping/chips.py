"""Cores are dealt out to chips: as few chips as can be, then as few messages between them as is found.

Every chip is filled, in an order of the cores; of several orders the one with the fewest messages between chips is
taken. Then pairs of chips that talk most exchange cores, by Kernighan and Lin's rule (networkx).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np

SWAPPED_PAIRS = 100  # pairs of chips, those that talk most


@dataclass(frozen=True)
class Board:
    """A board or system with Loihi 2 chips."""

    name: str
    chips: int
    source: str


BOARDS = (
    Board("oheo-gulch", 1, "Intel, technology brief, 2021: a single-chip board for evaluation"),
    Board("kapoho-point", 8, "Intel, technology brief, 2021: eight chips; boards can be stacked"),
    Board("hala-point", 1152, "Intel newsroom, 17 April 2024: 1,152 chips, 140,544 neuromorphic cores"),
)


def smallest_board(chips: int) -> Board | None:
    """That has so many chips; None where none has."""
    return next((board for board in BOARDS if board.chips >= chips), None)


def crossing(between: Any, chip: np.ndarray) -> float:
    """Messages a step between different chips. between: sparse [cores, cores], chip int [cores]."""
    links = between.tocoo()
    return float(links.data[chip[links.row] != chip[links.col]].sum())


def deal(between: Any, orders: Sequence[np.ndarray], cores_a_chip: int) -> np.ndarray:
    """The chip of each core, int64 [cores].

    between sparse [cores, cores]; orders: cores int64 [cores] in which chips may be filled
    """
    found = []
    for order in orders:
        chip = np.empty(len(order), dtype=np.int64)
        chip[order] = np.arange(len(order)) // cores_a_chip
        found.append(chip)
    return swap(between, min(found, key=lambda chip: crossing(between, chip)))


def swap(between: Any, chip: np.ndarray) -> np.ndarray:
    """The same with cores exchanged between the pairs of chips that talk most. No chip gets more or fewer."""
    chip = chip.copy()
    both_ways = (between + between.T).tocsr()
    for first, second in _busiest_pairs(both_ways, chip):
        members = np.flatnonzero((chip == first) | (chip == second))
        graph = nx.from_scipy_sparse_array(both_ways[members][:, members])
        graph.remove_edges_from(list(nx.selfloop_edges(graph)))
        sides = [set(np.flatnonzero(chip[members] == each).tolist()) for each in (first, second)]
        halves = nx.community.kernighan_lin_bisection(graph, sides, seed=0)
        # networkx may name the halves the other way round: each keeps the chip that most of it is on
        swapped = chip.copy()
        own = max(halves, key=lambda half: (len(half & sides[0]), sorted(half)))
        if len(own) != len(sides[0]):
            continue
        for number in range(len(members)):
            swapped[members[number]] = first if number in own else second
        if crossing(between, swapped) < crossing(between, chip):
            chip = swapped
    return chip


def _busiest_pairs(both_ways: Any, chip: np.ndarray) -> list[tuple[int, int]]:
    links = both_ways.tocoo()
    low, high = np.minimum(chip[links.row], chip[links.col]), np.maximum(chip[links.row], chip[links.col])
    apart = low != high
    chips = int(chip.max()) + 1
    pairs, place = np.unique(low[apart] * chips + high[apart], return_inverse=True)
    messages = np.bincount(place, weights=links.data[apart], minlength=len(pairs))
    busiest = np.argsort(-messages, kind="stable")[:SWAPPED_PAIRS]
    return [(int(pair) // chips, int(pair) % chips) for pair in pairs[busiest]]
