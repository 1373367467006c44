"""A zip of a bundle, unpacked with care: whatever it holds, nothing is written but its own files, into one folder.

A zip may come from anywhere. So all names are checked before anything is written, and bytes are counted while they are
written, whatever the zip says of itself.
"""

from __future__ import annotations

import io
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

FILES_MAX = 1000  # a bundle has about a dozen
DEPTH_MAX = 8  # folders in folders
LIST_BYTES_MAX = 2**20  # of the list of files in a zip
BYTES_MAX = 4 * 2**30  # of all files, unpacked
RATIO_MAX = 100  # bytes that are unpacked from one byte of the zip. Weights of a bundle shrink to a half, to a tenth
SMALL = 16 * 2**20  # bytes that are unpacked from any zip, however small
PIECE = 2**20  # bytes at a time
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # with others a small piece may become one of any size in memory
FLAGS_OF_SECRETS = 0x0001 | 0x0040 | 0x2000  # the entry, its key or the list of files is encrypted
DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError)

Parts = tuple[str, ...]  # a path in a zip: folders, then the file


class ArchiveError(Exception):
    """A zip that is not unpacked. The message says what is wrong with it and how to mend that."""


def extract_zip(path: Path, folder: Path) -> None:
    """Write the files of the zip `path` into `folder`, which is empty.

    `manifest.json` stands at the top of the zip, or in its one top folder, which is left out. Hidden files are not
    unpacked, as they are no part of a bundle.

    Raises ArchiveError for what is no zip or a damaged one; a name that leads elsewhere or stands there twice; a link
    or an encrypted file; too many files or bytes. Raises OSError where files cannot be read or written. `folder` may
    then hold some of the files.
    """
    try:
        with _InPieces(io.FileIO(path)) as raw, zipfile.ZipFile(raw) as archive:
            files = _checked(archive.infolist())
            room = min(BYTES_MAX, max(SMALL, RATIO_MAX * path.stat().st_size))
            if sum(entry.file_size for entry in files.values()) > room:
                raise _too_large(room)
            left = room
            for parts, entry in files.items():
                target = folder.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("xb") as copy:
                    while piece := source.read(PIECE):
                        left -= len(piece)
                        if left < 0:
                            raise _too_large(room)
                        copy.write(piece)
    except DAMAGED as error:
        raise ArchiveError(f"no zip, or a damaged one: {error}. Copy or zip the bundle again") from error


class _InPieces(io.BufferedReader):
    """A zip as a file. zipfile reads the list of files in one piece, as large as the zip says: here up to a limit."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > LIST_BYTES_MAX:
            raise _too_many()
        return super().read(size)


def _checked(entries: list[zipfile.ZipInfo]) -> dict[Parts, zipfile.ZipInfo]:
    """The files to unpack by where they belong, from entries of which each has been checked. Raises ArchiveError."""
    if len(entries) > FILES_MAX:
        raise _too_many()
    paths: dict[Parts, Parts] = {}  # as a file system that takes A for a sees them
    files: dict[Parts, zipfile.ZipInfo] = {}
    for entry in entries:
        parts = _parts(entry)
        same = tuple(unicodedata.normalize("NFC", part).casefold() for part in parts)
        if same in paths:
            raise ArchiveError(f"{_name(entry)} stands in it twice, or differs in capitals only. Zip the bundle again")
        paths[same] = parts
        _check_kind(entry)
        if not entry.is_dir() and not any(part.startswith(".") or part == "__MACOSX" for part in parts):
            files[parts] = entry
    for parts, entry in files.items():
        if any(parts[:length] in files for length in range(1, len(parts))):
            raise ArchiveError(f"{_name(entry)} stands in a folder that is a file too. Zip the bundle again")
    top = _top_folder(files)
    return {parts[top:]: entry for parts, entry in files.items()}


def _parts(entry: zipfile.ZipInfo) -> Parts:
    """The path of an entry. Raises ArchiveError for one that is, or on some system may be, outside the folder."""
    name = entry.orig_filename
    parts = tuple(name.removesuffix("/").split("/"))
    if (
        entry.filename != name  # zipfile read it in another way than it stands there
        or not name.isprintable()
        or "\\" in name
        or ":" in name
        or len(parts) > DEPTH_MAX
        or any(not part or part[-1] in ". " for part in parts)  # absolute; "." and ".."; "x." is "x" on some systems
    ):
        raise ArchiveError(f"{_name(entry)} is no plain relative path. Zip the bundle again")
    return parts


def _check_kind(entry: zipfile.ZipInfo) -> None:
    """Raises ArchiveError for what is neither a file nor a folder, and for what cannot be read with care."""
    kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 where the zip was made on a system without such
    if kind not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
        raise ArchiveError(f"{_name(entry)} is a link or no plain file. Zip the files themselves")
    if entry.flag_bits & FLAGS_OF_SECRETS:
        raise ArchiveError(f"{_name(entry)} is encrypted. Zip the bundle without a password")
    if entry.compress_type not in METHODS:
        raise ArchiveError(f"{_name(entry)} is compressed by method {entry.compress_type}. Zip it with deflate")


def _top_folder(files: Iterable[Parts]) -> int:
    """How many folders stand around the bundle: 0 or 1. Raises ArchiveError where there is no bundle."""
    if ("manifest.json",) in files:
        return 0
    tops = {parts[0] for parts in files}
    if len(tops) == 1 and (tops.pop(), "manifest.json") in files:
        return 1
    raise ArchiveError(
        "holds no bundle: manifest.json stands neither at its top nor in its one top folder. "
        "Zip the folder that spikebert-export wrote"
    )


def _name(entry: zipfile.ZipInfo) -> str:
    """The name of an entry for people, on one line."""
    name = entry.orig_filename
    return ascii(name if len(name) <= 80 else name[:77] + "...")


def _too_many() -> ArchiveError:
    return ArchiveError(f"holds more than {FILES_MAX:,} files, so it is no zip of a bundle alone. Zip the bundle again")


def _too_large(room: int) -> ArchiveError:
    return ArchiveError(
        f"unpacks to more than {room:,} bytes, too many for its size. If you trust it, unpack it and give the folder"
    )
