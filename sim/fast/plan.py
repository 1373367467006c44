"""Which nodes of a graph run together, and the arrays their kernels take. Made once for a graph.

Layers of synapses that read the same spikes and whose neurons decay and reset alike become one step: their input is
scanned once. A LIF that alone reads a layer of synapses, or an attention, runs in the same step, so its current is
never stored unless somebody asks for it; but one that sends more than bits runs alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Union

import numpy as np

from converters.graph import (
    DECAY_BITS,
    LIF,
    MEMBRANE_MAX,
    SHIFT,
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
)
from sim.fast.vectors import BLOCK, group_of, pack_cells, pack_weight

INT16_MAX = 2**15 - 1
LONGEST_EXACT = SHIFT + 1  # timesteps through which halving a membrane of whole accumulator units needs no rounding


@dataclass(frozen=True, eq=False)
class Neurons:
    """A LIF as the kernels take it, padded to whole blocks.

    level [blocks * 64]; a neuron that is only padding never reaches its own
    keep  the share of the membrane that stays, of the type of `level`: float32 where that is exact, else float64
    free  rounding and saturation are proven never to happen; level is in accumulator units, else in membrane units
    subtract what fires loses its level, else all
    """

    level: np.ndarray
    keep: np.floating
    free: bool
    subtract: bool = False

    @classmethod
    def of(cls, nodes: Sequence[Source | LIF], widths: Sequence[int], bound: int, timesteps: int) -> Neurons:
        """Neurons side by side, each layer in blocks of its own; their `dv` and reset are one, their |current| at most
        `bound`."""
        dv = nodes[0].dv
        halves = dv == 2 ** (DECAY_BITS - 1)
        real = np.float32 if dv == 0 or halves else np.float64
        reach = 2 * bound if halves else timesteps * bound
        exact = dv == 0 or (halves and timesteps <= LONGEST_EXACT)
        free = exact and reach << SHIFT <= MEMBRANE_MAX
        level = np.full(BLOCK * sum(map(blocks_of, widths)), np.inf, real)
        start = 0
        for node, width in zip(nodes, widths):
            level[start : start + width] = np.asarray(node.threshold, np.int64) << (0 if free else SHIFT)
            start += BLOCK * blocks_of(width)
        return cls(level, real((2**DECAY_BITS - dv) / 2**DECAY_BITS), free, nodes[0].reset == "subtract")


NO_BIAS = np.zeros((0, 0, 0), np.int32)
SILENT = Neurons(np.zeros(0, np.float32), np.float32(0), True)  # stands where no LIF runs in a step


# Arrays of nodes are read-only; steps have writable ones, or kernels would be compiled for both.


@dataclass(frozen=True, eq=False)
class EncodeStep:
    """A source of bits. table, position and code as the kernel takes them"""

    node: Source
    neurons: Neurons
    table: np.ndarray
    position: np.ndarray
    code: np.ndarray


@dataclass(frozen=True, eq=False)
class GradedEncodeStep:
    """A source of graded spikes: its currents are looked up, then it fires as in a GradedLIFStep; code as above"""

    node: Source
    level: np.ndarray
    keep: int
    code: np.ndarray


@dataclass(frozen=True, eq=False)
class SynapsesStep:
    """Layers that read one input, and their LIF nodes (none, or one for each), each in blocks of its own.

    weight  int8 [blocks, in, 64] from `pack_weight`, for `group`
    bias    [blocks * 64], in the form of the cells that sums are made in; `wide`: int32, else int16
    places  int64 [blocks, 4]: words of the layers before that of a block, words of its layer, its place there, and
            whether each of its neurons is counted by itself: not where only attention reads them
    fan_out int64 [layers, in]: nonzero weights of each input
    """

    layers: tuple[Synapses, ...]
    lifs: tuple[LIF, ...]
    neurons: Neurons
    weight: np.ndarray
    group: int
    bias: np.ndarray
    wide: bool
    places: np.ndarray
    fan_out: np.ndarray


@dataclass(frozen=True, eq=False)
class AttentionStep:
    """bias int32 [1 or heads, n_max, n_max], empty where the node has none; places as those of synapses"""

    node: Attention
    bias: np.ndarray
    lif: LIF | None
    neurons: Neurons
    sums: type
    places: np.ndarray


@dataclass(frozen=True, eq=False)
class NormStep:
    """A norm of a stored current; what it gives is stored for the LIF nodes that read it. gamma, beta: int64 [D]"""

    node: Norm
    gamma: np.ndarray
    beta: np.ndarray


@dataclass(frozen=True, eq=False)
class LIFStep:
    """A LIF whose current is stored, because others read it too."""

    node: LIF
    neurons: Neurons


@dataclass(frozen=True, eq=False)
class GradedLIFStep:
    """A LIF that sends more than bits. level int64 [D], membrane units; keep: 4096 - dv"""

    node: LIF
    level: np.ndarray
    keep: int


@dataclass(frozen=True, eq=False)
class AddStep:
    node: Add


@dataclass(frozen=True, eq=False)
class ReadoutStep:
    """weight int64 [in, classes], bias int64 [classes], fan_out int64 [1, in]"""

    node: Readout
    weight: np.ndarray
    bias: np.ndarray
    fan_out: np.ndarray


@dataclass(frozen=True, eq=False)
class WiringStep:
    """A node that only passes make. It runs alone."""

    node: Slice | Concat | ValidLane | Coincidence | Relay | Product


Step = Union[
    EncodeStep, GradedEncodeStep, SynapsesStep, NormStep, AttentionStep, LIFStep, GradedLIFStep, AddStep, ReadoutStep,
    WiringStep,
]  # fmt: skip


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


def blocks_of(width: int) -> int:
    """How many blocks, or words of spikes, hold so many neurons."""
    return -(-width // BLOCK)


def words_of(graph: Graph, name: str) -> int:
    """How many words hold the spikes of a node: twice as many where they may be below 0."""
    return blocks_of(graph.features[name]) * (2 if name in graph.signed else 1)


def planes_of(graph: Graph, name: str) -> int:
    """How many planes of bits hold the spikes of a node, or sums of them."""
    return int(graph.value_max[name]).bit_length()


def assign_rooms(steps: Sequence[Step]) -> list[int]:
    """For each step, the number of the room that its spikes are kept in; rooms are used again when nobody reads on."""
    last_use = {name: index for index, step in enumerate(steps) for name in reads_of(step)}
    free: list[int] = []
    rooms: list[int] = []
    for index in range(len(steps)):
        rooms.append(free.pop() if free else len(set(rooms)))
        for earlier in range(index + 1):
            uses = [last_use.get(name, earlier) for name in nodes_of(steps[earlier])]
            if max(uses) == index:
                free.append(rooms[earlier])
    return rooms


def neurons_of(step: Step) -> tuple[Source | LIF | Coincidence, ...]:
    """The neurons of a step, in the order of their layers."""
    if isinstance(step, SynapsesStep):
        return step.lifs
    if isinstance(step, AttentionStep):
        return (step.lif,) if step.lif else ()
    if isinstance(step, WiringStep):
        return (step.node,) if isinstance(step.node, Coincidence) else ()
    return (step.node,) if isinstance(step, (EncodeStep, GradedEncodeStep, LIFStep, GradedLIFStep)) else ()


def sums_of(step: Step) -> tuple[Add | Relay | Product, ...]:
    """The nodes of a step that send sums of spikes, and are no neurons."""
    if isinstance(step, AddStep):
        return (step.node,)
    return (step.node,) if isinstance(step, WiringStep) and isinstance(step.node, (Relay, Product)) else ()


def senders_of(step: Step) -> tuple[Node, ...]:
    """The nodes of a step that send spikes or sums of them: its neurons, or an add, or wiring."""
    return (step.node,) if isinstance(step, (AddStep, WiringStep)) else neurons_of(step)


def sends_bits(node: Node) -> bool:
    """Whether what a node sends is 0 or 1."""
    return isinstance(node, Coincidence) or (isinstance(node, (Source, LIF)) and node.spike == "binary")


def layers_of(step: Step) -> tuple[str, ...]:
    """The nodes of a step that cause synaptic operations."""
    if isinstance(step, SynapsesStep):
        return tuple(layer.name for layer in step.layers)
    works = isinstance(step, (AttentionStep, ReadoutStep)) or isinstance(step.node, (Coincidence, Product))
    return (step.node.name,) if works else ()


def reads_of(step: Step) -> tuple[str, ...]:
    """The nodes whose values a step reads."""
    return step.layers[0].inputs if isinstance(step, SynapsesStep) else step.node.inputs


def _step(graph: Graph, node: Node, readers: dict[str, list[Node]]) -> Step:
    width = graph.features[node.name]
    if isinstance(node, Source) and node.spike != "binary":
        return GradedEncodeStep(node, *_graded(node, node.table.shape[1]), _code_words(graph, node))
    if isinstance(node, Source):
        position = np.zeros((0, width), np.int32) if node.position is None else node.position.copy()  # writable
        reach = int(np.abs(node.table.astype(np.int64)).max()) + int(np.abs(position.astype(np.int64)).max(initial=0))
        neurons = Neurons.of([node], [width], reach, graph.timesteps)
        return EncodeStep(node, neurons, node.table.copy(), position, _code_words(graph, node))
    if isinstance(node, Synapses):
        return _synapses(graph, node, readers)
    if isinstance(node, Attention):
        lif, bound = _only_lif(node, readers), graph.value_max[node.name]
        neurons = Neurons.of([lif], [width], bound, graph.timesteps) if lif else SILENT
        bias = NO_BIAS if node.bias is None else node.bias.copy()  # writable
        sums = np.int16 if bound <= INT16_MAX else np.int32
        return AttentionStep(node, bias, lif, neurons, sums, _places([width], [True]))
    if isinstance(node, Norm):
        return NormStep(node, node.gamma.astype(np.int64), node.beta.astype(np.int64))
    if isinstance(node, LIF) and node.spike != "binary":
        return GradedLIFStep(node, *_graded(node, width))
    if isinstance(node, LIF):
        return LIFStep(node, Neurons.of([node], [width], graph.value_max[node.inputs[0]], graph.timesteps))
    if isinstance(node, Add):
        return AddStep(node)
    if not isinstance(node, Readout):
        return WiringStep(node)
    weight = _weight(graph, node)
    fan_out = np.count_nonzero(weight, axis=0, keepdims=True).astype(np.int64)
    return ReadoutStep(node, np.ascontiguousarray(weight.T), node.bias.astype(np.int64), fan_out)


def _graded(node: Source | LIF, width: int) -> tuple[np.ndarray, int]:
    """The level of each neuron that sends more than bits, and what a membrane keeps, as its kernel takes them."""
    level = np.broadcast_to(np.asarray(node.threshold, np.int64) << node.shift, width)
    return np.ascontiguousarray(level), 2**DECAY_BITS - node.dv


def _weight(graph: Graph, node: Synapses | Readout) -> np.ndarray:
    """int64 [out, inputs]. Of inputs that may be below 0 those above and those below are inputs of their own, each in
    whole words, and the second ones are negated."""
    weight = node.weight.astype(np.int64)
    if node.inputs[0] not in graph.signed:
        return weight
    padded = _padded(weight.T).T
    return np.concatenate([padded, -padded], axis=1)


def _synapses(graph: Graph, node: Synapses, readers: dict[str, list[Node]]) -> SynapsesStep:
    lif = _only_lif(node, readers)
    layers, lifs = [node], [lif] if lif else []
    if lif:
        for other in readers[node.inputs[0]]:
            its = _only_lif(other, readers) if isinstance(other, Synapses) and other is not node else None
            if its and (its.dv, its.reset) == (lif.dv, lif.reset) and isinstance(other, Synapses):
                layers.append(other)
                lifs.append(its)
    widths = [layer.weight.shape[0] for layer in layers]
    bound = max(graph.value_max[layer.name] for layer in layers)
    wide = bound > INT16_MAX
    bias = np.concatenate([_padded(layer.bias) for layer in layers])
    weights = [_weight(graph, layer).astype(np.int8) for layer in layers]
    weight = np.concatenate([_padded(each) for each in weights]).T
    group = group_of(weight)
    return SynapsesStep(
        tuple(layers),
        tuple(lifs),
        Neurons.of(lifs, widths, bound, graph.timesteps) if lifs else SILENT,
        pack_weight(weight, group),
        group,
        bias if wide else pack_cells(bias),
        wide,
        _places(widths, [_counts_each(lif, readers) for lif in lifs]),
        np.stack([np.count_nonzero(each, axis=0) for each in weights]).astype(np.int64),
    )


def _padded(rows: np.ndarray) -> np.ndarray:
    """[out, ...] with zeros behind, up to whole blocks."""
    missing = BLOCK * blocks_of(len(rows)) - len(rows)
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])


def _counts_each(lif: LIF, readers: dict[str, list[Node]]) -> bool:
    """Whether somebody wants to know how often each neuron fired: its fan-out is not that of the others."""
    return not all(isinstance(reader, Attention) for reader in readers[lif.name])


def _places(widths: Sequence[int], each: Sequence[bool]) -> np.ndarray:
    """For each block: words of the layers before its own, words of its own, its place there, whether to count each
    neuron of its layer (`each`, of no entries where no layer has neurons)."""
    rows, before = [], 0
    for width, counts_each in zip_longest(widths, each, fillvalue=False):
        rows += [(before, blocks_of(width), place, counts_each) for place in range(blocks_of(width))]
        before += blocks_of(width)
    return np.array(rows, np.int64)


def _code_words(graph: Graph, node: Source) -> np.ndarray:
    """Spike-coded positions as the source's spikes are held: uint64 [n_max, T, W]; of no rows where there are none."""
    blocks = blocks_of(graph.features[node.name])
    if node.code is None:
        return np.zeros((0, graph.timesteps, blocks), np.uint64)
    bits = np.zeros((graph.n_max, graph.timesteps, blocks * BLOCK), np.uint8)
    width = node.table.shape[1]
    bits[..., width : width + node.code_features] = node.code.swapaxes(0, 1)
    return np.packbits(bits, axis=-1, bitorder="little").view("<u8").astype(np.uint64)


def _only_lif(node: Node, readers: dict[str, list[Node]]) -> LIF | None:
    """The LIF that reads a current and sends bits, if nothing else does."""
    found = readers[node.name]
    return found[0] if len(found) == 1 and isinstance(found[0], LIF) and found[0].spike == "binary" else None
