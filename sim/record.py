"""A record: the values of some nodes for every sample of a run, in one file that numpy reads without pickle.

    record = read_record(Path("spikes.npz"))
    record["blocks.0.query.lif"]           # uint8 [samples, T, n_max, D]
    record.rows, record.mask, record.about

The file is a zip of .npy files. How many samples a run has is known only at its end, but an .npy file begins with its
shape. So samples are first spooled, batch after batch, to a file without a name, which the system removes whatever
happens; at the end they are read back node by node and compressed. Memory never holds more than a batch.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, BinaryIO

import numpy as np

from converters.execution import TokenBatch
from converters.graph import Graph
from sim.probe import gives_currents
from sim.rows import Row
from sim.whole_file import check_path, close_quietly, errors_name, whole_file
from spikebert.commands import UserError

FLAG = "--record"
SCHEMA = 1
VALUES = "values/"  # before the name of a node, so that no node is taken for one of the arrays below
NO_LABEL = -1
TIMESTEPS = "timesteps"
COMPRESSION_LEVEL = 1  # higher ones take 8 times as long for two thirds of the size
ARRAYS = {
    "about": "this text: JSON",
    "rows": "int64 [samples]: the number of each sample in the input; see 'input' and 'numbers'",
    "labels": f"int64 [samples]: its class in the input, {NO_LABEL} where there was none",
    "token_ids": "int32 [samples, n_max]: its tokens",
    "mask": "uint8 [samples, n_max]: 1 for each real token, 0 for padding, which stands on the right",
    "logits": "int64 [samples, classes]: integer logits",
    f"{VALUES}NODE": "integers [samples, T, n_max, features]: the values of a node, 0 in padding",
}
OF_EARLY_EXIT = {TIMESTEPS: "int64 [samples]: after how many each stopped; values are 0 from there on"}


@dataclass(frozen=True)
class Column:
    """One array of the file, without its first dimension, the samples.

    shape of one sample
    bits  whether all its values are 0 or 1: the spool then holds eight to a byte
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    bits: bool = False

    @property
    def sample_bytes(self) -> int:
        """Of one sample in the spool."""
        size = math.prod(self.shape)
        return -(-size // 8) if self.bits else size * self.dtype.itemsize

    def pack(self, values: np.ndarray) -> bytes:
        """Of values [B, *shape] what the spool holds."""
        flat = values.reshape(len(values), -1)
        return np.packbits(flat, axis=1).tobytes() if self.bits else flat.astype(self.dtype, copy=False).tobytes()

    def unpack(self, packed: bytes, samples: int) -> np.ndarray:
        """The other way round: [samples, *shape]."""
        if not self.bits:
            return np.frombuffer(packed, self.dtype).reshape(samples, *self.shape)
        rows = np.frombuffer(packed, np.uint8).reshape(samples, self.sample_bytes)
        return np.unpackbits(rows, axis=1, count=math.prod(self.shape)).reshape(samples, *self.shape)


def value_dtype(graph: Graph, node: str) -> np.dtype:
    """The smallest integers that hold whatever is proven to be possible for a node: uint8 for plain spikes."""
    signed: tuple[type, ...] = (np.int8, np.int16, np.int32)
    types = signed if _may_be_negative(graph, node) else (np.uint8, np.uint16, np.uint32)
    return next(np.dtype(each) for each in types if graph.value_max[node] <= np.iinfo(each).max)


def _may_be_negative(graph: Graph, node: str) -> bool:
    return gives_currents(graph, node) or node in graph.signed


def value_column(graph: Graph, node: str) -> Column:
    """How the values of a node are stored."""
    bits = graph.value_max[node] == 1 and not _may_be_negative(graph, node)
    shape = (graph.timesteps, graph.n_max, graph.features[node])
    return Column(f"{VALUES}{node}", shape, value_dtype(graph, node), bits)


class _Spool:
    """Arrays of samples, appended batch after batch, and read back array by array."""

    def __init__(self, file: IO[bytes], columns: Sequence[Column]) -> None:
        self.file, self.columns = file, columns
        self.batches: list[int] = []  # how many samples each has

    @property
    def samples(self) -> int:
        return sum(self.batches)

    def append(self, arrays: Mapping[str, np.ndarray], samples: int) -> None:
        for column in self.columns:
            self.file.write(column.pack(arrays[column.name]))
        self.batches.append(samples)

    def read(self, column: Column) -> Iterator[np.ndarray]:
        """All samples of an array, a batch [B, *shape] at a time."""
        place = self.columns.index(column)
        before = sum(each.sample_bytes for each in self.columns[:place])
        sample_bytes = sum(each.sample_bytes for each in self.columns)
        start = 0
        for samples in self.batches:
            self.file.seek(start + before * samples)
            yield column.unpack(self.file.read(column.sample_bytes * samples), samples)
            start += sample_bytes * samples


class RecordWriter:
    """Takes samples, and writes the file when there are no more. Made by `record_file`."""

    def __init__(self, path: Path, graph: Graph, nodes: Sequence[str], spool: IO[bytes], early_exit: bool) -> None:
        self.path, self.graph, self.nodes, self.early_exit = path, graph, tuple(nodes), early_exit
        columns = [
            Column("rows", (), np.dtype(np.int64)),
            Column("labels", (), np.dtype(np.int64)),
            Column("token_ids", (graph.n_max,), np.dtype(np.int32)),
            Column("mask", (graph.n_max,), np.dtype(np.uint8), bits=True),
            Column("logits", (graph.features[graph.output],), np.dtype(np.int64)),
            *([Column(TIMESTEPS, (), np.dtype(np.int64))] if early_exit else []),
            *(value_column(graph, node) for node in nodes),
        ]
        self._spool = _Spool(spool, columns)

    @property
    def samples(self) -> int:
        """How many there are so far."""
        return self._spool.samples

    def add(
        self,
        rows: Sequence[Row],
        batch: TokenBatch,
        logits: np.ndarray,
        values: Mapping[str, np.ndarray],
        timesteps: np.ndarray | None = None,
    ) -> None:
        """B samples: `batch` [B, N], `logits` [B, classes], `values` of each node [T, B, N, D], and with an early exit
        `timesteps` [B].

        Raises ValueError for values that are not possible in this graph (the engine is wrong), and UserError where
        the disk takes no more.
        """
        arrays = {
            "rows": np.array([row.number for row in rows], np.int64),
            "labels": np.array([NO_LABEL if row.label is None else row.label for row in rows], np.int64),
            "token_ids": self._widened(batch.ids, 1),
            "mask": self._widened(batch.mask, 1),
            "logits": logits,
        }
        if timesteps is not None:
            arrays[TIMESTEPS] = timesteps
        for node in self.nodes:
            self._require_possible(node, values[node], batch)
            arrays[f"{VALUES}{node}"] = self._widened(values[node].swapaxes(0, 1), 2)
        with errors_name(FLAG, self.path):
            self._spool.append(arrays, len(rows))

    def _widened(self, array: np.ndarray, axis: int) -> np.ndarray:
        """Padded with 0 to n_max tokens, which stand along `axis`."""
        missing = self.graph.n_max - array.shape[axis]
        return np.pad(array, [(0, missing if each == axis else 0) for each in range(array.ndim)])

    def _require_possible(self, node: str, values: np.ndarray, batch: TokenBatch) -> None:
        shape = (self.graph.timesteps, *batch.ids.shape, self.graph.features[node])
        if values.shape != shape:
            raise ValueError(f"the engine gave shape {values.shape} for node '{node}', expected {shape}")
        most = self.graph.value_max[node]
        least = -most if _may_be_negative(self.graph, node) else 0
        low, high = int(values.min()), int(values.max())
        if low < least or high > most:
            raise ValueError(
                f"the engine gave {low} .. {high} for node '{node}', where only {least} .. {most} is possible: "
                "--verify without --record tells where it is wrong first"
            )

    def finish(self, file: BinaryIO, about: Mapping[str, Any]) -> None:
        """Write the file. One array after the other is read back, compressed and written."""
        text = np.array(json.dumps({**about, "samples": self.samples}, ensure_ascii=False, indent=1))
        with (
            errors_name(FLAG, self.path),
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION_LEVEL) as archive,
        ):
            _write_array(archive, "about", text.dtype, (), [text])
            for column in self._spool.columns:
                parts = self._spool.read(column)
                _write_array(archive, column.name, column.dtype, (self.samples, *column.shape), parts)


def _write_array(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...], parts: Iterable[np.ndarray]
) -> None:
    """One .npy file whose parts come one after the other."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for part in parts:
            member.write(np.ascontiguousarray(part).tobytes())


def check_record_path(path: Path, overwrite: bool) -> None:
    """Raises UserError where a record cannot be put at `path`."""
    if path.suffix != ".npz":
        raise UserError(f"{FLAG} {path}: a record is a file of numpy arrays. Name it so that it ends with .npz")
    check_path(FLAG, path, overwrite)


@contextmanager
def record_file(
    path: Path, graph: Graph, nodes: Sequence[str], about: Mapping[str, Any], early_exit: bool = False
) -> Iterator[RecordWriter]:
    """A writer for the values of `nodes`. The file appears at `path` when the block ends well, else nothing is left.

    about      what the file tells of itself beside what is known here: any JSON object
    early_exit whether it tells after how many timesteps each sample stopped

    Raises UserError where it cannot be written.
    """
    told = {
        "schema": SCHEMA,
        **about,
        "timesteps": graph.timesteps,
        "n_max": graph.n_max,
        "nodes": {node: _describe(graph, node) for node in nodes},
        "arrays": ARRAYS | (OF_EARLY_EXIT if early_exit else {}),
    }
    with whole_file(FLAG, path) as file, ExitStack() as opened:
        with errors_name(FLAG, path):
            spool = TemporaryFile(dir=path.parent)  # noqa: SIM115 (closed by the stack)
        opened.callback(close_quietly, spool)
        writer = RecordWriter(path, graph, nodes, spool, early_exit)
        yield writer
        writer.finish(file, told)


def _describe(graph: Graph, node: str) -> dict[str, object]:
    return {
        "op": graph[node].op,
        "gives": "currents" if gives_currents(graph, node) else "spikes",
        "features": graph.features[node],
        "largest_possible": graph.value_max[node],
    }


@dataclass(frozen=True, eq=False)
class Record:
    """A record that was opened; the values of a node are read when they are asked for.

    about      what the file tells of itself: bundle and its digest, engine, command, T, n_max, nodes, ...
    rows       int64 [samples], the number of each sample in the input
    labels     int64 [samples], its class in the input, -1 where there was none
    token_ids  int32 [samples, n_max]
    mask       uint8 [samples, n_max]: 1 for each real token
    logits     int64 [samples, classes]
    timesteps  int64 [samples], after how many each stopped, of a run with an early exit, else None
    """

    path: Path
    about: dict[str, Any]
    rows: np.ndarray
    labels: np.ndarray
    token_ids: np.ndarray
    mask: np.ndarray
    logits: np.ndarray
    timesteps: np.ndarray | None = None

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that were recorded, in graph order."""
        return tuple(self.about["nodes"])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, node: str) -> np.ndarray:
        """All values of a node, integers [samples, T, n_max, D]. Raises KeyError for one that was not recorded."""
        self._require(node)
        with np.load(self.path, allow_pickle=False) as arrays:
            values: np.ndarray = arrays[f"{VALUES}{node}"]
        return values

    def each(self, node: str) -> Iterator[np.ndarray]:
        """The values [T, n_max, D] of a node, one sample after another: for a file that memory does not hold."""
        self._require(node)
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{VALUES}{node}.npy") as member:
            np.lib.format.read_magic(member)
            shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            for _ in range(shape[0]):
                yield np.frombuffer(member.read(math.prod(shape[1:]) * dtype.itemsize), dtype).reshape(shape[1:])

    def _require(self, node: str) -> None:
        if node not in self.about["nodes"]:
            raise KeyError(f"{self.path} has no values of '{node}', but of {', '.join(self.nodes)}")


def read_record(path: Path) -> Record:
    """Open a file that `spikebert-run --record` wrote. Raises UserError where it is none, or of a newer kind."""
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            schema = about["schema"]
            if schema > SCHEMA:
                raise UserError(
                    f"{path} is a record of schema {schema}, this reads {SCHEMA}: install a newer spikebert"
                )
            fields = {name: arrays[name] for name in ARRAYS if name != "about" and not name.startswith(VALUES)}
            if TIMESTEPS in arrays.files:
                fields[TIMESTEPS] = arrays[TIMESTEPS]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is no record: spikebert-run --record writes them") from error
    return Record(path, about, **fields)
