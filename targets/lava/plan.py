"""The plan of a lowered graph: a list of Lava processes as plain data, and where each value stands in them.

Channels of a token: features first, then lanes. Currents are those of Lava, twice the graph's (see lowering.py), and so
are the weights and thresholds that make them. Lava is not imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Union

import numpy as np

from converters.schedule import Schedule

DOUBLING = 2  # currents on Lava are twice those of the graph


@dataclass(frozen=True)
class Segment:
    """Channels `start .. stop - 1` of what a process sends for a token."""

    process: str
    start: int
    stop: int

    @property
    def width(self) -> int:
        return self.stop - self.start


Home = tuple[Segment, ...]  # where a value stands: side by side for spikes; for currents, parts to be added up


@dataclass(frozen=True)
class SourceSpec:
    """Feeds the spikes encoded on the host. Its process: `targets.lava.processes.streams.SpikeFeed`."""

    name: str
    channels: int
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SynapsesSpec:
    """A linear layer for each token, or the part of one that reads one process. Its process: stock `Conv`, kernel 1x1.

    weight       int32 [channels out, channels in], even
    message_bits 0 for spikes; the bits of the largest payload for graded spikes
    """

    name: str
    inputs: tuple[str, ...]
    weight: np.ndarray
    message_bits: int

    @property
    def channels(self) -> int:
        """Channels a token has on the way out."""
        return self.weight.shape[0]


@dataclass(frozen=True)
class NeuronSpec:
    """A LIF. Its process: stock `LIFReset` with `du = 4095`, or where it does not reset to 0 or sends other spikes than
    bits `targets.lava.processes.neuron.RuleNeuron`. `vth` in doubled accumulator units; reset, spike and cap as
    `converters.graph.LIF` has them."""

    name: str
    inputs: tuple[str, ...]
    channels: int
    vth: int
    dv: int
    reset_interval: int
    reset_offset: int
    reset: str = "zero"
    spike: str = "binary"
    cap: int = 1

    @property
    def is_stock(self) -> bool:
        """Whether a LIFReset does it."""
        return self.reset == "zero" and self.spike == "binary"


@dataclass(frozen=True)
class Piece:
    """Channels `start .. start + count - 1` of input `source` are the next features of q (`slot` 0), k (1), v (2), or
    the valid lane (3)."""

    slot: int
    source: int
    start: int
    count: int


@dataclass(frozen=True, eq=False)
class AttentionSpec:
    """`2 (q k^T) v`, or with other scores. Its process: `targets.lava.processes.attention.SpikingAttention`.

    input_channels of each input; pieces put q, k and v together from them, and the valid lane where there is one
    similarity     "and" or "xnor", as of `converters.graph.Attention`
    bias           int32 [1 or heads, n_max, n_max], or None
    """

    name: str
    inputs: tuple[str, ...]
    channels: int
    heads: int
    input_channels: tuple[int, ...]
    pieces: tuple[Piece, ...]
    similarity: str = "and"
    bias: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class NormSpec:
    """Normalises the current of each token. Its process: `targets.lava.processes.norm.TokenNorm`.

    inputs        the parts of the current, `parts` processes that are added up; then that of the valid lane, if any
    lane_channel  where the lane stands in what that process sends; None without one: beta is then 0
    lane_channels how many channels that process has, 1 without one
    kind, eps, gamma, beta as `converters.graph.Norm` has them
    """

    name: str
    inputs: tuple[str, ...]
    channels: int
    parts: int
    lane_channel: int | None
    lane_channels: int
    kind: str
    eps: int
    gamma: np.ndarray
    beta: np.ndarray


@dataclass(frozen=True, eq=False)
class RouteSpec:
    """Carries channels on unchanged. Its process: stock `Sparse`, or `DelaySparse` where `delay_steps` is above 0.

    weight      int32 [channels out, channels in] of one token, 0 and 1; the same for every token
    delay_steps beyond the one step that every connection takes
    """

    name: str
    inputs: tuple[str, ...]
    weight: np.ndarray
    delay_steps: int
    message_bits: int

    @property
    def channels(self) -> int:
        """Channels a token has on the way out."""
        return self.weight.shape[0]


@dataclass(frozen=True)
class FanSpec:
    """Leads to pairs of a query n and a key m. Its process: stock `Sparse`, or `DelaySparse`, across tokens.

    Output channel `m * width + j` of token n gets, times `weight`,

    kind "query"  feature j of token n
    kind "key"    feature j of token m
    kind "score"  feature `m * heads + j // (width / heads)` of token n

    Feature f stands in input channel `f - first + start`, for `count` features from `first` on; others come from
    elsewhere.
    """

    name: str
    inputs: tuple[str, ...]
    kind: str
    keys: int
    width: int
    heads: int
    weight: int
    first: int
    start: int
    count: int
    input_channels: int
    delay_steps: int
    message_bits: int

    @property
    def channels(self) -> int:
        """Channels a token has on the way out."""
        return self.keys * self.width


@dataclass(frozen=True)
class AdderSpec:
    """Sends the sum of what it gets as graded spikes: an add, or a relay. Its process: stock `GradedVec`.

    vth 0: GradedVec sends what is strictly above, and its default of 1 would drop single spikes.
    """

    name: str
    inputs: tuple[str, ...]
    channels: int
    vth: int = 0


@dataclass(frozen=True)
class ProductSpec:
    """Sends `(a1 * a2) >> exp` as graded spikes; the first `scores` inputs make a1. Its process: stock `ProdNeuron`."""

    name: str
    inputs: tuple[str, ...]
    channels: int
    scores: int
    exp: int
    vth: int = 0


Spec = Union[
    SourceSpec, SynapsesSpec, NeuronSpec, AttentionSpec, NormSpec, RouteSpec, FanSpec, AdderSpec, ProductSpec
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Plan:
    """A lowered graph.

    tokens   n_max: the width at which the network runs
    schedule when each value exists
    specs    the processes, each after its inputs
    homes    node -> where its value stands
    lanes    process -> K, its last channels that are valid lanes
    doubled  nodes whose values on Lava are twice those of the graph
    """

    tokens: int
    schedule: Schedule
    specs: tuple[Spec, ...]
    homes: dict[str, Home]
    lanes: dict[str, int]
    doubled: frozenset[str]

    def __getitem__(self, process: str) -> Spec:
        return self._by_name[process]

    @cached_property
    def _by_name(self) -> dict[str, Spec]:
        return {spec.name: spec for spec in self.specs}


def cut(home: Home, start: int, stop: int) -> Home:
    """Features `start .. stop - 1` of a value."""
    pieces, place = [], 0
    for segment in home:
        low, high = max(start - place, 0), min(stop - place, segment.width)
        if low < high:
            pieces.append(Segment(segment.process, segment.start + low, segment.start + high))
        place += segment.width
    return tuple(pieces)


def selection(home: Home, process: str, channels: int) -> np.ndarray:
    """int32 [width of the value, channels of the process]: 1 where a feature stands in a channel."""
    matrix, place = np.zeros((sum(segment.width for segment in home), channels), dtype=np.int32), 0
    for segment in home:
        rows = np.arange(segment.width)
        if segment.process == process:
            matrix[place + rows, segment.start + rows] = 1
        place += segment.width
    return matrix


def spread(weight: np.ndarray, home: Home, process: str, channels: int) -> np.ndarray:
    """Weights [out, features of a value] on the channels of one process: int32 [out, channels]."""
    matrix, place = np.zeros((len(weight), channels), dtype=np.int32), 0
    for segment in home:
        if segment.process == process:  # added, for a value may have a channel twice
            matrix[:, segment.start : segment.stop] += weight[:, place : place + segment.width]
        place += segment.width
    return matrix


def processes_of(home: Home) -> tuple[str, ...]:
    """The processes in which a value stands, each once."""
    return tuple(dict.fromkeys(segment.process for segment in home))


def fan_entries(spec: FanSpec, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Output and input indices int64 of all synapses of a fan, on flat vectors [tokens * channels]."""
    n, m, j = (each.ravel() for each in np.indices((tokens, spec.keys, spec.width)))
    feature = m * spec.heads + j // (spec.width // spec.heads) if spec.kind == "score" else j
    token = m if spec.kind == "key" else n
    own = (feature >= spec.first) & (feature < spec.first + spec.count)
    out = (n * spec.keys + m) * spec.width + j
    return out[own], (token * spec.input_channels + feature - spec.first + spec.start)[own]


def weight_bytes(specs: Sequence[Spec], tokens: int) -> int:
    """What the weights of all processes take, about."""
    dense = sum(spec.weight.nbytes for spec in specs if isinstance(spec, (SynapsesSpec, RouteSpec)))
    pairs = sum(tokens * spec.channels for spec in specs if isinstance(spec, FanSpec))
    return dense + 12 * pairs  # of a sparse matrix: value and column
