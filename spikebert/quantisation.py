"""From the float model to the integer model: fold BatchNorm, choose units, round. The one lossy step.

Folding is exact up to float rounding: with `g = gamma / sqrt(var + eps)`,
`BN(W x + b) = (g W) x + (g (b - mean) + beta)`. Then every layer gets one unit: its integer threshold,
the largest for which its largest weight fits in `weight_bits` bits and no accumulator can overflow.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikebert.config import SpikeBertConfig
from spikebert.model import Readout, SpikeBertForSequenceClassification, SpikingLinear
from spikebert.rounding import ACCUMULATOR_MAX, BIAS_MAX, largest_weight, row_reach

THRESHOLD_MAX = 65535  # accumulator units


def fold(linear: nn.Linear, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias [out] of the layer that equals `norm(linear(x))` in evaluation."""
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return linear.weight * gain[:, None], (linear.bias - norm.running_mean) * gain + norm.bias


def choose_units(weight: Tensor, bias: Tensor, bits: int, input_max: int) -> int:
    """Accumulator units per float unit, 1 .. 65535: as fine as weight bits and accumulator allow."""
    finest = largest_weight(bits) / max(float(weight.abs().max()), 1e-12)
    reach = float((row_reach(weight) * input_max + bias.abs()).max())
    rounding_slack = 1 - weight.shape[1] * input_max / ACCUMULATOR_MAX  # each weight may round up by a half
    roomy = ACCUMULATOR_MAX * max(rounding_slack, 0.5) / max(reach, 1e-12)
    unclipped = BIAS_MAX / max(float(bias.abs().max()), 1e-12)
    return int(min(max(min(finest, roomy, unclipped), 1), THRESHOLD_MAX))


def encoder_units(kind: str, table: Tensor) -> int:
    """Table units per float unit. The table is int8, so this decides where it is clipped.

    A LIF encoder of threshold 1 fires at every step from a current of 1 upwards, so a larger token current
    matters only where a negative position is added to it: 96 units clip at 1.32, which is a little lossy for
    such outliers and finer for all others. A sign encoder keeps its whole range.
    """
    if kind == "lif":
        return 96
    return max(1, int(min(127 / max(float(table.abs().max()), 1e-12), THRESHOLD_MAX)))


@torch.no_grad()
def quantise(model: SpikeBertForSequenceClassification, weight_bits: int = 8) -> SpikeBertForSequenceClassification:
    """The integer model of a trained float model, in evaluation mode; the float model stays as it is.

    Raises ValueError if the model is not in float mode.
    """
    if model.config.mode != "float":
        raise ValueError("the model is in integer mode already: quantise takes the float model")
    config = SpikeBertConfig(**(model.config.to_dict() | {"mode": "integer", "weight_bits": weight_bits}))
    integer = SpikeBertForSequenceClassification(config).to(model.device)
    integer.load_state_dict(model.state_dict(), strict=False)  # all but BatchNorm, which has no place there
    floats = dict(model.named_modules())
    for name, layer in integer.named_modules():
        if isinstance(layer, SpikingLinear):
            weight, bias = fold(floats[name].linear, floats[name].norm)
            layer.linear.weight.copy_(weight)
            layer.linear.bias.copy_(bias)
            layer.threshold.fill_(choose_units(weight, bias, weight_bits, layer.input_max))
        elif isinstance(layer, Readout):
            layer.steps.fill_(choose_units(layer.linear.weight, layer.linear.bias, 8, layer.input_max))
    integer.encoder.threshold.fill_(encoder_units(config.encoder, integer.encoder.token.weight))
    return integer.eval()
