"""Finding a bundle: a folder, or by name one of those that are shipped with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from spikebert.commands import UserError


def shipped_bundles() -> dict[str, Path]:
    """The bundles that come with the package `recipes`: name -> folder."""
    folder = Path(str(resources.files("recipes"))) / "bundles"
    if not folder.is_dir():
        return {}
    return {path.name: path for path in sorted(folder.iterdir()) if (path / "manifest.json").is_file()}


def find_bundle(name: str) -> Path:
    """The folder `name` if it exists, else the shipped bundle of that name. Raises UserError."""
    folder = Path(name)
    if folder.exists():
        return folder
    shipped = shipped_bundles()
    if name in shipped:
        return shipped[name]
    raise UserError(
        f"there is no bundle {name}: no such folder, and the shipped bundles are {', '.join(shipped) or 'none'}. "
        "Write one with spikebert-export"
    )
