"""Where the boxes of a drawing stand: in layers from top to bottom, every edge downward, long edges around the boxes.

Sugiyama's method (1981), small: layers by the longest way, a point in every layer that an edge only passes, order by
the mean place of the neighbours, then places as near to the neighbours as the widths allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

SWEEPS = 8
SETTLING = 150  # rounds in which boxes come to rest
HASTE = 1.7  # of a step towards the wanted place: successive over-relaxation, 1 would take ten times the rounds
POINT_WEIGHT = 1e-6  # of a point that an edge passes, a box weighs 1
POINT = "\0"  # no name begins so, but that of such a point


@dataclass(frozen=True)
class Layout:
    """In pixels, from the top left corner.

    centres box -> x, y of its middle
    routes  for each edge, in the order given, the points that it passes between its two boxes
    """

    width: float
    height: float
    centres: dict[str, tuple[float, float]]
    routes: tuple[tuple[tuple[float, float], ...], ...]


def lay_out(
    widths: Mapping[str, float], edges: Sequence[tuple[str, str]], row_height: float, gap: float, lane: float
) -> Layout:
    """Boxes of these widths, named in an order in which each comes after those with an edge to it.

    row_height from one layer to the next; gap between neighbours; lane: the width that an edge takes which passes by
    """
    layer = _layers(widths, edges)
    chains = [_chain(index, layer[a], layer[b]) for index, (a, b) in enumerate(edges)]
    size = dict(widths) | {point: lane for chain in chains for point in chain}
    layer |= {point: layer[a] + place + 1 for (a, _), chain in zip(edges, chains) for place, point in enumerate(chain)}
    above: dict[str, list[str]] = {name: [] for name in size}
    below: dict[str, list[str]] = {name: [] for name in size}
    for (a, b), chain in zip(edges, chains):
        way = [a, *chain, b]
        for upper, lower in pairwise(way):
            above[lower].append(upper)
            below[upper].append(lower)
    rows: list[list[str]] = [[] for _ in range(1 + max(layer.values()))]
    for name in size:
        rows[layer[name]].append(name)
    _order(rows, above, below)
    x = _place(rows, size, above, below, gap)
    _straighten(chains, rows, layer, x, size, gap)
    left = min(x[name] - size[name] / 2 for name in size)
    right = max(x[name] + size[name] / 2 for name in size)
    at = {name: (x[name] - left, (layer[name] + 0.5) * row_height) for name in size}
    return Layout(
        right - left,
        len(rows) * row_height,
        {name: at[name] for name in widths},
        tuple(tuple(at[point] for point in chain) for chain in chains),
    )


def _layers(names: Mapping[str, float], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """One below the lowest box with an edge to it."""
    inputs: dict[str, list[str]] = {name: [] for name in names}
    for a, b in edges:
        inputs[b].append(a)
    layer: dict[str, int] = {}
    for name in names:
        layer[name] = max((layer[producer] + 1 for producer in inputs[name]), default=0)
    return layer


def _chain(edge: int, start: int, end: int) -> list[str]:
    """Names of the points at which an edge passes the layers between; no box has such a name."""
    return [f"{POINT}{edge}:{row}" for row in range(start + 1, end)]


def _is_point(name: str) -> bool:
    return name.startswith(POINT)


def _order(rows: list[list[str]], above: dict[str, list[str]], below: dict[str, list[str]]) -> None:
    """Sorts each row by the mean place of the neighbours, downward and upward in turn."""
    for sweep in range(SWEEPS):
        downward = sweep % 2 == 0
        neighbours = above if downward else below
        for row in rows if downward else reversed(rows):
            place = {name: index / max(1, len(other) - 1) for other in rows for index, name in enumerate(other)}
            row.sort(key=lambda name: _mean([place[other] for other in neighbours[name]], place[name]))


def _place(
    rows: list[list[str]],
    size: dict[str, float],
    above: dict[str, list[str]],
    below: dict[str, list[str]],
    gap: float,
) -> dict[str, float]:
    """x of every middle: as near to the mean of the neighbours as the order and the widths of the row allow.

    Boxes look at boxes and weigh more, so that a line of boxes is straight and the edges that pass by give way.
    """
    neighbours = {name: above[name] + below[name] for name in size}
    for name in size:
        if not _is_point(name) and (boxes := [other for other in neighbours[name] if not _is_point(other)]):
            neighbours[name] = boxes
    weights = {name: POINT_WEIGHT if _is_point(name) else 1.0 for name in size}
    x: dict[str, float] = {}
    for row in rows:
        x |= dict(zip(row, _spread([0.0] * len(row), row, size, weights, gap)))
    for sweep in range(SETTLING):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted = [
                x[name] + HASTE * (_mean([x[other] for other in neighbours[name]], x[name]) - x[name]) for name in row
            ]
            x |= dict(zip(row, _spread(wanted, row, size, weights, gap)))
    return x


def _straighten(
    chains: list[list[str]],
    rows: list[list[str]],
    layer: dict[str, int],
    x: dict[str, float],
    size: dict[str, float],
    gap: float,
) -> None:
    """Draws an edge that passes by as one straight line where that meets nothing: as far out as it ever is."""
    for chain in chains:
        for place in (max, min):
            line = place((x[point] for point in chain), default=0.0)
            if all(_is_free(point, line, rows[layer[point]], x, size, gap) for point in chain):
                x |= dict.fromkeys(chain, line)
                break


def _is_free(point: str, place: float, row: list[str], x: dict[str, float], size: dict[str, float], gap: float) -> bool:
    """Whether a point can be moved there without a change of the order or too little room."""
    index = row.index(point)

    def room(other: str) -> float:
        return (size[point] + size[other]) / 2 + gap - 1e-6

    after_left = index == 0 or place - x[row[index - 1]] >= room(row[index - 1])
    return after_left and (index == len(row) - 1 or x[row[index + 1]] - place >= room(row[index + 1]))


def _spread(
    wanted: list[float], row: list[str], size: dict[str, float], weights: dict[str, float], gap: float
) -> list[float]:
    """Places of a row, in its order, that do not overlap, with the least weighted squared distance to those wanted.

    Less the room that those before take, places must only not fall: neighbours that would are put at their mean.
    """
    offsets = [0.0]
    for left, right in pairwise(row):
        offsets.append(offsets[-1] + (size[left] + size[right]) / 2 + gap)
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for name, place, offset in zip(row, wanted, offsets):
        mean, weight, count = place - offset, weights[name], 1
        while pools and pools[-1][0] > mean:
            before, heavy, number = pools.pop()
            mean = (before * heavy + mean * weight) / (heavy + weight)
            weight, count = heavy + weight, number + count
        pools.append((mean, weight, count))
    means = [mean for mean, _, count in pools for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets)]


def _mean(numbers: list[float], otherwise: float) -> float:
    return sum(numbers) / len(numbers) if numbers else otherwise
