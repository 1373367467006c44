"""The result of a run in words, for a person."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from converters import readout
from converters.bundle import Bundle
from converters.execution import Activity, NodeActivity
from converters.graph import Graph
from sim.energy import Energy
from sim.predictions import Prediction
from sim.probe import NodeSummary
from sim.rows import BadRow
from sim.run import Outcome, Summary
from sim.verify import Comparison

PARTS_MAX = 30  # lines of the table of parts
Z_95 = 1.959963984540054  # the standard normal quantile of a two-sided 95 % interval


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a fraction."""
    fraction, z2 = correct / total, Z_95**2
    centre = (fraction + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 / (1 + z2 / total) * math.sqrt(fraction * (1 - fraction) / total + z2 / (4 * total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def float_logits(bundle: Bundle, outcome: Outcome) -> np.ndarray:
    """What `converters.readout.float_logits` makes of the logits, float64 [classes]."""
    assert outcome.logits is not None
    timesteps = bundle.graph.timesteps if outcome.timesteps is None else outcome.timesteps
    return readout.float_logits(bundle.graph, outcome.logits, timesteps, outcome.real_tokens)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the classes, float64, as `logits` [..., classes]."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def prediction_of(bundle: Bundle, outcome: Outcome) -> Prediction:
    """An outcome as a line of a file of predictions."""
    if isinstance(outcome.row, BadRow):
        return Prediction(outcome.row.number, error=outcome.row.reason)
    assert outcome.logits is not None and outcome.prediction is not None
    chances = probabilities(float_logits(bundle, outcome))
    return Prediction(
        outcome.row.number,
        bundle.labels[outcome.prediction],
        float(chances[outcome.prediction]),
        tuple(outcome.logits.tolist()),
        timesteps=outcome.timesteps,
    )


def sample_report(bundle: Bundle, name: str, outcome: Outcome) -> str:
    """Two lines: a sample and its class."""
    assert outcome.prediction is not None
    logits, predicted = float_logits(bundle, outcome), outcome.prediction
    scores = ", ".join(f"{label} {logit:+.3f}" for label, logit in zip(bundle.labels, logits))
    ran = "" if outcome.timesteps is None else f", after {outcome.timesteps} of {bundle.graph.timesteps} timesteps"
    chance = probabilities(logits)[predicted]
    return f"{name}\n  {bundle.labels[predicted]}, probability {chance:.3f}{ran}   (logits: {scores})"


def human_report(bundle: Bundle, summary: Summary) -> str:
    """Lines of text: accuracy where labels are known, activity, speed, and the comparison."""
    assert summary.activity is not None
    lines: list[str] = []
    total, samples = summary.activity.total, summary.samples
    if summary.confusion.any():
        lines += [*_accuracy(bundle, summary.confusion, samples), ""]
    lines.append(f"firing rate          {total.rate or 0.0:.4f} spikes for each neuron, real token and timestep")
    lines.append(f"spikes               {total.spikes:,} ({total.spikes / samples:,.0f} a sample)")
    lines.append(
        f"synaptic operations  {total.synaptic_operations:,} ({total.synaptic_operations / samples:,.0f} a sample)"
    )
    if summary.early_exit is not None:
        lines.append(f"timesteps            {exit_words(summary)}")
    if total.saturations:
        lines.append(f"membranes cut        {total.saturations:,} times at 2^23 - 1, to either side")
    lines.append(f"speed                {summary.samples_per_second:,.2f} samples/s, {samples:,} on '{summary.engine}'")
    lines += ["", *_parts(summary.activity, samples)]
    if summary.probes:
        lines += ["", *_probes(bundle.graph, summary.probes)]
    if summary.comparison is not None:
        lines += ["", verdict(summary.engine, summary.comparison)]
    return "\n".join(lines)


def exit_words(summary: Summary) -> str:
    """How many timesteps a sample took, and how many stopped after each."""
    counts = ", ".join(f"{count:,} after {t}" for t, count in enumerate(summary.stopped.tolist(), start=1))
    return f"{summary.mean_timesteps:.3f} a sample, of {len(summary.stopped)} (stopped: {counts})"


def _accuracy(bundle: Bundle, confusion: np.ndarray, samples: int) -> list[str]:
    correct, labelled = int(confusion.trace()), int(confusion.sum())
    low, high = wilson_interval(correct, labelled)
    width = max(15, *(len(name) for name in bundle.labels)) + 2
    header = "".join(f"{name:>{width}}" for name in bundle.labels)
    rows = [
        f"{name:>{width}}" + "".join(f"{count:>{width},}" for count in counts)
        for name, counts in zip(bundle.labels, confusion.tolist())
    ]
    unlabelled = f"; {samples - labelled:,} without a label" if samples > labelled else ""
    return [
        f"accuracy             {100 * correct / labelled:.2f} % ({correct:,} of {labelled:,}), "
        f"95 % interval {100 * low:.2f} .. {100 * high:.2f} %{unlabelled}",
        f"{'true, predicted':>{width}}{header}",
        *rows,
    ]


def _parts(activity: Activity, samples: int) -> list[str]:
    """A table of the parts of a network, a block each; where there are more than PARTS_MAX, none."""
    parts: dict[str, NodeActivity] = {}
    for name, counts in activity.per_node.items():
        part = ".".join(name.split(".")[:2])  # blocks.0.query.lif belongs to blocks.0
        parts[part] = parts.get(part, NodeActivity()) + counts
    if len(parts) > PARTS_MAX:
        return [f"{len(activity.per_node)} nodes; --json tells what each did"]
    width, any_cut = max(20, *map(len, parts)), activity.total.saturations > 0
    return [
        f"{'part':<{width}} {'firing rate':>11} {'spikes a sample':>18} {'operations a sample':>21}"
        + (f" {'membranes cut':>15}" if any_cut else ""),
        *(
            f"{name:<{width}} {'' if counts.rate is None else f'{counts.rate:.4f}':>11} "
            f"{counts.spikes / samples:>18,.0f} {counts.synaptic_operations / samples:>21,.0f}"
            + (f" {counts.saturations:>15,}" if counts.saturations else "")
            for name, counts in parts.items()
        ),
    ]


def _probes(graph: Graph, probes: Mapping[str, NodeSummary]) -> list[str]:
    """A line for each probed node: the share of its values that are not 0 (of a neuron, its firing rate), its range and
    mean, how many of its features never were anything but 0, and that share at each timestep. Padding is left out."""
    width = max(20, *map(len, probes))
    lines = [f"{'probe':<{width}} {'nonzero':>7} {'range':>18} {'mean':>11} {'silent features':>16}   at each timestep"]
    for name, probe in probes.items():
        if not probe.sites.any():
            lines.append(f"{name:<{width}} no real token")
            continue
        rates = " ".join(
            f"{count / sites:.3f}" if sites else "-"
            for count, sites in zip(probe.nonzero.tolist(), probe.sites.tolist())
        )
        reach, silent = f"{probe.low:,} .. {probe.high:,}", f"{probe.silent:,} of {graph.features[name]:,}"
        lines.append(f"{name:<{width}} {probe.rate:>7.4f} {reach:>18} {probe.mean:>11,.3f} {silent:>16}   {rates}")
    return lines


def energy_report(energies: Sequence[Energy], sentences: int) -> str:
    """Lines of text: what a sentence would take by each table, part by part and by kind of work."""
    lines = [f"energy of a sentence, estimated (mean of {sentences:,}; docs/energy.md says what each table is for)"]
    width = max([34, *(len(part) for energy in energies for part in _by_part(energy))])
    for energy in energies:
        table = energy.table
        lines += ["", f"{table.name} ({table.kind}, version {table.version}): {table.title}"]
        lines.append(f"  {'in all':<{width}} {joules(energy.total / sentences):>12}")
        for part, amount in _by_part(energy).items():
            lines.append(f"  {part:<{width}} {joules(amount / sentences):>12} {_share(amount, energy.total)}")
        for kind, amount in energy.by_work.items():
            price = f"{table.prices[kind].picojoules:.4g} pJ each"
            name = f"for {kind.replace('_', ' ')}"
            lines.append(f"  {name:<{width}} {joules(amount / sentences):>12} {_share(amount, energy.total)}   {price}")
        if energy.dense is not None and energy.of_dense is not None:
            lines.append(
                f"  {'dense network':<{width}} {joules(energy.dense / sentences):>12}   the same connections, by the "
                f"same method: this one takes {100 * energy.of_dense:.1f} % of it"
            )
        lines.append(f"  not in it: {table.left_out}")
    return "\n".join(lines)


def joules(amount: float) -> str:
    """Three digits and a unit: "70.5 uJ"."""
    if amount == 0:
        return "0 J"
    amount = float(f"{amount:.2e}")  # rounded first: 999.9 uJ are 1.00 mJ
    power = min(0, max(-15, 3 * math.floor(math.log10(amount) / 3)))
    digits = amount / 10.0**power
    unit = {0: "J", -3: "mJ", -6: "uJ", -9: "nJ", -12: "pJ", -15: "fJ"}[power]
    return f"{digits:.{max(0, 2 - math.floor(math.log10(digits)))}f} {unit}"


def _by_part(energy: Energy) -> dict[str, float]:
    """Joules of each part of the network, a block each."""
    parts: dict[str, float] = {}
    for name, charges in energy.per_node.items():
        part = ".".join(name.split(".")[:2])
        parts[part] = parts.get(part, 0.0) + sum(charges.values())
    return {part: amount for part, amount in parts.items() if amount} if len(parts) <= PARTS_MAX else {}


def _share(amount: float, total: float) -> str:
    return f"{100 * amount / total:5.1f} %" if total else ""


def verdict(engine: str, comparison: Comparison) -> str:
    """Whether all values were equal, in a sentence."""
    compared = f"{comparison.values_compared:,} values of '{engine}'"
    if comparison.mismatches == 0:
        return f"verified: all {compared} equal those of the reference"
    return f"NOT EQUAL: {comparison.mismatches:,} of {compared} differ from the reference"
