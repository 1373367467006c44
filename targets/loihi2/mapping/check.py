"""A mapping held against the limits, counted anew.

Nothing here is shared with what places: boxes are spread out into their neurons, synapses are listed one by one (of
shared weights those of one token), and axons are found from the side that sends. It reads the JSON that is written, so
it can be used on that alone, and takes for a network of 6 x 384 some seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from converters.graph import Graph
from spikebert.commands import UserError
from targets.loihi2.mapping.chips import BOARDS
from targets.loihi2.mapping.core_model import RESOURCES, CoreModel
from targets.loihi2.mapping.network import ChipNetwork, Connection, chip_network

SCHEMA = 1  # of `mapping.json`


@dataclass(frozen=True)
class Problem:
    """Something that is not as it must be.

    rule  "placed once", a resource of a core, "cores", "chips", "fan-in", "delay", or "counts", where the mapping says
          another number than there is
    where such as "core 3"
    """

    rule: str
    where: str
    value: int
    limit: int

    def __str__(self) -> str:
        return f"{self.where}: {self.rule}: {self.value:,}, it must be within {self.limit:,}"


def check_mapping(graph: Graph, document: Mapping[str, Any], model: CoreModel | None = None) -> list[Problem]:
    """Every problem of a mapping of `graph`, as `mapping.json` has it; none if it is right.

    model the limits; those of the chip by default, whatever the document says it was made for

    Raises UserError where the document is of another network.
    """
    return check_network(chip_network(graph), document, model)


def check_network(network: ChipNetwork, document: Mapping[str, Any], model: CoreModel | None = None) -> list[Problem]:
    """The same, of a network at hand."""
    try:
        if document["schema"] != SCHEMA:
            raise UserError(f"the mapping has schema {document['schema']}, this is made for {SCHEMA}: map it again")
        return list(_Check(network, document, model or CoreModel()).problems())
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"not a mapping (docs/mapping.md tells its fields): {type(error).__name__}: {error}") from None


class _Check:
    def __init__(self, network: ChipNetwork, document: Mapping[str, Any], model: CoreModel) -> None:
        self.network, self.document, self.model = network, document, model
        names = [each["name"] for each in document["populations"]]
        if names != [each.name for each in network.on_chip]:
            raise UserError("the mapping is of another network: its populations have other names")
        if len({len(box) for box in document["boxes"]} | {8}) > 1:
            raise ValueError("a box has 8 numbers")
        self.boxes = np.array([box[:7] for box in document["boxes"]], dtype=np.int64)
        self.core = np.array([box[7] for box in document["boxes"]], dtype=np.int64)
        if not ((self.boxes[:, 0] >= 0) & (self.boxes[:, 0] < len(names))).all():
            raise ValueError("a box names a population that is not there")
        self.of = {name: np.flatnonzero(self.boxes[:, 0] == index) for index, name in enumerate(names)}
        self.outside = False
        self.used = np.zeros((len(self.boxes), len(RESOURCES)), dtype=np.int64)

    def problems(self) -> Iterator[Problem]:
        yield from self._places()
        if self.outside:  # there are no such neurons to count
            return
        bits = np.zeros(len(self.boxes), dtype=np.int64)
        for population in self.network.on_chip:
            state = self.model.membrane_bytes + (population.delay_steps + 1) * self.model.accumulator_bytes
            for box in self.of[population.name]:
                tokens, keys, features = self._axes(box)
                neurons = len(tokens) * len(keys) * len(features)
                self.used[box, 0] += neurons
                self.used[box, 1] += neurons * state
        for population in self.network.populations:
            owners = self._owners(population.name)
            for one in self.network.out_of[population.name]:
                for box in self.of[one.target]:
                    bits[box] += self._charge(one, box, owners)
        self.used[:, 1] += (bits + 7) // 8
        yield from self._limits()
        yield from self._neurons()

    def _axes(self, box: int) -> list[np.ndarray]:
        """Tokens, keys and features of a box."""
        spans = self.boxes[box, 1:].reshape(3, 2)
        return [np.arange(start, stop) for start, stop in spans]

    def _owners(self, name: str) -> np.ndarray:
        """Of each neuron of a population [tokens, keys, features] the box it is in; -1 on the host."""
        whole = self.network[name]
        owners = np.full((whole.tokens, whole.keys, whole.features), -1, dtype=np.int32)
        for box in self.of.get(name, ()):
            owners[np.ix_(*self._axes(box))] = box
        return owners

    def _places(self) -> Iterator[Problem]:
        """Every neuron is in one box, every box on a core, every core on a chip."""
        for population in self.network.on_chip:
            shape = (population.tokens, population.keys, population.features)
            times = np.zeros(shape, dtype=np.int16)
            for box in self.of[population.name]:
                tokens, keys, features = self._axes(box)
                if any(len(axis) == 0 or axis[0] < 0 or axis[-1] >= most for axis, most in zip(self._axes(box), shape)):
                    self.outside = True
                    yield Problem("placed once", f"box {box}, outside '{population.name}'", 0, 1)
                    continue
                times[np.ix_(tokens, keys, features)] += 1
            for count in np.unique(times[times != 1]):
                neurons = int((times == count).sum())
                yield Problem("placed once", f"{neurons:,} neurons of '{population.name}'", int(count), 1)
        chip = np.array(self.document["core_chip"], dtype=np.int64)
        if set(self.core.tolist()) != set(range(len(chip))):
            yield Problem("cores", "cores that boxes name", len(set(self.core.tolist())), len(chip))
        for each, cores in zip(*np.unique(chip, return_counts=True)):
            if cores > self.model.cores:
                yield Problem("cores", f"chip {each}", int(cores), self.model.cores)
        chips = len(set(chip.tolist()))
        board = self.document["board"]
        known = {each.name: each.chips for each in BOARDS}
        if board is not None and board["chips"] != known.get(board["name"], board["chips"]):
            yield Problem("counts", f"chips of the board {board['name']}", board["chips"], known[board["name"]])
        if self.document["fits"] and (board is None or chips > board["chips"]):
            yield Problem("chips", "a board on which it is said to fit", chips, 0 if board is None else board["chips"])
        for said, found in (("cores", len(chip)), ("chips", chips), ("neurons", self.network.neurons)):
            if self.document[said] != found:
                yield Problem("counts", f"'{said}'", int(self.document[said]), found)

    def _charge(self, one: Connection, box: int, owners: np.ndarray) -> int:
        """Bits of the synapses of a connection into a box; axons are added up on the way, on both sides."""
        tokens, keys, features = self._axes(box)
        columns = np.nonzero(one.pattern[features])[1]
        weight_bits = one.weight_bits + (self.model.delay_bits if one.delay_steps > 0 else 0)
        if not one.shared:
            source = self._sources(one, tokens, keys, columns, owners.shape)
            each, lengths = np.unique(source, return_counts=True)
            self.used[box, 2] += len(each)
            self._leave(owners.reshape(-1)[each])
            return sum(
                int(times) * self._bits(int(weights), weight_bits + self.model.index_bits)
                for weights, times in zip(*np.unique(lengths, return_counts=True))
            )
        if one.reads == "pair":
            read_keys, own_keys = keys, len(keys)
        elif one.reads == "row":
            read_keys, own_keys = np.arange(owners.shape[1]), 1
        else:
            read_keys, own_keys = np.zeros(1, dtype=np.int64), 1
        channels = np.unique(columns)
        size = self.model.channels_an_axon
        for token in tokens:
            read = owners[token][np.ix_(read_keys, channels)].ravel()
            self.used[box, 2] += -(-len(read) // size)
            for sender, count in zip(*np.unique(read, return_counts=True)):
                if sender >= 0:
                    self.used[sender, 3] += self.model.shared_slots * -(-count // size)
        stored = len(columns) * len(read_keys)
        with_zeros = len(features) * own_keys * len(channels) * (len(read_keys) // own_keys)
        return min(self._bits(with_zeros, weight_bits), self._bits(stored, weight_bits + self.model.index_bits))

    def _sources(
        self, one: Connection, tokens: np.ndarray, keys: np.ndarray, columns: np.ndarray, shape: tuple[int, ...]
    ) -> np.ndarray:
        """Of every synapse into a box the neuron it comes from, a flat number."""
        token, key, column = np.meshgrid(tokens, keys, columns, indexing="ij")
        if one.reads == "token":
            place = (token, np.zeros_like(token), column)
        elif one.reads == "key":
            place = (key, np.zeros_like(token), column)
        elif one.reads == "pair":
            place = (token, key, column)
        else:
            token, key, column = np.meshgrid(tokens, np.arange(shape[1]), columns, indexing="ij")
            place = (token, key, column)
        return np.ravel_multi_index(tuple(axis.ravel() for axis in place), shape)

    def _leave(self, senders: np.ndarray) -> None:
        """An axon out for each neuron in these boxes."""
        np.add.at(self.used[:, 3], senders[senders >= 0], 1)

    def _bits(self, weights: int, bits: int) -> int:
        """Of one list, block by block."""
        total = 0
        for start in range(0, weights, self.model.block_weights):
            block = min(self.model.block_weights, weights - start) * bits + self.model.block_head_bits
            total += (block + self.model.word_bits - 1) // self.model.word_bits * self.model.word_bits
        return total

    def _limits(self) -> Iterator[Problem]:
        """No core has more than it holds, and the mapping says what is there."""
        said = np.array(self.document["core_use"], dtype=np.int64)
        if said.shape != (len(self.document["core_chip"]), len(RESOURCES)):
            raise ValueError(f"core_use has {len(self.document['core_chip'])} cores of {len(RESOURCES)} numbers")
        most = (self.model.neurons, self.model.memory_bytes, self.model.axons_in, self.model.axons_out)
        for core in range(len(said)):
            found = self.used[self.core == core].sum(axis=0)
            for resource, value, limit, told in zip(RESOURCES, found, most, said[core]):
                if value > limit:
                    yield Problem(resource, f"core {core}", int(value), limit)
                if value != told:
                    yield Problem("counts", f"{resource} of core {core}", int(told), int(value))

    def _neurons(self) -> Iterator[Problem]:
        """What no placing changes: how much one neuron reads, and how long it waits."""
        for population in self.network.on_chip:
            reads = np.zeros(population.features, dtype=np.int64)
            for one in self.network.into[population.name]:
                times = self.network[one.source].keys if one.reads == "row" else 1
                reads += times * one.pattern.sum(axis=1)
                if one.delay_steps > self.model.delay:
                    yield Problem("delay", f"connection '{one.name}'", one.delay_steps, self.model.delay)
            if reads.max(initial=0) > self.model.fan_in:
                yield Problem("fan-in", f"'{population.name}'", int(reads.max()), self.model.fan_in)
