"""report.html: one page that needs nothing but itself, in light and dark, wide and narrow.

Everything is drawn and written here; the page asks no network for anything, and its Content-Security-Policy says so.
"""

from __future__ import annotations

from converters.graph import ACCUMULATOR_MAX
from converters.report.contents import Report
from converters.report.markup import Markup, tag
from converters.report.panels import cut_into_panels
from converters.report.sections import (
    accuracy_section,
    network_section,
    neurons_section,
    sizes_section,
    values_section,
    weights_section,
)
from converters.report.style import CSS, SCRIPT
from converters.report.tables import some

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
BYTES_PER_MB = 1e6


def report_page(report: Report) -> str:
    """The whole page."""
    panels = cut_into_panels(report.nodes)
    body = tag(
        "body",
        _header(report),
        tag(
            "main",
            accuracy_section(report),
            network_section(report, panels),
            weights_section(report, panels),
            values_section(report, panels),
            neurons_section(report, panels),
            sizes_section(report),
        ),
        tag("script", Markup(SCRIPT)),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{report.name}: export report"),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup(CSS)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _header(report: Report) -> Markup:
    links = ("Accuracy", "Network", "Weights", "Values", "Neurons", "Sizes")
    return tag(
        "header",
        tag("h1", report.name),
        tag("p", _summary(report), class_="quiet"),
        tag("nav", *(tag("a", name, href=f"#{name.lower()}") for name in links), aria_label="Sections"),
        tag("dl", *(_tile(*tile) for tile in _tiles(report)), class_="tiles"),
        _notes(report),
    )


def _summary(report: Report) -> str:
    made_for = f"exported for {report.target}" if report.target else "exported for any engine"
    return (
        f"A spiking BERT as a network of integers, {made_for}: {len(report.nodes):,} nodes, {report.timesteps} "
        f"timesteps, at most {report.n_max} tokens, {len(report.labels)} classes ({', '.join(report.labels)})."
    )


def _tile(name: str, value: str, detail: str) -> Markup:
    return tag("div", tag("dt", name), tag("dd", value, tag("small", detail)))


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """Name, figure and what it means, of the few figures that come first."""
    tiles = []
    for stage in report.accuracy:
        best = stage.splits.get("test") or stage.splits.get("validation")
        if stage.stage == "integer" and best is not None:
            split = "test" if stage.splits.get("test") else "validation"
            tiles.append(
                (f"Accuracy, {split}", f"{best.value:.1%}", f"integers, {best.correct:,} of {best.texts:,} texts")
            )
    layers = [node.weights for node in report.nodes if node.weights is not None and node.op != "source"]
    widths = sorted({layer.bits for layer in layers})
    tiles.append(
        (
            "Weights",
            f"{sum(layer.count for layer in layers):,}",
            f"of {' and '.join(map(str, widths))} bits, table apart",
        )
    )
    neurons = [node.neurons for node in report.nodes if node.neurons is not None]
    count = sum(each.count for each in neurons)
    rate = sum(each.rate * each.count for each in neurons) / max(count, 1)
    tiles.append(("Neurons", f"{count:,}", "for each token"))
    tiles.append(("Firing rate", f"{rate:.1%}", f"on the {report.samples} golden inputs"))
    if report.depth_steps is not None:
        tiles.append(("Latency", f"{report.depth_steps} steps", f"source to readout on {report.target}"))
    if report.files:
        tiles.append(("Bundle", f"{sum(report.files.values()) / BYTES_PER_MB:,.1f} MB", "without this report"))
    return tiles


def _notes(report: Report) -> Markup:
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
    return tag("ul", *(tag("li", note) for note in notes))
