"""Random networks of the shape of our transformer that fire at a wanted rate, to measure engines on.

    graph = random_network(depth=6, hidden=384, heads=6, n_max=32, timesteps=4, firing_rate=0.05, seed=0)
    batch = full_batch(graph, samples=64)

A network is built node by node. Each is evaluated on a few random sentences, so that the threshold of a LIF can be
set to what makes these fire at the wanted rate. Other random sentences then fire at about the same.
"""

from __future__ import annotations

import numpy as np

from converters.encoder import lif
from converters.execution import TokenBatch
from converters.graph import LIF, SHIFT, THRESHOLD_MAX, Add, Attention, Graph, Node, Readout, Source, Synapses

VOCABULARY = 30522  # BERT's
CLASSES = 2
WIDENING = 4  # features inside the MLP for each feature of a token
DV = 2048  # a membrane loses half of itself at each step
TABLE_SPREAD, POSITION_SPREAD, WEIGHT_SPREAD = 50.0, 17.0, 22.0  # standard deviations, about those of our bundle
# Of a layer's current. So chosen that at 19 % a neuron which fires for a token fires at 2.4 of 4 timesteps; in our
# bundle it is 2.3. An engine that serves several timesteps at once lives on that.
BIAS_SPREAD = 1.0
BIAS_MAX = 5000
REACH = 60_000  # accumulators stay below this; a graph allows 65535
CALIBRATION_TOKENS = 256
FINE = 64  # thresholds of attention are searched in parts of one


def random_network(
    depth: int,
    hidden: int,
    heads: int,
    n_max: int,
    timesteps: int,
    firing_rate: float,
    seed: int = 0,
    one_threshold: bool = False,
) -> Graph:
    """`depth` blocks of int8 weights; every LIF fires at about `firing_rate` spikes / (T x real tokens x features).

    With `one_threshold` each LIF has one threshold for all features, as Lava wants it; those after attention may then
    fire less often than asked for. Else their features have one of two neighbouring thresholds.

    The rate holds for sentences of `n_max` tokens: a shorter one gives attention less to count. Where spikes are very
    few (1 %, few tokens), attention may find too few matches and fire less.
    """
    builder = _Builder(n_max, timesteps, firing_rate, seed, one_threshold)
    x = builder.source("encoder", hidden)
    for index in range(depth):
        name = f"blocks.{index}"
        liked = builder.likings(hidden)  # shared, or query and key would hardly ever meet at low rates
        q, k = builder.layer(f"{name}.query", x, liked), builder.layer(f"{name}.key", x, liked)
        v = builder.layer(f"{name}.value", x, builder.likings(hidden))
        attended = builder.attention(f"{name}.attention", (q, k, v), heads)
        x = builder.add(f"{name}.add_attention", x, builder.layer(f"{name}.out", attended, builder.likings(hidden)))
        up = builder.layer(f"{name}.up", x, builder.likings(WIDENING * hidden))
        x = builder.add(f"{name}.add_mlp", x, builder.layer(f"{name}.down", up, builder.likings(hidden)))
    return builder.graph(x)


def full_batch(graph: Graph, samples: int, seed: int = 0) -> TokenBatch:
    """`samples` sentences of random ids, as long as the graph takes them, so without padding."""
    vocabulary = graph.source.table.shape[0]
    ids = np.random.default_rng(seed).integers(0, vocabulary, (samples, graph.n_max))
    return TokenBatch(ids, np.ones_like(ids))


class _Builder:
    """Adds nodes one by one, and keeps what each does with the sentences of the calibration.

    values    float32 [T, B, N, D]: products are fast, and exact below 2^24
    value_max the largest value of a spiking node
    """

    def __init__(self, n_max: int, timesteps: int, firing_rate: float, seed: int, one_threshold: bool) -> None:
        self.rng, self.one_threshold = np.random.default_rng(seed), one_threshold
        self.n_max, self.timesteps, self.firing_rate = n_max, timesteps, firing_rate
        self.ids = self.rng.integers(0, VOCABULARY, (-(-CALIBRATION_TOKENS // n_max), n_max))
        self.nodes: list[Node] = []
        self.values: dict[str, np.ndarray] = {}
        self.value_max: dict[str, int] = {}

    def source(self, name: str, hidden: int) -> str:
        table = self._integers(TABLE_SPREAD, (VOCABULARY, hidden), 127)
        position = self._integers(POSITION_SPREAD, (self.n_max, hidden), 127)
        current = np.broadcast_to(table[self.ids] + position, (self.timesteps, *self.ids.shape, hidden))
        threshold, spikes = fire(current, self.firing_rate)
        return self._keep(Source(name, table, position, "lif", int(threshold), DV), spikes)

    def likings(self, width: int) -> np.ndarray:
        """How readily each feature of a layer fires: its bias, in standard deviations of the layer's current."""
        return self.rng.normal(0, BIAS_SPREAD, width)

    def layer(self, name: str, producer: str, likings: np.ndarray) -> str:
        """Synapses and their LIF; the name of the LIF."""
        weight = self._weight(producer, len(likings))
        current = self.values[producer] @ weight.T.astype(np.float32)
        bias = np.clip(np.rint(likings * current.std()), -BIAS_MAX, BIAS_MAX).astype(np.int64)
        self.nodes.append(Synapses(name, (producer,), weight, bias))
        threshold, spikes = fire(current + bias, self.firing_rate)
        return self._keep(LIF(f"{name}.lif", (name,), int(threshold), DV), spikes)

    def attention(self, name: str, inputs: tuple[str, str, str], heads: int) -> str:
        """Attention and its LIF; the name of the LIF. Its currents are small counts, so that one threshold for all
        features misses the rate: unless it must be one, each has that or the next."""

        def split(x: np.ndarray) -> np.ndarray:  # [T, B, N, D] -> [T, B, H, N, d]
            return x.reshape(*x.shape[:3], heads, -1).swapaxes(2, 3)

        q, k, v = (split(self.values[name]) for name in inputs)
        current = (q @ k.swapaxes(-1, -2) @ v).swapaxes(2, 3).reshape(self.values[inputs[0]].shape)
        self.nodes.append(Attention(name, inputs, heads))
        if self.one_threshold:
            level, spikes = fire(current, self.firing_rate)
            return self._keep(LIF(f"{name}.lif", (name,), int(level), DV), spikes)
        offsets = self.rng.integers(0, FINE, current.shape[-1])
        threshold, spikes = fire(current, self.firing_rate, offsets, FINE)
        return self._keep(LIF(f"{name}.lif", (name,), threshold, DV), spikes)

    def add(self, name: str, a: str, b: str) -> str:
        total = self.value_max[a] + self.value_max[b]
        return self._keep(Add(name, (a, b)), self.values[a] + self.values[b], total)

    def graph(self, producer: str) -> Graph:
        readout = Readout("readout", (producer,), self._weight(producer, CLASSES), np.zeros(CLASSES, np.int64))
        return Graph(self.timesteps, self.n_max, (*self.nodes, readout))

    def _integers(self, spread: float, shape: tuple[int, ...], largest: int) -> np.ndarray:
        drawn = self.rng.normal(0, spread, shape)
        return np.clip(np.rint(drawn), -largest, largest).astype(np.int64)

    def _weight(self, producer: str, rows: int) -> np.ndarray:
        """int64 [rows, in], smaller where the inputs are so many or so large that an accumulator could pass REACH."""
        weight = self.rng.normal(0, WEIGHT_SPREAD, (rows, self.values[producer].shape[-1]))
        sums = np.maximum(np.maximum(weight, 0).sum(1), np.maximum(-weight, 0).sum(1))
        room = (REACH - BIAS_MAX) / (sums.max() * self.value_max[producer])
        return np.clip(np.rint(weight * min(1.0, room)), -127, 127).astype(np.int64)

    def _keep(self, node: Node, values: np.ndarray, value_max: int = 1) -> str:
        self.nodes.append(node)
        self.values[node.name], self.value_max[node.name] = values.astype(np.float32), value_max
        return node.name


def fire(
    current: np.ndarray, firing_rate: float, offsets: np.ndarray | int = 0, parts: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The lowest threshold at which a LIF fires no more often than `firing_rate`, and its spikes int64 [T, ...].

    current  integers [T, ..., D], in any type
    offsets  int [D], 0 .. parts - 1: the threshold of a feature is (level + offset) // parts, of one level for all;
             with 0 and 1 it is that level
    """
    current = current.astype(np.int64)
    low, high = 0, min(2 * parts * max(1, int(current.max())), parts * THRESHOLD_MAX)
    while low < high:
        level = (low + high) // 2
        if lif(current, (level + offsets) // parts, DV, SHIFT).mean() > firing_rate:
            low = level + 1
        else:
            high = level
    threshold = (low + np.asarray(offsets)) // parts
    return threshold, lif(current, threshold, DV, SHIFT)
