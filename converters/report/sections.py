"""The sections of the page, one function each: pictures, and beside each its numbers in a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from converters.graph import ACCUMULATOR_MAX
from converters.report.charts import accuracy_bar, axis_start, histogram
from converters.report.contents import Interval, Measured, NodeReport, Report, Rounding
from converters.report.drawing import draw_panel, drawing_shape
from converters.report.markup import Markup, join, tag
from converters.report.panels import Panel
from converters.report.shell import Section, section
from converters.report.tables import (
    Columns,
    by_block,
    counted,
    ends,
    name_cell,
    number_cell,
    range_cell,
    range_picture_cell,
    scrolling,
    share_cell,
    yes_cell,
)

DRAWN_OPENLY = 4  # panels; more, and those that look like one before, are drawn in a folded part


def accuracy_section(report: Report) -> Section:
    """Every stage, as a table with a bar in each cell."""
    known = [measured for stage in report.accuracy for measured in stage.splits.values() if measured is not None]
    least = axis_start(known) if known else 0.0
    splits = list(report.accuracy[0].splits)
    head = tag("tr", *(tag("th", name, scope="col") for name in ("stage", *splits, "what it is")))
    rows = [
        tag(
            "tr",
            tag("th", stage.stage, scope="row"),
            *(tag("td", *_measured(measured, least)) for measured in stage.splits.values()),
            tag("td", stage.meaning, class_="wrap"),
        )
        for stage in report.accuracy
    ]
    said = (
        f"Share of texts that are classified rightly, with its 95 % interval, on an axis from {least:.0%} to 100%. "
        "Measured by spikebert-train. Models are chosen on validation, test decides nothing."
        if known
        else "This model was exported without a record of its training, so nothing is known of its accuracy."
    )
    return section("Accuracy", tag("p", said), scrolling(tag("table", tag("thead", head), tag("tbody", *rows))))


def _measured(measured: Measured | None, least: float) -> tuple[Markup, ...]:
    if measured is None:
        return (tag("span", "not measured", class_="none"),)
    text = f"{measured.value:.1%} ({measured.low:.1%} to {measured.high:.1%})"
    return (tag("span", text), accuracy_bar(measured, least))


def network_section(report: Report, panels: Sequence[Panel[NodeReport]]) -> Section:
    """The graph drawn, and the nodes in a table."""
    consumers: dict[str, list[str]] = {node.name: [] for node in report.nodes}
    for node in report.nodes:
        for producer in dict.fromkeys(node.inputs):
            consumers[producer].append(node.name)
    openly, folded = _choose_panels(panels)

    def figure(panel: Panel[NodeReport]) -> Markup:
        alike = [other.title for other in folded if drawing_shape(other) == drawing_shape(panel)]
        title = f"{panel.title}; alike: {_run(alike)}" if panel in openly and alike else panel.title
        drawing = tag("div", draw_panel(panel, consumers, report.timesteps), class_="scroll")
        return tag("figure", tag("figcaption", title) if title else None, drawing)

    timing = (
        f"Step: by how many steps of {report.target} the value lags behind the source."
        if report.depth_steps is not None
        else "Logical time only: every node sees its inputs of the same timestep. A target tells steps of its machine."
    )
    keys = tag(
        "p",
        tag("span", class_="key spiking"),
        "spikes, or sums of them ",
        tag("span", class_="key current"),
        "currents. ",
        "Below the name: what a node does, and the shape of its value, timesteps × tokens × features, N = 1 to ",
        f"{report.n_max}. ",
        timing,
    )
    columns: Columns[NodeReport] = (
        ("node", name_cell),
        ("op", lambda node: tag("td", node.op)),
        ("inputs", lambda node: tag("td", ", ".join(node.inputs) or "token ids", class_="wrap")),
        ("shape of the value", lambda node: tag("td", f"{report.timesteps} × N × {node.features:,}")),
        ("step", lambda node: number_cell(node.latency_steps)),
    )
    rest = tag(
        "details", tag("summary", f"Draw the other {len(folded)}"), tag("div", *map(figure, folded), class_="panels")
    )
    return section(
        "Network",
        keys,
        tag("div", *map(figure, openly), class_="panels"),
        rest if folded else None,
        tag("h3", "All nodes"),
        *by_block(panels, columns, _nodes_summary, fold_all=True),
        _passes(report),
    )


def _run(titles: Sequence[str]) -> str:
    """Many titles in few words."""
    return ", ".join(titles) if len(titles) < 3 else f"{titles[0]} to {titles[-1]}, {len(titles)} blocks"


def _nodes_summary(nodes: Sequence[NodeReport]) -> str:
    steps = [node.latency_steps for node in nodes if node.latency_steps is not None]
    said = counted(len(nodes), "node")
    return f"{said}, steps {min(steps)} to {max(steps)}" if steps and len(nodes) > 1 else said


def _choose_panels(panels: Sequence[Panel[NodeReport]]) -> tuple[list[Panel[NodeReport]], list[Panel[NodeReport]]]:
    """Those that are drawn at once, and those that look like one of them or are too many."""
    openly: list[Panel[NodeReport]] = []
    for panel in panels:
        if len(openly) < DRAWN_OPENLY and drawing_shape(panel) not in map(drawing_shape, openly):
            openly.append(panel)
    if len(panels) <= DRAWN_OPENLY:
        openly = list(panels)
    elif panels[-1] not in openly:
        openly.append(panels[-1])  # the way out belongs to every drawing
    return openly, [panel for panel in panels if panel not in openly]


def _passes(report: Report) -> Markup | None:
    if not report.passes:
        return None
    items = [tag("li", tag("code", each.name), f": {each.summary}") for each in report.passes]
    return join(tag("h3", "Passes that were run over it"), tag("ul", *items))


def weights_section(report: Report, panels: Sequence[Panel[NodeReport]]) -> Section:
    """Histogram, scale and what rounding cut, of every layer and of the token table."""

    def rounded(part: int) -> Callable[[NodeReport], Markup]:
        return lambda node: _rounding_cells(None if node.weights is None else node.weights.rounding)[part]

    def of_weights(read: Callable) -> Callable[[NodeReport], Markup]:
        return lambda node: read(node.weights)

    columns: Columns[NodeReport] = (
        ("layer", name_cell),
        ("histogram", of_weights(lambda weights: tag("td", histogram(weights)))),
        ("shape", of_weights(lambda weights: tag("td", f"{weights.shape[0]:,} × {weights.shape[1]:,}"))),
        ("bits", of_weights(lambda weights: number_cell(weights.bits))),
        ("scale", rounded(0)),
        ("clipped", rounded(1)),
        ("shrunk", rounded(2)),
        ("zeros", of_weights(lambda weights: number_cell(weights.zeros / weights.count, "{:.1%}"))),
        (
            "range",
            of_weights(lambda weights: range_cell(Interval(weights.first, weights.first + len(weights.counts) - 1))),
        ),
        ("biases", of_weights(lambda weights: range_cell(weights.bias))),
        ("bytes", of_weights(lambda weights: number_cell(weights.bytes))),
    )
    said = (
        "Scale: how many accumulator units (of the token table: units of the table) stand for 1.0 of the float model. "
        "Clipped: weights beyond the largest that the bits hold, cut to it. Shrunk: other weights that lie nearer to 0 "
        "than their rounding, because their row could have passed the accumulator. Both are counted in the trained "
        "model, before any pass. Biases are in accumulator units."
    )
    return section(
        "Weights",
        tag("p", said),
        *by_block(panels, columns, _weights_summary, lambda node: node.weights is not None),
        _replaced(report),
    )


def _rounding_cells(rounding: Rounding | None) -> tuple[Markup, Markup, Markup]:
    """Scale, clipped, shrunk."""
    if rounding is None:
        return number_cell(None), number_cell(None), number_cell(None)
    clipped, shrunk = (
        tag("td", f"{count:,}" + (f" ({count / rounding.values:.2%})" if count else ""), class_="n")
        for count in (rounding.clipped, rounding.shrunk)
    )
    return number_cell(rounding.scale), clipped, shrunk


def _replaced(report: Report) -> Markup | None:
    """Layers that were trained, and are no nodes any more."""
    if not report.replaced:
        return None
    names = ("layer", "weights", "scale", "clipped", "shrunk")
    head = tag("tr", *(tag("th", name, scope="col", class_="n" if name != "layer" else None) for name in names))
    rows = [
        tag("tr", tag("th", name, scope="row"), number_cell(rounding.values), *_rounding_cells(rounding))
        for name, rounding in report.replaced.items()
    ]
    table = scrolling(tag("table", tag("thead", head), tag("tbody", *rows)))
    return join(tag("h3", "Trained layers that a pass merged, split or renamed"), table)


def _weights_summary(nodes: Sequence[NodeReport]) -> str:
    weights = [node.weights for node in nodes if node.weights is not None]
    said = f"{counted(len(weights), 'layer')}, {sum(each.count for each in weights):,} weights"
    roundings = [each.rounding for each in weights if each.rounding is not None]
    values = sum(each.values for each in roundings)
    return f"{said}, {sum(each.clipped + each.shrunk for each in roundings) / values:.3%} cut" if values else said


def values_section(report: Report, panels: Sequence[Panel[NodeReport]]) -> Section:
    """Proven and observed ranges of values, proven ones of membranes."""
    columns: Columns[NodeReport] = (
        ("node", name_cell),
        ("observed in proven", range_picture_cell),
        ("proven", lambda node: range_cell(node.values.proven)),
        ("observed", lambda node: range_cell(node.values.observed)),
        ("bits", lambda node: number_cell(node.values.bits)),
        (f"of {ACCUMULATOR_MAX}", lambda node: number_cell(node.values.of_limit, "{:.0%}")),
        ("membrane, proven", lambda node: range_cell(None if node.membrane is None else node.membrane.proven)),
        ("membrane bits", lambda node: number_cell(None if node.membrane is None else node.membrane.bits)),
        ("membrane may be cut", lambda node: yes_cell(None if node.membrane is None else node.membrane.may_saturate)),
    )
    said = (
        "Proven: what a value can be at a real token, for any text whatever; an interval analysis, sound and not "
        f"always tight. Observed: on the {report.samples} golden inputs, {report.tokens:,} tokens, and nothing more. "
        "Currents are in accumulator units, membranes in units 128 times as fine. At padding every value is 0."
    )
    logits = report.logits
    of_logits = (
        f"The integer logits: proven {ends(logits.proven)} ({logits.bits} bits) for texts of 1 to {report.n_max} "
        f"tokens, observed {ends(logits.observed)}."
    )
    return section("Values", tag("p", said), *by_block(panels, columns, _values_summary), tag("p", of_logits))


def _values_summary(nodes: Sequence[NodeReport]) -> str:
    most = max((node.values.of_limit or 0.0 for node in nodes), default=0.0)
    return counted(len(nodes), "node") + (f", currents up to {most:.0%} of the limit" if most else "")


def neurons_section(report: Report, panels: Sequence[Panel[NodeReport]]) -> Section:
    """Firing rates, and neurons that never or always fire."""

    def of_neurons(read: Callable) -> Callable[[NodeReport], Markup]:
        return lambda node: read(node.neurons)

    columns: Columns[NodeReport] = (
        ("neurons", name_cell),
        ("firing rate", of_neurons(lambda each: share_cell(each.rate, "of all timesteps"))),
        ("threshold", of_neurons(lambda each: range_cell(each.threshold))),
        ("how many", of_neurons(lambda each: number_cell(each.count))),
        ("silent, proven", of_neurons(lambda each: number_cell(each.silent_proven))),
        ("silent, observed", of_neurons(lambda each: number_cell(each.silent_observed))),
        ("always firing, proven", of_neurons(lambda each: number_cell(each.always_proven))),
        ("always firing, observed", of_neurons(lambda each: number_cell(each.always_observed))),
    )
    said = (
        "Proven silent: can never fire, whatever the text. Observed silent: did not fire on the "
        f"{report.samples} golden inputs ({report.tokens:,} tokens); on other texts it may. Always firing: at every "
        "timestep of every real token. The rate is spikes / (timesteps × tokens × neurons), on the golden inputs too."
    )
    return section(
        "Neurons",
        tag("p", said),
        _rules(report),
        *by_block(panels, columns, _neurons_summary, lambda node: node.neurons is not None),
    )


def _rules(report: Report) -> Markup:
    """What neurons do with a current: once, and where they differ with the nodes that do so."""
    names: dict[str, list[str]] = {}
    for node in report.nodes:
        if node.neurons is not None:
            names.setdefault(node.neurons.rule, []).append(node.name)
    if len(names) == 1:
        return tag("p", f"At each timestep a neuron {next(iter(names))}.")
    rules = [tag("li", f"{rule}: {', '.join(own)}") for rule, own in names.items()]
    return tag("div", tag("p", "At each timestep a neuron"), tag("ul", *rules))


def _neurons_summary(nodes: Sequence[NodeReport]) -> str:
    neurons = [node.neurons for node in nodes if node.neurons is not None]
    count = sum(each.count for each in neurons)
    rate = sum(each.rate * each.count for each in neurons) / max(count, 1)
    silent = sum(each.silent_observed for each in neurons)
    return f"{count:,} neurons, fire at {rate:.1%}, {silent:,} silent on the golden inputs"


def sizes_section(report: Report) -> Section:
    """What the network and its files take."""
    counts = [tag("tr", tag("th", what, scope="row"), number_cell(count)) for what, count in report.sizes.items()]
    total = sum(report.files.values())
    files = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            number_cell(size),
            share_cell(size / max(total, 1), "of the bundle"),
        )
        for name, size in report.files.items()
    ]
    head = tag("tr", *(tag("th", name, scope="col") for name in ("file", "bytes", "share")))
    listing = tag(
        "table",
        tag("caption", f"Files of the bundle, {total:,} bytes; without this report and the manifest"),
        tag("thead", head),
        tag("tbody", *files),
    )
    table = tag("table", tag("caption", "The network"), tag("tbody", *counts))
    return section("Sizes", tag("div", scrolling(table), scrolling(listing) if files else None, class_="panels"))
