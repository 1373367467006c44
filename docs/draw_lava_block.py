"""Draws one block of a transformer as the Lava processes it is lowered to: docs/img/lava_block.png.

    python docs/draw_lava_block.py

Boxes are stock processes, frames the groups that run as one operating system process on the CPU. The block is the
second of a random network of two, lowered like any other.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from benchmarks.networks import random_network
from converters.graph import LIF, Graph
from targets.lava.grouping import Connection, Group, group
from targets.lava.lowering import lower
from targets.lava.plan import NeuronSpec, Plan, RouteSpec, Spec
from targets.lava.target import describe

BLOCK = "blocks.1."
LINES = (3, 2)  # groups in each line of the picture
STEP = (2.85, 1.5)  # from box to box
BOX = (2.0, 1.1)
GAP = 0.25  # between frames
SPIKE, CURRENT, FRAME = "#dcebf7", "#f7eadb", "#8a8a8a"


@dataclass(frozen=True)
class Place:
    """Where a process stands: the middle of its box."""

    x: float
    y: float


def one_threshold_each(graph: Graph) -> Graph:
    """The network with a scalar threshold in every LIF, as Lava has it."""
    nodes = [
        LIF(node.name, node.inputs, int(np.median(node.threshold)), node.dv) if isinstance(node, LIF) else node
        for node in graph
    ]
    return Graph(graph.timesteps, graph.n_max, tuple(nodes))


def columns_of(members: Group) -> dict[str, int]:
    """Column of each process in its frame: as late as its readers allow, so that what waits stands beside them."""
    edges = nx.DiGraph()
    edges.add_nodes_from(spec.name for spec in members.specs)
    edges.add_edges_from((name, spec.name) for spec in members.specs for name in spec.inputs if name in edges)
    depth: dict[str, int] = {}
    for name in nx.topological_sort(edges):
        depth[name] = max((depth[before] + 1 for before in edges.predecessors(name)), default=0)
    for name in reversed(list(nx.topological_sort(edges))):
        depth[name] = min((depth[after] - 1 for after in edges.successors(name)), default=depth[name])
    return depth


def arrange(groups: list[Group]) -> dict[str, Place]:
    """A place for every process, frame after frame, in lines."""
    places: dict[str, Place] = {}
    line, used, left, top = 0, 0, 0.0, 0.0
    for members in groups:
        if used == LINES[line]:
            line, used, left, top = line + 1, 0, 0.0, top - 2.9 * STEP[1]
        columns = columns_of(members)
        for column in sorted(set(columns.values())):
            names = [spec.name for spec in members.specs if columns[spec.name] == column]
            for row, name in enumerate(names):
                height = ((len(names) - 1) / 2 - row) * STEP[1]
                places[name] = Place(left + column * STEP[0], top + height)
        left += (max(columns.values()) + 1) * STEP[0] + GAP
        used += 1
    return places


def short(name: str) -> str:
    return name.removeprefix(BLOCK).replace(".with_lanes", "")


def words_of(plan: Plan, spec: Spec, step: int | None) -> tuple[str, str, str]:
    """What stands in a box: the process, what is particular about it, and when its value is there."""
    process = next(entry["process"] for entry in describe(plan)["processes"] if entry["name"] == spec.name)
    notes = []
    if isinstance(spec, RouteSpec) and spec.delay_steps:
        notes.append(f"waits {spec.delay_steps} steps more")
    if isinstance(spec, NeuronSpec):
        notes.append(f"reset at {spec.reset_offset} mod {spec.reset_interval}")
    if lanes := plan.lanes.get(spec.name):
        notes.append(f"{lanes} lanes")
    return process, ", ".join(notes), "" if step is None else f"step {step}"


def draw_box(axes: Axes, place: Place, spec: Spec, words: tuple[str, str, str]) -> None:
    corner = (place.x - BOX[0] / 2, place.y - BOX[1] / 2)
    colour = CURRENT if isinstance(spec, Connection) else SPIKE
    axes.add_patch(FancyBboxPatch(corner, *BOX, boxstyle="round,pad=0.02,rounding_size=0.08", fc=colour, ec="#444444"))
    lines = (words[0], short(spec.name), *words[1:])
    styles = ({"fontsize": 10, "weight": "bold"}, {"fontsize": 8}, *({"fontsize": 7, "color": "#555555"},) * 2)
    for number, (text, style) in enumerate(zip(lines, styles)):
        axes.text(place.x, place.y + 0.34 - 0.24 * number, text, ha="center", va="center", **style)


def draw_edge(axes: Axes, start: Place, end: Place) -> None:
    ends = (start.x + BOX[0] / 2 + 0.02, start.y), (end.x - BOX[0] / 2 - 0.03, end.y)
    bend = 0.0 if abs(start.y - end.y) < 0.1 else 0.06 * np.sign(end.y - start.y)
    axes.add_patch(
        FancyArrowPatch(
            *ends, arrowstyle="-|>", mutation_scale=9, color="#333333", lw=0.9, connectionstyle=f"arc3,rad={bend}"
        )
    )


def draw_stub(axes: Axes, end: Place, name: str, number: int) -> None:
    """An arrow from a name: what comes from outside, or from far away."""
    x, y = end.x - BOX[0] / 2 - 0.03, end.y + 0.3 * (1 - number)
    axes.add_patch(FancyArrowPatch((x - 0.6, y), (x, y), arrowstyle="-|>", mutation_scale=9, color="#333333", lw=0.9))
    axes.text(x - 0.22, y + 0.12, name, ha="right", va="center", fontsize=7, style="italic")


def draw(plan: Plan, path: Path) -> None:
    groups = [each for each in group(plan, "layer") if each.name.startswith(BLOCK)]
    places = arrange(groups)
    steps = plan.schedule.latency_steps
    figure, axes = plt.subplots(figsize=(25, 9))
    for number, members in enumerate(groups):
        own = [places[spec.name] for spec in members.specs]
        left, right = min(p.x for p in own) - BOX[0] / 2 - 0.12, max(p.x for p in own) + BOX[0] / 2 + 0.12
        bottom, top = min(p.y for p in own) - 0.7, max(p.y for p in own) + 0.7
        axes.add_patch(
            Rectangle((left, bottom), right - left, top - bottom, fill=False, ls=(0, (4, 3)), ec=FRAME, lw=1.1)
        )
        axes.text(left, top + 0.1, f"group {number + 1}", fontsize=9, color=FRAME)
        for spec in members.specs:
            step = steps.get(spec.name)
            draw_box(axes, places[spec.name], spec, words_of(plan, spec, step))
            far = 0
            for name in spec.inputs:
                near = name in places and 0 < places[spec.name].x - places[name].x < 1.35 * STEP[0] + GAP
                if near and abs(places[spec.name].y - places[name].y) < 3 * STEP[1]:
                    draw_edge(axes, places[name], places[spec.name])
                else:
                    draw_stub(axes, places[spec.name], short(name) if name in places else "x", far)
                    far += 1
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.axis("off")
    figure.savefig(path, dpi=85, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "img" / "lava_block.png")
    graph = one_threshold_each(random_network(2, 32, 4, n_max=8, timesteps=4, firing_rate=0.2))
    draw(lower(graph), parser.parse_args().out)


if __name__ == "__main__":
    main()
