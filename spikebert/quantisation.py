"""From the float model to the integer model: fold what can be folded, choose units, round. The one lossy step.

Folding is exact up to float rounding: with `g = gamma / sqrt(var + eps)`,
`BN(W x + b) = (g W) x + (g (b - mean) + beta)`. Then every layer gets one unit: its integer threshold,
the largest for which its largest weight fits in `weight_bits` bits and no accumulator can overflow. A norm over the
features of a token cannot be folded: it stays, in integers (`integer_norm.py`), and has units of its own behind it.
Thresholds that features learned become integers in the units of their layer, or are folded too: `v > threshold` for
a current `W x + b` is `v' > 1` for `(W / threshold) x + b / threshold`.

With some texts rounding is made up for (`calibration.py`), layer by layer: each sees the spikes of those before it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from spikebert.calibration import add_moments, compensated, layers_within_reach
from spikebert.config import SpikeBertConfig
from spikebert.integer_norm import choose_norm_units
from spikebert.layers import Readout, SpikingLayer, SpikingLinear
from spikebert.recording import Recording, float_layers, record_one_token
from spikebert.rounding import ACCUMULATOR_MAX, BIAS_MAX, largest_weight, nearest_weight, row_reach

THRESHOLD_MAX = 65535  # accumulator units
UNITS_TRIED = 60  # of few bits
UNITS_OF_BITS = 96  # of an encoder that sends bits
CLIPPED_ABOVE = 0.32  # thresholds above the last one, for negative positions
ROWS_TRIED = 2048  # of a token table
Model = TypeVar("Model", bound=nn.Module)
Batch = tuple[Tensor, Tensor]  # input_ids and attention_mask


def fold(linear: nn.Linear, norm: nn.BatchNorm1d | None) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias [out] of the layer that equals `norm(linear(x))` in evaluation."""
    weight = linear.weight
    bias = torch.zeros_like(weight[:, 0]) if linear.bias is None else linear.bias
    if norm is None:
        return weight, bias
    return weight * _gain(norm)[:, None], apply_norm(norm, bias)


def apply_norm(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """`norm(x)` in evaluation, x [..., D]"""
    centred = (x - norm.running_mean) * _gain(norm)
    return centred if norm.bias is None else centred + norm.bias


def _gain(norm: nn.BatchNorm1d) -> Tensor:
    """What a BatchNorm in evaluation multiplies by, [D]; one made with affine=False has no weight."""
    spread = torch.sqrt(norm.running_var + norm.eps)
    return 1 / spread if norm.weight is None else norm.weight / spread


def choose_units(weight: Tensor, bias: Tensor, bits: int, input_max: int, signed: bool = False) -> int:
    """Accumulator units per float unit, 1 .. 65535: as fine as weight bits and accumulator allow for inputs of
    0 .. input_max, or where `signed` from -input_max.

    Of 8 bits the largest weight is the largest integer. Of fewer the units are those of the least squared error of
    rounding: a few large weights are cut, or most of the others would become 0. Of 1 bit a unit is about the mean
    |weight| (as in XNOR-Net, Rastegari et al. 2016, arXiv 1603.05279), whatever the accumulator holds: none of its
    weights is smaller than 1. Raises ValueError where it does not hold them.
    """
    if bits == 1:
        _require_short_row(weight.shape[1], input_max)
    finest = _finest_units(weight, bits)
    reach = float((row_reach(weight, signed) * input_max + bias.abs()).max())
    rounding_slack = 1 - weight.shape[1] * input_max / ACCUMULATOR_MAX  # each weight may round up by a half
    roomy = math.inf if bits == 1 else ACCUMULATOR_MAX * max(rounding_slack, 0.5) / max(reach, 1e-12)
    unclipped = BIAS_MAX / max(float(bias.abs().max()), 1e-12)
    return int(min(max(min(finest, roomy, unclipped), 1), THRESHOLD_MAX))


def require_short_rows(model: nn.Module, weight_bits: int) -> None:
    """Raises ValueError, with the layer, where rows are too long for weights of so many bits; only 1 bit has such."""
    if weight_bits > 1:
        return
    recording = record_one_token(model)
    names = {step.layer: step.name for step in recording.steps}
    for layer, input_max in recording.uses().items():
        if isinstance(layer, SpikingLinear):
            try:
                _require_short_row(layer.linear.in_features, input_max)
            except ValueError as error:
                raise ValueError(f"'{names[layer]}': {error}") from None


def least_room(model: nn.Module) -> tuple[str, int, float]:
    """The spiking layer whose accumulator is fullest, the largest number that it reads, and how many units its weights
    may have in the mean, half of them below 0, before their sum could pass the accumulator.

    Of a trained layer they have a half to a quarter of that, for its longest row decides for all.
    """
    recording = record_one_token(model)
    names = {step.layer: step.name for step in recording.steps}
    return min(
        (
            (names[layer], input_max, 2 * ACCUMULATOR_MAX / (input_max * layer.linear.in_features))
            for layer, input_max in recording.uses().items()
            if isinstance(layer, SpikingLinear)
        ),
        key=lambda found: found[-1],
    )


def _require_short_row(inputs: int, input_max: int) -> None:
    most = (ACCUMULATOR_MAX - BIAS_MAX) // input_max
    if inputs > most:
        raise ValueError(
            f"weights of 1 bit cannot be 0, and a row of {inputs:,} of them with inputs of up to {input_max} may pass "
            f"the accumulator, which holds {ACCUMULATOR_MAX:,}: of such inputs it takes {most:,}. Use 2 bits"
        )


def _finest_units(weight: Tensor, bits: int) -> float:
    largest, most = largest_weight(bits), max(float(weight.abs().max()), 1e-12)
    if bits == 1:  # units are whole, and few where weights are large: the better one of the two beside the best
        below = float(int(min(max(1 / max(float(weight.abs().mean()), 1e-12), 1), THRESHOLD_MAX)))
        return min((below, below + 1), key=lambda units: _rounding_error(weight, units, bits))
    if bits == 8:
        return largest / most
    typical = max(float(weight.abs().mean()), most / 100)
    candidates = torch.logspace(0, math.log10(2 * most / typical), UNITS_TRIED, dtype=torch.float64) * (largest / most)
    errors = [_rounding_error(weight, float(units), bits) for units in candidates]
    return float(candidates[int(torch.tensor(errors).argmin())])


def _rounding_error(weight: Tensor, units: float, bits: int) -> float:
    """The sum of squares of what rounding adds to the weights."""
    rounded = nearest_weight(weight * units, bits).div_(units)
    return float((rounded - weight).square_().sum())


def encoder_units(kind: str, table: Tensor, cap: int = 1, bits: int = 8) -> int:
    """Table units per float unit. The table is int8, so this decides where it is clipped.

    A LIF encoder of threshold 1 fires at every step from a current of 1 upwards, so a larger token current
    matters only where a negative position is added to it: 96 units clip at 1.32, which is a little lossy for
    such outliers and finer for all others. A sign encoder keeps its whole range.

    Graded spikes up to `cap` need cap + 0.32 for that, and few tokens come so far: the units are those for which what
    a table of so many bits holds has the least squared error, as far as the cap.
    """
    if kind == "lif" and cap == 1:
        return UNITS_OF_BITS
    whole = max(1, int(min(127 / max(float(table.abs().max()), 1e-12), THRESHOLD_MAX)))
    if kind == "sign":
        return whole
    rows = table[:: max(1, len(table) // ROWS_TRIED)].float().clamp(-cap - CLIPPED_ABOVE, cap + CLIPPED_ABOVE)
    tried = range(max(1, min(whole, int(127 / (cap + CLIPPED_ABOVE)))), UNITS_OF_BITS + 1)
    return min(tried, key=lambda units: float((_held(rows, units, bits) - rows).square_().sum()))


def _held(table: Tensor, units: int, bits: int) -> Tensor:
    """What a table of so many bits holds of these currents, as `Encoder.round_token` has it."""
    step = 2 ** (8 - bits)
    most = 127 // step
    return (table * (units / step)).round_().clamp_(-most, most) * (step / units)


@torch.no_grad()
def folded(model: Model) -> Model:
    """The float model in evaluation mode with every BatchNorm folded into its layer, and thresholds where a layer is to
    have one; the model stays as it is."""
    twin = copy.deepcopy(model).eval()
    for layer in twin.modules():
        if isinstance(layer, SpikingLinear):
            fold_norm(layer)
    return twin


@torch.no_grad()
def quantise(
    model: Model,
    weight_bits: int = 8,
    texts: Sequence[Batch] = (),
    token_bits: int = 8,
    tell: Callable[[int, int], None] | None = None,
) -> Model:
    """The integer model of a trained float model, in evaluation mode; the float model stays as it is.

    model        any module of spiking layers (`spikebert.recording.record` says which)
    weight_bits  1 .. 8, of every SpikingLinear
    texts        batches of input_ids and attention_mask, [B, N] each, on the model's device: with a hundred texts of
                 those it is for, rounding is made up for (docs/training.md). Empty: weights are rounded to the nearest
    token_bits   2 .. 8, of the encoder's token table
    tell         is told now and then how many layers of how many are rounded

    Raises ValueError if the model is not in float mode or has weights that are no numbers, or where rows are too long
    for weights of 1 bit, and RecordingError (a ValueError too) for a module that is not made of spiking layers.
    """
    if not 1 <= weight_bits <= 8:
        raise ValueError(f"weight_bits is {weight_bits}, it must be 1 .. 8")
    if not 2 <= token_bits <= 8:
        raise ValueError(f"token_bits is {token_bits}, it must be 2 .. 8")
    twin = copy.deepcopy(model).eval()
    recording = record_one_token(twin)
    _check_float(recording)
    encoder = recording.encoder
    require_short_rows(twin, weight_bits)
    encoder.use_integers(weight_bits)
    encoder.token_bits = token_bits
    units = encoder_units(encoder.kind, encoder.token.weight, encoder.lif.cap, token_bits)
    encoder.threshold.fill_(units)
    signed, uses = recording.signed_uses(), recording.uses()
    rounded: set[SpikingLinear | Readout] = set()
    while len(rounded) < len(uses):
        moments: dict[SpikingLinear | Readout, Tensor] = {}
        ready = layers_within_reach(recording, rounded) if texts else list(uses)
        for ids, mask in texts:
            add_moments(moments, twin, ids, mask, {layer: recording.calls[layer] for layer in ready})
        for layer in ready:
            round_layer(layer, weight_bits, uses[layer], layer in signed, moments.get(layer))
        rounded.update(ready)
        if tell is not None:
            tell(len(rounded), len(uses))
    for layer in twin.modules():
        if isinstance(layer, SpikingLayer) and not layer.integer:  # attention, and what the forward pass leaves out
            layer.use_integers(weight_bits)
    config = getattr(twin, "config", None)
    if isinstance(config, SpikeBertConfig):
        chosen = {"mode": "integer", "weight_bits": weight_bits, "token_bits": token_bits}
        twin.config = SpikeBertConfig(**(config.to_dict() | chosen))
    return twin


def round_layer(
    layer: SpikingLinear | Readout,
    weight_bits: int,
    input_max: int,
    signed: bool = False,
    moments: Tensor | None = None,
) -> None:
    """Turn a layer to integers: fold what can be, choose its units. `input_max`: the largest |value| of its inputs;
    `signed`: they may be below 0; `moments` of them, with which rounding is made up for."""
    if isinstance(layer, SpikingLinear):
        fold_norm(layer)
    layer.use_integers(weight_bits)
    bits = 8 if isinstance(layer, Readout) else weight_bits
    linear = layer.linear
    units = choose_units(linear.weight, linear.bias, bits, input_max, signed)
    if isinstance(layer, Readout):
        layer.steps.fill_(units)
    else:
        if layer.log_threshold is not None:
            highest = float(layer.log_threshold.exp().max())
            units = max(1, min(units, int(THRESHOLD_MAX / highest)))
        layer.weight_units.fill_(units)
        if isinstance(layer.norm, (nn.LayerNorm, nn.RMSNorm)):
            layer.threshold.fill_(choose_norm_units(layer.norm))
    if moments is not None:
        moved = compensated(linear.weight, linear.bias, units, bits, moments, input_max, signed)
        linear.weight.copy_(moved[0])
        linear.bias.copy_(moved[1])


def fold_norm(layer: SpikingLinear) -> None:
    """Put a layer's BatchNorm, or the thresholds of its features where it is to have one, into its weights."""
    if layer.scalar_thresholds and layer.log_threshold is not None:
        thresholds = layer.log_threshold.exp()
        layer.linear.weight.div_(thresholds[:, None])
        layer.linear.bias.div_(thresholds)
        layer.log_threshold = None
    if isinstance(layer.norm, nn.BatchNorm1d):
        weight, bias = fold(layer.linear, layer.norm)
        layer.linear.weight.copy_(weight)
        layer.linear.bias.copy_(bias)
        layer.norm = None


def _check_float(recording: Recording) -> None:
    used = {step.name: step.layer for step in recording.steps} | {recording.readout_name: recording.readout}
    if len(float_layers(recording)) < sum(isinstance(layer, SpikingLayer) for layer in used.values()):
        raise ValueError("the model is in integer mode already: quantise takes the float model")
    for name, layer in used.items():
        if layer is not None and not all(torch.isfinite(value).all() for value in layer.state_dict().values()):
            raise ValueError(f"'{name}' has weights that are infinite or no numbers: its training went astray")
