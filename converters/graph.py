"""The integer LIF graph: what a spiking network computes, in integers, in logical time.

Everything else in this project either makes such a graph or runs one. There are thirteen kinds of node, each
a frozen dataclass whose docstring is its definition. At timestep `t` every node sees its inputs of the
same `t`; the delays of a real machine are the business of a target.

Seven of them say what a trained network is: Source, Synapses, Norm, Attention, LIF, Add, Readout. The other six are
for passes that bring it nearer to a machine: Slice, Concat, ValidLane, Coincidence, Relay, Product.

Letters: `T` timesteps, `B` samples, `N` tokens, `D` features, `H` heads. A value of a node has shape
`[T, B, N, D]`. `m [B, N]` is the attention mask, called the *valid lane*: 1 for every real token
([CLS] and [SEP] too), 0 for padding.

Two kinds of value travel along the edges: *spikes* (0 or 1; small integers and their sums, "graded"; below 0 too
where a neuron is "ternary") and *currents* (signed accumulators). Which node takes and gives which is checked when a
`Graph` is made.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Union

import networkx as nx
import numpy as np

SHIFT = 7  # bits by which every LIF shifts its input and its threshold
DECAY_BITS = 12
DV_MAX = 2**DECAY_BITS - 1
MEMBRANE_MAX = 2**23 - 1  # the membrane saturates at +- this
THRESHOLD_MAX = 65535  # accumulator units
GRADED_MAX = 2**31 - 1  # of a sum of spikes, which engines hold in 32 bits
ACCUMULATOR_MAX = 65535  # |a| of every row, proven; a real machine's current wraps beyond it
SOURCE_KINDS = ("lif", "sign")
SIMILARITIES = ("and", "xnor")  # of a query and a key
NORM_KINDS = ("layer", "rms")
READOUT_KINDS = ("sum", "membrane")
RESETS = ("zero", "subtract")  # of a LIF that fires
SPIKES = ("binary", "graded", "ternary")  # what a LIF sends
NEVER_NEGATIVE = SPIKES[:2]  # what a source sends, and v of an attention
CAP_MAX = 255  # of a graded spike: 8 bits
NORM_FEATURES_MAX = 2**14  # D of a norm: D^2 * 65535^2 stays below 2^60
NORM_EPS_MAX = 2**60
GAMMA_FRACTION = 8  # bits of a norm's gamma behind the point
GAMMA_MAX = 2**24  # 65536 accumulator units
NORMED_FRACTION = 24  # bits behind the point of what a norm holds before it multiplies by gamma
RECIPROCAL_BITS = 54  # a norm multiplies by floor(2^54 / root)
INTEGRATED_MAX = 2**27  # T * n_max of a membrane that the host integrates: times 4096 it stays in 64 bits
ROOT_BITS = 31  # of the square root, which is 2^30 .. 2^31 - 1
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*")


class GraphError(ValueError):
    """A graph that is not legal. The message names the node, what is wrong, and the limit."""


def _require(condition: bool, node: str, message: str) -> None:
    if not condition:
        raise GraphError(f"node '{node}': {message}")


def _freeze_array(node: object, field: str, ndim: int, dtype: type) -> None:
    """Replace a field by a read-only copy of exactly `dtype`; floats and lossy casts are refused."""
    name, value = getattr(node, "name", "?"), np.asarray(getattr(node, field))
    _require(np.issubdtype(value.dtype, np.integer), name, f"{field} must hold integers, it holds {value.dtype}")
    _require(value.ndim == ndim, name, f"{field} must have {ndim} dimensions, it has shape {value.shape}")
    _require(value.size > 0, name, f"{field} is empty, its shape is {value.shape}")
    info: np.iinfo = np.iinfo(dtype)
    _require(
        bool(value.min() >= info.min and value.max() <= info.max),
        name,
        f"{field} holds {int(value.min())} .. {int(value.max())}, {np.dtype(dtype)} holds {info.min} .. {info.max}",
    )
    frozen: np.ndarray = np.array(value, dtype=dtype, order="C")
    frozen.flags.writeable = False
    object.__setattr__(node, field, frozen)


def _largest(values: np.ndarray) -> int:
    """The largest |value|."""
    return max(-int(values.min()), int(values.max()))


def _check_neuron(name: str, threshold: int | np.ndarray, dv: int, shift: int) -> None:
    levels = np.asarray(threshold)
    _require(
        bool(levels.min() >= 0 and levels.max() <= THRESHOLD_MAX),
        name,
        f"threshold {int(levels.min())} .. {int(levels.max())} is outside 0 .. {THRESHOLD_MAX} accumulator units",
    )
    _require(0 <= dv <= DV_MAX, name, f"dv {dv} is outside 0 .. {DV_MAX}")
    _require(shift == SHIFT, name, f"shift {shift}, only {SHIFT} is defined")


def _check_spike(name: str, spike: str, cap: int, kinds: tuple[str, ...] = SPIKES) -> None:
    _require(spike in kinds, name, f"spike '{spike}' is none of {kinds}")
    if spike == "graded":
        _require(2 <= cap <= CAP_MAX, name, f"cap {cap} of a graded spike is outside 2 .. {CAP_MAX}")
    else:
        _require(cap == 1, name, f"cap {cap} of a {spike} spike, which has 1")


@dataclass(frozen=True, eq=False)
class Source:
    """Turns token ids into spikes, on the host.

    Current  `c[n, :] = m[n] * (table[id[n], :] + position[n, :])`, `n` counted from 0 with [CLS].

    kind "lif"   the rule of `LIF` with `a[t] = c` at every `t`, and the threshold, dv, shift, reset, spike and cap
                 given here; its spikes are binary or graded
    kind "sign"  `x[t, n, :] = m[n] * (c[n, :] >= 0)`, the same at every `t`; threshold and dv are unused,
                 spikes are binary

    Behind these D features stand P more where the model has spike-coded positions:
    `x[t, n, D + p] = m[n] * code[t, n, p]`.

    table     int8  [vocabulary, D]
    position  int32 [n_max, D], or None where the model has no positions in its current
    threshold int, in units of the table
    code      uint8 [T, n_max, P] of 0 and 1, or None
    """

    op: ClassVar[str] = "source"
    name: str
    table: np.ndarray
    position: np.ndarray | None = None
    kind: str = "lif"
    threshold: int = 0
    dv: int = 0
    shift: int = SHIFT
    inputs: tuple[str, ...] = ()
    code: np.ndarray | None = None
    reset: str = "zero"
    spike: str = "binary"
    cap: int = 1

    def __post_init__(self) -> None:
        _freeze_array(self, "table", 2, np.int8)
        _require(self.reset in RESETS, self.name, f"reset '{self.reset}' is none of {RESETS}")
        _require(self.kind in SOURCE_KINDS, self.name, f"kind '{self.kind}' is none of {SOURCE_KINDS}")
        _check_spike(self.name, self.spike, self.cap, NEVER_NEGATIVE if self.kind == "lif" else SPIKES[:1])
        _require(self.inputs == (), self.name, "a source has no inputs")
        _check_neuron(self.name, self.threshold, self.dv, self.shift)
        reach = _largest(self.table)
        if self.position is not None:
            _freeze_array(self, "position", 2, np.int32)
            _require(
                self.position.shape[1] == self.table.shape[1],
                self.name,
                f"position has {self.position.shape[1]} features, table has {self.table.shape[1]}",
            )
            reach += _largest(self.position)
        _require(reach <= ACCUMULATOR_MAX, self.name, f"|current| may reach {reach}, the limit is {ACCUMULATOR_MAX}")
        if self.code is not None:
            _freeze_array(self, "code", 3, np.uint8)
            _require(int(self.code.max()) <= 1, self.name, f"code holds {int(self.code.max())}, spikes are 0 or 1")

    @property
    def code_features(self) -> int:
        """P, 0 without a code."""
        return 0 if self.code is None else int(self.code.shape[2])


@dataclass(frozen=True, eq=False)
class Synapses:
    """A linear layer, token by token: `a = W x + bias * m`. Spikes in, current out.

    The bias rides on the valid lane: it is a synapse from "this is a real token", so padding is silent.

    weight      int8  [out, in], |w| < 2^(weight_bits - 1), or -1 and 1 where weight_bits is 1
    bias        int32 [out], accumulator units
    weight_bits 1 .. 8, what one weight takes in memory (a 2-bit weight is -1, 0 or 1)
    """

    op: ClassVar[str] = "synapses"
    name: str
    inputs: tuple[str, ...]
    weight: np.ndarray
    bias: np.ndarray
    weight_bits: int = 8

    def __post_init__(self) -> None:
        _require(len(self.inputs) == 1, self.name, f"synapses have one input, not {len(self.inputs)}")
        _freeze_linear(self)
        limit = max(1, 2 ** (self.weight_bits - 1) - 1) if 1 <= self.weight_bits <= 8 else 0
        _require(limit > 0, self.name, f"weight_bits {self.weight_bits} is outside 1 .. 8")
        reach = _largest(self.weight)
        _require(reach <= limit, self.name, f"|weight| reaches {reach}, weight_bits {self.weight_bits} hold {limit}")
        zeros = self.weight.size - np.count_nonzero(self.weight) if self.weight_bits == 1 else 0
        _require(zeros == 0, self.name, f"{zeros} weights are 0, a weight of 1 bit is -1 or 1")


@dataclass(frozen=True, eq=False)
class Norm:
    """Layer normalisation of a current, token by token and timestep by timestep, in integers. Current in, current out.

    Behind Synapses, and only LIF nodes read it. With a[j] the current of feature j = 0 .. D - 1, sums over all j:

        S = sum a[j]                                   kind "rms": S = 0, so that nothing is subtracted
        c[j] = D a[j] - S                              D times the distance from the mean, not rounded
        V = D sum a[j]^2 - S^2                         D^2 times the variance, not rounded
        W = V + eps
        h = the integer for which 2^60 <= W 4^h < 2^62
        r = floor(sqrt(W 4^h))                         2^30 .. 2^31 - 1
        i = floor(2^54 / r)
        z[j] = (c[j] 2^h i) >> 30                      (a - mean) / sqrt(variance + eps / D^2), in units of 2^-24
        y[j] = ((gamma[j] z[j] + 2^31) >> 32) + beta[j] m

    `>>` is a shift to the right of a number with a sign, that is a division by 2^n rounded down. A token whose features
    are all alike has c = 0 and so y = beta; at padding a and m are 0 and so is y.

    Nothing passes 64 bits. |a| <= 65535 and D <= 2^14, so D sum a^2, S^2 and V are below 2^60, W below 2^61 and h is 0
    or more. By the Cauchy-Schwarz inequality c[j]^2 <= K V, where K = D - 1 (Samuelson 1968), or D for "rms". So
    |c[j]| 2^h <= sqrt(K) sqrt(W 4^h) < 2^7 2^31, and i <= 2^24: the product is below 2^62. And sqrt(W 4^h) < r + 1, so
    |z[j]| <= Z = floor(sqrt(K 2^48)) + 4 (0 where K = 0): `normed_max`. Hence the bound of y, `Norm.reach`.

    inputs the current; and, where a pass has laid biases out, the valid lane: spikes of which feature 0 then stands
           for m
    gamma  int32 [D], accumulator units of 2^-8, at most 2^24
    beta   int32 [D], accumulator units; rides on the valid lane
    eps    1 .. 2^60, in units of V: eps of the float norm * (D * accumulator units of 1.0)^2
    kind   "layer" or "rms"
    """

    op: ClassVar[str] = "norm"
    name: str
    inputs: tuple[str, ...]
    gamma: np.ndarray
    beta: np.ndarray
    eps: int = 1
    kind: str = "layer"

    def __post_init__(self) -> None:
        _require(len(self.inputs) in (1, 2), self.name, f"a norm takes a current (and a lane), not {len(self.inputs)}")
        _require(self.kind in NORM_KINDS, self.name, f"kind '{self.kind}' is none of {NORM_KINDS}")
        _freeze_array(self, "gamma", 1, np.int32)
        _freeze_array(self, "beta", 1, np.int32)
        features, betas = len(self.gamma), len(self.beta)
        _require(features == betas, self.name, f"gamma has {features} entries, beta has {betas}")
        _require(features <= NORM_FEATURES_MAX, self.name, f"{features} features, a norm has {NORM_FEATURES_MAX}")
        _require(1 <= self.eps <= NORM_EPS_MAX, self.name, f"eps {self.eps} is outside 1 .. {NORM_EPS_MAX}")
        largest = _largest(self.gamma)
        _require(largest <= GAMMA_MAX, self.name, f"|gamma| reaches {largest}, the limit is {GAMMA_MAX}")

    @property
    def scaled_reach(self) -> np.ndarray:
        """The largest |y - beta m| of each feature, int64 [D], proven as the class says."""
        gamma = np.abs(self.gamma.astype(np.int64))
        half = 1 << (NORMED_FRACTION + GAMMA_FRACTION - 1)
        return (gamma * normed_max(self.kind, len(gamma)) + half) >> (NORMED_FRACTION + GAMMA_FRACTION)

    @property
    def reach(self) -> np.ndarray:
        """The largest |y| of each feature, int64 [D]."""
        return self.scaled_reach + np.abs(self.beta.astype(np.int64))


def normed_max(kind: str, features: int) -> int:
    """Z of `Norm`: the largest |z| that its arithmetic can give, in units of 2^-24."""
    spread = features - 1 if kind == "layer" else features
    return math.isqrt(spread << 2 * NORMED_FRACTION) + 4 if spread else 0


@dataclass(frozen=True, eq=False)
class Attention:
    """Spiking self-attention, for each head a sum over tokens. Spikes in, current out. For query `n` and head `h`

    a[n] = m[n] * sum over j of (score[n, j] + bias[h, n, j]) * v[j]

    similarity "and"   score[n, j] = at how many features of the head q[n] and k[j] are both 1. Without a bias that is
                       `a = (q k^T) v`.
    similarity "xnor"  score[n, j] = at how many features of the head they are equal, both 1 or both 0
    bias               int32 [1 or heads, n_max, n_max], what the score has more for the places of query and key,
                       counted from 0 with [CLS]; one map for all heads, or one for each. None: no such thing

    inputs are the names of q, k, v: each the output of a LIF, all of the same `t`. The spikes of q and k are binary,
    for matches are counted; those of v are binary or graded. Head `h` is features `h*d .. (h+1)*d - 1`, `d = D /
    heads`. No softmax and no scale: the threshold of the LIF that follows absorbs it. A padded key has a silent v, so
    it takes no part. A padded query is silent too, but two silent tokens are equal, and a bias acts on a silent query
    as well: hence the valid lane m. A fourth input, spikes of one feature, takes its place where there is one; only a
    pass makes that, for machines that have no mask.
    """

    op: ClassVar[str] = "attention"
    name: str
    inputs: tuple[str, ...]
    heads: int
    similarity: str = "and"
    bias: np.ndarray | None = None

    def __post_init__(self) -> None:
        _require(len(self.inputs) in (3, 4), self.name, f"attention takes q, k and v, not {len(self.inputs)} inputs")
        _require(self.heads >= 1, self.name, f"heads is {self.heads}")
        _require(
            self.similarity in SIMILARITIES, self.name, f"similarity '{self.similarity}' is none of {SIMILARITIES}"
        )
        if self.bias is not None:
            _freeze_array(self, "bias", 3, np.int32)
            _require(
                self.bias.shape[0] in (1, self.heads) and self.bias.shape[1] == self.bias.shape[2],
                self.name,
                f"bias has shape {self.bias.shape}, it must be [1 or {self.heads} heads, n_max, n_max]",
            )
        _require(
            len(self.inputs) == 3 or self.needs_lane,
            self.name,
            "a fourth input, for 'and' without a bias: a silent query gets nothing there anyhow",
        )

    @property
    def needs_lane(self) -> bool:
        """Whether a silent query may get a current, so that only the valid lane keeps padding out."""
        return self.similarity != "and" or self.bias is not None

    @property
    def lane(self) -> str | None:
        """The input that stands in the place of m, if there is one."""
        return self.inputs[3] if len(self.inputs) == 4 else None


@dataclass(frozen=True, eq=False)
class LIF:
    """A leaky integrate-and-fire neuron. Current in, spikes out. At each `t`, in this order, L = threshold * 2^shift:

    v = clip(decay(v) + a * 2^shift, -(2^23 - 1), 2^23 - 1)
    s = what `spike` says of v            comparisons are strict
    v = what `reset` says where s != 0    and v = 0 before each sample
    decay(v) = sign(v) * ((abs(v) * (4096 - dv)) >> 12)

    spike "binary"    s = v > L, 0 or 1
    spike "graded"    s = at how many of j = 1 .. cap  v > j * L: min(cap, ceil(v / L) - 1) where v > 0 and L > 0
    spike "ternary"   s = (v > L) - (v < -L), that is -1, 0 or 1
    reset "zero"      v = 0
    reset "subtract"  v = v - s * L: what is left goes on ("soft"). Below the cap that is 0 < v <= L

    With "binary" and "zero" this is Loihi's neuron with `du = 4095` (no current memory); Lava's own shift is 6 and its
    weights are doubled, hence 7 here.

    threshold int, or int32 [D]; accumulator units, 0 .. 65535 (a negative one would fire on padding)
    dv        int 0 .. 4095: 0 keeps the membrane, 2048 halves it, 4095 forgets nearly all
    cap       of a graded spike 2 .. 255, else 1: the largest |s|
    """

    op: ClassVar[str] = "lif"
    name: str
    inputs: tuple[str, ...]
    threshold: int | np.ndarray
    dv: int = 0
    shift: int = SHIFT
    reset: str = "zero"
    spike: str = "binary"
    cap: int = 1

    def __post_init__(self) -> None:
        _require(len(self.inputs) == 1, self.name, f"a LIF has one input, not {len(self.inputs)}")
        _require(self.reset in RESETS, self.name, f"reset '{self.reset}' is none of {RESETS}")
        _check_spike(self.name, self.spike, self.cap)
        if isinstance(self.threshold, np.ndarray):
            _freeze_array(self, "threshold", 1, np.int32)
        else:
            object.__setattr__(self, "threshold", int(self.threshold))
        _check_neuron(self.name, self.threshold, self.dv, self.shift)

    @property
    def is_stock(self) -> bool:
        """Whether it resets to 0 and sends bits, as the stock neurons of Lava and of most programs do."""
        return self.reset == "zero" and self.spike == "binary"


@dataclass(frozen=True, eq=False)
class Add:
    """A residual: the sum of two or more spike inputs. Graded spikes out, no state."""

    op: ClassVar[str] = "add"
    name: str
    inputs: tuple[str, ...]

    def __post_init__(self) -> None:
        _require(len(self.inputs) >= 2, self.name, f"an add has two or more inputs, not {len(self.inputs)}")


@dataclass(frozen=True, eq=False)
class Slice:
    """Features `start .. stop - 1` of its input. Spikes, no state."""

    op: ClassVar[str] = "slice"
    name: str
    inputs: tuple[str, ...]
    start: int
    stop: int

    def __post_init__(self) -> None:
        _require(len(self.inputs) == 1, self.name, f"a slice has one input, not {len(self.inputs)}")
        _require(0 <= self.start < self.stop, self.name, f"features {self.start} .. {self.stop - 1} are none")


@dataclass(frozen=True, eq=False)
class Concat:
    """The features of its inputs side by side, in their order. Spikes, no state."""

    op: ClassVar[str] = "concat"
    name: str
    inputs: tuple[str, ...]

    def __post_init__(self) -> None:
        _require(len(self.inputs) >= 2, self.name, f"a concat has two or more inputs, not {len(self.inputs)}")


@dataclass(frozen=True, eq=False)
class ValidLane:
    """The valid lane as spikes: `m[n]` at every `t`, on `lanes` features alike. The host sends it beside the source.

    Synapses from it carry a bias where a machine has none that is silent on padding.
    """

    op: ClassVar[str] = "valid_lane"
    name: str
    lanes: int
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(self.inputs == (), self.name, "a valid lane has no inputs")
        _require(self.lanes >= 1, self.name, f"lanes is {self.lanes}, it must be 1 or more")


@dataclass(frozen=True, eq=False)
class Coincidence:
    """Neurons that fire where a query and a key both do: `s[n, m*D + j] = q[n, j] * k[m, j]`, m = 0 .. n_max - 1.

    inputs are q and k, each {0, 1} of D features; the value has n_max * D. A stock LIF does it: both spikes reach it
    with weight 1, its threshold is 1, and its `dv` of 4095 forgets a single one. Part of an attention made of stock
    neurons, with Relay and Product.
    """

    op: ClassVar[str] = "coincidence"
    name: str
    inputs: tuple[str, ...]

    def __post_init__(self) -> None:
        _require(len(self.inputs) == 2, self.name, f"a coincidence takes q and k, not {len(self.inputs)} inputs")


@dataclass(frozen=True, eq=False)
class Relay:
    """Sends a current on as graded spikes, `x = a`. No state. Legal where the current is never negative."""

    op: ClassVar[str] = "relay"
    name: str
    inputs: tuple[str, ...]

    def __post_init__(self) -> None:
        _require(len(self.inputs) == 1, self.name, f"a relay has one input, not {len(self.inputs)}")


@dataclass(frozen=True, eq=False)
class Product:
    """What each key brings to each query: `x[n, m*D + e] = score[n, m*H + e // d] * v[m, e]`, m = 0 .. n_max - 1.

    inputs are the scores (graded, n_max * H features) and v (of a LIF, binary or graded, D features); `d = D / heads`.
    Graded spikes of n_max * D features, no state.
    """

    op: ClassVar[str] = "product"
    name: str
    inputs: tuple[str, ...]
    heads: int

    def __post_init__(self) -> None:
        _require(len(self.inputs) == 2, self.name, f"a product takes scores and v, not {len(self.inputs)} inputs")
        _require(self.heads >= 1, self.name, f"heads is {self.heads}")


@dataclass(frozen=True, eq=False)
class Readout:
    """The classifier: `a = W x + bias * m` for each token, its value. On the host, in int64, it becomes the logits:

    kind "sum"       the sum of a over `t` and tokens: every timestep counts alike
    kind "membrane"  v = decay(v) + 2^7 * (the sum of a over tokens), v = 0 before each sample; the logits are v after
                     the last `t`. That is the membrane of a neuron for each class which all tokens feed and which
                     never fires: late timesteps count more. decay as of `LIF`; nothing is cut

    The class is the lowest index among the largest. For a person: `float logit = logit * scale / (unit * sum(m))`,
    where unit is what a current of 1 at every timestep brings: T, or of a membrane v after T timesteps of it.

    weight int8 [classes, in]; bias int32 [classes], accumulator units; scale float > 0; dv 0 .. 4095, 0 for a sum
    """

    op: ClassVar[str] = "readout"
    name: str
    inputs: tuple[str, ...]
    weight: np.ndarray
    bias: np.ndarray
    scale: float = 1.0
    kind: str = "sum"
    dv: int = 0

    def __post_init__(self) -> None:
        _require(len(self.inputs) == 1, self.name, f"a readout has one input, not {len(self.inputs)}")
        _freeze_linear(self)
        _require(self.kind in READOUT_KINDS, self.name, f"kind '{self.kind}' is none of {READOUT_KINDS}")
        _require(0 <= self.dv <= DV_MAX, self.name, f"dv {self.dv} is outside 0 .. {DV_MAX}")
        _require(self.kind == "membrane" or self.dv == 0, self.name, f"dv {self.dv} of a sum, which does not decay")
        _require(self.scale > 0, self.name, f"scale is {self.scale}, it must be above 0")


def _freeze_linear(node: Synapses | Readout) -> None:
    _freeze_array(node, "weight", 2, np.int8)
    _freeze_array(node, "bias", 1, np.int32)
    rows, biases = node.weight.shape[0], node.bias.shape[0]
    _require(rows == biases, node.name, f"weight has {rows} rows, bias has {biases} entries")


Node = Union[
    Source, Synapses, Norm, Attention, LIF, Add, Slice, Concat, ValidLane, Coincidence, Relay, Product, Readout
]  # fmt: skip
CURRENTS = (Synapses, Norm, Attention, Readout)  # nodes whose values are currents; the others give spikes
NEURONS = (Source, LIF, Coincidence)  # nodes that fire; the other spiking ones pass on what others fired


@dataclass(frozen=True, eq=False)
class Graph:
    """A whole network: nodes in an order in which every node comes after its inputs.

    timesteps  T, 1 or more
    n_max      the most tokens a sample may have
    nodes      one `Source` first, one `Readout` last, which is the output

    Making a `Graph` checks it: names, edges, kinds of value, widths, and the proof that no accumulator can
    pass `ACCUMULATOR_MAX`. Raises `GraphError` with the first thing found.
    """

    timesteps: int
    n_max: int
    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))
        if self.timesteps < 1 or self.n_max < 1:
            raise GraphError(f"timesteps is {self.timesteps} and n_max is {self.n_max}, both must be 1 or more")
        _check_structure(self)
        for node in self.nodes:
            _check_node(self, node)
        _check_bounds(self)  # only now, for it computes with all widths

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @property
    def source(self) -> Source:
        return self.nodes[0]  # type: ignore[return-value]  # _check_structure made sure

    @property
    def readout(self) -> Readout:
        return self.nodes[-1]  # type: ignore[return-value]

    @property
    def output(self) -> str:
        return self.readout.name

    @cached_property
    def spiking(self) -> tuple[str, ...]:
        """The nodes whose values are spikes, in graph order: what activity is counted from."""
        return tuple(node.name for node in self.nodes if not isinstance(node, CURRENTS))

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def digraph(self) -> nx.DiGraph:
        """The same graph for networkx: node names, edges from producer to consumer.

        An edge's `slots` are the places among the consumer's inputs that the producer feeds, in order.
        """
        graph = nx.DiGraph()
        for node in self.nodes:
            graph.add_node(node.name, op=node.op)
            for producer in node.inputs:
                slots = tuple(slot for slot, name in enumerate(node.inputs) if name == producer)
                graph.add_edge(producer, node.name, slots=slots)
        return graph

    @cached_property
    def features(self) -> dict[str, int]:
        """D of every node's value (for the readout: classes)."""
        width: dict[str, int] = {}
        for node in self.nodes:
            if isinstance(node, Source):
                width[node.name] = node.table.shape[1] + node.code_features
            elif isinstance(node, (Synapses, Readout)):
                width[node.name] = node.weight.shape[0]
            elif isinstance(node, ValidLane):
                width[node.name] = node.lanes
            elif isinstance(node, Slice):
                width[node.name] = node.stop - node.start
            elif isinstance(node, Concat):
                width[node.name] = sum(width[name] for name in node.inputs)
            elif isinstance(node, (Coincidence, Product)):
                width[node.name] = self.n_max * width[node.inputs[-1]]
            else:
                width[node.name] = width[node.inputs[0]]
        return width

    @cached_property
    def feature_max(self) -> dict[str, np.ndarray]:
        """The largest |value| of each feature of a node, int64 [D]: the cap of spikes, 1 for bits; proven for currents.

        Synapses and readout: see `accumulator_bounds`. Attention: `attention_bounds` times that of v. Norm:
        `Norm.reach`.
        """
        bound: dict[str, np.ndarray] = {}
        for node in self.nodes:
            inputs = [bound[name] for name in node.inputs]
            if isinstance(node, Add):
                bound[node.name] = np.sum(inputs, axis=0)
            elif isinstance(node, (Synapses, Readout)):
                bound[node.name] = accumulator_bounds(node, inputs[0], self.feature_signed[node.inputs[0]])
            elif isinstance(node, Norm):
                bound[node.name] = node.reach
            elif isinstance(node, Attention):
                size = len(inputs[0]) // node.heads
                bound[node.name] = np.repeat(attention_bounds(node, size, self.n_max), size) * inputs[2]
            elif isinstance(node, Slice):
                bound[node.name] = inputs[0][node.start : node.stop]
            elif isinstance(node, Concat):
                bound[node.name] = np.concatenate(inputs)
            elif isinstance(node, Product):
                scores = np.repeat(inputs[0], len(inputs[1]) // node.heads)
                bound[node.name] = scores * np.tile(inputs[1], self.n_max)
            elif isinstance(node, Relay):
                bound[node.name] = inputs[0]
            elif isinstance(node, LIF):
                bound[node.name] = np.full(len(inputs[0]), node.cap, np.int64)
            elif isinstance(node, Source):
                neurons, others = np.full(node.table.shape[1], node.cap), np.ones(node.code_features)
                bound[node.name] = np.concatenate([neurons, others]).astype(np.int64)
            else:
                bound[node.name] = np.ones(self.features[node.name], np.int64)
            if not isinstance(node, CURRENTS):  # before the next sum of such sums can pass 64 bits
                largest = int(bound[node.name].max())
                _require(largest <= GRADED_MAX, node.name, f"a value may reach {largest}, the limit is {GRADED_MAX}")
        return bound

    @cached_property
    def feature_signed(self) -> dict[str, np.ndarray]:
        """Which features of a spiking node may be below 0, bool [D]: those of ternary neurons, and sums of them."""
        signed: dict[str, np.ndarray] = {}
        for node in self.nodes:
            if isinstance(node, CURRENTS):
                continue
            inputs = [signed[name] for name in node.inputs if name in signed]
            if isinstance(node, Add):
                signed[node.name] = np.any(inputs, axis=0)
            elif isinstance(node, Slice):
                signed[node.name] = inputs[0][node.start : node.stop]
            elif isinstance(node, Concat):
                signed[node.name] = np.concatenate(inputs)
            else:
                ternary = isinstance(node, LIF) and node.spike == "ternary"
                signed[node.name] = np.full(self.features[node.name], ternary)
        return signed

    @cached_property
    def signed(self) -> frozenset[str]:
        """The spiking nodes of which some feature may be below 0."""
        return frozenset(name for name, features in self.feature_signed.items() if features.any())

    @cached_property
    def value_max(self) -> dict[str, int]:
        """The largest |value| each node can give: the largest of `feature_max`."""
        return {name: int(bound.max()) for name, bound in self.feature_max.items()}


def accumulator_bounds(
    node: Synapses | Readout, input_max: int | np.ndarray, signed: bool | np.ndarray = False
) -> np.ndarray:
    """The largest |a| of each row, int64 [out], for inputs `0 .. input_max`. Partial sums stay within it too.

    `max(positive w @ x_max, negative w @ x_max) + |bias|`; an input that is `signed`, `-input_max .. input_max`, may
    bring |w| x_max to either sum.
    """
    weight, reach = node.weight.astype(np.float64), np.broadcast_to(input_max, node.weight.shape[1]).astype(np.float64)
    excites, inhibits = np.maximum(weight, 0), np.maximum(-weight, 0)
    below = reach * signed
    positive = excites @ reach + inhibits @ below  # exact: far below 2^53
    negative = inhibits @ reach + excites @ below
    return np.maximum(positive, negative).astype(np.int64) + np.abs(node.bias.astype(np.int64))


def attention_bounds(node: Attention, size: int, n_max: int) -> np.ndarray:
    """The largest |a| of each head, int64 [H], for heads of `size` features and a v of bits; times the cap for a graded
    one. Partial sums stay within it too.

    A score is 0 .. size, and each of n_max keys may bring it or not. So a current is at most the sum over keys of
    `max(0, size + bias)`, at least that of `min(0, bias)`, of the query for which that is most; without a bias
    `size * n_max`.
    """
    if node.bias is None:
        return np.full(node.heads, size * n_max, np.int64)
    bias = node.bias.astype(np.int64)
    most, least = np.maximum(size + bias, 0).sum(axis=2), np.minimum(bias, 0).sum(axis=2)  # [maps, n_max]
    reach: np.ndarray = np.broadcast_to(np.maximum(most, -least).max(axis=1), node.heads)
    return reach


def _check_structure(graph: Graph) -> None:
    nodes = graph.nodes
    if not nodes or not isinstance(nodes[0], Source) or not isinstance(nodes[-1], Readout):
        raise GraphError("a graph begins with its source and ends with its readout")
    seen: set[str] = set()
    for node in nodes:
        _require(NAME.fullmatch(node.name) is not None, node.name, f"a name has the form {NAME.pattern}")
        _require(node.name not in seen, node.name, "the name is used twice")
        for producer in node.inputs:
            _require(producer in seen, node.name, f"input '{producer}' is not a node before it")
        _require(not isinstance(node, Source) or node is nodes[0], node.name, "a graph has one source")
        _require(not isinstance(node, Readout) or node is nodes[-1], node.name, "a graph has one readout")
        seen.add(node.name)


def _check_node(graph: Graph, node: Node) -> None:
    """Widths and kinds of value."""
    widths = [graph.features[name] for name in node.inputs]
    currents = [name for name in node.inputs if isinstance(graph[name], CURRENTS)]
    if isinstance(node, (LIF, Relay)):
        _require(bool(currents), node.name, f"a {node.op} takes a current, '{node.inputs[0]}' gives spikes")
    elif isinstance(node, Norm):
        _check_norm(graph, node)
    else:
        _require(not currents, node.name, f"takes spikes, {currents} give currents")
    if isinstance(node, Source) and node.position is not None:
        rows = node.position.shape[0]
        _require(rows == graph.n_max, node.name, f"position has {rows} rows, n_max is {graph.n_max}")
    if isinstance(node, Source) and node.code is not None:
        of, wanted = node.code.shape[:2], (graph.timesteps, graph.n_max)
        _require(of == wanted, node.name, f"code is of {of} timesteps and tokens, the graph of {wanted}")
    if isinstance(node, LIF) and isinstance(node.threshold, np.ndarray):
        levels = node.threshold.shape[0]
        _require(levels == widths[0], node.name, f"{levels} thresholds for {widths[0]} features")
    if isinstance(node, (Synapses, Readout)):
        columns = node.weight.shape[1]
        _require(columns == widths[0], node.name, f"weight has {columns} columns, the input has {widths[0]} features")
    if isinstance(node, Readout) and node.kind == "membrane":
        most = graph.timesteps * graph.n_max
        _require(most <= INTEGRATED_MAX, node.name, f"T * n_max is {most}, a membrane takes {INTEGRATED_MAX}")
    if isinstance(node, Slice):
        _require(node.stop <= widths[0], node.name, f"feature {node.stop - 1} of an input that has {widths[0]}")
    if isinstance(node, (Add, Attention, Coincidence)):
        alike = widths[:3] if isinstance(node, Attention) else widths
        _require(len(set(alike)) == 1, node.name, f"its inputs have different widths: {alike}")
    if isinstance(node, (Attention, Product)):
        width = widths[2] if isinstance(node, Attention) else widths[1]
        _require(width % node.heads == 0, node.name, f"{width} features do not divide into {node.heads} heads")
    if isinstance(node, (Attention, Coincidence, Product)):
        _check_attended(graph, node)
    if isinstance(node, Attention) and node.bias is not None:
        places = node.bias.shape[1]
        _require(places == graph.n_max, node.name, f"bias is for {places} tokens, n_max is {graph.n_max}")
    if isinstance(node, Product):
        scores = graph.n_max * node.heads
        _require(widths[0] == scores, node.name, f"its scores have {widths[0]} features, not n_max * heads = {scores}")


def _check_attended(graph: Graph, node: Attention | Coincidence | Product) -> None:
    """That q and k are bits of LIF nodes, and v such bits or graded spikes."""
    q_k, v = (node.inputs[:2], node.inputs[2:3]) if not isinstance(node, Product) else ((), node.inputs[1:])
    for part, names, spikes, why in (
        ("q and k", q_k, SPIKES[:1], "what they send is no bit, and attention counts matches of bits"),
        ("v", v, NEVER_NEGATIVE, "what it sends may be below 0"),
    ):
        others = [name for name in names if not _fires(graph, name, spikes)]
        _require(
            not others,
            node.name,
            f"{part} must be outputs of LIF nodes, {others} are not" + (f": {why}" if _are_lifs(graph, others) else ""),
        )


def _check_norm(graph: Graph, node: Norm) -> None:
    current, *lane = node.inputs
    layer = graph[current]
    _require(isinstance(layer, Synapses), node.name, f"a norm takes the current of synapses, '{current}' is no such")
    width, own = graph.features[current], len(node.gamma)
    _require(own == width, node.name, f"gamma has {own} entries, the input has {width} features")
    for name in lane:
        _require(not isinstance(graph[name], CURRENTS), node.name, f"its lane '{name}' gives a current, not spikes")


def _fires(graph: Graph, name: str, spikes: tuple[str, ...]) -> bool:
    """Whether a value was made by LIF nodes alone, which send such spikes."""
    node = graph[name]
    if isinstance(node, LIF):
        return node.spike in spikes
    return isinstance(node, (Slice, Concat)) and all(_fires(graph, producer, spikes) for producer in node.inputs)


def _are_lifs(graph: Graph, names: list[str]) -> bool:
    return all(isinstance(graph[name], LIF) for name in names)


def _never_negative(graph: Graph, name: str) -> bool:
    node = graph[name]
    if isinstance(node, Synapses):
        return node.inputs[0] not in graph.signed and bool(node.weight.min() >= 0 and node.bias.min() >= 0)
    return isinstance(node, Attention) and (node.bias is None or bool(node.bias.min() >= 0))


def _smaller(node: Node) -> str:
    """What makes the currents of a node smaller."""
    if isinstance(node, Attention):
        return "more heads, fewer tokens, a smaller bias or a v of a smaller cap"
    return "a smaller gamma or beta" if isinstance(node, Norm) else "smaller or fewer weights"


def _check_bounds(graph: Graph) -> None:
    for node in graph:
        for lane in node.inputs[1:] if isinstance(node, Norm) else ():
            most, signed = int(graph.feature_max[lane][0]), bool(graph.feature_signed[lane][0])
            _require(most == 1, node.name, f"its lane '{lane}' may reach {most}, a valid lane is 0 or 1")
            _require(not signed, node.name, f"its lane '{lane}' may be -1, a valid lane is 0 or 1")
        if isinstance(node, Relay):
            own = node.inputs[0]
            _require(_never_negative(graph, own), node.name, f"the current '{own}' may be negative")
        if isinstance(node, Product):
            _require(node.inputs[0] not in graph.signed, node.name, f"its scores '{node.inputs[0]}' may be negative")
        if isinstance(node, CURRENTS):
            reach = graph.value_max[node.name]
            _require(
                reach <= ACCUMULATOR_MAX,
                node.name,
                f"an accumulator may reach {reach}, the limit is {ACCUMULATOR_MAX}: use {_smaller(node)}",
            )
        if isinstance(node, Attention) and node.lane is not None:
            width, largest = graph.features[node.lane], graph.value_max[node.lane]
            low = -largest if node.lane in graph.signed else 0
            _require(
                width == 1 and largest <= 1 and low == 0,
                node.name,
                f"its fourth input is a lane, one feature of 0 and 1; '{node.lane}' has {width} of {low} .. {largest}",
            )
