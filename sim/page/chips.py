"""The chips of a bundle that was exported for Loihi 2: each core drawn, from its `loihi2/mapping.json`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.report.markup import Markup, number, tag
from converters.report.shell import Section, section
from converters.report.tables import number_cell, scrolling, share_cell

MAPPING = Path("loihi2") / "mapping.json"
SCHEMA = 1  # of the file; docs/mapping.md tells its fields
CHIPS_DRAWN = 16
CORES_A_ROW = 15
CELL, GAP = 12.0, 2.0  # pixels


def read_mapping(folder: Path) -> dict[str, Any] | None:
    """That of a bundle; None where there is none that this page can read."""
    path = folder / MAPPING
    if not path.exists():
        return None
    document = json.loads(path.read_text(encoding="utf-8"))
    return document if document.get("schema") == SCHEMA else None


def chips_section(mapping: Mapping[str, Any]) -> Section:
    """How many chips the network takes, what is taken of them, and each core of the first ones."""
    board = mapping["board"]
    where = f"{board['name']} has {board['chips']:,}" if board else "no board has as many"
    said = (
        f"{mapping['neurons']:,} neurons on {mapping['cores']:,} cores of {mapping['chips']:,} chips of Loihi 2 "
        f"({where}). A square is a core; the darker, the more is taken of the resource that it has least of. An "
        "estimate: much of the chip is not public, and nobody ran this network on one."
    )
    chips = range(min(mapping["chips"], CHIPS_DRAWN))
    left = mapping["chips"] - len(chips)
    shares = [
        tag("tr", tag("th", name, scope="row"), share_cell(share, "of all cores"), number_cell(mapping["binds"][name]))
        for name, share in mapping["utilisation"].items()
    ]
    head = tag("tr", *(tag("th", name, scope="col") for name in ("resource", "taken of all cores", "binds, boxes")))
    traffic, time = mapping["traffic"], mapping["time"]
    facts = (
        f"Messages a step ({traffic['rates']}): {traffic['messages_a_step']:,.0f} from core to core, "
        f"{traffic['between_chips_a_step']:,.0f} of them between chips. A step takes {time['step_us']:,.1f} us "
        f"({time['source']})."
    )
    return section(
        "Chips",
        tag("p", said),
        tag("div", *(_chip(mapping, chip) for chip in chips), class_="panels"),
        tag("p", f"{left:,} more chips are not drawn.") if left else None,
        scrolling(tag("table", tag("thead", head), tag("tbody", *shares))),
        tag("p", facts),
    )


def _chip(mapping: Mapping[str, Any], chip: int) -> Markup:
    cores = [core for core, its_chip in enumerate(mapping["core_chip"]) if its_chip == chip]
    names = _populations_of(mapping)
    rows = -(-len(cores) // CORES_A_ROW)
    size = CORES_A_ROW * (CELL + GAP), rows * (CELL + GAP)
    cells = [_core(mapping, core, place, sorted(names[core])) for place, core in enumerate(cores)]
    label = f"Chip {chip}: {len(cores)} cores"
    drawing = tag(
        "svg",
        *cells,
        viewBox=f"0 0 {number(size[0])} {number(size[1])}",
        width=size[0],
        height=size[1],
        role="img",
        aria_label=label,
    )
    return tag("figure", tag("figcaption", label), drawing)


def _core(mapping: Mapping[str, Any], core: int, place: int, names: list[str]) -> Markup:
    model = mapping["model"]
    limits = (model["neurons"], model["memory_bytes"], model["axons_in"], model["axons_out"])
    used = mapping["core_use"][core]
    most = max(amount / limit for amount, limit in zip(used, limits))
    row, column = divmod(place, CORES_A_ROW)
    taken = f"{used[0]:,} neurons, {used[1]:,} bytes, {used[2]:,} axons in, {used[3]:,} out"
    return tag(
        "rect",
        tag("title", f"core {core}: {', '.join(names)}; {taken}"),
        x=column * (CELL + GAP),
        y=row * (CELL + GAP),
        width=CELL,
        height=CELL,
        class_="bar",
        fill_opacity=f"{0.15 + 0.85 * most:.2f}",
    )


def _populations_of(mapping: Mapping[str, Any]) -> dict[int, set[str]]:
    """Core -> the populations that have neurons there."""
    found: dict[int, set[str]] = defaultdict(set)
    for population, *_, core in mapping["boxes"]:
        found[core].add(mapping["populations"][population]["name"])
    return found
