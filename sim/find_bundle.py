"""Finding a bundle: a folder or a zip, or by name one of those that are shipped with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from spikebert.commands import UserError

FOLDERS = ("bundles", "research")  # below `recipes`; the second is in a checkout alone, for its licences


def shipped_bundles() -> dict[str, Path]:
    """The bundles that come with the package `recipes`: name -> folder."""
    recipes = Path(str(resources.files("recipes")))
    folders = [path for kind in FOLDERS for path in sorted((recipes / kind).glob("*"))]
    return {path.name: path for path in folders if (path / "manifest.json").is_file()}


def find_bundle(name: str) -> Path:
    """What stands at `name`, a folder or a zip, else the shipped bundle of that name. Raises UserError."""
    path = Path(name)
    if path.exists():
        return path
    shipped = shipped_bundles()
    if name in shipped:
        return shipped[name]
    raise UserError(
        f"there is no bundle {name}: no such folder or zip, and the shipped bundles are "
        f"{', '.join(shipped) or 'none'}. Write one with spikebert-export"
    )
