"""The rules by which a graph is legal for NIR. Needs no nir.

What they pass is exact; docs/nir.md goes through all kinds of node. The numbers are in `limits.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from converters.graph import LIF, SHIFT, Attention, Coincidence, Graph, Norm, Product
from converters.ranges import Range, prove_ranges
from targets.legality import Rule, rule
from targets.nir import limits
from targets.nir.membranes import Membrane, membrane_of


@rule("no-product", limits.SIGNALS, "take attention out of the model; no pass turns a product into what NIR has")
def multiplied_signals(graph: Graph) -> Iterator[tuple[str, int]]:
    """NIR multiplies signals with stored weights only. An attention multiplies q, k and v with each other."""
    for node in graph:
        if isinstance(node, (Attention, Coincidence, Product)):
            yield node.name, len(node.inputs)


@rule("no-norm", limits.NORMS, 'train with norm "batch" or "none", or export it for the target lava')
def norms(graph: Graph) -> Iterator[tuple[str, int]]:
    """NIR scales signals with constants. A norm divides by the spread of what it receives."""
    for node in graph:
        if isinstance(node, Norm):
            yield node.name, 1


@rule("sum-readout", limits.READOUTS, 'train with readout "sum" or "spikes", or export for the target lava')
def readouts_are_sums(graph: Graph) -> Iterator[tuple[str, int]]:
    """The file ends with the readout's currents, which its reader sums up over time."""
    yield graph.output, int(graph.readout.kind == "membrane")


@rule(
    "stock-neuron",
    limits.NEURON_RULES,
    "train with reset zero, spike binary and value_cap 1, or export it for the target lava",
)
def stock_neurons(graph: Graph) -> Iterator[tuple[str, int]]:
    """NIR's neurons are set to one value where they fire, and send 1. None takes its threshold off, none sends more."""
    for node in graph:
        if isinstance(node, LIF):
            yield node.name, int(not node.is_stock)


@rule("one-token", limits.TOKENS, "let each token go through the network by itself: only the readout's sum is of all")
def read_tokens(graph: Graph) -> Iterator[tuple[str, int]]:
    """A token's value may depend on that token alone, since the file is the network of one."""
    for node in graph:
        if isinstance(node, (Attention, Coincidence, Product)):
            yield node.name, graph.n_max


@rule(
    "exact-decay",
    limits.FRACTION,
    "train with decay 0 (any T), 2048 (T up to 8) or 1024 (T up to 4), or with a single timestep",
)
def fractions(graph: Graph) -> Iterator[tuple[str, int]]:
    """A membrane that keeps an odd part of 2^k needs k bits more after each of T - 1 decays; where these are more than
    7 the rule rounds, and NIR does not."""
    for node, membrane, _, _ in _neurons(graph):
        yield node.name, membrane.fraction_bits


@rule("no-saturation", limits.MEMBRANE, "use smaller or fewer weights, or a larger decay")
def membranes(graph: Graph) -> Iterator[tuple[str, int]]:
    """The rule cuts membranes, NIR does not. They are as large as `converters.ranges` proves, for any text."""
    for node, _, _, own in _neurons(graph):
        yield node.name, _reach(own)


@rule("float32-exact", limits.FLOAT32, "use smaller or fewer weights, fewer timesteps, or a decay of 0, 2048 or 1024")
def float32_steps(graph: Graph) -> Iterator[tuple[str, int]]:
    """Programs that read NIR compute in float32: it must tell all membranes apart, or errors stay below half a step.

    Only asked of neurons that are exact in real numbers.
    """
    for node, membrane, current, own in _neurons(graph):
        if membrane.fraction_bits <= SHIFT:
            yield node.name, membrane.float32_steps(current.reach, _reach(own) / 2**SHIFT, graph.timesteps)


@rule("distinct-name", limits.NAMES, "give one of the modules another name")
def namesakes(graph: Graph) -> Iterator[tuple[str, int]]:
    """`a.b` and `a_b` are one name to PyTorch, in which most programs that read NIR are written."""
    count = Counter(plain_name(node.name) for node in graph)
    for node in graph:
        yield node.name, count[plain_name(node.name)]


def plain_name(name: str) -> str:
    """As nirtorch makes it."""
    return name.replace(".", "_")


def _neurons(graph: Graph) -> Iterator[tuple[LIF, Membrane, Range, Range]]:
    """Every LIF, its membrane in NIR, and the proven ranges of its current and of itself."""
    ranges = prove_ranges(graph)
    for node in graph:
        if isinstance(node, LIF):
            current = ranges[node.inputs[0]]
            yield node, membrane_of(graph, node, current), current, ranges[node.name]


def _reach(own: Range) -> int:
    """The largest |membrane| of a LIF, in membrane units (1/128 accumulator unit)."""
    if own.membrane_low is None or own.membrane_high is None:
        raise ValueError("a LIF has a membrane: its range tells how large")
    return int(np.maximum(np.abs(own.membrane_low), np.abs(own.membrane_high)).max())


RULES: tuple[Rule, ...] = (
    multiplied_signals,
    norms,
    readouts_are_sums,
    stock_neurons,
    read_tokens,
    fractions,
    membranes,
    float32_steps,
    namesakes,
)
