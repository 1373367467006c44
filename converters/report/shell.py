"""What every page of ours has: its head, its beginning, its sections. The report of an export and that of a run use it.

A page needs nothing but itself. It asks no network for anything, and its Content-Security-Policy says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from converters.report.markup import Markup, tag
from converters.report.style import CSS, SCRIPT

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Tile:
    """A figure that comes first: its name, its value, and what it means."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True)
class Section:
    """A part of the page, under its title, to which the navigation leads."""

    title: str
    body: Markup


def section(title: str, *children: object) -> Section:
    return Section(title, tag("section", tag("h2", title, id=title.lower()), *children))


def page(
    title: str,
    name: str,
    summary: str,
    tiles: Sequence[Tile],
    notes: Sequence[str],
    sections: Sequence[Section],
    script: str = "",
) -> str:
    """The whole page, in light and dark, wide and narrow.

    title   of the window
    name    the heading, `summary` below it
    notes   what a reader should not miss, in sentences
    script  run after the one that all pages have
    """
    links = (tag("a", each.title, href=f"#{each.title.lower()}") for each in sections)
    header = tag(
        "header",
        tag("h1", name),
        tag("p", summary, class_="quiet"),
        tag("nav", *links, aria_label="Sections"),
        tag("dl", *map(_tile, tiles), class_="tiles"),
        tag("ul", *(tag("li", note) for note in notes)),
    )
    body = tag("body", header, tag("main", *(each.body for each in sections)), tag("script", Markup(SCRIPT + script)))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup(CSS)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _tile(tile: Tile) -> Markup:
    return tag("div", tag("dt", tile.name), tag("dd", tile.value, tag("small", tile.detail)))
