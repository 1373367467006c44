"""The spikes of a run, as they leave each neuron of the chip."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from converters.graph import Graph
from spikebert.commands import CheckFailed
from targets.loihi2.mapping.network import Population
from targets.sanafe.layout import Layout

Messages = Mapping[str, np.ndarray]  # population -> bool [steps, tokens, keys, features]: who sends at which step


def node_of(population: Population, graph: Graph) -> str:
    """The node whose values a population sends. Raises CheckFailed where the graph has none."""
    name = population.node or population.name.partition("#")[0]
    own = population.keys * (population.features - population.lanes)
    if name not in graph.features or graph.features[name] != own:
        raise CheckFailed(
            f"population '{population.name}': no node of the graph has the values that its {own} neurons send. Export "
            "the network without passes, or with expand-attention alone"
        )
    return name


def require_values(layout: Layout) -> None:
    """Raises CheckFailed where some population sends what no node of the graph has."""
    for each in layout.network.on_chip:
        if each.lanes < each.features:
            node_of(each, layout.graph)


def messages(layout: Layout, values: Mapping[str, np.ndarray], mask: np.ndarray) -> dict[str, np.ndarray]:
    """What each population of the chip sends, in logical time: a step of the machine holds all messages of a timestep.

    values of every node of the layout's graph, integers [T, B, N, D]; a value that is not 0 is a message
    mask   int [B, N]; valid lanes send at every step of a real token

    Returns bool [B * T, n_max, keys, features], sentence after sentence; where a token is played after the other
    [real tokens * T, 1, 1, features], in the order of sentences and their tokens.
    """
    if layout.play == "token":
        places = np.nonzero(mask)  # each real token is played as a sentence of its own
        values = {name: value[:, places[0], places[1]][:, :, None] for name, value in values.items()}
        mask = np.ones((len(places[0]), 1), dtype=np.int64)
    return {each.name: _messages(layout, each, values, mask) for each in layout.network.on_chip}


def _messages(layout: Layout, population: Population, values: Mapping[str, np.ndarray], mask: np.ndarray) -> np.ndarray:
    samples, tokens = mask.shape
    steps, lanes = layout.network.timesteps, population.lanes
    sent = np.zeros((samples, steps, population.tokens, population.keys, population.features), dtype=bool)
    own = population.features - lanes
    if own:
        value = values[node_of(population, layout.graph)].swapaxes(0, 1)  # [B, T, N, D]
        sent[:, :, :tokens, :, :own] = (value != 0).reshape(samples, steps, tokens, population.keys, own)
    if lanes:
        sent[:, :, :tokens, :, own:] = (mask != 0)[:, None, :, None, None]
    return sent.reshape(samples * steps, *sent.shape[2:])
