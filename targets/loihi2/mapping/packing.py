"""Small boxes share cores: bin packing in four resources.

A box of more than half of some resource has its own core. Every other goes, the largest first, to the nearest core with
room, in the order of the network, so that what talks to each other stays together. What still needed cores of its own
is then packed by a mixed-integer program (HiGHS, through scipy), if few enough and if fewer cores could do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

HALF = 0.5
SOLVED_MOST = 24  # boxes that are handed to the solver
NODES_MOST = 2000  # of its search: a count and not a time, so that the same is found on every machine


def pack(shares: np.ndarray) -> np.ndarray:
    """The core of each box, int64 [boxes]; cores are numbered in the order of their first boxes.

    shares float [boxes, resources]: what a box takes of a core, at most 1
    """
    core = np.full(len(shares), -1, dtype=np.int64)
    large = shares.max(axis=1, initial=0) > HALF
    core[large] = np.flatnonzero(large)  # for now a core has the number of the box that opened it
    room = np.where(large[:, None], 1 - shares, -1.0)  # of the core that a box opened; none below 0
    small = np.flatnonzero(~large)
    opened: list[int] = []
    for box in small[np.argsort(-shares[small].max(axis=1), kind="stable")]:
        fits = np.flatnonzero((room >= shares[box] - 1e-9).all(axis=1))
        if len(fits):
            chosen = int(fits[np.argmin(np.abs(fits - box))])
        else:
            chosen = int(box)
            opened.append(chosen)
            room[chosen] = 1
        room[chosen] -= shares[box]
        core[box] = chosen
    late = small[np.isin(core[small], opened)]
    better = repack(shares[late], len(opened)) if len(late) <= SOLVED_MOST else None
    if better is not None:
        for number in range(better.max() + 1):
            members = late[better == number]
            core[members] = members.min()
    return np.unique(core, return_inverse=True)[1].astype(np.int64)


def fewest(shares: np.ndarray) -> int:
    """A bound: no packing of these boxes has fewer cores."""
    return int(np.ceil(shares.sum(axis=0).max(initial=0) - 1e-9))


def repack(shares: np.ndarray, cores: int) -> np.ndarray | None:
    """A packing int64 [boxes] into fewer than `cores`, or None where none is there or the solver finds none."""
    if fewest(shares) >= cores:
        return None
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import eye, hstack, kron, vstack

    boxes, most = len(shares), cores - 1
    # x[box, core] whether a box is there, then y[core] whether the core is used; few y
    each_once = hstack([kron(eye(boxes), np.ones((1, most))), np.zeros((boxes, most))])
    within = vstack([hstack([kron(column[None], eye(most)), -eye(most)]) for column in shares.T])
    in_order = hstack([np.zeros((most - 1, boxes * most)), eye(most - 1, most, 1) - eye(most - 1, most)])
    constraints = [LinearConstraint(each_once.tocsr(), 1, 1), LinearConstraint(within.tocsr(), -np.inf, 1e-9)]
    if most > 1:
        constraints.append(LinearConstraint(in_order.tocsr(), -np.inf, 0))
    found = milp(
        np.concatenate([np.zeros(boxes * most), np.ones(most)]),
        integrality=np.ones((boxes + 1) * most),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"node_limit": NODES_MOST},
    )
    if found.x is None:
        return None
    packed = np.asarray(found.x[: boxes * most]).reshape(boxes, most).argmax(axis=1)
    return packed if valid(shares, packed) else None


def valid(shares: np.ndarray, core: Sequence[int] | np.ndarray) -> bool:
    """Whether no core has more than there is."""
    sums = np.zeros((int(np.max(core)) + 1, shares.shape[1]))
    np.add.at(sums, np.asarray(core), shares)
    return bool((sums <= 1 + 1e-9).all())


def pack_amounts(amounts: Sequence[tuple[int, ...]], capacity: Sequence[int]) -> np.ndarray:
    """`pack` for what boxes take in whole numbers, int [boxes, resources], of what a core has."""
    return pack(np.asarray(amounts, dtype=np.float64).reshape(-1, len(capacity)) / np.asarray(capacity))
