"""Random graphs and batches for tests, drawn so that they are alive.

Thresholds are set while the graph is built, from the currents that a random batch causes: at a quantile, so that a
known share of the neurons fires, and at a value that occurs, so that currents meet thresholds exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from converters.execution import TokenBatch
from converters.graph import LIF, Add, Attention, Graph, Node, Readout, Source, Synapses
from sim.reference import evaluate

DECAYS = (0, 410, 2048, 4095)
CLASSES = 3
REACH = 60_000  # accumulators stay below this; a graph allows 65535


def random_batch(rng: np.random.Generator, graph: Graph, samples: int, tokens: int | None = None) -> TokenBatch:
    """`samples` texts of 1 .. `tokens` random ids (default n_max), the first as long as the batch is wide."""
    tokens = tokens or graph.n_max
    return _draw_batch(rng, graph.source.table.shape[0], samples, tokens)


def random_graph(
    rng: np.random.Generator,
    blocks: int = 2,
    hidden: int = 16,
    heads: int = 2,
    n_max: int = 6,
    timesteps: int = 4,
    dv: int | Sequence[int] = DECAYS,
    weight_bits: int = 8,
    bias_max: int = 300,
    source_kind: str = "lif",
    vocabulary: int = 40,
    firing: float = 0.3,
) -> Graph:
    """A random spiking transformer.

    dv       of every LIF, or the values each LIF draws from
    bias_max biases are drawn from -bias_max .. bias_max
    firing   about the share of neurons whose first current is above their threshold
    """
    builder = _Builder(rng, n_max, timesteps, np.atleast_1d(dv), weight_bits, bias_max, vocabulary, firing)
    x = builder.source(hidden, source_kind)
    for index in range(blocks):
        name = f"block{index}"
        q, k, v = (builder.layer(f"{name}.{part}", x, hidden) for part in "qkv")
        attended = builder.neuron(f"{name}.attention_lif", builder.attention(f"{name}.attention", (q, k, v), heads))
        x = builder.add(f"{name}.add1", (x, builder.layer(f"{name}.out", attended, hidden)))
        widened = builder.layer(f"{name}.fc1", x, 2 * hidden)
        x = builder.add(f"{name}.add2", (x, builder.layer(f"{name}.fc2", widened, hidden)))
    return builder.graph(x)


def random_dag(
    rng: np.random.Generator,
    nodes: int = 6,
    hidden: int = 6,
    n_max: int = 3,
    timesteps: int = 4,
    dv: int | Sequence[int] = DECAYS,
    weight_bits: int = 8,
    bias_max: int = 300,
    source_kind: str = "lif",
    vocabulary: int = 20,
    firing: float = 0.3,
) -> Graph:
    """Layers, adds of two to four (a node may stand in one twice) and attentions, wired at random; any legal shape."""
    builder = _Builder(rng, n_max, timesteps, np.atleast_1d(dv), weight_bits, bias_max, vocabulary, firing)
    spiking, neurons = [builder.source(hidden, source_kind)], []
    for index in range(nodes):
        kind = rng.choice(["layer", "add", "attention"] if neurons else ["layer", "add"])
        if kind == "layer":
            spiking.append(builder.layer(f"n{index}", str(rng.choice(spiking)), hidden))
            neurons.append(spiking[-1])
        elif kind == "add":
            inputs = tuple(str(name) for name in rng.choice(spiking, size=rng.integers(2, 5)))
            spiking.append(builder.add(f"n{index}", inputs))
        else:
            inputs = tuple(str(name) for name in rng.choice(neurons, size=3))
            heads = int(rng.choice([h for h in range(1, hidden + 1) if hidden % h == 0]))
            spiking.append(builder.neuron(f"n{index}.lif", builder.attention(f"n{index}", inputs, heads)))
            neurons.append(spiking[-1])
    return builder.graph(spiking[-1])


class _Builder:
    """Adds nodes one by one and evaluates each on one batch, to know which thresholds make it fire."""

    def __init__(
        self,
        rng: np.random.Generator,
        n_max: int,
        timesteps: int,
        decays: np.ndarray,
        weight_bits: int,
        bias_max: int,
        vocabulary: int,
        firing: float,
    ) -> None:
        self.rng, self.n_max, self.timesteps, self.decays = rng, n_max, timesteps, decays
        self.weight_bits, self.bias_max, self.vocabulary, self.firing = weight_bits, bias_max, vocabulary, firing
        self.batch = _draw_batch(rng, vocabulary, 4, n_max)
        self.nodes: list[Node] = []
        self.values: dict[str, np.ndarray] = {}

    def source(self, hidden: int, kind: str) -> str:
        table = self.rng.integers(-60, 60, (self.vocabulary, hidden))
        position = self.rng.integers(-30, 30, (self.n_max, hidden))
        return self._append(Source("source", table, position, kind, threshold=20, dv=int(self.rng.choice(self.decays))))

    def layer(self, name: str, producer: str, width: int) -> str:
        """Synapses and their LIF; the name of the LIF."""
        weight, bias = self._linear(producer, width)
        self._append(Synapses(f"{name}.synapses", (producer,), weight, bias, self.weight_bits))
        return self.neuron(name, f"{name}.synapses")

    def neuron(self, name: str, current: str) -> str:
        valid = self.values[current][:, self.batch.mask == 1]
        level = np.quantile(valid, 1 - self.firing, method="nearest")
        return self._append(LIF(name, (current,), max(int(level), 0), int(self.rng.choice(self.decays))))

    def attention(self, name: str, inputs: tuple[str, ...], heads: int) -> str:
        return self._append(Attention(name, inputs, heads))

    def add(self, name: str, inputs: tuple[str, ...]) -> str:
        return self._append(Add(name, inputs))

    def graph(self, producer: str) -> Graph:
        weight, bias = self._linear(producer, CLASSES)
        return Graph(self.timesteps, self.n_max, (*self.nodes, Readout("readout", (producer,), weight, bias)))

    def _linear(self, producer: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
        columns, largest = self.values[producer].shape[-1], self._value_max(producer)
        limit = min(2 ** (self.weight_bits - 1) - 1, REACH // (columns * largest))
        if limit < 1:
            raise ValueError(f"'{producer}' has {columns} features of up to {largest}: no weight keeps to {REACH}")
        bias = self.rng.integers(-self.bias_max, self.bias_max + 1, rows)
        return self.rng.integers(-limit, limit + 1, (rows, columns)), bias

    def _value_max(self, name: str) -> int:
        node = next(node for node in self.nodes if node.name == name)
        return sum(self._value_max(producer) for producer in node.inputs) if isinstance(node, Add) else 1

    def _append(self, node: Node) -> str:
        self.nodes.append(node)
        inputs = [self.values[name] for name in node.inputs]
        self.values[node.name] = evaluate(self, node, inputs, self.batch)  # it reads only `timesteps` of a graph
        return node.name


def _draw_batch(rng: np.random.Generator, vocabulary: int, samples: int, tokens: int) -> TokenBatch:
    lengths = rng.integers(1, tokens + 1, samples)
    lengths[0] = tokens
    mask = np.arange(tokens)[None, :] < lengths[:, None]
    return TokenBatch(rng.integers(0, vocabulary, (samples, tokens)), mask)
