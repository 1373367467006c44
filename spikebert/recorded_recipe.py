"""The recipe that a bundle was made by, out of its manifest: to train the same again."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from pathlib import Path

from spikebert.commands import UserError

MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 2**20  # those of real bundles have about 7,000
DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError)  # or encrypted


def recorded_recipe(path: Path) -> str | None:
    """The recipe of a bundle, its folder, its manifest.json or a zip of it, as JSON, which is YAML too.

    None where `path` is no bundle. Raises UserError where one records no recipe.
    """
    manifest = path / MANIFEST if path.is_dir() else path
    try:
        if manifest.name == MANIFEST and manifest.is_file():
            content = manifest.read_bytes()
        elif path.is_file() and zipfile.is_zipfile(path):
            content = _manifest_in(path)
        else:
            return None
        recipe = json.loads(content)["provenance"]["recipe"]
        if not isinstance(recipe, dict):
            raise TypeError(recipe)
        return json.dumps(recipe)
    except OSError as error:
        raise UserError(f"--recipe {path}: {error.strerror}; give a YAML file or a bundle") from None
    except (*DAMAGED, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"--recipe {path}: no {MANIFEST} with a recipe; give a YAML file or another bundle") from None


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
