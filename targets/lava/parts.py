"""What each process of a plan computes at one step, in numpy and numba: the arithmetic behind our ProcessModels.

Values are int32 [tokens, channels]. Connections sum up what they receive and send it one step later; neurons answer
what they get in the same step. Equal to Lava's own fixed-point models in every bit (tests run both).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from lava.utils.weightutils import clip_weights, determine_sign_mode, truncate_weights
from scipy.sparse import coo_matrix, csr_matrix

from converters.graph import GAMMA_FRACTION, NORMED_FRACTION, RECIPROCAL_BITS, ROOT_BITS
from spikebert.compiled import compiled
from targets.lava.limits import MEMBRANE
from targets.lava.plan import (
    AdderSpec,
    AttentionSpec,
    FanSpec,
    NeuronSpec,
    NormSpec,
    Piece,
    ProductSpec,
    RouteSpec,
    SynapsesSpec,
    fan_entries,
)

LANE_SLOT = 3  # of an attention, behind q, k and v
SHIFT = 6  # of a current and of a threshold, as Lava's LIF does
VOLTAGE_MAX = MEMBRANE.value


class Connection(Protocol):
    """Sends at each step what it summed up at the step before."""

    def send(self) -> np.ndarray:
        """The current that is due, int32 [tokens, channels out]."""
        ...

    def receive(self, inputs: Sequence[np.ndarray]) -> None:
        """Take in what the inputs send at this step, each int32 [tokens, channels of that input]."""
        ...


class Neuron(Protocol):
    """Answers at once."""

    def answer(self, inputs: Sequence[np.ndarray], time_step: int) -> np.ndarray:
        """Spikes int32 [tokens, channels] for the currents of this time_step; Lava counts from 1."""
        ...


def make_connection(spec: SynapsesSpec | AttentionSpec | NormSpec | RouteSpec | FanSpec, tokens: int) -> Connection:
    """The arithmetic of a connection, at rest."""
    if isinstance(spec, SynapsesSpec):
        return Synapses(spec, tokens)
    if isinstance(spec, AttentionSpec):
        return Attention(spec, tokens)
    if isinstance(spec, NormSpec):
        return Norm(spec, tokens)
    return Route(spec, tokens) if isinstance(spec, RouteSpec) else Fan(spec, tokens)


def make_neuron(spec: NeuronSpec | AdderSpec | ProductSpec, tokens: int) -> Neuron:
    """The arithmetic of a neuron, at rest."""
    if isinstance(spec, NeuronSpec):
        return Membrane(spec, tokens)
    return Adder(spec) if isinstance(spec, AdderSpec) else Multiplier(spec)


def as_hardware_holds(weight: np.ndarray) -> np.ndarray:
    """8-bit weights as Dense, Sparse and the chip hold them: where signs are mixed, floored to even numbers."""
    sign_mode = determine_sign_mode(weight)
    return truncate_weights(clip_weights(weight, sign_mode, num_bits=8), sign_mode, 8)


def weight_matrix(weight: np.ndarray) -> np.ndarray:
    """Weights int32 [out, in] as they are multiplied with: float32 [in, out]."""
    return np.ascontiguousarray(as_hardware_holds(weight).T, dtype=np.float32)


def tokens_alive(spikes: np.ndarray) -> int:
    """How many tokens there are up to the last that is not silent, of spikes [tokens, channels]."""
    if spikes[-1].any():  # found at once where a sentence is not padded
        return len(spikes)
    alive = np.flatnonzero(spikes.any(axis=1))
    return int(alive[-1]) + 1 if alive.size else 0


def summed(spikes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The currents int32 [tokens, out] of spikes [tokens, in]. Tokens at the end that are silent cost nothing.

    float32 is exact here: every partial sum is a doubled accumulator, at most 131072.
    """
    alive = tokens_alive(spikes)
    current = np.empty((spikes.shape[0], matrix.shape[1]), np.int32)
    current[:alive] = spikes[:alive].astype(np.float32) @ matrix
    current[alive:] = 0
    return current


def attended(
    received: Sequence[np.ndarray],
    pieces: Sequence[Piece],
    heads: int,
    similarity: str = "and",
    bias: np.ndarray | None = None,
) -> np.ndarray:
    """`2 (q k^T) v` for each head, int32 [tokens, features], of what the inputs sent, each [tokens, channels].

    similarity, bias  as of `converters.graph.Attention`; the piece of slot 3 is then the valid lane

    In float32: scores reach d, and sums what a graph proves to be at most 65535. Tokens at the end that are silent cost
    nothing.
    """
    alive = max(tokens_alive(spikes) for spikes in received)
    q, k, v = (_split(_gather(received, pieces, slot, alive), heads) for slot in range(3))
    scores = q @ k.swapaxes(1, 2)  # [H, alive, alive]
    if similarity == "xnor":
        scores += (1 - q) @ (1 - k).swapaxes(1, 2)
    if bias is not None:
        scores += bias[:, :alive, :alive]
    mixed = scores @ v  # [H, alive, d]
    if pieces[-1].slot == LANE_SLOT:
        mixed *= _gather(received, pieces, LANE_SLOT, alive)  # [alive, 1]
    current = np.empty((received[0].shape[0], heads, mixed.shape[2]), np.int32)
    current[:alive] = mixed.swapaxes(0, 1)
    current[alive:] = 0
    current *= 2
    return current.reshape(len(current), -1)


def _gather(received: Sequence[np.ndarray], pieces: Sequence[Piece], slot: int, tokens: int) -> np.ndarray:
    """q, k or v of the first tokens: float32 [tokens, features]."""
    own = [piece for piece in pieces if piece.slot == slot]
    values = [received[piece.source][:tokens, piece.start : piece.start + piece.count] for piece in own]
    return np.concatenate(values, axis=1, dtype=np.float32, casting="same_kind")


def _split(spikes: np.ndarray, heads: int) -> np.ndarray:
    """[tokens, features] -> [H, tokens, d]"""
    tokens, features = spikes.shape
    return spikes.reshape(tokens, heads, features // heads).swapaxes(0, 1)


def normed(spec: NormSpec, current: np.ndarray, lane: np.ndarray | None) -> np.ndarray:
    """What a norm gives, doubled, int32 [tokens, D]. Tokens at the end that are padding cost nothing.

    current int32 [tokens, D], doubled; lane int32 [tokens] of 0 and 1, None where beta is 0
    """
    valid = np.zeros(len(current), np.int32) if lane is None else np.ascontiguousarray(lane, dtype=np.int32)
    alive = max(tokens_alive(current), tokens_alive(valid[:, None]))
    out = np.zeros(current.shape, np.int32)
    currents = np.ascontiguousarray(current[:alive], dtype=np.int32)
    normalise(currents, valid, spec.kind == "layer", spec.eps, spec.gamma, spec.beta, out)
    return out


@compiled(nogil=True)
def normalise(
    current: np.ndarray, lane: np.ndarray, centred: bool, eps: int, gamma: np.ndarray, beta: np.ndarray, out: np.ndarray
) -> None:  # fmt: skip
    """`converters.graph.Norm` of doubled currents int32 [rows, D], all in int64; writes doubled values int32.

    lane int32 [at least rows]; gamma, beta int32 [D]; centred: kind "layer"
    """
    rows, features = current.shape
    half = np.int64(1) << (NORMED_FRACTION + GAMMA_FRACTION - 1)
    for n in range(rows):
        total, squares = np.int64(0), np.int64(0)
        for j in range(features):
            a = np.int64(current[n, j]) >> 1
            total += a
            squares += a * a
        if not centred:
            total = np.int64(0)
        scaled, doublings = features * squares - total * total + eps, np.int64(0)
        while scaled < np.int64(1) << (2 * ROOT_BITS - 2):
            scaled <<= 2
            doublings += 1
        root = np.int64(0)
        for bit in range(ROOT_BITS - 1, -1, -1):
            longer = root | (np.int64(1) << bit)
            if longer * longer <= scaled:
                root = longer
        reciprocal = (np.int64(1) << RECIPROCAL_BITS) // root
        for j in range(features):
            distance = features * (np.int64(current[n, j]) >> 1) - total
            z = ((distance << doublings) * reciprocal) >> (RECIPROCAL_BITS - NORMED_FRACTION)
            y = ((gamma[j] * z + half) >> (NORMED_FRACTION + GAMMA_FRACTION)) + np.int64(beta[j]) * lane[n]
            out[n, j] = 2 * y


def _as_messages(values: np.ndarray, message_bits: int) -> np.ndarray:
    """What synapses see: cut to 0 and 1 where messages have no payload."""
    return values if message_bits > 0 else values != 0


def added(currents: Sequence[np.ndarray]) -> np.ndarray:
    """What a port gets to which many connections lead: their sum, int32. Of one it is that one itself."""
    total = currents[0]
    for current in currents[1:]:  # three times as fast as np.sum, which makes an array of them first
        total = total + current
    return total


def above(values: np.ndarray, vth: int) -> np.ndarray:
    """Values whose size is above `vth`, 0 for others; which are all, where `vth` is 0."""
    return values if vth == 0 else values * (np.abs(values) > vth)


class Synapses:
    """A 1x1 Conv."""

    def __init__(self, spec: SynapsesSpec, tokens: int) -> None:
        self.matrix, self.message_bits = weight_matrix(spec.weight), spec.message_bits
        self.current = np.zeros((tokens, spec.channels), np.int32)

    def send(self) -> np.ndarray:
        return self.current

    def receive(self, inputs: Sequence[np.ndarray]) -> None:
        self.current = summed(_as_messages(inputs[0], self.message_bits), self.matrix)


class Attention:
    """A SpikingAttention."""

    def __init__(self, spec: AttentionSpec, tokens: int) -> None:
        self.spec = spec
        self.current = np.zeros((tokens, spec.channels), np.int32)

    def send(self) -> np.ndarray:
        return self.current

    def receive(self, inputs: Sequence[np.ndarray]) -> None:
        spec = self.spec
        self.current = attended(inputs, spec.pieces, spec.heads, spec.similarity, spec.bias)


class Norm:
    """A TokenNorm."""

    def __init__(self, spec: NormSpec, tokens: int) -> None:
        self.spec = spec
        self.current = np.zeros((tokens, spec.channels), np.int32)

    def send(self) -> np.ndarray:
        return self.current

    def receive(self, inputs: Sequence[np.ndarray]) -> None:
        spec = self.spec
        lane = None if spec.lane_channel is None else inputs[-1][:, spec.lane_channel]
        self.current = normed(spec, added(inputs[: spec.parts]), lane)


class Route:
    """A Sparse or DelaySparse that picks channels of each token."""

    def __init__(self, spec: RouteSpec, tokens: int) -> None:
        to, of = np.nonzero(as_hardware_holds(spec.weight))
        if (spec.weight[to, of] != 1).any() or np.unique(to).size != to.size:
            raise ValueError(f"process '{spec.name}': a route carries each channel once, unchanged")
        self.to, self.of, self.message_bits = _as_slice(to), _as_slice(of), spec.message_bits
        self.shape = (tokens, spec.channels)
        self.waiting = deque(np.zeros(self.shape, np.int32) for _ in range(spec.delay_steps + 1))

    def send(self) -> np.ndarray:
        return self.waiting.popleft()

    def receive(self, inputs: Sequence[np.ndarray]) -> None:
        current = np.zeros(self.shape, np.int32)
        current[:, self.to] = _as_messages(inputs[0][:, self.of], self.message_bits)
        self.waiting.append(current)


def _as_slice(places: np.ndarray) -> slice | np.ndarray:
    """A run of consecutive places as a slice, which numpy copies faster."""
    if places.size and np.array_equal(places, np.arange(places[0], places[0] + places.size)):
        return slice(int(places[0]), int(places[-1]) + 1)
    return places


class Fan:
    """A Sparse or DelaySparse across tokens."""

    def __init__(self, spec: FanSpec, tokens: int) -> None:
        out, into = fan_entries(spec, tokens)
        shape = (tokens * spec.channels, tokens * spec.input_channels)
        values = np.full(len(out), spec.weight, dtype=np.int32)
        self.weights = as_hardware_holds(csr_matrix(coo_matrix((values, (out, into)), shape=shape), dtype=np.int32))
        self.message_bits, self.shape = spec.message_bits, (tokens, spec.channels)
        self.waiting = deque(np.zeros(self.shape, np.int32) for _ in range(spec.delay_steps + 1))

    def send(self) -> np.ndarray:
        return self.waiting.popleft()

    def receive(self, inputs: Sequence[np.ndarray]) -> None:
        spikes = _as_messages(inputs[0], self.message_bits).astype(np.int32)
        self.waiting.append(self.weights.dot(spikes.ravel()).astype(np.int32).reshape(self.shape))


class Membrane:
    """A LIFReset with `du = 4095`, or a RuleNeuron. Currents have no memory and never wrap: |a| < 2^17 is a rule."""

    def __init__(self, spec: NeuronSpec, tokens: int) -> None:
        self.spec = spec
        self.voltage = np.zeros((tokens, spec.channels), np.int32)

    def answer(self, inputs: Sequence[np.ndarray], time_step: int) -> np.ndarray:
        if time_step % self.spec.reset_interval == self.spec.reset_offset % self.spec.reset_interval:
            self.voltage[:] = 0
        current = added(inputs)
        spikes = np.empty_like(self.voltage)
        voltage, charge, sent = self.voltage.ravel(), current.ravel(), spikes.ravel()
        dv, level = self.spec.dv, self.spec.vth << SHIFT
        if self.spec.is_stock:
            fire(voltage, charge, dv, level, sent)
        else:
            ternary, subtract = self.spec.spike == "ternary", self.spec.reset == "subtract"
            fire_by_rule(voltage, charge, dv, level, self.spec.cap, ternary, subtract, sent)
        return spikes


@compiled(nogil=True)
def fire(voltage: np.ndarray, current: np.ndarray, dv: int, threshold: int, spikes: np.ndarray) -> None:
    """One step of a LIF: decay, add, saturate, compare, reset. All int32, of one length; writes voltage and spikes.

    threshold in membrane units.
    """
    keep = np.int64(4096 - dv)
    for i in range(voltage.size):
        v = np.int64(voltage[i])
        decayed = (abs(v) * keep) >> 12
        v = (decayed if v >= 0 else -decayed) + (np.int64(current[i]) << SHIFT)
        v = min(max(v, np.int64(-VOLTAGE_MAX)), np.int64(VOLTAGE_MAX))
        fires = v > threshold
        spikes[i] = fires
        voltage[i] = 0 if fires else v


@compiled(nogil=True)
def fire_by_rule(
    voltage: np.ndarray, current: np.ndarray, dv: int, threshold: int, cap: int, ternary: bool, subtract: bool,
    spikes: np.ndarray,
) -> None:  # fmt: skip
    """As `fire`, for every reset and every kind of spike that `converters.graph.LIF` has."""
    keep = np.int64(4096 - dv)
    for i in range(voltage.size):
        v = np.int64(voltage[i])
        decayed = (abs(v) * keep) >> 12
        v = (decayed if v >= 0 else -decayed) + (np.int64(current[i]) << SHIFT)
        v = min(max(v, np.int64(-VOLTAGE_MAX)), np.int64(VOLTAGE_MAX))
        sent = np.int64(0)
        while sent < cap and v > (sent + 1) * threshold:
            sent += 1
        if ternary and v < -threshold:
            sent = np.int64(-1)
        if sent != 0:
            v = v - sent * threshold if subtract else np.int64(0)
        spikes[i], voltage[i] = sent, v


def compile_once() -> None:
    """Have numba compile now, or load what it compiled before, so that processes forked later need not."""
    one = np.zeros(1, np.int32)
    fire(one, one, 0, 0, one.copy())
    fire_by_rule(one, one, 0, 0, 1, False, False, one.copy())
    row = np.zeros((1, 1), np.int32)
    normalise(row, one, True, 1, _read_only(one), _read_only(one), row.copy())


def _read_only(values: np.ndarray) -> np.ndarray:
    """As arrays of a graph are: numba compiles for them anew."""
    frozen = values.copy()
    frozen.flags.writeable = False
    return frozen


class Adder:
    """A GradedVec."""

    def __init__(self, spec: AdderSpec) -> None:
        self.vth = spec.vth

    def answer(self, inputs: Sequence[np.ndarray], time_step: int) -> np.ndarray:
        return above(added(inputs), self.vth)


class Multiplier:
    """A ProdNeuron."""

    def __init__(self, spec: ProductSpec) -> None:
        self.scores, self.exp, self.vth = spec.scores, spec.exp, spec.vth

    def answer(self, inputs: Sequence[np.ndarray], time_step: int) -> np.ndarray:
        product = (added(inputs[: self.scores]) * added(inputs[self.scores :])) >> self.exp
        return above(product, self.vth)
