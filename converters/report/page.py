"""report.html: the report of an export, put together."""

from __future__ import annotations

from converters.graph import ACCUMULATOR_MAX
from converters.report.contents import Report
from converters.report.panels import cut_into_panels
from converters.report.sections import (
    accuracy_section,
    network_section,
    neurons_section,
    sizes_section,
    values_section,
    weights_section,
)
from converters.report.shell import Tile, page
from converters.report.tables import some

BYTES_PER_MB = 1e6


def report_page(report: Report) -> str:
    """The whole page."""
    panels = cut_into_panels(report.nodes)
    sections = (
        accuracy_section(report),
        network_section(report, panels),
        weights_section(report, panels),
        values_section(report, panels),
        neurons_section(report, panels),
        sizes_section(report),
    )
    return page(
        f"{report.name}: export report", report.name, _summary(report), _tiles(report), _notes(report), sections
    )


def _summary(report: Report) -> str:
    made_for = f"exported for {report.target}" if report.target else "exported for any engine"
    return (
        f"A spiking BERT as a network of integers, {made_for}: {len(report.nodes):,} nodes, {report.timesteps} "
        f"timesteps, at most {report.n_max} tokens, {len(report.labels)} classes ({', '.join(report.labels)})."
    )


def _tiles(report: Report) -> list[Tile]:
    """The few figures that come first."""
    tiles = []
    for stage in report.accuracy:
        best = stage.splits.get("test") or stage.splits.get("validation")
        if stage.stage == "integer" and best is not None:
            split = "test" if stage.splits.get("test") else "validation"
            tiles.append(
                Tile(f"Accuracy, {split}", f"{best.value:.1%}", f"integers, {best.correct:,} of {best.texts:,} texts")
            )
    layers = [node.weights for node in report.nodes if node.weights is not None and node.op != "source"]
    widths = sorted({layer.bits for layer in layers})
    tiles.append(
        Tile(
            "Weights",
            f"{sum(layer.count for layer in layers):,}",
            f"of {' and '.join(map(str, widths))} bits, table apart",
        )
    )
    neurons = [node.neurons for node in report.nodes if node.neurons is not None]
    count = sum(each.count for each in neurons)
    rate = sum(each.rate * each.count for each in neurons) / max(count, 1)
    tiles.append(Tile("Neurons", f"{count:,}", "for each token"))
    tiles.append(Tile("Firing rate", f"{rate:.1%}", f"on the {report.samples} golden inputs"))
    if report.depth_steps is not None:
        tiles.append(Tile("Latency", f"{report.depth_steps} steps", f"source to readout on {report.target}"))
    if report.files:
        tiles.append(Tile("Bundle", f"{sum(report.files.values()) / BYTES_PER_MB:,.1f} MB", "without this report"))
    return tiles


def _notes(report: Report) -> list[str]:
    """What a reader should not miss, in sentences."""
    notes = []
    currents = [node for node in report.nodes if node.values.of_limit is not None]
    if currents:
        most = max(currents, key=lambda node: node.values.of_limit or 0)
        notes.append(
            f"No current can pass the limit of {ACCUMULATOR_MAX:,}: the largest, of {most.name}, is proven to stay "
            f"within {most.values.of_limit:.0%} of it."
        )
    cut = [node for node in report.nodes if node.membrane is not None and node.membrane.may_saturate]
    if cut:
        notes.append(f"A membrane may be cut at ±(2^23 - 1) in {some(cut)}. That is part of the neuron's rule.")
    neurons = [node.neurons for node in report.nodes if node.neurons is not None]
    dead = sum(each.silent_proven for each in neurons)
    if dead:
        notes.append(f"{dead:,} neurons can never fire, whatever the text: --pass remove-dead-neurons takes them out.")
    quiet = sum(each.silent_observed for each in neurons)
    always = sum(each.always_observed for each in neurons)
    notes.append(
        f"On the {report.samples} golden inputs ({report.tokens:,} tokens) {quiet:,} neurons never fired, and "
        f"{always:,} fired at every timestep of every token. So few texts prove nothing of others."
    )
    return notes
