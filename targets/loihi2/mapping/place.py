"""A network is placed: cut into boxes, boxes packed into cores, cores dealt out to chips."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from targets.loihi2.mapping.boxes import Box, Counter, Use
from targets.loihi2.mapping.chips import BOARDS, Board, crossing, deal, smallest_board
from targets.loihi2.mapping.core_model import RESOURCES, CoreModel
from targets.loihi2.mapping.network import ChipNetwork, order_of
from targets.loihi2.mapping.packing import pack_amounts
from targets.loihi2.mapping.tiling import tile
from targets.loihi2.mapping.traffic import Rates, Traffic, traffic


@dataclass(frozen=True, eq=False)
class Mapping:
    """Where every neuron of a network is.

    boxes   each population cut up; what is numbered below is in their order
    core    int64 [boxes]: the core of a box; cores are numbered chip by chip
    chip    int64 [cores]
    uses    what each box takes
    board   what it is placed on, or the smallest that would do; None where none would
    rates   and what they are from, for the messages of a step in `traffic`
    """

    network: ChipNetwork
    model: CoreModel
    boxes: tuple[Box, ...]
    core: np.ndarray
    chip: np.ndarray
    uses: tuple[Use, ...]
    board: Board | None
    rates: Rates
    rates_from: str
    traffic: Traffic

    @property
    def cores(self) -> int:
        return len(self.chip)

    @property
    def chips(self) -> int:
        return int(self.chip.max()) + 1

    @property
    def fewest_cores(self) -> int:
        """No mapping at all takes fewer, for its neurons alone."""
        return -(-self.network.neurons // self.model.neurons)

    @property
    def fits(self) -> bool:
        """Whether the board has as many chips."""
        return self.board is not None and self.chips <= self.board.chips

    @cached_property
    def core_use(self) -> np.ndarray:
        """int64 [cores, resources]: what is taken of each core, in the order of RESOURCES."""
        amounts = np.zeros((self.cores, len(RESOURCES)), dtype=np.int64)
        np.add.at(amounts, self.core, np.array([use.amounts for use in self.uses]))
        return amounts

    @property
    def utilisation(self) -> dict[str, float]:
        """Resource -> the share that is taken of all cores together."""
        shares = self.core_use.sum(axis=0) / (self.cores * np.array(self.model.capacity))
        return dict(zip(RESOURCES, map(float, shares)))

    @property
    def of_board(self) -> dict[str, float]:
        """Resource -> what is taken, in shares of all that the board has (where none is enough, of the largest)."""
        board = self.board or BOARDS[-1]
        whole = board.chips * self.model.cores * np.array(self.model.capacity)
        return dict(zip(RESOURCES, map(float, self.core_use.sum(axis=0) / whole)))

    @cached_property
    def binds(self) -> dict[str, int]:
        """Resource -> of how many boxes it is the one that is taken most."""
        shares = np.array([use.shares(self.model) for use in self.uses])
        counts = np.bincount(shares.argmax(axis=1), minlength=len(RESOURCES))
        return dict(zip(RESOURCES, map(int, counts)))

    @property
    def crossing(self) -> float:
        """Messages a step between chips."""
        return crossing(self.traffic.between, self.chip)

    def chip_links(self) -> dict[tuple[int, int], float]:
        """(chip, other chip) -> messages a step, of those that have any."""
        links = self.traffic.between.tocoo()
        apart = self.chip[links.row] != self.chip[links.col]
        pairs = self.chip[links.row[apart]] * self.chips + self.chip[links.col[apart]]
        each, place = np.unique(pairs, return_inverse=True)
        messages = np.bincount(place, weights=links.data[apart], minlength=len(each))
        return {(int(pair) // self.chips, int(pair) % self.chips): float(sent) for pair, sent in zip(each, messages)}

    def core_links(self) -> dict[tuple[int, int], float]:
        """(core, core) -> messages a step, of those that have any; a core may send to itself."""
        links = self.traffic.between.tocoo()
        return {(int(a), int(b)): float(sent) for a, b, sent in zip(links.row, links.col, links.data)}


def place(
    network: ChipNetwork,
    rates: Rates,
    rates_from: str,
    board: Board | None = None,
    model: CoreModel | None = None,
) -> Mapping:
    """Place a network. Without a board the smallest that has enough chips is taken, if any has.

    Raises CheckFailed where some neuron fits no core at all. A network that is too large for the board is placed all
    the same, on as many chips as it takes: `Mapping.fits` tells.
    """
    model = model or CoreModel()
    counter = Counter(network, model)
    tilings = tile(network, model, counter)
    names = order_of(network)
    boxes = [box for name in names for box in tilings[name].boxes()]
    uses = [use for name in names for use, _ in counter.uses(tilings[name], tilings)]
    core = pack_amounts([use.amounts for use in uses], model.capacity)
    sent = traffic(network, counter, tilings, core, rates)
    chip = deal(sent.between, _orders(network, boxes, core), model.cores)
    by_chip = np.argsort(chip, kind="stable")
    number = np.empty(len(chip), dtype=np.int64)
    number[by_chip] = np.arange(len(chip))
    core, chip = number[core], chip[by_chip]
    sent = Traffic(
        sent.between[by_chip][:, by_chip], sent.from_host[by_chip], sent.spikes[by_chip], sent.events[:, by_chip]
    )
    board = board or smallest_board(int(chip.max()) + 1)
    return Mapping(network, model, tuple(boxes), core, chip, tuple(uses), board, rates, rates_from, sent)


def _orders(network: ChipNetwork, boxes: list[Box], core: np.ndarray) -> list[np.ndarray]:
    """Orders in which chips may be filled: by layers; by tokens or by features within each attention."""
    names = order_of(network)
    layer = {name: index for index, name in enumerate(names)}
    group, groups = {}, 0
    for index, name in enumerate(names):
        if index == 0 or network[name].keyed != network[names[index - 1]].keyed or not network[name].keyed:
            groups += 1
        group[name] = groups
    first = np.unique(core, return_index=True)[1]  # the first box of each core
    layers = np.array([layer[boxes[box].population] for box in first])
    blocks = np.array([group[boxes[box].population] for box in first])
    tokens = np.array([boxes[box].tokens[0] for box in first])
    keys = np.array([boxes[box].keys[0] for box in first])
    features = np.array([boxes[box].features[0] for box in first])
    share = features / np.array([network[boxes[box].population].features for box in first])
    return [
        np.lexsort((features, keys, tokens, layers)),
        np.lexsort((keys, layers, tokens, blocks)),
        np.lexsort((layers, keys, share, blocks)),
    ]
