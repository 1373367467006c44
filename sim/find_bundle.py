"""Finding a bundle: a folder or a zip, or by name one that stands beside the recipes."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from spikebert.commands import UserError


def known_bundles() -> dict[str, Path]:
    """Those known by name -> folder or zip: the folders of `bundles`, which comes with the package, and in a checkout
    the zips of `research`, which does not, for its licences. Of a name in both the folder counts."""
    recipes = Path(str(resources.files("recipes")))
    zips = {path.stem: path for path in sorted((recipes / "research").glob("*.zip"))}
    folders = sorted(path.parent for path in (recipes / "bundles").glob("*/manifest.json"))
    return zips | {path.name: path for path in folders}


def find_bundle(name: str) -> Path:
    """What stands at `name`, a folder or a zip, else the bundle known by that name. Raises UserError."""
    path = Path(name)
    if path.exists():
        return path
    known = known_bundles()
    if name in known:
        return known[name]
    raise UserError(
        f"there is no bundle {name}: no such folder or zip, and those known by name are "
        f"{', '.join(sorted(known)) or 'none'}. Write one with spikebert-export"
    )
