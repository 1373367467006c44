"""Which nodes of a graph run together, and the arrays their kernels take. Made once for a graph.

Layers of synapses that read the same spikes and decay alike become one step: their input is scanned once. A LIF
that alone reads a layer of synapses, or an attention, runs in the same step, so its current is never stored unless
somebody asks for it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Union

import numpy as np

from converters.graph import DECAY_BITS, LIF, SHIFT, Add, Attention, Graph, Node, Readout, Source, Synapses

INT16_MAX = 2**15 - 1


@dataclass(frozen=True, eq=False)
class Neurons:
    """A LIF as the kernels take it: level [D] in membrane units, and the share of the membrane that stays; both
    float32 where that is exact, else float64."""

    level: np.ndarray
    keep: np.floating

    @classmethod
    def of(cls, nodes: list[Source | LIF], widths: list[int]) -> Neurons:
        """Neurons side by side; their `dv` must be one."""
        dv = nodes[0].dv
        real = np.float32 if dv in (0, 2 ** (DECAY_BITS - 1)) else np.float64
        levels = [np.broadcast_to(np.asarray(node.threshold), width) for node, width in zip(nodes, widths)]
        level = (np.concatenate(levels).astype(np.int64) << SHIFT).astype(real)
        return cls(level, real((2**DECAY_BITS - dv) / 2**DECAY_BITS))


SILENT = Neurons(np.zeros(0, np.float32), np.float32(0))  # stands where no LIF runs in a step


@dataclass(frozen=True, eq=False)
class EncodeStep:
    node: Source
    neurons: Neurons
    table: np.ndarray
    position: np.ndarray


@dataclass(frozen=True, eq=False)
class SynapsesStep:
    """Layers that read one input, and their LIF nodes (none, or one for each).

    weight int8 [in, out of all], bias int32 [out of all], fan_out int64 [in, layers], ends int64 [layers]
    graded the input may be above 1
    sums   the type of the accumulators: int16 where the proven bound allows it
    """

    layers: tuple[Synapses, ...]
    lifs: tuple[LIF, ...]
    neurons: Neurons
    weight: np.ndarray
    bias: np.ndarray
    fan_out: np.ndarray
    ends: np.ndarray
    graded: bool
    sums: type


@dataclass(frozen=True, eq=False)
class AttentionStep:
    node: Attention
    lif: LIF | None
    neurons: Neurons
    sums: type


@dataclass(frozen=True, eq=False)
class LIFStep:
    """A LIF whose current is stored, because others read it too."""

    node: LIF
    neurons: Neurons


@dataclass(frozen=True, eq=False)
class AddStep:
    node: Add
    dtype: type


@dataclass(frozen=True, eq=False)
class ReadoutStep:
    """weight int64 [in, classes], bias int64 [classes], fan_out int64 [in]"""

    node: Readout
    weight: np.ndarray
    bias: np.ndarray
    fan_out: np.ndarray


Step = Union[EncodeStep, SynapsesStep, AttentionStep, LIFStep, AddStep, ReadoutStep]


def make_plan(graph: Graph) -> tuple[Step, ...]:
    """The steps of a graph, each after the steps it reads from."""
    readers: dict[str, list[Node]] = defaultdict(list)
    for node in graph:
        for name in node.inputs:
            readers[name].append(node)
    done: set[str] = set()
    steps: list[Step] = []
    for node in graph:
        if node.name in done:
            continue
        step = _step(graph, node, readers)
        steps.append(step)
        done.update(nodes_of(step))
    return tuple(steps)


def nodes_of(step: Step) -> list[str]:
    """The nodes whose values a step makes."""
    if isinstance(step, SynapsesStep):
        return [layer.name for layer in step.layers] + [lif.name for lif in step.lifs]
    if isinstance(step, AttentionStep) and step.lif:
        return [step.node.name, step.lif.name]
    return [step.node.name]


def _step(graph: Graph, node: Node, readers: dict[str, list[Node]]) -> Step:
    width = graph.features[node.name]
    if isinstance(node, Source):
        position = np.zeros((0, width), np.int32) if node.position is None else node.position
        return EncodeStep(node, Neurons.of([node], [width]), node.table, position)
    if isinstance(node, Synapses):
        return _synapses(graph, node, readers)
    if isinstance(node, Attention):
        lif = _only_lif(node, readers)
        neurons = Neurons.of([lif], [width]) if lif else SILENT
        return AttentionStep(node, lif, neurons, _sum_type(graph.value_max[node.name]))
    if isinstance(node, LIF):
        return LIFStep(node, Neurons.of([node], [width]))
    if isinstance(node, Add):
        return AddStep(node, spike_type(graph.value_max[node.name]))
    fan_out = np.count_nonzero(node.weight, axis=0).astype(np.int64)
    return ReadoutStep(node, np.ascontiguousarray(node.weight.T.astype(np.int64)), node.bias.astype(np.int64), fan_out)


def _synapses(graph: Graph, node: Synapses, readers: dict[str, list[Node]]) -> SynapsesStep:
    lif = _only_lif(node, readers)
    layers, lifs = [node], [lif] if lif else []
    if lif:
        for other in readers[node.inputs[0]]:
            its = _only_lif(other, readers) if isinstance(other, Synapses) and other is not node else None
            if its and its.dv == lif.dv and isinstance(other, Synapses):
                layers.append(other)
                lifs.append(its)
    widths = [layer.weight.shape[0] for layer in layers]
    return SynapsesStep(
        tuple(layers),
        tuple(lifs),
        Neurons.of(list(lifs), widths) if lifs else SILENT,
        np.ascontiguousarray(np.concatenate([layer.weight for layer in layers]).T),
        np.concatenate([layer.bias for layer in layers]),
        np.stack([np.count_nonzero(layer.weight, axis=0) for layer in layers], axis=1).astype(np.int64),
        np.cumsum(widths).astype(np.int64),
        graph.value_max[node.inputs[0]] > 1,
        # the sums hold no bias, so they stay within the bound as well
        _sum_type(max(graph.value_max[layer.name] for layer in layers)),
    )


def _only_lif(node: Node, readers: dict[str, list[Node]]) -> LIF | None:
    """The LIF that reads a current, if nothing else does."""
    found = readers[node.name]
    return found[0] if len(found) == 1 and isinstance(found[0], LIF) else None


def _sum_type(bound: int) -> type:
    return np.int16 if bound <= INT16_MAX else np.int32


def spike_type(largest: int) -> type:
    """What holds spikes and their sums."""
    return np.uint8 if largest <= 255 else np.int32
