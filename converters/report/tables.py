"""Tables of nodes: a table for each block, in parts that unfold, and what stands in the cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from converters.report.charts import range_bar, share_bar
from converters.report.contents import Interval, NodeReport
from converters.report.markup import Markup, tag
from converters.report.panels import Named, Node, Panel

OPEN_PANELS = 3  # of more blocks than these only the first is unfolded at the start
# Columns of words and pictures, which stand on the left; numbers stand on the right.
LEFT = (
    *("node", "layer", "neurons", "op", "inputs", "shape", "shape of the value"),
    *("histogram", "observed in proven", "firing rate"),
)

Columns = Sequence[tuple[str, Callable[[Node], Markup]]]  # heading, and the cell of a node


def by_block(
    panels: Sequence[Panel[Node]],
    columns: Columns[Node],
    summary: Callable[[Sequence[Node]], str],
    wanted: Callable[[Node], bool] = lambda node: True,
    fold_all: bool = False,
) -> list[Markup]:
    """A table for each panel, in a part that unfolds; a button for all where there are many."""
    parts = []
    shown = [(panel, [node for node in panel.nodes if wanted(node)]) for panel in panels]
    shown = [(panel, nodes) for panel, nodes in shown if nodes]
    blocks = sum(bool(panel.title) for panel, _ in shown)
    first = next((panel for panel, _ in shown if panel.title), None)
    for panel, nodes in shown:
        unfolded = not fold_all and (blocks <= OPEN_PANELS or not panel.title or panel is first)
        title = panel.title or some(nodes)
        head = tag("tr", *(tag("th", name, scope="col", class_=_side(name)) for name, _ in columns))
        rows = [tag("tr", *(cell(node) for _, cell in columns)) for node in nodes]
        table = scrolling(tag("table", tag("thead", head), tag("tbody", *rows)))
        caption = tag("summary", tag("b", title), tag("span", summary(nodes), class_="quiet"))
        parts.append(tag("details", caption, table, open=True if unfolded else None))
    if len(parts) > 1:
        parts.insert(0, tag("p", tag("button", "Open all", type="button", data_all=True, hidden=True)))
    return parts


def _side(column: str) -> str | None:
    return None if column in LEFT else "n"


def scrolling(table: Markup) -> Markup:
    return tag("div", table, class_="scroll", tabindex=0, role="region", aria_label="Table, scrolls sideways")


def name_cell(node: Named) -> Markup:
    return tag("th", node.name, scope="row")


def number_cell(value: float | None, form: str = "{:,}") -> Markup:
    if value is None:
        return tag("td", "–", class_="n none")
    return tag("td", form.format(int(value) if form == "{:,}" and value == int(value) else value), class_="n")


def share_cell(share: float, of: str) -> Markup:
    bar = share_bar(share, f"{share:.1%} {of}")
    return tag("td", tag("div", bar, tag("span", f"{share:.1%}"), class_="pair"))


def yes_cell(value: bool | None) -> Markup:
    if value is None:
        return number_cell(None)
    return tag("td", "yes" if value else "no", class_="n warn" if value else "n")


def range_cell(interval: Interval | None) -> Markup:
    if interval is None:
        return number_cell(None)
    return tag("td", ends(interval), class_="n")


def range_picture_cell(node: NodeReport) -> Markup:
    """Of spikes, which are 0 or 1, the rate says more: see the neurons."""
    single = node.spiking and node.values.proven.high <= 1
    return tag("td", None if single else range_bar(node.values.proven, node.values.observed))


def counted(count: int, what: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def ends(interval: Interval) -> str:
    return f"{interval.low:,}" if interval.low == interval.high else f"{interval.low:,} .. {interval.high:,}"


def some(nodes: Sequence[Named], most: int = 3) -> str:
    names = ", ".join(node.name for node in nodes[:most])
    return names if len(nodes) <= most else f"{names} and {len(nodes) - most} more"
