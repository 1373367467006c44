"""The result of a run in words, for a person."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from converters.bundle import Bundle, Tokenised
from sim.run import RunResult
from sim.verify import Comparison

Z_95 = 1.959963984540054  # the standard normal quantile of a two-sided 95 % interval


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a fraction."""
    fraction, z2 = correct / total, Z_95**2
    centre = (fraction + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 / (1 + z2 / total) * math.sqrt(fraction * (1 - fraction) / total + z2 / (4 * total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def float_logits(bundle: Bundle, result: RunResult, real_tokens: Sequence[int]) -> np.ndarray:
    """`logit * scale / (T * real tokens)`, float64 [B, classes]; a sample without tokens counts as one token."""
    tokens = np.maximum(np.asarray(real_tokens, dtype=np.float64), 1.0)
    return result.logits * bundle.graph.readout.scale / (bundle.graph.timesteps * tokens[:, None])


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the classes, float64 [B, classes]."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def input_note(text: Tokenised) -> str | None:
    """What a person should know of an unusual text, or None."""
    if text.truncated:
        return f"cut to {len(text.ids):,} tokens of {text.full:,}"
    if text.is_empty:
        return "an empty text, classified as such"
    if text.only_unknown:
        return "only tokens the model does not know, so the class means little"
    return None


def human_report(
    bundle: Bundle,
    result: RunResult,
    real_tokens: Sequence[int],
    labels: Sequence[int] | None,
    names: Sequence[str] | None,
) -> str:
    """Lines of text: each sample where it has a name, then accuracy, activity, speed, and the comparison."""
    lines: list[str] = []
    if names is not None:
        lines += [*_each_sample(bundle, float_logits(bundle, result, real_tokens), result.predictions, names), ""]
    if labels is not None:
        lines += [*_accuracy(bundle, result.predictions, labels), ""]
    total = result.activity.total
    samples = len(result.logits)
    lines.append(f"firing rate          {total.rate or 0.0:.4f} spikes for each neuron, real token and timestep")
    lines.append(f"spikes               {total.spikes:,} ({total.spikes / samples:,.0f} a sample)")
    lines.append(
        f"synaptic operations  {total.synaptic_operations:,} ({total.synaptic_operations / samples:,.0f} a sample)"
    )
    lines.append(f"speed                {result.samples_per_second:,.2f} samples/s, {samples} on '{result.engine}'")
    if result.comparison is not None:
        lines += ["", _verdict(result.engine, result.comparison)]
    return "\n".join(lines)


def _each_sample(bundle: Bundle, logits: np.ndarray, predictions: np.ndarray, names: Sequence[str]) -> list[str]:
    lines = []
    for name, row, chances, predicted in zip(names, logits, probabilities(logits), predictions):
        scores = ", ".join(f"{label} {logit:+.3f}" for label, logit in zip(bundle.labels, row))
        lines += [name, f"  {bundle.labels[predicted]}, probability {chances[predicted]:.3f}   (logits: {scores})"]
    return lines


def _accuracy(bundle: Bundle, predictions: np.ndarray, labels: Sequence[int]) -> list[str]:
    classes = range(len(bundle.labels))
    truth = np.asarray(labels)
    correct = int(np.count_nonzero(predictions == truth))
    low, high = wilson_interval(correct, len(truth))
    width = max(15, *(len(name) for name in bundle.labels)) + 2
    header = "".join(f"{name:>{width}}" for name in bundle.labels)
    rows = [
        f"{bundle.labels[true]:>{width}}"
        + "".join(f"{int(np.count_nonzero((truth == true) & (predictions == said))):>{width},}" for said in classes)
        for true in classes
    ]
    return [
        f"accuracy             {100 * correct / len(truth):.2f} % ({correct:,} of {len(truth):,}), "
        f"95 % interval {100 * low:.2f} .. {100 * high:.2f} %",
        f"{'true, predicted':>{width}}{header}",
        *rows,
    ]


def _verdict(engine: str, comparison: Comparison) -> str:
    compared = f"{comparison.values_compared:,} values of '{engine}'"
    if comparison.mismatches == 0:
        return f"verified: all {compared} equal those of the reference"
    return f"NOT EQUAL: {comparison.mismatches:,} of {compared} differ from the reference"
