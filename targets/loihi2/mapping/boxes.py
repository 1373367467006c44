"""A box of a population, and what it takes of a core.

A box is a range of tokens, of keys and of features. Its core holds its neurons and the synapses that lead to them. What
is counted here is counted again, from the single neurons, by `check`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from targets.loihi2.mapping.core_model import CoreModel
from targets.loihi2.mapping.network import ChipNetwork, Connection

Range = tuple[int, int]  # first, and the one after the last


@dataclass(frozen=True)
class Box:
    """Neurons of a population: ranges of its tokens, keys and features."""

    population: str
    tokens: Range
    keys: Range
    features: Range

    @property
    def neurons(self) -> int:
        return length(self.tokens) * length(self.keys) * length(self.features)


@dataclass(frozen=True)
class Use:
    """What something takes of a core.

    state_bytes of its neurons, synapse_bytes of the weights that lead to them
    axons_in    one for each source neuron; for shared weights one for each token and group of its channels
    axons_out   slots: one for each neuron and box that it sends to; for shared weights as many for a token and group
    synapses    each token's counted
    """

    neurons: int = 0
    state_bytes: int = 0
    synapse_bytes: int = 0
    axons_in: int = 0
    axons_out: int = 0
    synapses: int = 0

    @property
    def amounts(self) -> tuple[int, int, int, int]:
        """In the order of RESOURCES."""
        return self.neurons, self.state_bytes + self.synapse_bytes, self.axons_in, self.axons_out

    def shares(self, model: CoreModel) -> tuple[float, ...]:
        """Of what a core has, in the order of RESOURCES."""
        return tuple(amount / most for amount, most in zip(self.amounts, model.capacity))

    def __add__(self, other: Use) -> Use:
        return Use(
            self.neurons + other.neurons,
            self.state_bytes + other.state_bytes,
            self.synapse_bytes + other.synapse_bytes,
            self.axons_in + other.axons_in,
            self.axons_out + other.axons_out,
            self.synapses + other.synapses,
        )


@dataclass(frozen=True)
class Tiling:
    """How a population is cut: the places of the cuts along each axis, the ends among them."""

    population: str
    tokens: tuple[int, ...]
    keys: tuple[int, ...]
    features: tuple[int, ...]

    def boxes(self) -> list[Box]:
        """Along features first, then keys, then tokens."""
        axes = (ranges(cuts) for cuts in (self.tokens, self.keys, self.features))
        return [Box(self.population, *each) for each in product(*axes)]

    @property
    def count(self) -> int:
        return (len(self.tokens) - 1) * (len(self.keys) - 1) * (len(self.features) - 1)


def length(span: Range) -> int:
    return span[1] - span[0]


def ranges(cuts: Sequence[int]) -> list[Range]:
    """Between neighbouring cuts."""
    return list(pairwise(cuts))


def overlaps(first: Sequence[int], second: Sequence[int]) -> np.ndarray:
    """int64 [ranges of first, ranges of second]: how much of each two is common. Both are cuts."""
    a, b = np.asarray(first), np.asarray(second)
    low = np.maximum(a[:-1, None], b[None, :-1])
    high = np.minimum(a[1:, None], b[None, 1:])
    return np.maximum(high - low, 0)


def list_bits(weights: np.ndarray | int, weight_bits: int, model: CoreModel) -> np.ndarray:
    """Bits of lists of so many weights of `weight_bits` each: whole blocks and the rest, each with its head."""
    counts = np.asarray(weights)

    def block(count: np.ndarray | int) -> np.ndarray:
        bits = np.asarray(count) * weight_bits + model.block_head_bits
        return -(-bits // model.word_bits) * model.word_bits

    whole, rest = np.divmod(counts, model.block_weights)
    return whole * block(model.block_weights) + np.where(rest > 0, block(rest), 0)


class Counter:
    """What boxes of a network take. Whatever was counted once is kept."""

    def __init__(self, network: ChipNetwork, model: CoreModel) -> None:
        self.network, self.model = network, model
        self._columns: dict[tuple[str, Range], tuple[np.ndarray, int, int]] = {}
        self._incoming: dict[tuple[str, int, int, Range], tuple[int, int, int]] = {}
        self._reached: dict[str, tuple[Tiling, np.ndarray]] = {}

    def uses(self, tiling: Tiling, tilings: Mapping[str, Tiling]) -> Iterator[tuple[Use, int]]:
        """What the boxes of a tiling take, in their order, each with the kind of box it is: boxes of one kind take the
        same. Where a box lies among tokens makes no difference, and among keys only if weights are shared by pairs."""
        outgoing = self.network.out_of[tiling.population]
        by_place = any(one.shared and one.reads == "pair" for one in outgoing)
        kinds: dict[tuple[int, object, Range], tuple[Use, int]] = {}
        for box in tiling.boxes():
            key = (length(box.tokens), box.keys if by_place else length(box.keys), box.features)
            if key not in kinds:
                kinds[key] = (self.use(box, tilings), len(kinds))
            yield kinds[key]

    def use(self, box: Box, tilings: Mapping[str, Tiling]) -> Use:
        """What a box takes where the populations that it sends to are cut like `tilings`."""
        return self.incoming(box) + Use(axons_out=self.axons_out(box, tilings))

    def incoming(self, box: Box) -> Use:
        """All but the axons out, which depend on how others are cut."""
        population = self.network[box.population]
        state = box.neurons * self.model.neuron_bytes(population.delay_steps)
        bits = axons = synapses = 0
        for one in self.network.into[population.name]:
            more_bits, more_axons, more_synapses = self._connection(one, box)
            bits, axons, synapses = bits + more_bits, axons + more_axons, synapses + more_synapses
        return Use(box.neurons, state, -(-bits // 8), axons, 0, synapses)

    def axons_out(self, box: Box, tilings: Mapping[str, Tiling]) -> int:
        return sum(self._slots(one, box, tilings[one.target]) for one in self.network.out_of[box.population])

    def synapses(self, one: Connection, box: Box) -> int:
        """Of one connection, into a box; each token's counted."""
        return self._connection(one, box)[2]

    def columns(self, one: Connection, features: Range) -> tuple[np.ndarray, int, int]:
        """Of a range of target features: int64 [source features] synapses of each, how many have any, and their sum."""
        key = (one.name, features)
        if key not in self._columns:
            counts = np.count_nonzero(one.pattern[slice(*features)], axis=0)
            self._columns[key] = (counts, int(np.count_nonzero(counts)), int(counts.sum()))
        return self._columns[key]

    def _connection(self, one: Connection, box: Box) -> tuple[int, int, int]:
        """Bits, axons in and synapses of a connection into a box."""
        tokens, keys = length(box.tokens), length(box.keys)
        key = (one.name, tokens, keys, box.features)
        if key not in self._incoming:
            self._incoming[key] = self._count(one, tokens, keys, box.features)
        return self._incoming[key]

    def _count(self, one: Connection, tokens: int, keys: int, features: Range) -> tuple[int, int, int]:
        counts, used, synapses = self.columns(one, features)
        model, source = self.model, self.network[one.source]
        bits = one.weight_bits + (model.delay_bits if one.delay_steps else 0)
        across = source.keys if one.reads == "row" else keys
        if one.shared:  # a list for all tokens: either each row with its zeros, or weights with their rows
            dense = list_bits(across * length(features) * used, bits, model)
            sparse = list_bits(across * synapses, bits + model.index_bits, model)
            axons = tokens * -(-across * used // model.channels_an_axon)
            return int(min(dense, sparse)), axons, tokens * across * synapses
        if one.reads == "token":
            lists, times = tokens, keys
        elif one.reads == "key":
            lists, times = keys, tokens
        elif one.reads == "pair":
            lists, times = tokens * keys, 1
        else:
            lists, times = tokens * source.keys, 1
        each = list_bits(times * counts, bits + model.index_bits, model)
        return lists * int(each.sum()), lists * used, lists * times * synapses

    def reached(self, one: Connection, target: Tiling) -> np.ndarray:
        """int64 [feature ranges of the target, source features + 1]: how many of the first features reach each."""
        if one.name not in self._reached or self._reached[one.name][0] is not target:
            used = np.array([self.columns(one, span)[0] > 0 for span in ranges(target.features)])
            sums = np.concatenate([np.zeros((len(used), 1), np.int64), np.cumsum(used, axis=1)], axis=1)
            self._reached[one.name] = (target, sums)
        return self._reached[one.name][1]

    def _slots(self, one: Connection, box: Box, target: Tiling) -> int:
        """Axons out of a box through one connection."""
        sums = self.reached(one, target)
        channels = sums[:, box.features[1]] - sums[:, box.features[0]]  # of the box, that reach each range
        tokens, keys = length(box.tokens), length(box.keys)
        if one.shared:
            size = self.model.channels_an_axon
            if one.reads == "pair":
                common = overlaps(box.keys, target.keys)[0]
            elif one.reads == "row":
                common = np.array([keys])
            else:
                common = np.ones(len(target.keys) - 1, dtype=np.int64)
            groups = -(-np.outer(common, channels) // size)
            return tokens * int(groups.sum()) * self.model.shared_slots
        if one.reads == "token":
            times = tokens * (len(target.keys) - 1)
        elif one.reads == "key":
            times = tokens * (len(target.tokens) - 1)
        else:
            times = tokens * keys
        return times * int(channels.sum())
