"""A panel of the graph as SVG: a box for each node, an arrow for each edge, and where the other panels join."""

from __future__ import annotations

from collections.abc import Sequence

from converters.report.contents import NodeReport
from converters.report.layout import Layout, lay_out
from converters.report.markup import Markup, join, number, tag
from converters.report.panels import Panel, block_of

BOX = (132.0, 52.0)  # width, height, pixels
PORT = (132.0, 22.0)
ROW_HEIGHT = 74.0
GAP = 12.0
LANE = 12.0
MARGIN = 4.0
LONGEST = 18  # letters of a name that fit a box


def draw_panel(panel: Panel[NodeReport], consumers: dict[str, list[str]], timesteps: int) -> Markup:
    """The SVG of one panel. `consumers`: of every node of the graph, the names of those that it feeds."""
    names = [node.name for node in panel.nodes]
    entries = list(dict.fromkeys(name for node in panel.nodes for name in node.inputs if name not in names))
    exits = {name: outside for name in names if (outside := [to for to in consumers[name] if to not in names])}
    widths = {f"from {name}": PORT[0] for name in entries}
    widths |= dict.fromkeys(names, BOX[0]) | {f"to {name}": PORT[0] for name in exits}
    edges = [
        (producer if producer in names else f"from {producer}", node.name)
        for node in panel.nodes
        for producer in dict.fromkeys(node.inputs)
    ]
    edges += [(name, f"to {name}") for name in exits]
    layout = lay_out(widths, edges, ROW_HEIGHT, GAP, LANE)
    size = (layout.width + 2 * MARGIN, layout.height)
    return tag(
        "svg",
        *(_edge(layout, a, b, points) for (a, b), points in zip(edges, layout.routes)),
        *(_port(f"from {name}", layout.centres[f"from {name}"]) for name in entries),
        *(_port(f"to {_places(outside)}", layout.centres[f"to {name}"]) for name, outside in exits.items()),
        *(_box(panel.local_name(node.name), node, layout.centres[node.name], timesteps) for node in panel.nodes),
        class_="graph",
        viewBox=f"{number(-MARGIN)} 0 {number(size[0])} {number(size[1])}",
        width=size[0],
        height=size[1],
        role="img",
        aria_label=f"Drawing of {panel.title or ', '.join(names[:3])}: {len(names)} nodes; the table below lists them",
    )


def drawing_shape(panel: Panel[NodeReport]) -> tuple:
    """What a drawing of a panel shows but for names of other panels and latencies: equal panels look alike."""
    names = {node.name: place for place, node in enumerate(panel.nodes)}
    return tuple(
        (
            panel.local_name(node.name),
            node.op,
            node.features,
            tuple(names.get(producer, -1) for producer in node.inputs),
        )
        for node in panel.nodes
    )


def _places(names: Sequence[str]) -> str:
    """The blocks of these nodes, or the nodes themselves, each once."""
    return ", ".join(dict.fromkeys(block_of(name) or name for name in names))


def _box(name: str, node: NodeReport, centre: tuple[float, float], timesteps: int) -> Markup:
    x, y = centre
    kind = "spiking" if node.spiking else "current"
    latency = "" if node.latency_steps is None else f" · step {node.latency_steps}"
    return tag(
        "g",
        tag("title", f"{node.name}: {node.op}, from {', '.join(node.inputs) or 'the token ids'}"),
        tag("rect", x=x - BOX[0] / 2, y=y - BOX[1] / 2, width=BOX[0], height=BOX[1], rx=6 if node.spiking else 0),
        _text(x, y - 10, _cut(name), "name"),
        _text(x, y + 5, f"{node.op}{latency}"),
        _text(x, y + 19, f"{timesteps} × N × {node.features:,}"),
        class_=kind,
    )


def _port(label: str, centre: tuple[float, float]) -> Markup:
    x, y = centre
    return tag(
        "g",
        tag("title", label),
        tag("rect", x=x - PORT[0] / 2, y=y - PORT[1] / 2, width=PORT[0], height=PORT[1], rx=PORT[1] / 2),
        _text(x, y + 4, _cut(label, LONGEST + 3)),
        class_="port",
    )


def _text(x: float, y: float, text: str, kind: str | None = None) -> Markup:
    return tag("text", text, x=x, y=y, class_=kind)


def _cut(text: str, longest: int = LONGEST) -> str:
    """Both ends of a name that is too long: its beginning says where, its end says what."""
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[1 - (longest + 1) // 2 :]}"


def _edge(layout: Layout, a: str, b: str, points: tuple[tuple[float, float], ...]) -> Markup:
    """A smooth line from the bottom of one box to the top of another, with an arrow's head."""
    (ax, ay), (bx, by) = layout.centres[a], layout.centres[b]
    start = (ax, ay + _half_height(a))
    end = (bx, by - _half_height(b) - 5)
    path = [f"M{number(start[0])} {number(start[1])}"]
    # a point on the way is a straight piece as high as a box, so that the line keeps clear of the boxes beside it
    stops = [start, *(stop for x, y in points for stop in ((x, y - BOX[1] / 2), (x, y + BOX[1] / 2))), end]
    for place, (x, y) in enumerate(stops[1:]):
        px, py = stops[place]
        middle = number((py + y) / 2)
        if px == x:
            path.append(f"V{number(y)}")
        else:
            path.append(f"C{number(px)} {middle} {number(x)} {middle} {number(x)} {number(y)}")
    tip, base = number(end[1] + 5), number(end[1] - 3)
    head = f"M{number(bx - 4)} {base}L{number(bx)} {tip}L{number(bx + 4)} {base}Z"
    return join(tag("path", d="".join(path), class_="edge"), tag("path", d=head, class_="head"))


def _half_height(name: str) -> float:
    return (PORT if name.startswith(("from ", "to ")) else BOX)[1] / 2
