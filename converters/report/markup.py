"""Making HTML and SVG out of Python: whatever is not `Markup` already is escaped, so no text can become a tag."""

from __future__ import annotations

from html import escape

VOID = ("meta", "link", "br")  # elements of HTML that have no end


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """`<name attributes>children</name>`. Children that are no `Markup` are escaped, None are left out.

    `class_` becomes `class`, `_` in other names becomes `-`; attributes that are None are left out, True stands alone.
    """
    given = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    if name in VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(*children)}</{name}>")


def join(*children: object) -> Markup:
    """Children one after another, escaped as in `tag`."""
    return Markup(
        "".join(child if isinstance(child, Markup) else escape(str(child)) for child in children if child is not None)
    )


def number(value: float) -> str:
    """A coordinate of a drawing: short, and never in scientific notation."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = number(value) if isinstance(value, float) else str(value)
    return f' {name}="{escape(text)}"'
