"""The spiking layers, for models of your own and for ours (`model.py`).

    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = Encoder(vocabulary=1000, features=48, n_max=32, timesteps=4)
            self.up, self.down = SpikingLinear(48, 96), SpikingLinear(96, 48)
            self.readout = Readout(48, classes=2)

        def forward(self, input_ids, attention_mask=None):
            x = self.encoder(input_ids, attention_mask)
            return self.readout(x + self.down(self.up(x)))

A model takes token ids [B, N] and a mask [B, N] (1 real, 0 padding), and gives what its `Readout` gave. Between the
two, spikes go through these layers and are added, and nothing else (`spikes.py`). A model is built and trained in
floats; `spikebert.quantise` makes its integer twin, in which every number is one of the graph's too.

Letters: T timesteps, B texts, N tokens, D features, H heads, d = D / H. Layers that look at one token at a time work
on *packed* tokens `[T, R, D]`, R the number of real tokens in the batch: padding costs nothing, takes no part in
BatchNorm, and is silent because it is not there. Only attention unpacks, a few texts of like length at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikebert.config import CAP_MAX, ENCODERS, NORMS, READOUT_KINDS, RESETS, SIMILARITIES, SPIKES, SURROGATES
from spikebert.exact_product import capabilities, exact_matmul, exact_product
from spikebert.integer_linear import integer_linear
from spikebert.integer_norm import NormIntegers, integer_norm, make_norm, norm_integers
from spikebert.neurons import DECAY_ONE, SHIFT, LoihiLIF, TruncatedDecay
from spikebert.packing import LengthGroup, Packing, linear_in_buckets, side_on
from spikebert.position_code import position_code
from spikebert.positions import PositionBias
from spikebert.rounding import held_within, round_bias, round_straight_through, round_weight
from spikebert.spikes import SpikeOperationError, Spikes, add, check_spikes
from spikebert.synchronised_norm import SynchronisedBatchNorm


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class Neuron:
    """What the neurons of a layer are like. Raises ValueError for a value outside its range.

    decay            dv, 0 .. 4095: a membrane keeps (4096 - dv) / 4096 of itself each step
    surrogate        whose gradient stands in for that of the step: "atan" or "sigmoid" (SpikingJelly's)
    surrogate_alpha  its steepness
    reset            of a membrane that fires: "zero", or "subtract": it loses its threshold and goes on with the rest
    spike            what is sent: "binary", "graded" (how many thresholds it is above, at most `cap`) or "ternary"
    cap              of graded spikes 2 .. 255; 1 of others
    """

    decay: int = 2048
    surrogate: str = "atan"
    surrogate_alpha: float = 2.0
    reset: str = "zero"
    spike: str = "binary"
    cap: int = 1

    def __post_init__(self) -> None:
        require(0 <= self.decay <= 4095, f"decay is {self.decay}, it must be 0 .. 4095")
        require(self.surrogate in SURROGATES, f"surrogate is '{self.surrogate}', it must be one of {SURROGATES}")
        require(self.reset in RESETS, f"reset is '{self.reset}', it must be one of {RESETS}")
        require(self.spike in SPIKES, f"spike is '{self.spike}', it must be one of {SPIKES}")
        least, most = (2, CAP_MAX) if self.spike == "graded" else (1, 1)
        require(least <= self.cap <= most, f"cap is {self.cap}, of {self.spike} spikes it must be {least} .. {most}")

    def counting(self, cap: int) -> Neuron:
        """The same, but that it sends 0 .. cap: bits where that is 1, else graded spikes."""
        return replace(self, spike="graded" if cap > 1 else "binary", cap=cap)

    def make(self) -> LoihiLIF:
        """In float mode."""
        return LoihiLIF(self.decay, False, self.surrogate, self.surrogate_alpha, self.reset, self.spike, self.cap)


DEFAULT_NEURON = Neuron()


class SpikingLayer(nn.Module):
    """What has numbers to be rounded: born in float mode, turned to integer mode once, before weights are loaded."""

    integer = False

    def use_integers(self, weight_bits: int) -> None:
        """Compute with integers from now on. `spikebert.quantise` also chooses them."""
        self.integer = True
        for module in self.children():
            if isinstance(module, LoihiLIF):
                module.integer = True


class Encoder(SpikingLayer):
    """Token ids to spikes: current = token + position, then a LIF (threshold 1), or its sign at every t.

    neuron      sends binary or graded spikes

    vocabulary  rows of the token table
    features    D
    n_max       the most tokens of a text, [CLS] and [SEP] included
    timesteps   T
    kind        "lif": a neuron turns the current into spikes over T steps;
                "sign": constant spikes where the current is >= 0 (SpikeBERT's)
    positions   whether learned positions are added; they count real tokens
    code        P, features of spike-coded positions behind the D of the token (`position_code.py`); 0 for none
    gain        of graded spikes: how many times larger token currents begin, so that their levels are used
    """

    threshold: Tensor
    code: Tensor | None
    token_bits = 8  # of the table in integer mode

    def __init__(
        self,
        vocabulary: int,
        features: int,
        n_max: int,
        timesteps: int = 4,
        neuron: Neuron = DEFAULT_NEURON,
        kind: str = "lif",
        positions: bool = True,
        code: int = 0,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        require(kind in ENCODERS, f"kind is '{kind}', it must be one of {ENCODERS}")
        for name, value in (("vocabulary", vocabulary), ("features", features), ("n_max", n_max), ("T", timesteps)):
            require(value >= 1, f"{name} is {value}, it must be 1 or more")
        require(code >= 0, f"code is {code}, it must be 0 or more features")
        require(gain > 0, f"gain is {gain}, it must be above 0")
        sends = ("binary", "graded") if kind == "lif" else ("binary",)
        require(
            neuron.spike in sends,
            f"the neurons of an Encoder send '{neuron.spike}' spikes, of kind '{kind}' they must be one of {sends}",
        )
        self.gain = gain if neuron.cap > 1 else 1.0
        self.n_max, self.timesteps, self.kind = n_max, timesteps, kind
        self.token = nn.Embedding(vocabulary, features)
        self.position = nn.Embedding(n_max, features) if positions else None
        with torch.no_grad():  # token currents that let a few per cent of the neurons fire
            for table in (self.token, self.position):
                if table is not None:
                    table.weight.mul_(0.5)
            self.token.weight.mul_(self.gain)
        self.lif = neuron.make()
        self.register_buffer("threshold", torch.tensor(1.0))  # integer mode: in units of the table
        # kept with the weights: another machine's sine may differ in its last bit
        spikes = torch.from_numpy(position_code(timesteps, n_max, code)) if code else None  # [T, n_max, P]
        self.register_buffer("code", spikes)

    @property
    def scaled(self) -> list[nn.Parameter]:
        """What is added to currents of the size of `gain`, and is the same for all tokens: their places."""
        return [] if self.position is None else [self.position.weight]

    def set_timesteps(self, timesteps: int) -> None:
        """Run for so many timesteps from now on. Raises ValueError below 1, and beyond those of a code."""
        require(timesteps >= 1, f"timesteps is {timesteps}, it must be 1 or more")
        if self.code is not None:
            known = len(self.code)
            require(
                timesteps <= known,
                f"timesteps is {timesteps}, the spike-coded positions are those of {known} timesteps",
            )
            self.code = self.code[:timesteps].clone()
        self.timesteps = timesteps

    def round_token(self, token: Tensor) -> Tensor:
        """Integer mode: rows of the table in its units, int8 held in floats; gradients pass.

        Of fewer bits they are multiples of a power of two: of 4 bits -112, -96, .. 112.
        """
        step = 2 ** (8 - self.token_bits)
        most = 127 // step
        return held_within(round_straight_through(token * (self.threshold / step)), -most, most) * step

    def round_position(self, position: Tensor) -> Tensor:
        """Integer mode: rows of the position table in the same units."""
        return round_straight_through(position * self.threshold)

    def current(self, input_ids: Tensor, packing: Packing) -> Tensor:
        """[B, N] ids -> the current of each real token [R, D]"""
        ids = input_ids.flatten().index_select(0, packing.index)  # [R]
        token = self.token(ids)
        current = self.round_token(token) if self.integer else token
        if self.position is None:
            return current
        position = self.position(packing.places)
        return current + (self.round_position(position) if self.integer else position)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Spikes:
        """input_ids [B, N] and attention_mask [B, N] (1 real, 0 padding; all real where it is None).

        Padding never changes a result, on whichever side it stands. Raises ValueError for a text longer than n_max or
        with no real token, and in integer mode in less than float32.
        """
        require(
            input_ids.shape[1] <= self.n_max,
            f"{input_ids.shape[1]} tokens, the model takes {self.n_max}: truncate the text",
        )
        dtype = self.token.weight.dtype
        require(
            not self.integer or dtype in (torch.float32, torch.float64),
            f"an integer model in {dtype} would lose integers: load it in float32",
        )
        packing = Packing(torch.ones_like(input_ids) if attention_mask is None else attention_mask)
        require(
            bool(packing.lengths.all()),
            "a text with an all-zero attention_mask: every text has at least [CLS] and [SEP]",
        )
        current = self.current(input_ids, packing)
        if self.kind == "sign":
            step = self.lif.surrogate_function(current / self.threshold)  # SpikingJelly's step is >= 0
            spikes = step.expand(self.timesteps, -1, -1)
        else:
            spikes = self.lif(current.expand(self.timesteps, -1, -1), self.threshold)
        if not self.integer:
            spikes = spikes.to(type_between_layers(spikes))
        if self.code is not None:
            spikes = torch.cat([spikes, self.code[:, packing.places].to(spikes.dtype)], -1)
        cap = self.lif.cap
        return Spikes(spikes, packing, cap, self, cap=cap)  # [T, R, D], or D + P with a code


def type_between_layers(x: Tensor) -> torch.dtype:
    """In which type a float model keeps spikes and currents: that of mixed precision on a GPU, else that of x.

    Spikes and their sums are small integers, which bf16 holds exactly up to 256 (many graded ones may add up to more,
    and lose their last bit), and a linear layer's result has been rounded to it already. Between matrix products a GPU
    waits for memory, and so for half as long. A CPU's neurons are compiled for float32 (`fused_lif.py`).
    """
    device = x.device.type
    mixed = device != "cpu" and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if mixed else x.dtype


FIRING_RATE = 0.15  # that a layer without a norm expects of its inputs when it is made, and comes to itself


def first_threshold(spikes_in: int) -> float:
    """Where the thresholds of a layer without a norm begin, so that some of its neurons fire and most do not.

    An input that is the sum of n spikes of rate p has a mean square of `n p + n (n - 1) p^2`. The weights of a linear
    layer begin evenly spread with a variance of 1 / (3 in) (torch's), so its current has a third of that mean square.
    The threshold is one standard deviation of it; docs/training.md has the rates that come of it.
    """
    mean_square = spikes_in * FIRING_RATE * (1 + (spikes_in - 1) * FIRING_RATE)
    return float(mean_square / 3) ** 0.5


class SpikingLinear(SpikingLayer):
    """Linear -> norm -> LIF (threshold 1), token by token; in integer mode all of it in integers.

    kind              what stands between the two
                      "batch": BatchNorm over all tokens; folded into the weights in integer mode
                      "layer", "rms": over the features of a token; stays there (`integer_norm.py`)
                      "none": nothing; each feature learns a threshold of its own, which stays above 0
    scalar_thresholds with "none": quantised, thresholds are folded into the weights, and the layer has one
    spikes_in         with "none": of how many spikes its inputs are the sum, for `first_threshold`
    gain              of graded spikes: how many thresholds a deviation of the current is at first, so that their levels
                      are used: what a norm begins with, and by how much thresholds begin lower

    norm is None where there is none, or where it has been folded into `linear`; log_threshold, the logarithms of the
    thresholds, where it learns none.
    """

    threshold: Tensor
    units: Tensor | None
    log_threshold: nn.Parameter | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        neuron: Neuron = DEFAULT_NEURON,
        norm: str = "batch",
        scalar_thresholds: bool = False,
        spikes_in: int = 1,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        require(norm in NORMS, f"norm is '{norm}', it must be one of {NORMS}")
        require(spikes_in >= 1, f"spikes_in is {spikes_in}, it must be 1 or more")
        require(gain > 0, f"gain is {gain}, it must be above 0")
        scalar = scalar_thresholds and norm != "none"
        require(not scalar, f"scalar_thresholds with norm '{norm}': only norm 'none' learns thresholds")
        self.weight_bits, self.kind, self.scalar_thresholds = 8, norm, scalar_thresholds
        self.linear = nn.Linear(inputs, outputs)
        nn.init.zeros_(self.linear.bias)
        self.norm: nn.BatchNorm1d | nn.LayerNorm | nn.RMSNorm | None = None
        if norm == "batch":
            self.norm = SynchronisedBatchNorm(outputs)
        elif norm != "none":
            self.norm = make_norm(norm, outputs)
        self.gain = gain if neuron.cap > 1 else 1.0
        self.set_gain()
        first = torch.full((outputs,), first_threshold(spikes_in) / self.gain).log() if norm == "none" else None
        self.register_parameter("log_threshold", None if first is None else nn.Parameter(first))
        self.lif = neuron.make()
        self.register_buffer("threshold", torch.tensor(1.0))  # integer mode: accumulator units
        # integer mode: accumulator units of 1.0 before a norm over features; without one the threshold's are those
        self.register_buffer("units", torch.tensor(1.0) if self._normalises else None)

    def set_gain(self) -> None:
        """Let the norm begin with its gain."""
        if self.norm is not None:
            nn.init.constant_(self.norm.weight, self.gain)

    @property
    def scaled(self) -> list[nn.Parameter]:
        """What is in units of `gain`: the parameters of a norm that begins with it."""
        return [] if self.norm is None else list(self.norm.parameters())

    @property
    def _normalises(self) -> bool:
        """Whether its norm is over the features of a token."""
        return self.kind in ("layer", "rms")

    @property
    def weight_units(self) -> Tensor:
        """Integer mode: accumulator units of 1.0 of the weights."""
        return self.threshold if self.units is None else self.units

    @property
    def thresholds(self) -> Tensor:
        """Integer mode: one [], or one for each feature [D] with gradients, 1 .. 65535 accumulator units."""
        if self.log_threshold is None:
            return self.threshold
        return held_within(round_straight_through(self.log_threshold.exp() * self.threshold), 1, 65535)

    def use_integers(self, weight_bits: int) -> None:
        super().use_integers(weight_bits)
        self.weight_bits = weight_bits
        if not self._normalises:
            self.norm = None
        if self.scalar_thresholds:
            self.log_threshold = None

    def integers(self, input_max: int, signed: bool = False) -> tuple[Tensor, Tensor]:
        """Integer mode: weight [out, in] and bias [out] for inputs 0 .. input_max (`signed`: from -input_max), held in
        floats, with gradients."""
        bias = round_bias(self.linear.bias, self.weight_units)
        return round_weight(self.linear.weight, self.weight_units, self.weight_bits, input_max, bias, signed), bias

    def norm_integers(self) -> NormIntegers | None:
        """Integer mode: those of a norm over features, None without one."""
        if isinstance(self.norm, (nn.LayerNorm, nn.RMSNorm)):
            return norm_integers(self.norm, self.weight_units, self.threshold)
        return None

    def forward(self, x: Spikes) -> Spikes:
        check_spikes((x,), "SpikingLinear", self.linear.in_features)
        rows, shape, normed = x.values.flatten(0, 1), x.values.shape[:2], None  # [T * R, in]
        if self.integer:
            current = integer_linear(rows, *self.integers(x.maximum, x.signed), x.maximum).unflatten(0, shape)
            if isinstance(self.norm, (nn.LayerNorm, nn.RMSNorm)):
                normed = integer_norm(current, self.norm, self.weight_units, self.threshold)
            spikes = self.lif(current if normed is None else normed, self.thresholds)
            return _fired(spikes, x.packing, self, (x,), current, normed)
        current = linear_in_buckets(self.linear, rows)
        if self._normalises and self.norm is not None:
            normed = self.norm(current).unflatten(0, shape)
        elif self.norm is not None:
            current = self.norm(current)
        if self.log_threshold is not None:  # a neuron at threshold 1 is that of a current so many times larger
            current = current / self.log_threshold.exp()
        current = current.unflatten(0, shape)
        spikes = self.lif(current if normed is None else normed, self.threshold)
        return _fired(spikes, x.packing, self, (x,), current, normed)


def _fired(
    values: Tensor,
    packing: Packing,
    maker: SpikingLinear | SpikingAttention,
    inputs: tuple[Spikes, ...],
    current: Tensor,
    normed: Tensor | None = None,
) -> Spikes:
    """What the neurons of a layer sent."""
    lif = maker.lif
    return Spikes(values, packing, lif.cap, maker, inputs, current, normed, lif.spike == "ternary", lif.cap)


class SpikingAttention(SpikingLayer):
    """LIF((q k^T) v) for each head, on spikes: counts of matches, no softmax, no scale.

    heads         H, must divide the width of q, k and v
    threshold     0 .. 65535: matches `(q k^T) v` must exceed for a spike. With "xnor" they are many more, about d for
                  each spike of v: see `spikebert.config.attention_threshold_for`
    similarity    which features of a query and a key match. "and": those that are 1 in both; "xnor": those that are
                  equal, 0 in both too (after Lv et al. 2025, arXiv 2501.16745)
    position_bias what a score has more for the places of query and key; None: nothing. Made for the largest spike of v
    """

    def __init__(
        self,
        heads: int,
        threshold: int = 16,
        neuron: Neuron = DEFAULT_NEURON,
        similarity: str = "and",
        position_bias: PositionBias | None = None,
    ) -> None:
        super().__init__()
        require(heads >= 1, f"heads is {heads}, it must be 1 or more")
        require(0 <= threshold <= 65535, f"threshold is {threshold}, it must be 0 .. 65535")
        require(similarity in SIMILARITIES, f"similarity is '{similarity}', it must be one of {SIMILARITIES}")
        if position_bias is not None:
            require(position_bias.heads == heads, f"{heads} heads, the position bias is for {position_bias.heads}")
        self.heads, self.threshold = heads, threshold
        self.similarity, self.position_bias = similarity, position_bias
        self.lif = neuron.make()

    def forward(self, q: Spikes, k: Spikes, v: Spikes) -> Spikes:
        packing = check_spikes((q, k, v), "SpikingAttention").packing
        if not all(isinstance(x.maker, (SpikingLinear, SpikingAttention)) for x in (q, k, v)):
            raise SpikeOperationError("q, k and v must each come straight from a SpikingLinear or a SpikingAttention")
        if any(x.maximum > 1 or x.signed for x in (q, k)):
            raise SpikeOperationError(
                "q and k must be binary spikes, for attention counts matches: make their layers with "
                'Neuron(spike="binary")'
            )
        if v.signed:
            raise SpikeOperationError("v must be binary or graded spikes, not ternary ones: they may be below 0")
        if q.features % self.heads:
            raise SpikeOperationError(f"{q.features} features do not divide into {self.heads} heads")

        dtype = self._type_of_products(q, v.maximum)
        between = q.values.dtype
        exact = self._exact_product(q) if self.integer else None
        # a position bias ends with the places that a model takes, which need not be a multiple of anything
        groups = packing.groups(self.heads, side_on(q.values.device) if self.position_bias is None else 1)
        rows = [group.rows for group in groups]
        mixed = []  # of each group [T, r, D]
        with torch.autocast(q.values.device.type, enabled=False):
            for group, *qkv in zip(groups, *(x.values.to(dtype).split(rows, 1) for x in (q, k, v))):
                q_heads, k_heads, v_heads = map(group.unpack, qkv)  # [T * b * H, n, d] each
                made = self._mix(group, q_heads, k_heads, v_heads, v.maximum, exact)
                mixed.append(group.pack(made, len(q.values)))
        current = torch.cat(mixed, 1).to(torch.promote_types(dtype, between))  # [T, R, D]
        return _fired(self.lif(current, self.threshold).to(between), packing, self, (q, k, v), current)

    def _mix(self, group: LengthGroup, q: Tensor, k: Tensor, v: Tensor, v_max: int, exact: Product | None) -> Tensor:
        """Scores times v, of q, k, v [T * b * H, n, d] each, those of v at most v_max. What stands at padding then is
        left out by `group.pack`, and a padded key brings nothing, for its v is silent."""
        if self.similarity == "xnor":  # equal: both 1, or their opposites both 1
            q, k = (torch.cat((x, 1 - x), dim=-1) for x in (q, k))
        if self.position_bias is None:
            return matches(q, k, v, exact, v_max)
        if group.tokens > self.position_bias.n_max:
            raise SpikeOperationError(f"{group.tokens} tokens, the position bias is for {self.position_bias.n_max}")
        bias = self.position_bias(group.tokens, v.device).to(v.dtype)
        return biased_matches(q, k, v, bias, self.position_bias.most, self.heads, exact, v_max)

    def _type_of_products(self, q: Spikes, v_max: int) -> torch.dtype:
        """That of mixed precision where it leaves the spikes as they are, else that of the spikes, float32 at least.

        bf16 holds integers up to 256 and rounds none above to less than 256; so does float16 (2048), which ends at
        65504. Here all are counts, sums of products of counts, and none is negative. So a result below 256 was made of
        exact numbers alone, in either order of the products, and one of 256 or more stays 256 or more however often
        it is rounded: it is above a threshold below 256, and the neuron fires and is reset either way. An integer model
        keeps every number exact, and so does one with a position bias, which may be negative, and one whose neurons
        send or keep more where the current is larger.
        """
        device = q.values.device.type
        given = torch.promote_types(q.values.dtype, torch.float32)
        if (
            self.integer
            or self.threshold >= 256
            or self.position_bias is not None
            or not self.lif.is_stock
            or not torch.is_autocast_enabled(device)
        ):
            return given
        mixed = torch.get_autocast_dtype(device)
        most = q.features // self.heads * q.packing.mask.shape[1] * v_max
        return mixed if most <= torch.finfo(mixed).max else given

    def _exact_product(self, q: Spikes) -> Product:
        """As `matches` takes it: exact, in the fastest type; under mixed precision its gradients are in that type."""
        device = q.values.device
        can = capabilities(device, batched=True)
        enabled = torch.is_autocast_enabled(device.type)
        gradients = torch.get_autocast_dtype(device.type) if enabled else None

        def product(a: Tensor, b: Tensor, a_max: int, b_max: int) -> Tensor:
            kind = exact_product(a_max, b_max, a_max * b_max * a.shape[-1], can)
            return exact_matmul(a, b, kind, gradients)

        return product


Product = Callable[[Tensor, Tensor, int, int], Tensor]  # two batches of matrices, the largest integer of each


def matches(q: Tensor, k: Tensor, v: Tensor, product: Product | None = None, v_max: int = 1) -> Tensor:
    """(q k^T) v of spikes [batch, n, d] each -> [batch, n, d]. With their opposites beside them q and k have 2 d.

    There is no softmax between the two products, so it is q (k^T v) too, of the same integers. The first makes
    n x n scores of at most d, the second d x d counts of at most n, and each costs as much: n * n * d or n * d * d
    twice. The cheaper one is made; neither sum passes n * d * v_max.

    product  `@`, or one for integers that must be exact
    v_max    the largest spike of v
    """
    product = product or (lambda a, b, a_max, b_max: a @ b)
    tokens, compared, features = q.shape[1], q.shape[2], v.shape[2]
    if tokens * (compared + features) <= 2 * compared * features:
        return product(product(q, k.transpose(1, 2), 1, 1), v, features, v_max)
    return product(q, product(k.transpose(1, 2), v, 1, v_max), 1, tokens * v_max)


def biased_matches(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, most: int, heads: int, product: Product | None = None,
    v_max: int = 1,
) -> Tensor:  # fmt: skip
    """(q k^T + bias) v as of `matches`; the bias of two places is no product of anything, so scores come first.

    bias  [1 or heads, n, n], its |values| at most `most`; the batch is of whole sets of heads
    """
    product = product or (lambda a, b, a_max, b_max: a @ b)
    scores = product(q, k.transpose(1, 2), 1, 1).unflatten(0, (len(q) // heads, heads)) + bias  # [batch / H, H, n, n]
    return product(scores.flatten(0, 1), v, v.shape[2] + most, v_max)


class Add(nn.Module):
    """The sum of two or more spikes, a residual. `a + b` is the same; this one gives the node of the graph its name."""

    def forward(self, *inputs: Spikes) -> Spikes:
        return add(inputs, self)


class Block(nn.Module):
    """Spiking attention and a spiking MLP, each followed by a residual addition of spikes.

    features D, inner the features between the two layers of the MLP, heads H; the attention's threshold, similarity and
    position_bias as of `SpikingAttention`
    neuron of all layers; those of query and key send bits whatever it is, for attention counts matches, and those of
    value 0 .. value_cap
    norm, scalar_thresholds, spikes_in as `SpikingLinear` has them; spikes_in of the block's input
    gain of layers that send graded spikes, as `SpikingLinear` has it
    """

    def __init__(
        self,
        features: int,
        inner: int,
        heads: int,
        attention_threshold: int = 16,
        neuron: Neuron = DEFAULT_NEURON,
        similarity: str = "and",
        position_bias: PositionBias | None = None,
        norm: str = "batch",
        scalar_thresholds: bool = False,
        spikes_in: int = 1,
        value_cap: int = 1,
        gain: float = 1.0,
    ) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, summed: int = 1, neuron: Neuron = neuron) -> SpikingLinear:
            return SpikingLinear(inputs, outputs, neuron, norm, scalar_thresholds, summed, gain)

        self.query = layer(features, features, spikes_in, neuron.counting(1))
        self.key = layer(features, features, spikes_in, neuron.counting(1))
        self.value = layer(features, features, spikes_in, neuron.counting(value_cap))
        self.attention = SpikingAttention(heads, attention_threshold, neuron, similarity, position_bias)
        self.out = layer(features, features)
        self.up = layer(features, inner, spikes_in + 1)
        self.down = layer(inner, features)
        self.add_attention, self.add_mlp = Add(), Add()

    def forward(self, x: Spikes) -> Spikes:
        x = self.add_attention(x, self.out(self.attention(self.query(x), self.key(x), self.value(x))))
        return self.add_mlp(x, self.down(self.up(x)))


class Logits(NamedTuple):
    """What a readout gives.

    logits          float [B, classes], the mean over timesteps and real tokens
    integer_logits  int64 [B, classes], integer mode only: the sums a chip's host makes
    current         float [T, R, classes], of each real token at each timestep
    """

    logits: Tensor
    integer_logits: Tensor | None
    current: Tensor


class Readout(SpikingLayer):
    """A linear classifier of each token at each t. Its currents become the logits in one of two ways:

    kind "sum"       their mean over timesteps and real tokens
    kind "membrane"  v = v * (4096 - decay) / 4096 + (the sum over real tokens), v = 0 before each text; v after the
                     last timestep, divided by what a current of 1 at every token and timestep brings. In integer mode v
                     is in units of 2^-7 and its decay rounds toward zero, as the graph's
    """

    steps: Tensor

    def __init__(self, inputs: int, classes: int, kind: str = "sum", decay: int = 2048) -> None:
        super().__init__()
        require(kind in READOUT_KINDS, f"kind is '{kind}', it must be one of {READOUT_KINDS}")
        require(0 <= decay < DECAY_ONE, f"decay is {decay}, it must be 0 .. {DECAY_ONE - 1}")
        self.kind, self.decay = kind, decay if kind == "membrane" else 0
        self.linear = nn.Linear(inputs, classes)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("steps", torch.tensor(1.0))  # integer mode: accumulator units per logit unit

    def integers(self, input_max: int, signed: bool = False) -> tuple[Tensor, Tensor]:
        """As of SpikingLinear; weights have 8 bits."""
        bias = round_bias(self.linear.bias, self.steps)
        return round_weight(self.linear.weight, self.steps, 8, input_max, bias, signed), bias

    def forward(self, x: Spikes) -> Logits:
        check_spikes((x,), "Readout", self.linear.in_features)
        with torch.autocast(x.values.device.type, enabled=False):
            if self.integer:
                rows = x.values.flatten(0, 1)  # [T * R, in]
                integers = self.integers(x.maximum, x.signed)
                current = integer_linear(rows, *integers, x.maximum).unflatten(0, x.values.shape[:2])
            else:
                weight = self.linear.weight
                current = F.linear(x.values.to(weight.dtype), weight, self.linear.bias)
        if self.kind == "sum":
            summed = x.packing.sum_per_text(current.sum(0, dtype=torch.float64))  # exact: far below 2^53
            unit = x.values.shape[0]
        else:
            summed = self.integrate(torch.stack([x.packing.sum_per_text(each.double()) for each in current]))
            unit = float(self.integrate(torch.ones(len(current), dtype=torch.float64)))
        mean = summed / (unit * x.packing.lengths[:, None])
        if not self.integer:
            return Logits(mean.to(current.dtype), None, current)
        return Logits((mean / self.steps).to(current.dtype), summed.detach().round().long(), current)

    def integrate(self, currents: Tensor) -> Tensor:
        """The membrane float64 [...] after currents float64 [T, ...]; in integer mode exact, below 2^53."""
        keep = (DECAY_ONE - self.decay) / DECAY_ONE  # a multiple of 2^-12: exact
        membrane = torch.zeros_like(currents[0])
        for current in currents:
            if self.integer:
                membrane = TruncatedDecay.apply(membrane, keep) + current * 2**SHIFT
            else:
                membrane = membrane * keep + current
        return membrane


class SpikingChain(nn.Module):
    """An encoder, layers one after another, and a readout: the simplest model, and what an `nn.Sequential` becomes.

    layers  modules that take spikes and give spikes: SpikingLinear, Block, nn.Dropout, modules of your own
    """

    def __init__(self, encoder: Encoder, layers: Sequence[nn.Module], readout: Readout) -> None:
        super().__init__()
        self.encoder = encoder
        self.layers = nn.ModuleList(layers)
        self.readout = readout

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Logits:
        x = self.encoder(input_ids, attention_mask)
        for layer in self.layers:
            x = layer(x)
        return self.readout(x)
