"""The sections of the page of a run, one function each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from converters.execution import NodeActivity
from converters.report.charts import accuracy_bar, axis_start, share_bar
from converters.report.contents import Measured
from converters.report.markup import Markup, tag
from converters.report.panels import cut_into_panels
from converters.report.shell import Section, section
from converters.report.tables import Columns, by_block, counted, name_cell, number_cell, scrolling, share_cell
from sim.energy import Energy
from sim.page.contents import RunReport, Sentence
from sim.report import joules, verdict, wilson_interval
from sim.run import Summary

SENTENCE_COLUMNS = ("spikes a sentence", "operations a sentence", "by value", "messages a sentence", "membranes cut")


def result_section(report: RunReport) -> Section:
    """How many were right, and whether every value was."""
    summary, labels = report.summary, report.bundle.labels
    parts: list[Markup] = []
    correct, labelled = int(summary.confusion.trace()), int(summary.confusion.sum())
    if labelled:
        low, high = wilson_interval(correct, labelled)
        measured = Measured(correct, labelled, correct / labelled, low, high)
        least = axis_start([measured])
        said = (
            f"{correct:,} of {labelled:,} texts are classified rightly: {measured.value:.2%}, 95 % interval {low:.2%} "
            f"to {high:.2%}. The axis begins at {least:.0%}."
        )
        head = tag("tr", tag("th", "true, predicted", scope="col"), *(tag("th", name, class_="n") for name in labels))
        rows = [
            tag("tr", tag("th", name, scope="row"), *(number_cell(count) for count in counts))
            for name, counts in zip(labels, summary.confusion.tolist())
        ]
        table = scrolling(tag("table", tag("thead", head), tag("tbody", *rows)))
        parts += [tag("p", said), accuracy_bar(measured, least), table]
    else:
        parts.append(tag("p", "The texts have no classes of their own, so nothing is known of the accuracy."))
    if summary.comparison is None:
        parts.append(tag("p", "Not verified: run with --verify to compare every value with the reference."))
    else:
        failed = summary.comparison.mismatches > 0
        parts.append(tag("p", verdict(summary.engine, summary.comparison), class_="warn" if failed else None))
        if summary.comparison.first_mismatch is not None:
            parts.append(tag("p", f"The first: {summary.comparison.first_mismatch}", class_="warn"))
    if summary.early_exit is not None:
        parts += _early_exit(summary)
    if summary.bad:
        parts.append(tag("p", f"{summary.bad:,} rows could not be read and are not in this.", class_="warn"))
    return section("Result", *parts)


def _early_exit(summary: Summary) -> list[Markup]:
    """After how many timesteps texts stopped."""
    assert summary.early_exit is not None
    said = (
        f"Early exit: a text stops once its best class leads the second by {summary.early_exit.margin:,} units of the "
        f"readout for each token and timestep: {summary.mean_timesteps:.3f} timesteps a text, of "
        f"{len(summary.stopped)}. What follows counts only what was computed."
    )
    head = tag(
        "tr", tag("th", "stopped after", scope="col"), tag("th", "texts", scope="col", class_="n"), tag("th", "share")
    )
    rows = [
        tag(
            "tr",
            tag("th", str(t), scope="row"),
            number_cell(count),
            share_cell(count / summary.samples, "of all texts"),
        )
        for t, count in enumerate(summary.stopped.tolist(), start=1)
    ]
    return [tag("p", said), scrolling(tag("table", tag("thead", head), tag("tbody", *rows)))]


def sentence_section(sentence: Sentence, timesteps: int) -> Section:
    """The spikes of one sentence; the page's script draws them."""
    raster = sentence.raster
    said = (
        f"{sentence.name}: {sentence.prediction}, probability {sentence.probability:.3f}. Each column is a timestep of "
        f"a token ({timesteps} for each token), each row a feature; a mark is a spike. Computed by the reference."
    )
    options = [
        tag(
            "option",
            f"{layer.name}, {layer.spikes.mean():.1%}",
            value=layer.name,
            data_features=layer.spikes.shape[2],
            data_bits=layer.packed(),
        )
        for layer in raster.layers
    ]
    controls = tag(
        "p",
        tag("label", "Neurons ", tag("select", *options)),
        " ",
        *(tag("button", text, type="button", data_zoom=way) for text, way in (("Larger", "2"), ("Smaller", "0.5"))),
        " ",
        tag("output", "Point at a spike", aria_live="polite"),
    )
    tokens = tag("div", *(tag("span", token, title=token) for token in raster.tokens), class_="tokens")
    picture = tag("canvas", role="img", aria_label="Spikes of the sentence")
    view = tag("div", tokens, picture, class_="view", tabindex=0, role="region", aria_label="Spikes, scrolls both ways")
    figure = tag(
        "div",
        controls,
        view,
        tag("noscript", "The spikes are drawn by a script, which is switched off here."),
        class_="raster",
        data_timesteps=timesteps,
        data_tokens=len(raster.tokens),
    )
    left = (
        tag("p", f"Left out, for the page would grow too large: {', '.join(raster.left_out)}.")
        if raster.left_out
        else None
    )
    return section("Sentence", tag("p", said), figure, left)


@dataclass(frozen=True)
class _Row:
    name: str
    did: NodeActivity


def layers_section(report: RunReport) -> Section:
    """What every node did."""
    activity, samples = report.summary.activity, report.summary.samples
    assert activity is not None
    panels = cut_into_panels([_Row(name, did) for name, did in activity.per_node.items()])

    def rate(row: _Row) -> Markup:
        return number_cell(None) if row.did.rate is None else share_cell(row.did.rate, "of all timesteps")

    def mean(count: int) -> Markup:
        return number_cell(round(count / samples)) if count else number_cell(None)

    columns: Columns[_Row] = (
        ("node", name_cell),
        ("firing rate", rate),
        (SENTENCE_COLUMNS[0], lambda row: mean(row.did.spikes)),
        (SENTENCE_COLUMNS[1], lambda row: mean(row.did.synaptic_operations)),
        (SENTENCE_COLUMNS[2], lambda row: mean(row.did.weighted_operations)),
        (SENTENCE_COLUMNS[3], lambda row: mean(row.did.messages)),
        (SENTENCE_COLUMNS[4], lambda row: number_cell(row.did.saturations or None)),
    )

    def summed(rows: Sequence[_Row]) -> str:
        total = sum((row.did for row in rows), NodeActivity())
        fired = "" if total.rate is None else f", fire at {total.rate:.1%}"
        return f"{counted(len(rows), 'node')}{fired}, {total.synaptic_operations / samples:,.0f} operations a sentence"

    said = (
        "Firing rate: spikes / (timesteps × real tokens × features). Operations: nonzero weights that spikes reach, "
        "and pairs in attention; by value: each as often as its spike counts. Messages: spikes and sums of spikes that "
        "are not 0. Exact counts, the same on every engine."
    )
    return section("Layers", tag("p", said), *by_block(panels, columns, summed))


def energy_section(report: RunReport) -> Section:
    """What a sentence would take, by every table, and where each price is from."""
    samples = report.summary.samples
    head = tag(
        "tr",
        *(tag("th", name, scope="col") for name in ("table", "what it is")),
        tag("th", "a sentence", scope="col", class_="n"),
        tag("th", "dense network", scope="col", class_="n"),
        tag("th", "of the dense network", scope="col"),
    )
    rows = [
        tag(
            "tr",
            tag("th", energy.table.name, scope="row"),
            tag("td", energy.table.title, class_="wrap"),
            tag("td", joules(energy.total / samples), class_="n"),
            number_cell(None) if energy.dense is None else tag("td", joules(energy.dense / samples), class_="n"),
            number_cell(None) if energy.of_dense is None else share_cell(energy.of_dense, "of the dense network"),
        )
        for energy in report.energies
    ]
    said = (
        "Estimates: the counts are exact, the prices are others' figures, and nothing was measured on a chip. The "
        "dense network has the same connections and is counted by the same method. Loihi 2 has no published energy of "
        "a single operation."
    )
    return section(
        "Energy",
        tag("p", said),
        scrolling(tag("table", tag("thead", head), tag("tbody", *rows))),
        *(_table_details(energy, samples) for energy in report.energies),
    )


def _table_details(energy: Energy, samples: int) -> Markup:
    """Where the energy goes by one table, and its prices."""
    blocks = {panel.title or panel.nodes[0].name: panel.nodes for panel in cut_into_panels(_charges(energy))}
    parts = [
        _amount_row(title, sum(node.joules for node in nodes), energy.total, samples) for title, nodes in blocks.items()
    ]
    kinds = [
        tag(
            "tr",
            tag("th", kind.replace("_", " "), scope="row"),
            *_amount_cells(amount, energy.total, samples),
            number_cell(energy.table.prices[kind].picojoules, "{:.4g}"),
            tag("td", energy.table.prices[kind].what, class_="wrap"),
            tag("td", energy.table.prices[kind].source, class_="wrap"),
        )
        for kind, amount in energy.by_work.items()
    ]
    head = ("part", "a sentence", "share")
    kind_head = ("work", "a sentence", "share", "pJ each", "what it stands for", "source")
    return tag(
        "details",
        tag("summary", tag("b", energy.table.name), tag("span", "where it goes, and its prices", class_="quiet")),
        scrolling(tag("table", _head(head), tag("tbody", *parts))),
        scrolling(tag("table", _head(kind_head), tag("tbody", *kinds))),
        tag("p", f"Not in it: {energy.table.left_out}"),
    )


@dataclass(frozen=True)
class _Charge:
    name: str
    joules: float


def _charges(energy: Energy) -> list[_Charge]:
    return [_Charge(name, sum(charges.values())) for name, charges in energy.per_node.items()]


def _amount_row(name: str, amount: float, total: float, samples: int) -> Markup:
    return tag("tr", tag("th", name, scope="row"), *_amount_cells(amount, total, samples))


def _amount_cells(amount: float, total: float, samples: int) -> tuple[Markup, Markup]:
    share = amount / total if total else 0.0
    bar = tag("div", share_bar(share, f"{share:.1%} of the energy"), tag("span", f"{share:.1%}"), class_="pair")
    return tag("td", joules(amount / samples), class_="n"), tag("td", bar)


def _head(names: Sequence[str]) -> Markup:
    numbers = ("a sentence", "pJ each")
    return tag(
        "thead", tag("tr", *(tag("th", name, scope="col", class_="n" if name in numbers else None) for name in names))
    )


def again_section(report: RunReport) -> Section:
    """All that it takes to do it again."""
    facts = [(what, tag("code", value) if what == "command" else value) for what, value in report.facts]
    return section(
        "Again",
        tag("p", "The same command on the same bundle and texts gives the same numbers, on any machine."),
        _facts(facts),
        tag(
            "details",
            tag("summary", tag("b", "How the bundle was made")),
            _facts(list(report.bundle.manifest["provenance"].items())),
        ),
    )


def _facts(facts: Sequence[tuple[str, object]]) -> Markup:
    rows = [tag("tr", tag("th", what, scope="row"), tag("td", value, class_="wrap")) for what, value in facts]
    return scrolling(tag("table", tag("tbody", *rows)))
