"""The first version of the Lava target, from the history of the repository: what today's is compared with."""

from __future__ import annotations

import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

REVISIONS = ("first-lava", "a547f25bb3f5d90fc66f6c9f344c6c6645563147")  # its tag, and its commit if tags are missing
PACKAGES = ("converters", "sim", "spikebert", "targets")


def extract_first(repository: Path, folder: Path) -> str | None:
    """Write the code of the first version to `folder`; by which name it was found. None where the history has it not,
    as in a shallow clone, or where there is no git."""
    for revision in REVISIONS:
        command = ["git", "-C", str(repository), "archive", "--format=tar", revision, *PACKAGES]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except FileNotFoundError:
            return None
        if done.returncode == 0:
            with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
                archive.extractall(folder)
            return revision
    return None
