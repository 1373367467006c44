"""The bundle: a folder with everything a host needs to run a network. Written whole or not at all, read with care.

A zip of that folder can be read in its place.

docs/bundle.md describes every file. No pickle anywhere: JSON, safetensors and text.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from tokenizers import Tokenizer

from converters.archive import ArchiveError, extract_zip
from converters.execution import Execution, TokenBatch
from converters.graph import LIF, Graph, GraphError, Source
from converters.model_card import model_card
from converters.serialise import PlainGraph, SerialiseError, check_schema, graph_to_plain, plain_to_graph
from spikebert.commands import UserError, printable

GOLDEN_MAX = 8  # samples in golden.safetensors
REAL_TOKENS_SINCE = 2  # from this schema on, golden spikes are recorded without padding, where all is silent
TOKENIZER_FILES = (  # tokenizer.json must be there, the rest is for AutoTokenizer
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
UNASKED = {".DS_Store", "Thumbs.db", "desktop.ini", ".gitattributes"}  # files that nobody put there by hand
PAD_TOKENS = ("[PAD]", "<pad>")
MANIFEST_FIELDS = {"schema", "files", "target", "config", "provenance", "digest"}


class BundleError(UserError):
    """A bundle that cannot be written or read. The message names the file and what to do."""


@dataclass(frozen=True, eq=False)
class Golden:
    """A few inputs with what the network must do on them.

    batch  at most 8 samples
    logits int64 [B, classes]
    spikes node name -> [T, B, N, D], for the source and every LIF, of its `golden_dtype`
    """

    batch: TokenBatch
    logits: np.ndarray
    spikes: dict[str, np.ndarray]


def golden_nodes(graph: Graph) -> tuple[str, ...]:
    """The nodes whose spikes a bundle records: the source and every LIF, in graph order."""
    return tuple(node.name for node in graph if isinstance(node, (Source, LIF)))


def golden_dtype(graph: Graph, name: str) -> type:
    """How recorded spikes are held: uint8 where they are bits, eight to a byte on disk, else int16."""
    node = graph[name]
    return np.int16 if isinstance(node, (Source, LIF)) and node.spike != "binary" else np.uint8


def make_golden(graph: Graph, batch: TokenBatch, execution: Execution) -> Golden:
    """A `Golden` from what the reference did with `batch`, run with `observe=golden_nodes(graph)`."""
    names = golden_nodes(graph)
    spikes: dict[str, np.ndarray] = {name: execution.values[name].astype(golden_dtype(graph, name)) for name in names}
    return Golden(batch, execution.logits.astype(np.int64), spikes)


@dataclass(frozen=True)
class Tokenised:
    """One text as token ids.

    ids       special tokens included, at most n_max
    full      how many tokens the whole text has, special tokens included
    unknown   how many of `ids` are the unknown token
    special   how many of `ids` are special tokens the tokenizer added
    """

    ids: tuple[int, ...]
    full: int
    unknown: int
    special: int

    @property
    def truncated(self) -> bool:
        return self.full > len(self.ids)

    @property
    def is_empty(self) -> bool:
        """Nothing but the added special tokens."""
        return len(self.ids) == self.special

    @property
    def only_unknown(self) -> bool:
        return not self.is_empty and self.unknown == len(self.ids) - self.special


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle that has been read and checked.

    graph     the network
    manifest  manifest.json as it stands
    tokenizer set to cut at n_max and not to pad, whatever tokenizer.json says
    golden    recorded inputs and spikes
    folder    where its files are. For one that was read from a zip, a temporary folder, removed with this object
    zip       what it was read from, if not from a folder
    """

    graph: Graph
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    golden: Golden
    folder: Path
    zip: Path | None = None

    @property
    def place(self) -> Path:
        """What a person knows it by: its zip or its folder."""
        return self.zip or self.folder

    @property
    def config(self) -> dict[str, Any]:
        return self.manifest["config"]

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes; "0", "1", ... where the config has none."""
        classes = self.graph.features[self.graph.output]
        return tuple(self.config.get("labels") or map(str, range(classes)))

    @cached_property
    def pad_id(self) -> int:
        """What padding is filled with. The mask silences it, so no result depends on it."""
        ids = (self.tokenizer.token_to_id(token) for token in PAD_TOKENS)
        return next((found for found in ids if found is not None), 0)

    @cached_property
    def unknown_id(self) -> int | None:
        """The id of the token for what the vocabulary lacks; None where the tokenizer needs none."""
        token = getattr(self.tokenizer.model, "unk_token", None)
        return None if token is None else self.tokenizer.token_to_id(token)

    def tokenise(self, text: str) -> Tokenised:
        """One text as the model sees it: special tokens added, cut at n_max as transformers cuts."""
        encoding = self.tokenizer.encode(text)
        added = self.tokenizer.num_special_tokens_to_add(is_pair=False)
        full = added + sum(len(piece.ids) - added for piece in (encoding, *encoding.overflowing))
        unknown = sum(id == self.unknown_id for id in encoding.ids)
        return Tokenised(tuple(encoding.ids), full, unknown, added)

    def encode(self, texts: Sequence[str], pad_to: int | None = None) -> tuple[TokenBatch, list[bool]]:
        """Texts as a batch [B, N], and for each text whether it was cut.

        N is `pad_to`, or the longest of these texts. An empty text gives [CLS] [SEP]. Raises ValueError without
        texts and where `pad_to` is too small.
        """
        tokenised = [self.tokenise(text) for text in texts]
        return self.batch(tokenised, pad_to), [text.truncated for text in tokenised]

    def batch(self, texts: Sequence[Tokenised], pad_to: int | None = None) -> TokenBatch:
        """Tokenised texts side by side, padded on the right to `pad_to` or the longest: [B, N], N >= 1."""
        if not texts:
            raise ValueError("no texts")
        longest = max(1, *(len(text.ids) for text in texts))
        width = longest if pad_to is None else pad_to
        if width < longest:
            raise ValueError(f"cannot pad {longest} tokens to {width}")
        ids = np.full((len(texts), width), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(texts), width), dtype=np.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text.ids)] = text.ids
            mask[row, : len(text.ids)] = 1
        return TokenBatch(ids, mask)


def write_bundle(
    folder: Path,
    graph: Graph,
    *,
    tokenizer: Path,
    golden: Golden,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    target: str | None = None,
    add_target: Callable[[Path], None] | None = None,
    add_report: Callable[[Path], None] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle, read it back through every check, and put it in place by one rename.

    folder     must not exist; with `overwrite` an older bundle (nothing else) is replaced, where a link leads too
    tokenizer  a folder with tokenizer.json and what else AutoTokenizer wants
    config     any JSON object. Keys that are used: "labels" (class names in order) by every command; "name",
               "accuracies" (what was measured -> fraction) and others that `model_card` names by the model card
    provenance any JSON object: how the network was made; the model card tells its "command" and "recipe"
    target     name of the target; `add_target(path)` then writes its files into the empty folder `path`
    add_report `add_report(path)` adds to the folder `path`, where all other files but the manifest stand already

    All is written into a hidden folder beside `folder`, so a run that is stopped leaves no half bundle. Raises
    BundleError where a file cannot be read or written or the parts do not fit together.
    """
    folder = Path(folder).resolve()
    check_destination(folder, overwrite)
    with _errors_name_files("writing", folder), _partial_folder(folder) as partial:
        plain = graph_to_plain(graph)
        (partial / "graph.json").write_bytes(_readable_json(plain.structure))
        (partial / "weights.safetensors").write_bytes(save_tensors(plain.weights))
        (partial / "encoder.safetensors").write_bytes(save_tensors(plain.encoder))
        (partial / "golden.safetensors").write_bytes(save_tensors(_golden_to_tensors(golden)))
        _copy_tokenizer(Path(tokenizer), partial / "tokenizer")
        card = model_card(graph, config, provenance, target, printable(folder.name))
        (partial / "README.md").write_text(card, encoding="utf-8")
        if target is not None and add_target is not None:
            (partial / target).mkdir()
            add_target(partial / target)
        if add_report is not None:
            add_report(partial)
        schema = plain.structure["schema"]
        (partial / "manifest.json").write_bytes(_manifest(partial, schema, config, provenance, target))
        bundle = read_bundle(partial)  # what was written is what will be read, or it is not put in place
        _put_in_place(partial, folder)
    return replace(bundle, folder=folder)


def read_bundle(path: Path) -> Bundle:
    """Read a bundle, a folder or a zip of one, and check it: schema, every hash, every shape, that the parts fit.

    Each file is read once, and the bytes that were hashed are the bytes that are used. A zip is unpacked into a
    temporary folder of this user alone, which is removed when the `Bundle` is no longer used. Raises BundleError.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        return _read_zip(path)
    raise BundleError(f"{path} is not a folder and no zip. A bundle is a folder written by spikebert-export")


def _read_folder(folder: Path) -> Bundle:
    if not (folder / "manifest.json").is_file():
        raise BundleError(f"{folder} has no manifest.json, so it is no bundle. Write one with spikebert-export")
    with _errors_name_files("reading", folder):
        manifest = _read_manifest(folder / "manifest.json")
        files = _read_files(folder, manifest["files"])
        graph = _read_graph(folder, files, manifest["schema"])
        tokenizer = _read_tokenizer(folder, files, graph)
        golden = _read_golden(folder, files, graph, manifest["schema"])
    names = manifest["config"].get("labels")
    classes = graph.features[graph.output]
    if names is not None and not (isinstance(names, list) and len(names) == classes and all(map(_is_text, names))):
        raise BundleError(f"{folder / 'manifest.json'}: config.labels must name the {classes} classes, it is {names!r}")
    return Bundle(graph, manifest, tokenizer, golden, folder)


def _read_zip(path: Path) -> Bundle:
    with _errors_name_files("unpacking", path), ExitStack() as undo:
        folder = Path(tempfile.mkdtemp(prefix="spikebert-"))
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            extract_zip(path, folder)
            bundle = replace(_read_folder(folder), zip=path)
        except ArchiveError as error:
            raise BundleError(f"{path}: {error}") from error
        except BundleError as error:  # it names files of the temporary folder, which nobody knows
            raise BundleError(str(error).replace(str(folder), str(path))) from error
        weakref.finalize(bundle, _remove_folder, folder, os.getpid())  # at the latest when this process ends
        undo.pop_all()
    return bundle


def _remove_folder(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has the object too, but not the folder
        shutil.rmtree(folder, ignore_errors=True)


# Writing


def check_destination(folder: Path, overwrite: bool) -> None:
    """Raises BundleError where no bundle can be written at `folder`, so far as can be told without writing."""
    for parent in folder.resolve().parents:
        if _is_bundle(parent):
            raise BundleError(f"{folder} is within the bundle {parent}, which it would spoil. Choose another place")
    if not folder.exists():
        above = next(parent for parent in folder.absolute().parents if parent.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            problem = "may not be written to" if above.is_dir() else "is not a folder"
            raise BundleError(f"{folder} cannot be made: {above} {problem}. Choose another place")
        return
    if not folder.is_dir():
        raise BundleError(f"{folder} exists and is not a folder. Choose another place")
    if not overwrite:
        raise BundleError(f"{folder} exists. Choose another place, or overwrite it (--overwrite)")
    if any(folder.iterdir()):
        _check_own_files_only(folder)


def _check_own_files_only(folder: Path) -> None:
    """Raises BundleError where to replace `folder` would take away what no bundle was written with."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        if set(manifest) != MANIFEST_FIELDS:
            raise ValueError(manifest)
        hashes = {"manifest.json": None, **manifest["files"]}
    except (OSError, ValueError, TypeError, RecursionError):
        raise BundleError(
            f"{folder} is not a bundle, or a damaged one, so it is not overwritten. Choose another place, or remove it"
        ) from None
    found = (
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()
    )
    names = sorted(name for name in found if not _unasked(name))
    others = [name for name in names if name not in hashes]
    if others:
        more = f", and {len(others) - 1:,} more," if len(others) > 1 else ""
        raise BundleError(
            f"{folder / others[0]}{more} would be lost: the bundle's manifest does not list it. "
            "Move it out of the bundle"
        )
    for name in names:
        wanted = hashes[name]
        if wanted is not None and hashlib.sha256((folder / name).read_bytes()).hexdigest() != wanted:
            raise BundleError(
                f"{folder / name} was changed since the bundle was written, and would be lost. Move it away, or remove "
                "the folder"
            )


def _unasked(name: str) -> bool:
    """Whether a system or a hub wrote a file into the folder without being asked."""
    last = name.rpartition("/")[2]
    return last in UNASKED or last.startswith(("._", ".nfs")) or name.startswith(".cache/huggingface/")


def check_beside(folder: Path, out: Path) -> None:
    """Raises BundleError where files that are written to `folder` would be in a bundle: one that is there, or the one
    to be written at `out`."""
    whole = folder.resolve()
    for place in (whole, *whole.parents):
        if place == out.resolve() or _is_bundle(place):
            raise BundleError(
                f"{folder} is in the bundle {place}, which holds its own files only. Choose another place"
            )


def _is_bundle(folder: Path) -> bool:
    return (folder / "graph.json").is_file() and (folder / "manifest.json").is_file()


@contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder`, removed again unless it was renamed away."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, folder: Path) -> None:
    """Rename `partial` to `folder`; an older bundle steps aside first and comes back if that fails."""
    if not folder.exists():
        partial.rename(folder)
        return
    old = partial.with_suffix(".old")
    folder.rename(old)
    try:
        partial.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _copy_tokenizer(source: Path, destination: Path) -> None:
    if not (source / "tokenizer.json").is_file():
        raise BundleError(f"{source} has no tokenizer.json. Save the tokenizer there with save_pretrained")
    destination.mkdir()
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)


def _golden_to_tensors(golden: Golden) -> dict[str, np.ndarray]:
    real = golden.batch.mask == 1
    tensors = {"ids": golden.batch.ids, "mask": golden.batch.mask, "logits": golden.logits}
    recorded = {name: spikes[:, real].reshape(-1) for name, spikes in golden.spikes.items()}
    packed = {name: np.packbits(each) if each.dtype == np.uint8 else each for name, each in recorded.items()}
    return tensors | {f"spikes.{name}": each for name, each in packed.items()}


def _manifest(
    folder: Path, schema: int, config: Mapping[str, Any], provenance: Mapping[str, Any], target: str | None
) -> bytes:
    manifest = {
        "schema": schema,
        "files": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in _listing(folder)},
        "target": target,
        "config": dict(config),
        "provenance": dict(provenance),
    }
    manifest = json.loads(_readable_json(manifest))  # keys become texts, as a reader will see them
    return _readable_json(manifest | {"digest": manifest_digest(manifest)})


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of the manifest without its field "digest", as compact JSON with sorted keys in ASCII."""
    rest = {field: value for field, value in manifest.items() if field != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _readable_json(document: object) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


# Reading


def _listing(folder: Path) -> list[str]:
    """The files of a bundle, sorted, with `/` between folders. Hidden files (.DS_Store, .git) do not count."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = (path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    return sorted(name for name in names if name != "manifest.json")


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = _parse_json(path.read_bytes(), path)
    try:
        check_schema(manifest, str(path))
    except SerialiseError as error:
        raise BundleError(str(error)) from None
    if (
        set(manifest) != MANIFEST_FIELDS
        or not all(isinstance(manifest[field], dict) for field in ("files", "config", "provenance"))
        or not (manifest["target"] is None or _is_text(manifest["target"]))
    ):
        raise BundleError(f"{path}: its fields must be {', '.join(sorted(MANIFEST_FIELDS))}. Export the bundle again")
    if manifest["digest"] != manifest_digest(manifest):
        raise BundleError(
            f"{path} was changed after it was written: its digest differs. Export or copy the bundle again"
        )
    return manifest


def _read_files(folder: Path, hashes: dict[str, str]) -> dict[str, bytes]:
    """The content of every file, checked against its hash."""
    present = _listing(folder)
    for name in hashes:
        if name not in present:
            raise BundleError(f"{folder / name} is missing. Export or copy the bundle again")
    for name in present:
        if name not in hashes:
            raise BundleError(f"{folder / name} is not listed in manifest.json. Move it out of the bundle")
    files = {name: (folder / name).read_bytes() for name in present}
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != hashes[name]:
            raise BundleError(f"{folder / name} is damaged or was changed: its sha256 differs. Copy or export again")
    for name in (
        "graph.json",
        "weights.safetensors",
        "encoder.safetensors",
        "golden.safetensors",
        "tokenizer/tokenizer.json",
    ):
        if name not in files:
            raise BundleError(f"{folder / name} is missing and manifest.json does not list it. Export again")
    return files


def _read_graph(folder: Path, files: dict[str, bytes], schema: int) -> Graph:
    plain = PlainGraph(
        _parse_json(files["graph.json"], folder / "graph.json"),
        _parse_tensors(files["weights.safetensors"], folder / "weights.safetensors"),
        _parse_tensors(files["encoder.safetensors"], folder / "encoder.safetensors"),
    )
    try:
        graph = plain_to_graph(plain)
    except (SerialiseError, GraphError) as error:
        raise BundleError(f"{folder}: not a legal graph: {error}. Export the bundle again") from error
    if plain.structure["schema"] != schema:
        raise BundleError(
            f"{folder / 'graph.json'} has schema {plain.structure['schema']}, manifest.json has {schema}. "
            "Export the bundle again"
        )
    return graph


def _read_tokenizer(folder: Path, files: dict[str, bytes], graph: Graph) -> Tokenizer:
    path = folder / "tokenizer" / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_str(files["tokenizer/tokenizer.json"].decode())
    except Exception as error:  # tokenizers raises bare Exception
        raise BundleError(f"{path} is not a tokenizer: {error}. Export the bundle again") from error
    added = tokenizer.num_special_tokens_to_add(is_pair=False)
    if graph.n_max < max(1, added):
        raise BundleError(
            f"{path} adds {added} special tokens, the graph takes {graph.n_max}. Export with a larger n_max"
        )
    rows = graph.source.table.shape[0]
    last = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if last >= rows:
        raise BundleError(
            f"{path} has token id {last}, the table has {rows} rows. Export with the model's own tokenizer"
        )
    tokenizer.no_padding()
    tokenizer.enable_truncation(graph.n_max)
    return tokenizer


def _read_golden(folder: Path, files: dict[str, bytes], graph: Graph, schema: int) -> Golden:
    path = folder / "golden.safetensors"
    tensors = _parse_tensors(files["golden.safetensors"], path)
    try:
        return _golden_from_tensors(tensors, graph, schema)
    except ValueError as error:
        raise BundleError(f"{path}: {error}. Export the bundle again") from error


def _golden_from_tensors(tensors: dict[str, np.ndarray], graph: Graph, schema: int) -> Golden:
    """Unpack and check shapes and dtypes. Raises ValueError."""
    nodes = golden_nodes(graph)
    expected = {"ids", "mask", "logits", *(f"spikes.{name}" for name in nodes)}
    if set(tensors) != expected:
        raise ValueError(f"tensors missing or too many: {', '.join(sorted(set(tensors) ^ expected))}")
    batch = TokenBatch(_typed(tensors, "ids", np.int64), _typed(tensors, "mask", np.int64))
    batch.check_fits(graph)
    if len(batch) > GOLDEN_MAX:
        raise ValueError(f"{len(batch)} samples, at most {GOLDEN_MAX} belong in a bundle")
    logits = _typed(tensors, "logits", np.int64)
    if logits.shape != (len(batch), graph.features[graph.output]):
        raise ValueError(f"logits have shape {logits.shape}, not {(len(batch), graph.features[graph.output])}")
    recorded = batch.mask == 1
    if schema < REAL_TOKENS_SINCE:
        recorded = np.ones_like(recorded)
    elif not recorded[:, -1].any():  # padding takes no room in this file, but in memory
        raise ValueError(f"{batch.ids.shape[1]} tokens, but no sample has as many")
    spikes: dict[str, np.ndarray] = {}
    for name in nodes:
        dtype = golden_dtype(graph, name)
        held = _typed(tensors, f"spikes.{name}", dtype)
        shape = (graph.timesteps, int(recorded.sum()), graph.features[name])  # [T, tokens, D]
        count, bits = math.prod(shape), dtype == np.uint8
        size = -(-count // 8) if bits else count
        if held.shape != (size,):
            what = f"{count} bits take {size} bytes" if bits else f"its {count} values stand one after another"
            raise ValueError(f"spikes.{name} has shape {held.shape}, {what}")
        spikes[name] = np.zeros((graph.timesteps, *batch.ids.shape, graph.features[name]), dtype)
        spikes[name][:, recorded] = (np.unpackbits(held, count=count) if bits else held).reshape(shape)
    return Golden(batch, logits, spikes)


def _typed(tensors: dict[str, np.ndarray], name: str, dtype: type) -> np.ndarray:
    if tensors[name].dtype != dtype:
        raise ValueError(f"tensor '{name}' is {tensors[name].dtype}, not {np.dtype(dtype)}")
    return tensors[name]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _parse_json(content: bytes, path: Path) -> Any:
    """JSON as the standard has it: no NaN, no infinity, no number that Python makes one of."""
    try:
        return json.loads(content.decode(), parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:  # ValueError: also bytes that are no UTF-8
        raise BundleError(f"{path} is not JSON: {error}. Export or copy the bundle again") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large a number")
    return number


def _parse_tensors(content: bytes, path: Path) -> dict[str, np.ndarray]:
    try:
        return load_tensors(content)
    except (safetensors.SafetensorError, KeyError) as error:  # KeyError: a dtype numpy has not
        raise BundleError(f"{path} is not a safetensors file of integers: {error}. Export the bundle again") from error


@contextmanager
def _errors_name_files(doing: str, folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into a BundleError that names the file."""
    try:
        yield
    except OSError as error:
        path = error.filename or folder
        raise BundleError(
            f"{doing} {path}: {error.strerror or error}. Check the path, the rights and the space"
        ) from error
