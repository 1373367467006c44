"""The recipe that a bundle was made by, out of its manifest: to train the same again."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

from spikebert.commands import UserError
from spikebert.recipe import Recipe

MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 2**20  # those of real bundles have about 7,000
DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError)  # or encrypted


def recorded_recipe(path: Path) -> str | None:
    """The recipe of a bundle, its folder, its manifest.json or a zip of it, as YAML.

    None where `path` is no bundle. Raises UserError where one records no recipe: its model was not made by
    spikebert-train. A manifest is taken as it is, its digest is not checked.
    """
    import yaml

    manifest = path / MANIFEST if path.is_dir() else path
    try:
        if manifest.name == MANIFEST and manifest.is_file():
            content = manifest.read_bytes()
        elif path.is_file() and _is_zip(path):
            content = _manifest_in(path)
        else:
            return None
        recipe = json.loads(content)["provenance"]["recipe"]
        if not isinstance(recipe, dict) or not recipe:  # none of a model that was not made by spikebert-train
            raise TypeError(recipe)
        check_sections(recipe, path)
        return yaml.safe_dump(recipe, default_style='"')  # quoted: some loaders take a plain 1e3 for a number
    except OSError as error:
        raise UserError(f"--recipe {path}: {error.strerror}; give a YAML file or a bundle") from None
    except (*DAMAGED, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"--recipe {path}: no {MANIFEST} with a recipe; give a YAML file or another bundle") from None


def check_sections(recipe: Mapping[str, object], path: Path) -> None:
    """Raises UserError where a section of a recipe, read from `path`, holds no fields."""
    for name in (field.name for field in fields(Recipe) if is_dataclass(field.default_factory)):
        if name in recipe and not isinstance(recipe[name], dict):
            raise UserError(
                f"--recipe {path}: {name} is {recipe[name]!r}, it is a section: fields below it, a space further in"
            )


def _is_zip(path: Path) -> bool:
    """A damaged one too."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04" or path.suffix.lower() == ".zip"


def _manifest_in(path: Path) -> bytes:
    """Of a zip, at its top or in its one folder. Raises ValueError where there is none, or one that is too large."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            folders, _, name = entry.filename.rpartition("/")
            if name == MANIFEST and "/" not in folders:
                with archive.open(entry) as file:
                    content = file.read(MANIFEST_BYTES_MAX + 1)
                if len(content) <= MANIFEST_BYTES_MAX:
                    return content
    raise ValueError(path)
