"""Finding a bundle: a folder or a zip, or by name one that stands beside the recipes."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from spikebert.commands import UserError

FOLDERS = ("research", "bundles")  # below `recipes`; of a name in both the later counts


def known_bundles() -> dict[str, Path]:
    """Those known by name -> folder: `bundles`, which comes with the package, and in a checkout `research`, which does
    not, for its licences."""
    recipes = Path(str(resources.files("recipes")))
    folders = [path for kind in FOLDERS for path in sorted((recipes / kind).glob("*"))]
    return {path.name: path for path in folders if (path / "manifest.json").is_file()}


def find_bundle(name: str) -> Path:
    """What stands at `name`, a folder or a zip, else the shipped bundle of that name. Raises UserError."""
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
