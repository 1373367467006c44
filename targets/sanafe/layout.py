"""Which neurons are played, on which core of Loihi 1 each of them is, and what is too large for SANA-FE."""

from __future__ import annotations

from collections.abc import Mapping as Named
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from converters.graph import Attention, Graph, GraphError
from converters.passes.expand_attention import ExpandAttention
from spikebert.commands import UserError
from targets.loihi2.mapping.boxes import Box
from targets.loihi2.mapping.core_model import CoreModel
from targets.loihi2.mapping.network import ChipNetwork, Connection, chip_network
from targets.loihi2.mapping.place import Mapping, place
from targets.loihi2.mapping.traffic import FIRING_RATE, assumed_rates, assumed_rates_name
from targets.sanafe.machine import CORE, Machine

Play = Literal["whole", "token"]
PLAYS: Named[Play, str] = {
    "whole": "every token has its neurons, and attention is made of stock neurons",
    "token": "the neurons of one token, played for one token after the other; attention is left out and priced apart",
}
SYNAPSES = 6_000_000  # docs/sanafe.md: SANA-FE takes about 1 KB for each while it is loaded


@dataclass(frozen=True, eq=False)
class Layout:
    """What is played.

    play    see PLAYS
    graph   its nodes' values tell what every neuron sends; where attention is played, it is expanded
    network its populations, all tokens' or one's; the host is among them, but is not played
    mapping the core of each neuron
    """

    play: Play
    graph: Graph
    network: ChipNetwork
    mapping: Mapping
    machine: Machine

    @cached_property
    def connections(self) -> tuple[Connection, ...]:
        """Those that are played: not those of the host."""
        return tuple(one for one in self.network.connections if not self.network[one.source].host)

    @cached_property
    def core(self) -> np.ndarray:
        """int64 [boxes]: the core of each box, numbered as SANA-FE does: every chip has all its cores."""
        first = np.searchsorted(self.mapping.chip, np.arange(self.mapping.chips))
        numbers = np.arange(self.mapping.cores) - first[self.mapping.chip]
        return (self.mapping.chip * self.machine.cores_a_chip + numbers)[self.mapping.core]

    @cached_property
    def dense(self) -> frozenset[str]:
        """The populations that layers lead to; synapses of all others are priced as sparse ones."""
        return frozenset(one.target for one in self.connections if one.shared)

    @property
    def cores(self) -> int:
        """Of all chips, in use or not."""
        return self.mapping.chips * self.machine.cores_a_chip

    def core_of(self, population: str) -> np.ndarray:
        """int64 [tokens, keys, features]: the core of each neuron of a population."""
        whole = self.network[population]
        cores = np.full((whole.tokens, whole.keys, whole.features), -1, dtype=np.int64)
        for box, core in zip(self.mapping.boxes, self.core):
            if box.population == population:
                cores[spans(box)] = core
        return cores

    @cached_property
    def names(self) -> dict[int, tuple[str, ...]]:
        """Core -> the populations that it holds, of cores in use."""
        names: dict[int, set[str]] = {}
        for box, core in zip(self.mapping.boxes, self.core.tolist()):
            names.setdefault(core, set()).add(box.population)
        return {core: tuple(sorted(names[core])) for core in sorted(names)}


def spans(box: Box) -> tuple[slice, slice, slice]:
    """Where its neurons are in an array [tokens, keys, features] of its population."""
    return slice(*box.tokens), slice(*box.keys), slice(*box.features)


def synapses(network: ChipNetwork) -> int:
    """Those that are played."""
    return sum(network.synapses(one) for one in network.connections if not network[one.source].host)


def played_network(graph: Graph, play: Play) -> ChipNetwork:
    """The populations that are played. Raises what `chip_network` does."""
    network = chip_network(graph)
    return network if play == "whole" else network.without_attention().with_tokens(1)


def play_that_fits(graph: Graph) -> Play:
    """The whole network if SANA-FE bears it, else a token after the other."""
    return "whole" if synapses(played_network(graph, "whole")) <= SYNAPSES else "token"


def make_layout(graph: Graph, play: Play, core: CoreModel = CORE) -> Layout:
    """Place a network on Loihi 1, as `targets.loihi2.mapping` places it on Loihi 2; core: what a core holds.

    Spikes are assumed for placing (10 % of all steps), so that a network is placed alike whatever is played.

    Raises IllegalGraphError where the chip takes no such graph, CheckFailed where a neuron fits no core, UserError
    where there are more than SYNAPSES.
    """
    network = played_network(graph, play)
    require_size(network, play)
    if play == "whole" and any(isinstance(node, Attention) for node in graph):
        try:
            graph = ExpandAttention().rewrite(graph).graph
        except GraphError as error:
            raise UserError(f"{error}; or play a token after the other: --play token") from None
    rates, name = assumed_rates(network, FIRING_RATE), assumed_rates_name(FIRING_RATE)
    return Layout(play, graph, network, place(network, rates, name, model=core), Machine())


def require_size(network: ChipNetwork, play: Play) -> None:
    """Raises UserError where SANA-FE does not bear so many synapses; the largest connections are named."""
    total = synapses(network)
    if total <= SYNAPSES:
        return
    largest = sorted(network.connections, key=network.synapses, reverse=True)[:3]
    named = ", ".join(f"{one.name} {network.synapses(one):,}" for one in largest)
    remedy = "a smaller model" if play == "token" else "--play token, fewer tokens or a smaller model"
    raise UserError(
        f"the network has {total:,} synapses for SANA-FE, the limit is {SYNAPSES:,} ({named}, ...): {remedy}"
    )
