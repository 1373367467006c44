"""The rules by which a graph is legal for Loihi 2. Needs no Lava.

Most are those of Lava (`targets/lava/rules.py`), the same functions with the limits of the chip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from converters.graph import LIF, Attention, Graph, Norm, Readout, Synapses
from converters.schedule import LatencyTable
from targets.lava import rules as lava
from targets.legality import Rule, rule
from targets.loihi2 import limits

# Steps on the chip. A spike that a neuron sends in one step is added to the neuron at the other end of the synapse in
# the next, and a neuron answers in the step in which it is charged. So every connection takes one step, whether a
# layer stands behind it, an add, a coincidence or a product. An attention of ours and a norm cannot be there at all;
# their numbers are read only to name what else is wrong with such a graph. Why these and how sure: docs/loihi2.md.
LATENCIES = LatencyTable(synapses=1, attention=1, add=1, coincidence=1, product=1, norm=1)


@rule("power-of-two-timesteps", limits.TIMESTEPS, "train with T = 1, 2, 4, 8 or 16")
def timesteps_of_power_two(graph: Graph) -> Iterator[tuple[str, int]]:
    """Samples follow each other every T steps, and neurons are reset as often: every power of two of steps."""
    timesteps = graph.timesteps
    yield graph.source.name, timesteps // (timesteps & -timesteps)


@rule(
    "no-attention-process",
    limits.ATTENTIONS,
    "export with --pass expand-attention, which makes it of stock neurons (spikebert-run --engine lava --attention "
    "stock tries them on a CPU)",
)
def no_attention_process(graph: Graph) -> Iterator[tuple[str, int]]:
    """The chip has no process for the attention that Lava's CPU models run as one."""
    for node in graph:
        if isinstance(node, Attention):
            yield node.name, 1


@rule(
    "no-position-bias",
    limits.POSITION_BIASES,
    "train with attention_position none (the encoder's learned positions stay); similarity xnor is no obstacle",
)
def no_position_bias(graph: Graph) -> Iterator[tuple[str, int]]:
    """Attention of stock neurons has no bias for positions, and there is no other on the chip."""
    for node in graph:
        if isinstance(node, Attention) and node.bias is not None:
            yield node.name, 1


@rule(
    "no-norm-process",
    limits.NORMS,
    'train with norm "batch", which is folded into the weights, or "none" with scalar_thresholds; or export it for the '
    "target lava",
)
def no_norm_process(graph: Graph) -> Iterator[tuple[str, int]]:
    """A norm needs the mean and the root of the variance of a whole layer at each step; a neuron sees its own sum."""
    for node in graph:
        if isinstance(node, Norm):
            yield node.name, 1


@rule(
    "stock-neuron",
    limits.NEURON_RULES,
    "train with reset zero, spike binary and value_cap 1, or export it for the target lava",
)
def stock_neurons(graph: Graph) -> Iterator[tuple[str, int]]:
    """Soft reset, graded and ternary spikes need microcode of their own; stock neurons reset to 0 and send bits."""
    for node in graph:
        if isinstance(node, LIF):
            yield node.name, int(not node.is_stock)


@rule(
    "bounded-fan-in",
    limits.FAN_IN,
    "make the layer before it narrower, or its weights sparser; with expanded attention, use fewer tokens",
)
def bounded_fan_in(laid: Graph) -> Iterator[tuple[str, int]]:
    """All synapses of a neuron lie on its core, which takes so many inputs. Lanes of biases are among them."""
    for node in laid:
        if isinstance(node, (Synapses, Readout)):
            yield node.name, int(np.count_nonzero(node.weight, axis=1).max())


scalar_thresholds = replace(lava.scalar_thresholds, limit=limits.THRESHOLDS)
bounded_delays = lava.delay_rule(limits.DELAY, LATENCIES)
bounded_messages = replace(lava.bounded_messages, limit=limits.MESSAGE_BITS)
bounded_weights = replace(lava.bounded_weights, limit=limits.WEIGHT)
bounded_currents = replace(lava.bounded_currents, limit=limits.CURRENT)
relays_into_products = replace(lava.relays_into_products, limit=limits.RELAY_READERS)

# Of the graph as it is ...
RULES: tuple[Rule, ...] = (
    timesteps_of_power_two,
    no_attention_process,
    no_position_bias,
    no_norm_process,
    stock_neurons,
    scalar_thresholds,
    bounded_messages,
    bounded_weights,
    bounded_currents,
    relays_into_products,
)
# ... and of the one that is lowered, whose biases are laid out on lanes.
LAID_OUT_RULES: tuple[Rule, ...] = (bounded_fan_in, bounded_delays)
