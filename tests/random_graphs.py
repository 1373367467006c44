"""Random graphs and batches for tests, drawn so that they are alive.

Thresholds are set while the graph is built, from the currents that a random batch causes: at a quantile, so that a
known share of the neurons fires, and at a value that occurs, so that currents meet thresholds exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from converters.execution import TokenBatch
from converters.graph import (
    CURRENTS,
    GAMMA_FRACTION,
    GAMMA_MAX,
    LIF,
    NEVER_NEGATIVE,
    NORM_KINDS,
    NORMED_FRACTION,
    RESETS,
    SHIFT,
    SIMILARITIES,
    SPIKES,
    Add,
    Attention,
    Coincidence,
    Concat,
    Graph,
    Node,
    Norm,
    Product,
    Readout,
    Relay,
    Slice,
    Source,
    Synapses,
    ValidLane,
    normed_max,
)
from converters.readout import logits_over_time, unit_of
from sim.reference import ReferenceEngine, evaluate

DECAYS = (0, 410, 2048, 4095)
CLASSES = 3
REACH = 60_000  # accumulators stay below this; a graph allows 65535
WIDEST = 1200  # features of a node of `random_machine_dag`
ATTENTIONS = ("plain", "unbiased", "any")  # similarity "and" without a bias; any without one; any with any or none
# neurons: reset "zero" that send bits; the same behind a source of graded spikes; bits and any reset; any of all
RULES = ("stock", "graded source", "soft", "any")
SENDS = {"q": SPIKES[:1], "k": SPIKES[:1], "v": NEVER_NEGATIVE}  # what the neurons may send that attention reads
MACHINE_KINDS = ("slice", "concat", "valid_lane", "coincidence", "relay", "product")


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
    attention: str = "plain",
    code_features: int = 0,
    norms: float = 0.0,
    neurons: str = "stock",
) -> Graph:
    """A random spiking transformer.

    dv            of every LIF, or the values each LIF draws from
    bias_max      biases are drawn from -bias_max .. bias_max
    firing        about the share of neurons whose first current is above their threshold
    attention     which kinds are drawn: one of ATTENTIONS
    code_features P of spike-coded positions
    norms         the share of layers that have a norm
    neurons       of RULES
    """
    builder = _Builder(
        rng, n_max, timesteps, np.atleast_1d(dv), weight_bits, bias_max, vocabulary, firing, attention, norms,
        neurons,
    )  # fmt: skip
    x = builder.source(hidden, source_kind, code_features)
    for index in range(blocks):
        name = f"block{index}"
        q, k, v = (builder.layer(f"{name}.{part}", x, hidden, SENDS[part]) for part in "qkv")
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
    attention: str = "plain",
    norms: float = 0.0,
    neurons: str = "stock",
) -> Graph:
    """Layers, adds of two to four (a node may stand in one twice) and attentions, wired at random; any legal shape."""
    builder = _Builder(
        rng, n_max, timesteps, np.atleast_1d(dv), weight_bits, bias_max, vocabulary, firing, attention, norms,
        neurons,
    )  # fmt: skip
    spiking, firing_bits = [builder.source(hidden, source_kind)], []
    for index in range(nodes):
        kind = rng.choice(["layer", "add", "attention"] if firing_bits else ["layer", "add"])
        if kind == "layer":
            spiking.append(builder.layer(f"n{index}", str(rng.choice(spiking)), hidden))
            firing_bits += filter(builder.fires, spiking[-1:])
        elif kind == "add":
            inputs = tuple(str(name) for name in rng.choice(spiking, size=rng.integers(2, 5)))
            spiking.append(builder.add(f"n{index}", inputs))
        else:
            q, k, v = (str(name) for name in rng.choice(firing_bits, size=3))
            inputs = q, k, builder.other_value(v, spiking)
            heads = int(rng.choice([h for h in range(1, hidden + 1) if hidden % h == 0]))
            spiking.append(builder.neuron(f"n{index}.lif", builder.attention(f"n{index}", inputs, heads)))
            firing_bits += filter(builder.fires, spiking[-1:])
    return builder.graph(spiking[-1])


def random_machine_dag(
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
    attention: str = "plain",
    norms: float = 0.0,
    neurons: str = "stock",
) -> Graph:
    """Every kind of node that only passes make at least once, in random order, and `nodes` more of any kind.

    Slices begin anywhere, concats join values of different widths and sizes, relays send on the currents of synapses
    and of attention, scores come from a relay or from anywhere; whatever is legal. Layers have up to `hidden` features.
    The readout reads the last nodes side by side.
    """
    builder = _Builder(
        rng, n_max, timesteps, np.atleast_1d(dv), weight_bits, bias_max, vocabulary, firing, attention, norms,
        neurons,
    )  # fmt: skip
    source = builder.source(hidden, source_kind)
    builder.layer("first", source, hidden, SPIKES[:1])
    kinds = [*rng.permutation(MACHINE_KINDS), *rng.choice([*MACHINE_KINDS, "layer", "add", "attention"], nodes)]
    for index, kind in enumerate(kinds):
        getattr(_Wiring(builder, hidden), str(kind))(f"n{index}")
    last = [node.name for node in builder.nodes if not isinstance(node, CURRENTS)][-3:]
    return builder.graph(builder.concat("all", tuple(last)))


class _Wiring:
    """Adds a node of each kind to what a builder has, with random inputs. Each takes the name of the new node."""

    def __init__(self, builder: _Builder, hidden: int) -> None:
        self.builder, self.hidden, self.rng = builder, hidden, builder.rng
        self.spiking = [node.name for node in builder.nodes if not isinstance(node, CURRENTS)]
        self.firing = [name for name in self.spiking if builder.fires(name)]
        self.counts = [name for name in self.spiking if name not in builder.signed]

    def layer(self, name: str) -> None:
        lane = self._any(self.firing) if self.builder.norms and self.firing and self.rng.random() < 0.5 else None
        self.builder.layer(name, self._any(self.spiking), int(self.rng.integers(1, self.hidden + 1)), lane=lane)

    def add(self, name: str) -> None:
        self.builder.add(name, self._alike(self.spiking, int(self.rng.integers(2, 5))))

    def slice(self, name: str) -> None:
        producer = self._any(self.spiking)
        start, stop = np.sort(self.rng.choice(self.builder.width(producer) + 1, 2, replace=False))
        self.builder.slice(name, producer, int(start), int(stop))

    def concat(self, name: str) -> None:
        few = self.rng.random() < 0.5  # of q, k, v, so that there are some to choose from
        inputs = [self._any(self.firing if few else self.spiking) for _ in range(self.rng.integers(2, 5))]
        while sum(map(self.builder.width, inputs)) > WIDEST and len(inputs) > 2:
            inputs.pop()
        if sum(map(self.builder.width, inputs)) <= WIDEST:
            self.builder.concat(name, tuple(inputs))

    def valid_lane(self, name: str) -> None:
        self.builder.valid_lane(name, int(self.rng.integers(1, self.hidden + 1)))

    def coincidence(self, name: str) -> None:
        self.builder.coincidence(name, self._alike(self._short(), 2))

    def relay(self, name: str) -> None:
        if self.rng.random() < 0.5:
            self._attended(name, excites=True)
            self.builder.relay(name, f"{name}.attention")
        else:
            width = int(self.rng.integers(1, self.hidden + 1))
            self.builder.relayed(name, self._any(self.counts), width)

    def product(self, name: str) -> None:
        v = self.builder.other_value(self._any(self._short()), self.spiking)
        heads = self._heads(v)
        width = self.builder.n_max * heads
        scores = [each for each in self.counts if self.builder.width(each) == width]
        if not scores or self.rng.random() < 0.5:
            scores = [self.builder.relayed(f"{name}.scores", self._any(self.counts), width)]
        self.builder.product(name, (self._any(scores), v), heads)

    def attention(self, name: str) -> None:
        self._attended(name)
        self.builder.neuron(name, f"{name}.attention")

    def _attended(self, name: str, excites: bool = False) -> None:
        q, k, v = self._alike(self.firing, 3)
        inputs = q, k, self.builder.other_value(v, self.spiking)
        self.builder.attention(f"{name}.attention", inputs, self._heads(q), excites)

    def _any(self, names: list[str]) -> str:
        return str(self.rng.choice(names))

    def _alike(self, names: list[str], count: int) -> tuple[str, ...]:
        """Of one width."""
        width = self.builder.width(self._any(names))
        return tuple(self._any([name for name in names if self.builder.width(name) == width]) for _ in range(count))

    def _short(self) -> list[str]:
        """Those that fire and may stand n_max times in one node."""
        return [name for name in self.firing if self.builder.width(name) * self.builder.n_max <= WIDEST]

    def _heads(self, name: str) -> int:
        width = self.builder.width(name)
        return int(self.rng.choice([heads for heads in range(1, width + 1) if width % heads == 0]))


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
        attention: str = "plain",
        norms: float = 0.0,
        neurons: str = "stock",
    ) -> None:
        assert attention in ATTENTIONS and neurons in RULES
        self.attentions, self.neurons = attention, neurons
        self.scoring_rng, self.rule_rng = rng.spawn(2)  # of their own: all else is drawn as it would be without
        self.rng, self.n_max, self.timesteps, self.decays = rng, n_max, timesteps, decays
        self.weight_bits, self.bias_max, self.vocabulary, self.firing = weight_bits, bias_max, vocabulary, firing
        self.norms = norms
        self.batch = _draw_batch(rng, vocabulary, 4, n_max)
        self.nodes: list[Node] = []
        self.values: dict[str, np.ndarray] = {}
        self.signed: set[str] = set()  # nodes whose values may be below 0

    def source(self, hidden: int, kind: str, code_features: int = 0) -> str:
        """The source; with spike-coded positions a layer behind it, which brings it back to `hidden` features."""
        table = self.rng.integers(-60, 60, (self.vocabulary, hidden))
        position = self.rng.integers(-30, 30, (self.n_max, hidden))
        dv = int(self.rng.choice(self.decays))
        reset, spike, cap = self._rule(NEVER_NEGATIVE if kind == "lif" else SPIKES[:1])
        if self.neurons == "graded source" and kind == "lif":
            spike, cap = "graded", int(self.rule_rng.choice([2, 3, 15]))
        rule = {"threshold": 20, "dv": dv, "reset": reset, "spike": spike, "cap": cap}
        if not code_features:
            return self._append(Source("source", table, position, kind, **rule))
        code = self.rng.integers(0, 2, (self.timesteps, self.n_max, code_features))
        return self.layer("mix", self._append(Source("source", table, position, kind, code=code, **rule)), hidden)

    def layer(
        self, name: str, producer: str, width: int, sends: Sequence[str] = SPIKES, lane: str | None = None
    ) -> str:
        """Synapses, perhaps a norm, and their LIF; the name of the LIF. sends: the kinds of spikes it may send; lane:
        the valid lane of a norm."""
        weight, bias = self._linear(producer, width)
        current = self._synapses(name, producer, weight, bias)
        if self.norms and self.rng.random() < self.norms:
            current = self.norm(f"{name}.norm", current, lane)
        return self.neuron(name, current, sends)

    def norm(self, name: str, current: str, lane: str | None = None) -> str:
        """With a gamma as large as the accumulator allows, or smaller."""
        width, kind = self.width(current), str(self.rng.choice(NORM_KINDS))
        beta = self.rng.integers(-self.bias_max, self.bias_max + 1, width)
        room = (REACH - self.bias_max) << NORMED_FRACTION + GAMMA_FRACTION
        most = min(room // max(normed_max(kind, width), 1), GAMMA_MAX) >> int(self.rng.integers(0, 10))
        eps = int(self.rng.choice([1, 100 * width**2, 2**60]))
        inputs = (current,) if lane is None else (current, lane)
        return self._append(Norm(name, inputs, self.rng.integers(-most, most + 1, width), beta, eps, kind))

    def neuron(self, name: str, current: str, sends: Sequence[str] = SPIKES) -> str:
        reset, spike, cap = self._rule(sends)
        valid = self.values[current][:, self.batch.mask == 1]
        level = np.quantile(valid, 1 - self.firing, method="nearest")
        if spike == "graded":  # so that more than one level is passed
            level //= int(self.rule_rng.integers(1, 4))
        dv = int(self.rng.choice(self.decays))
        return self._append(LIF(name, (current,), max(int(level), 0), dv, SHIFT, reset, spike, cap))

    def _rule(self, sends: Sequence[str]) -> tuple[str, str, int]:
        """reset, spike and cap of a LIF or a source."""
        if self.neurons in ("stock", "graded source"):
            return "zero", "binary", 1
        reset = str(self.rule_rng.choice(RESETS))
        spike = "binary" if self.neurons == "soft" else str(self.rule_rng.choice(sends))
        return reset, spike, int(self.rule_rng.choice([2, 3, 15])) if spike == "graded" else 1

    def attention(self, name: str, inputs: tuple[str, ...], heads: int, excites: bool = False) -> str:
        """`excites`: its current is never negative."""
        largest = int(self._feature_max(inputs[2]).max())
        similarity, bias = self._scoring(heads, self.width(inputs[0]) // heads, excites, largest)
        return self._append(Attention(name, inputs, heads, similarity, bias))

    def _scoring(self, heads: int, size: int, excites: bool, largest: int) -> tuple[str, np.ndarray | None]:
        """A similarity, and a bias or none: small, as large as scores, or as large as accumulators allow for a v of up
        to `largest`."""
        rng = self.scoring_rng
        if self.attentions == "plain":
            return "and", None
        similarity = str(rng.choice(SIMILARITIES))
        if self.attentions == "unbiased" or rng.random() < 0.3:
            return similarity, None
        most = max(1, int(rng.choice([1, size, REACH // (largest * self.n_max) - size])))
        shape = (int(rng.choice([1, heads])), self.n_max, self.n_max)
        return similarity, rng.integers(0 if excites else -most, most + 1, shape)

    def add(self, name: str, inputs: tuple[str, ...]) -> str:
        return self._append(Add(name, inputs))

    def slice(self, name: str, producer: str, start: int, stop: int) -> str:
        return self._append(Slice(name, (producer,), start, stop))

    def concat(self, name: str, inputs: tuple[str, ...]) -> str:
        return self._append(Concat(name, inputs))

    def valid_lane(self, name: str, lanes: int) -> str:
        return self._append(ValidLane(name, lanes))

    def coincidence(self, name: str, inputs: tuple[str, ...]) -> str:
        return self._append(Coincidence(name, inputs))

    def relay(self, name: str, current: str) -> str:
        return self._append(Relay(name, (current,)))

    def relayed(self, name: str, producer: str, width: int) -> str:
        """Synapses that excite, few or many, and their relay; the name of the relay."""
        weight, bias = (np.abs(numbers) for numbers in self._linear(producer, width))
        weight[self.rng.random(weight.shape) < self.rng.choice([0.0, 0.7, 0.95])] = 0
        return self.relay(name, self._synapses(name, producer, weight, bias))

    def _synapses(self, name: str, producer: str, weight: np.ndarray, bias: np.ndarray) -> str:
        bits = self.weight_bits if np.all(weight) else max(2, self.weight_bits)  # one of 1 bit is not 0
        return self._append(Synapses(f"{name}.synapses", (producer,), weight, bias, bits))

    def product(self, name: str, inputs: tuple[str, ...], heads: int) -> str:
        return self._append(Product(name, inputs, heads))

    def width(self, name: str) -> int:
        return int(self.values[name].shape[-1])

    def fires(self, name: str, sends: Sequence[str] = SPIKES[:1]) -> bool:
        """Whether it is made of such spikes of LIF nodes alone: of bits, it may be q, k or v."""
        node = next(node for node in self.nodes if node.name == name)
        if isinstance(node, LIF):
            return node.spike in sends
        return isinstance(node, (Slice, Concat)) and all(self.fires(each, sends) for each in node.inputs)

    def other_value(self, v: str, names: Sequence[str]) -> str:
        """Any v of the same width among `names`, perhaps a graded one."""
        if self.neurons != "any":
            return v
        alike = [name for name in names if self.width(name) == self.width(v) and self.fires(name, NEVER_NEGATIVE)]
        return str(self.rule_rng.choice(alike))

    def graph(self, producer: str) -> Graph:
        weight, bias = self._linear(producer, CLASSES)
        return self._ended(Readout("readout", (producer,), weight, bias))

    def _linear(self, producer: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Weights as large as accumulators allow; of inputs that reach too high together, some have none."""
        bound = self._feature_max(producer)
        read = np.ones(len(bound), bool)
        if bound.sum() > REACH:
            order = self.rng.permutation(len(bound))
            read[order] = np.cumsum(bound[order]) <= REACH
        limit = min(2 ** (self.weight_bits - 1) - 1, REACH // max(1, int(bound[read].sum())))
        bias = self.rng.integers(-self.bias_max, self.bias_max + 1, rows)
        if self.weight_bits == 1:
            return self.rng.choice([-1, 1], (rows, len(bound))) * read, bias
        return self.rng.integers(-limit, limit + 1, (rows, len(bound))) * read, bias

    def _feature_max(self, name: str) -> np.ndarray:
        silent = Readout("readout", (name,), np.zeros((1, self.width(name)), int), [0])
        return self._ended(silent).feature_max[name]

    def _ended(self, readout: Readout) -> Graph:
        return Graph(self.timesteps, self.n_max, (*self.nodes, readout))

    def _append(self, node: Node) -> str:
        self.nodes.append(node)
        passes_on = isinstance(node, (Add, Slice, Concat)) and not self.signed.isdisjoint(node.inputs)
        if passes_on or (isinstance(node, LIF) and node.spike == "ternary"):
            self.signed.add(node.name)
        inputs = [self.values[name] for name in node.inputs]
        self.values[node.name] = evaluate(node, inputs, self.batch, self.timesteps, self.n_max)
        return node.name


def _draw_batch(rng: np.random.Generator, vocabulary: int, samples: int, tokens: int) -> TokenBatch:
    lengths = rng.integers(1, tokens + 1, samples)
    lengths[0] = tokens
    mask = np.arange(tokens)[None, :] < lengths[:, None]
    return TokenBatch(rng.integers(0, vocabulary, (samples, tokens)), mask)


def middle_margin(graph: Graph, batch: TokenBatch) -> int:
    """Of an early exit: one that some samples reach and others do not, at least at some timestep."""
    values = ReferenceEngine(graph).run(batch, (graph.output,)).values[graph.output]
    logits = np.sort(logits_over_time(graph, values), axis=2)  # [T, B, C]
    units = np.array([unit_of(graph.readout, t) for t in range(1, graph.timesteps + 1)])
    leads = (logits[..., -1] - logits[..., -2]) // (units[:, None] * np.maximum(1, batch.mask.sum(1)))
    return int(np.median(leads))
