"""Kinds of neurons for tests: every reset with every kind of spike, the rule written anew, and graphs of them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from converters.execution import TokenBatch
from converters.graph import LIF, SHIFT, Add, Attention, Graph, Readout, Source, Synapses

Kind = tuple[str, str, int]  # reset, spike, cap
KINDS: tuple[Kind, ...] = tuple(
    (reset, spike, cap)
    for reset, (spike, cap) in itertools.product(
        ("zero", "subtract"), (("binary", 1), ("graded", 2), ("graded", 15), ("ternary", 1))
    )
)
OTHERS = KINDS[1:]  # than the stock one
DECAYS = (0, 410, 2048, 4095)
BATCH = TokenBatch([[1, 2, 3], [4, 5, 0], [6, 0, 0]], [[1, 1, 1], [1, 1, 0], [1, 0, 0]])


def naive_neuron(currents: list[int], threshold: int, dv: int, kind: Kind) -> list[int]:
    """The rule, one neuron, in Python's integers. A graded spike is a quotient here, not a count."""
    reset, spike, cap = kind
    level, v, sent = threshold << SHIFT, 0, []
    for a in currents:
        kept = (abs(v) * (4096 - dv)) >> 12
        v = max(-(2**23 - 1), min(2**23 - 1, (kept if v >= 0 else -kept) + (a << SHIFT)))
        if v > level:
            s = min(cap, -(-v // level) - 1) if level else cap  # how many whole levels are strictly below v
        else:
            s = -1 if spike == "ternary" and -v > level else 0
        if s != 0:
            v = v - s * level if reset == "subtract" else 0
        sent.append(s)
    return sent


@st.composite
def drives(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Currents over T steps, a threshold and a decay: anything, or small ones, which meet thresholds exactly."""
    reach, highest = draw(st.sampled_from([(65535, 65535), (40, 9), (3, 2), (1, 0)]))
    steps = draw(st.sampled_from([1, 4, 8, 16]))
    currents = draw(st.lists(st.integers(-reach, reach), min_size=steps, max_size=steps))
    return currents, draw(st.integers(0, highest)), draw(st.sampled_from(DECAYS) | st.integers(0, 4095))


def with_options(graph: Graph, **options: object) -> Graph:
    """The graph whose LIF nodes have these fields; those that an attention reads stay binary, but for a graded v."""
    kept = slice(None) if options.get("spike") == "ternary" else slice(2)
    read = {name for node in graph if isinstance(node, Attention) for name in node.inputs[kept]}
    nodes = []
    for node in graph:
        own = {key: value for key, value in options.items() if node.name not in read or key == "reset"}
        nodes.append(replace(node, **own) if isinstance(node, LIF) else node)
    return Graph(graph.timesteps, graph.n_max, tuple(nodes))


def rule_graph(kind: Kind, timesteps: int = 4, dv: int = 410, n_max: int = 3, seed: int = 0) -> Graph:
    """A block with biases: an encoder, attention, sums of what these neurons send, a readout. q and k are bits; source
    and v too, unless the neurons send graded spikes."""
    rng = np.random.default_rng(seed)
    width, threshold = 6, 90
    bits = (kind[0], "binary", 1)
    counts = bits if kind[1] == "ternary" else kind
    reset, spike, cap = counts

    def synapses(name: str, producer: str, columns: int = width, largest: int = 40) -> Synapses:
        weight = rng.integers(-largest, largest + 1, (width, columns))
        return Synapses(name, (producer,), weight, rng.integers(-60, 61, width))

    nodes = (
        Source("source", rng.integers(-40, 60, (20, width)), threshold=20, dv=dv, reset=reset, spike=spike, cap=cap),
        *(synapses(name, "source", largest=80) for name in "qkv"),
        *(LIF(f"{name}.lif", (name,), threshold, dv, SHIFT, *bits) for name in "qk"),
        LIF("v.lif", ("v",), threshold, dv, SHIFT, *counts),
        Attention("attention", ("q.lif", "k.lif", "v.lif"), 2),
        LIF("attended", ("attention",), 1, dv, SHIFT, *kind),
        synapses("out", "attended"),
        LIF("out.lif", ("out",), threshold // 3, dv, SHIFT, *kind),
        Add("sum", ("source", "out.lif")),
        synapses("up", "sum"),
        LIF("up.lif", ("up",), np.arange(width) + threshold // 3, dv, SHIFT, *kind),
        Add("again", ("sum", "up.lif", "out.lif")),
        Readout("readout", ("again",), rng.integers(-9, 10, (3, width)), rng.integers(-5, 6, 3)),
    )
    return Graph(timesteps, n_max, nodes)


def scalar_rule_graph(kind: Kind, **sizes: int) -> Graph:
    """The same with one threshold a layer, as Lava has it."""
    graph = rule_graph(kind, **sizes)
    nodes = [replace(node, threshold=33) if node.name == "up.lif" else node for node in graph]
    return Graph(graph.timesteps, graph.n_max, tuple(nodes))
