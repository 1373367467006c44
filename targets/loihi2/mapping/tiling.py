"""Each population is cut into boxes that fit a core, as few as possible.

Populations are taken from the last to the first: the axons that leave a box depend on how those behind it are cut,
those that enter it on nothing but itself. A box may be as large in one axis as the others leave room for, so for each
length in tokens and keys the longest range of features that fits is searched by halving. What takes the fewest cores
is kept, where a box of at most half a core counts as its share (it can be packed with others), and of equals what has
the fewest axons.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from spikebert.commands import CheckFailed
from targets.loihi2.mapping.boxes import Box, Counter, Tiling, Use
from targets.loihi2.mapping.core_model import RESOURCES, CoreModel
from targets.loihi2.mapping.network import ChipNetwork, Population, order_of

TRIED = 6  # ways of cutting that are counted in full, the best by the number of boxes
HALF = 0.5


def tile(network: ChipNetwork, model: CoreModel, counter: Counter) -> dict[str, Tiling]:
    """Population -> how it is cut. Raises CheckFailed where not even a single neuron of one fits a core."""
    check_connections(network, model)
    tilings: dict[str, Tiling] = {}
    known: dict[Hashable, Tiling] = {}  # layers are alike: what is cut once is not searched again
    for name in reversed(order_of(network)):
        kind = _kind(network, name, tilings)
        if kind not in known:
            known[kind] = _Search(network[name], model, counter, tilings).best()
        tilings[name] = replace(known[kind], population=name)
    return tilings


def _kind(network: ChipNetwork, name: str, tilings: Mapping[str, Tiling]) -> Hashable:
    """All that decides how a population is cut."""
    whole = network[name]
    into = tuple(
        (one.reads, one.digest, one.shared, one.weight_bits, one.delay_steps > 0, network[one.source].keys)
        for one in network.into[name]
    )
    out_of = tuple(
        (one.reads, one.digest, one.shared, replace(tilings[one.target], population="")) for one in network.out_of[name]
    )
    return whole.tokens, whole.keys, whole.features, whole.delay_steps, into, out_of


def check_connections(network: ChipNetwork, model: CoreModel) -> None:
    """Raises CheckFailed where a connection is against a limit that no cutting changes."""
    for name in order_of(network):
        if (most := fan_in(network, name)) > model.fan_in:
            raise CheckFailed(
                f"'{name}': a neuron reads {most} others, a core takes {model.fan_in}: fewer tokens or narrower layers"
            )
    for one in network.connections:
        if one.delay_steps > model.delay:
            raise CheckFailed(
                f"connection '{one.name}': a delay of {one.delay_steps} steps, the limit is {model.delay}"
            )


def fan_in(network: ChipNetwork, population: str) -> int:
    """The most synapses that lead to one neuron of a population."""
    reads = np.zeros(network[population].features, dtype=np.int64)
    for one in network.into[population]:
        reads += one.pattern.sum(axis=1) * (network[one.source].keys if one.reads == "row" else 1)
    return int(reads.max(initial=0))


def even_sizes(whole: int) -> list[int]:
    """Lengths into which `whole` can be cut evenly, the last may be shorter; the longest first."""
    return list(dict.fromkeys(-(-whole // parts) for parts in range(1, whole + 1)))


def even_cuts(whole: int, size: int) -> tuple[int, ...]:
    """Into as many parts as `size` needs, which differ by at most 1."""
    parts = -(-whole // size)
    return tuple(index * whole // parts for index in range(parts + 1))


def full_cuts(whole: int, size: int) -> tuple[int, ...]:
    """Parts of `size`, and what is left."""
    return (*range(0, whole, size), whole)


class _Search:
    """The search for the best tiling of one population."""

    def __init__(
        self, population: Population, model: CoreModel, counter: Counter, tilings: Mapping[str, Tiling]
    ) -> None:
        self.population, self.model, self.counter, self.tilings = population, model, counter, tilings

    def best(self) -> Tiling:
        sizes = sorted(self._sizes(), key=lambda size: (self._count(size), *(-each for each in size)))
        found: list[tuple[float, int, int, Tiling]] = []
        for size in sizes:
            if len(found) >= 2 * TRIED:
                break
            for cut in (even_cuts, full_cuts):
                tiling = self._cut(size, cut)
                if (cost := self._cost(tiling)) is not None and not any(each[-1] == tiling for each in found):
                    found.append((*cost, tiling))
        if not found:
            raise CheckFailed(self._too_large())
        return min(found, key=lambda each: each[:3])[-1]

    def _sizes(self) -> list[tuple[int, int, int]]:
        """Lengths in tokens, keys and features; for each two of the first the longest features that fit."""
        features = even_sizes(self.population.features)
        sizes = []
        for tokens, keys in product(even_sizes(self.population.tokens), even_sizes(self.population.keys)):
            if tokens * keys > self.model.neurons:
                continue
            low, high = 0, len(features)  # the first that fits is in low .. high
            while low < high:
                middle = (low + high) // 2
                if self._fits(Box(self.population.name, (0, tokens), (0, keys), (0, features[middle]))):
                    high = middle
                else:
                    low = middle + 1
            # others of that length may take more than the first did, so the next shorter ones are kept too
            sizes += [(tokens, keys, size) for size in features[low : low + 2]]
        if (1, 1, 1) not in sizes:
            sizes.append((1, 1, 1))
        return sizes

    def _count(self, size: tuple[int, int, int]) -> int:
        tokens, keys, features = size
        whole = self.population
        return -(-whole.tokens // tokens) * -(-whole.keys // keys) * -(-whole.features // features)

    def _cut(self, size: Sequence[int], cut: Callable[[int, int], tuple[int, ...]]) -> Tiling:
        whole = (self.population.tokens, self.population.keys, self.population.features)
        tokens, keys, features = (cut(most, each) for most, each in zip(whole, size))
        return Tiling(self.population.name, tokens, keys, features)

    def _use(self, box: Box) -> Use:
        return self.counter.use(box, self.tilings)

    def _fits(self, box: Box) -> bool:
        if box.neurons > self.model.neurons:
            return False
        return max(self._use(box).shares(self.model)) <= 1

    def _cost(self, tiling: Tiling) -> tuple[float, int, int] | None:
        """Cores that its boxes take about, how many boxes, and their axons; None where one does not fit."""
        times: dict[int, int] = {}
        kinds: dict[int, Use] = {}
        for use, kind in self.counter.uses(tiling, self.tilings):
            times[kind] = times.get(kind, 0) + 1
            kinds[kind] = use
        shares = {kind: max(use.shares(self.model)) for kind, use in kinds.items()}
        if max(shares.values()) > 1:
            return None
        cores = sum(times[kind] * (share if share <= HALF else 1) for kind, share in shares.items())
        axons = sum(times[kind] * (use.axons_in + use.axons_out) for kind, use in kinds.items())
        return round(cores, 6), tiling.count, axons

    def _too_large(self) -> str:
        name = self.population.name
        alone = (Box(name, (0, 1), (0, 1), (f, f + 1)) for f in range(self.population.features))
        share, worst = max(
            (share, name) for box in alone for share, name in zip(self._use(box).shares(self.model), RESOURCES)
        )
        return (
            f"'{name}': one neuron alone takes {share:.2f} of the {worst} of a core. "
            "Use fewer tokens, or narrower layers"
        )
