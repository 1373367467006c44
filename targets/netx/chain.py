"""A graph as a chain of layers: what goes into a network file of lava-dl, as plain data. Needs no Lava.

The network is that of one token. A chain has nothing that lets tokens see each other, so the tokens of all samples go
through it one after another, T steps each, and weights are there once, whatever n_max is.

Biases ride on valid lanes and weights are doubled, both as for the target `lava` (docs/lava.md): a bias in a network
file is added at every step, to padding and between samples too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converters.encoder import encode
from converters.execution import TokenBatch
from converters.graph import LIF, Concat, Graph, Slice, Source, Synapses, ValidLane
from targets.lava.lowering import lay_out, scalar_threshold
from targets.lava.plan import DOUBLING


@dataclass(frozen=True, eq=False)
class Layer:
    """One `dense` layer of a network file: synapses and their neuron, or the readout.

    synapses, neuron names of the two nodes; neuron is None for the readout
    weight           int16 [channels out, channels in], doubled. Channels are features first, then valid lanes
    vth, dv          of the neuron; vth in doubled accumulator units. None for the readout
    features         channels out that are no lanes
    latency_steps    steps by which current and spikes lag behind the input: netx takes one step a layer
    """

    synapses: str
    neuron: str | None
    weight: np.ndarray
    vth: int | None
    dv: int | None
    features: int
    latency_steps: int


@dataclass(frozen=True, eq=False)
class Chain:
    """A lowered graph.

    timesteps T, also the interval of all resets
    laid      the graph whose biases are laid out on lanes
    host      the node of `laid` that the host sends, its features the channels of the input
    layers    in order; the last is the readout
    """

    timesteps: int
    laid: Graph
    host: str
    layers: tuple[Layer, ...]

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return self.laid.features[self.host]

    @property
    def depth_steps(self) -> int:
        """Steps by which the readout lags behind the input."""
        return len(self.layers)

    @property
    def drain_steps(self) -> int:
        """Steps of silence after the last token: at least the depth, and whole tokens, so that the next batch meets
        the resets in phase."""
        return -(-self.depth_steps // self.timesteps) * self.timesteps


def on_host(graph: Graph, name: str) -> bool:
    """Whether the host makes the value of a node: the source, the valid lane, and slices and concats of these."""
    node = graph[name]
    if isinstance(node, (Slice, Concat)):
        return all(on_host(graph, producer) for producer in node.inputs)
    return isinstance(node, (Source, ValidLane))


def host_value(graph: Graph, name: str, batch: TokenBatch) -> np.ndarray:
    """Spikes int64 [T, B, N, D] of a node that is on the host."""
    node = graph[name]
    if isinstance(node, Source):
        return encode(node, batch, graph.timesteps)
    if isinstance(node, ValidLane):
        return np.tile(batch.mask[:, :, None], (graph.timesteps, 1, 1, node.lanes))
    inputs = [host_value(graph, producer, batch) for producer in node.inputs]
    if isinstance(node, Slice):
        return inputs[0][..., node.start : node.stop]
    return np.concatenate(inputs, axis=-1)


def make_chain(graph: Graph) -> Chain:
    """The chain of a graph that the rules of this target find legal. Raises ValueError where it is none."""
    laid = lay_out(graph).graph
    backwards = []
    name = laid.output
    while not on_host(laid, name):
        neuron = laid[name]
        synapses = laid[neuron.inputs[0]] if isinstance(neuron, LIF) else neuron
        if not (isinstance(synapses, Synapses) or synapses is laid.readout):
            raise ValueError(f"node '{synapses.name}' ({synapses.op}) is no layer of a chain")
        backwards.append((synapses, neuron if isinstance(neuron, LIF) else None))
        name = synapses.inputs[0]
    layers = [
        Layer(
            synapses=synapses.name,
            neuron=None if neuron is None else neuron.name,
            weight=DOUBLING * synapses.weight.astype(np.int16),
            vth=None if neuron is None else DOUBLING * scalar_threshold(neuron),
            dv=None if neuron is None else neuron.dv,
            features=graph.features[synapses.name],
            latency_steps=latency,
        )
        for latency, (synapses, neuron) in enumerate(reversed(backwards), start=1)
    ]
    return Chain(graph.timesteps, laid, name, tuple(layers))
