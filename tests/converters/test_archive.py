"""A zip from anywhere: a bundle comes out of it whole, and of anything else nothing is written outside its folder."""

import contextlib
import io
import random
import stat
import struct
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters import archive
from converters.archive import ArchiveError, extract_zip

FILES = {"manifest.json": b"{}", "graph.json": b"[]", "tokenizer/tokenizer.json": b"text" * 100, "empty.json": b""}


def make_zip(path: Path, files: dict[str, bytes] | list[tuple[str | zipfile.ZipInfo, bytes]]) -> Path:
    """A zip with these entries, whatever their names are."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        warnings.simplefilter("ignore")  # zipfile itself warns of names that stand there twice
        for name, content in files.items() if isinstance(files, dict) else files:
            target.writestr(name, content)
    return path


def raw_entry(name: str) -> zipfile.ZipInfo:
    """An entry whose name stands in the zip as it is given."""
    entry = zipfile.ZipInfo("x")
    entry.filename = name
    return entry


def unpacked(path: Path, folder: Path) -> dict[str, bytes]:
    """What `extract_zip` writes."""
    folder.mkdir()
    extract_zip(path, folder)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if not file.is_dir()}


def is_refused(path: Path, message: str) -> None:
    """Refused with this message, before anything is written."""
    folder = path.parent / "room" / "folder"
    folder.mkdir(parents=True)
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(ArchiveError, match=message):
        extract_zip(path, folder)
    assert sorted(path.parent.rglob("*")) == before


@pytest.mark.parametrize("top", ["", "reviews/", "my bundle (1)/", "Büro/"])
def test_files_come_out_as_they_went_in(tmp_path, top):
    path = make_zip(tmp_path / "x.zip", {f"{top}{name}": content for name, content in FILES.items()})
    assert unpacked(path, tmp_path / "out") == FILES


def test_folders_and_stored_files_are_taken(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_STORED) as target:
        for name in ("reviews/", "reviews/tokenizer/"):
            target.writestr(zipfile.ZipInfo(name), b"")
        for name, content in FILES.items():
            target.writestr(f"reviews/{name}", content)
    assert unpacked(tmp_path / "x.zip", tmp_path / "out") == FILES


def test_hidden_files_are_left_out(tmp_path):
    more = {".DS_Store": b"x", "tokenizer/._a": b"x", "__MACOSX/manifest.json": b"x", ".git/config": b"x"}
    assert unpacked(make_zip(tmp_path / "x.zip", FILES | more), tmp_path / "out") == FILES


def test_a_file_of_many_pieces_comes_out_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "PIECE", 7)
    content = random.Random(0).randbytes(1000)
    path = make_zip(tmp_path / "x.zip", FILES | {"weights": content})
    assert unpacked(path, tmp_path / "out")["weights"] == content


# Names


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "//server/share",
        "../outside",
        "tokenizer/../../outside",
        "tokenizer/..",
        "./graph",
        "tokenizer//x",
        "tokenizer/./x",
        "..",
        ".",
        "",
        "/",
        "..\\outside",
        "tokenizer\\x",
        "C:\\outside",
        "C:outside",
        "C:/outside",
        "x:stream",
        "x\n",
        "x\x00.json",
        "x\x1b[2J",
        "x\u202egnp.exe",
        "x.",
        "x ",
        "a/" * 9 + "x",
    ],
)
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_name_that_may_lead_elsewhere_is_refused(tmp_path, name, place):
    files = list(FILES.items())
    bad = [(raw_entry(name), b"evil")]
    is_refused(make_zip(tmp_path / "x.zip", bad + files if place == "first" else files + bad), "is no plain relative")


@given(st.text(max_size=12))
def test_no_name_writes_outside_the_folder(tmp_path_factory, name):
    room = tmp_path_factory.mktemp("room")
    try:
        path = make_zip(room / "x.zip", [("manifest.json", b"{}"), (raw_entry(name), b"evil")])
    except (UnicodeEncodeError, struct.error):
        return
    (room / "deep" / "folder").mkdir(parents=True)
    with contextlib.suppress(ArchiveError, OSError):
        extract_zip(path, room / "deep" / "folder")
    assert {file.name for file in room.iterdir()} == {"x.zip", "deep"}
    assert {file.name for file in (room / "deep").iterdir()} == {"folder"}


@pytest.mark.parametrize(
    "other",
    ["graph.json", "Graph.JSON", "GRAPH.json", "graph.json/", "tokenizer/Tokenizer.json", "TOKENIZER/tokenizer.json"],
)
def test_a_name_that_stands_there_twice_is_refused(tmp_path, other):
    path = make_zip(tmp_path / "x.zip", [*FILES.items(), (raw_entry(other), b"")])
    is_refused(path, "stands in it twice")


def test_names_that_a_file_system_may_take_for_one_are_refused(tmp_path):
    one, other = "caf\u00e9.json", "cafe\u0301.json"  # é as one character, and as two
    is_refused(make_zip(tmp_path / "x.zip", FILES | {one: b"", other: b""}), "stands in it twice")


def test_a_file_that_is_a_folder_too_is_refused(tmp_path):
    is_refused(make_zip(tmp_path / "x.zip", FILES | {"graph.json/x": b""}), "a folder that is a file too")


# Kinds


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, stat.S_IFDIR])
def test_what_is_no_file_is_refused(tmp_path, kind):
    entry = zipfile.ZipInfo("tokenizer/vocab.txt")
    entry.create_system = 3  # Unix
    entry.external_attr = (kind | 0o777) << 16
    is_refused(make_zip(tmp_path / "x.zip", [*FILES.items(), (entry, b"/etc/passwd")]), r"vocab\.txt' is a link")


def test_a_link_among_the_folders_is_refused(tmp_path):
    entry = zipfile.ZipInfo("tokenizer/")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    is_refused(make_zip(tmp_path / "x.zip", [(entry, b"/etc"), *FILES.items()]), "'tokenizer/' is a link")


@pytest.mark.parametrize("flag", [0x0001, 0x0040, 0x2000])
def test_encrypted_entries_are_refused(tmp_path, flag):
    path = make_zip(tmp_path / "x.zip", FILES)
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02") + 8  # the flags of the first entry in the list of files
    content[place : place + 2] = struct.pack("<H", struct.unpack("<H", content[place : place + 2])[0] | flag)
    path.write_bytes(content)
    is_refused(path, r"'manifest\.json' is encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_than_deflate_are_refused(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as target:
        target.writestr("manifest.json", b"{}")
    is_refused(tmp_path / "x.zip", f"compressed by method {method}")


# Where the bundle is


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["graph.json"],
        ["reviews/graph.json"],
        ["a/b/manifest.json"],
        ["a/manifest.json", "b/manifest.json"],
        ["a/manifest.json", "graph.json"],
        ["Manifest.json"],
        [".hidden/manifest.json"],
    ],
)
def test_manifest_stands_at_the_top_or_in_the_one_folder(tmp_path, names):
    is_refused(make_zip(tmp_path / "x.zip", dict.fromkeys(names, b"{}")), "holds no bundle")


# Bombs


def test_too_many_files_are_refused(tmp_path):
    files = {f"tokenizer/{number}": b"" for number in range(archive.FILES_MAX)}
    is_refused(make_zip(tmp_path / "x.zip", FILES | files), "more than 1,000 files")


def test_a_list_of_files_beyond_any_bundle_is_not_even_read(tmp_path, monkeypatch):
    files = {f"tokenizer/{number}{'x' * 3000}": b"" for number in range(500)}
    path = make_zip(tmp_path / "x.zip", FILES | files)
    monkeypatch.setattr(archive, "_checked", lambda entries: pytest.fail("the list was read"))
    is_refused(path, "more than 1,000 files")


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(archive, "SMALL", 1000)
    monkeypatch.setattr(archive, "BYTES_MAX", 50_000)


def test_a_bomb_that_says_so_is_refused_before_it_is_unpacked(tmp_path, small_limits):
    path = make_zip(tmp_path / "x.zip", FILES | {"weights": bytes(10**6)})
    assert path.stat().st_size < 2000
    is_refused(path, "unpacks to more than 50,000 bytes")


def test_what_unpacks_to_too_many_times_its_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "SMALL", 1000)
    monkeypatch.setattr(archive, "RATIO_MAX", 3)
    path = make_zip(tmp_path / "x.zip", FILES | {"weights": bytes(1000)})
    assert 1500 / 3 < path.stat().st_size < 1000
    assert unpacked(path, tmp_path / "out")["weights"] == bytes(1000)
    is_refused(make_zip(tmp_path / "y.zip", FILES | {"weights": bytes(3000)}), "too many for its size")


def test_many_bytes_are_taken_from_a_zip_that_is_as_large(tmp_path, small_limits):
    content = random.Random(0).randbytes(45_000)
    path = make_zip(tmp_path / "x.zip", FILES | {"weights": content})
    assert unpacked(path, tmp_path / "out")["weights"] == content
    too_many = random.Random(0).randbytes(50_001)
    is_refused(make_zip(tmp_path / "y.zip", FILES | {"weights": too_many}), "more than 50,000 bytes")


def understate(path: Path, says: int) -> None:
    """Have the last file of a zip say, wherever it says so, that it unpacks to `says` bytes."""
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = content.rindex(signature) + offset
        content[place : place + 4] = struct.pack("<I", says)
    path.write_bytes(content)


def test_a_bomb_that_lies_is_refused_while_it_is_unpacked(tmp_path, small_limits):
    path = make_zip(tmp_path / "x.zip", FILES | {"weights": bytes(10**6)})
    understate(path, says=10)
    (tmp_path / "out").mkdir()
    with pytest.raises(ArchiveError, match=r"Bad CRC-32|more than"):
        extract_zip(path, tmp_path / "out")
    assert sum(file.stat().st_size for file in (tmp_path / "out").rglob("*") if file.is_file()) < 1000


class Endless(io.BytesIO):
    """A file in a zip that gives more and more, whatever its entry says."""

    def read(self, size: int = -1) -> bytes:
        return bytes(size)


def test_bytes_are_counted_as_they_are_written(tmp_path, monkeypatch):
    """zipfile itself stops where the entry says the file ends. Should it not, this does."""
    path = make_zip(tmp_path / "x.zip", FILES)
    monkeypatch.setattr(archive, "SMALL", 10_000)
    monkeypatch.setattr(archive, "RATIO_MAX", 1)
    monkeypatch.setattr(archive, "PIECE", 1000)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda self, entry: Endless())
    (tmp_path / "out").mkdir()
    with pytest.raises(ArchiveError, match="unpacks to more than 10,000 bytes"):
        extract_zip(path, tmp_path / "out")
    assert sum(file.stat().st_size for file in (tmp_path / "out").iterdir()) <= 10_000


# Damage


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x05\x06", b"nonsense" * 1000, b"PK\x05\x06" + b"\xff" * 18])
def test_what_is_no_zip_is_refused(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    is_refused(tmp_path / "x.zip", "no zip, or a damaged one|more than 1,000 files")


def test_a_zip_that_was_cut_is_refused(tmp_path):
    content = make_zip(tmp_path / "x.zip", FILES).read_bytes()
    for length in range(0, len(content), 7):
        (tmp_path / "x.zip").write_bytes(content[:length])
        with pytest.raises(ArchiveError):
            extract_zip(tmp_path / "x.zip", tmp_path / str(length))


@pytest.mark.parametrize("seed", range(300))
def test_any_byte_may_be_wrong(tmp_path, seed):
    """Refused with an error of ours, or harmless: then the files are the right ones, or some are missing."""
    rng = random.Random(seed)
    path = make_zip(tmp_path / "x.zip", FILES)
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 3)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)
    try:
        found = unpacked(path, tmp_path / "out")
    except (ArchiveError, OSError):
        return
    assert all(content == FILES[name] for name, content in found.items() if name in FILES)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "x.zip"]
