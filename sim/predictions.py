"""Predictions in a file: a line for each row of the input, in its order, bad rows too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from sim.whole_file import check_path, errors_name, whole_file
from spikebert.commands import missing_extra

FLAG = "--predictions"
ROWS_AT_ONCE = 4096  # of a Parquet file, held before they are written


@dataclass(frozen=True)
class Prediction:
    """What became of one row.

    row          its line in the input, as `sim.rows.Row.number`
    prediction   name of its class, or None for a bad row
    probability  of that class, 0 .. 1
    logits       integer sums of each class
    error        why the row could not be read
    timesteps    after how many it stopped, with an early exit
    """

    row: int
    prediction: str | None = None
    probability: float | None = None
    logits: tuple[int, ...] = ()
    error: str | None = None
    timesteps: int | None = None


class PredictionsWriter(Protocol):
    """Writes predictions in one format."""

    def write(self, prediction: Prediction) -> None: ...

    def finish(self) -> None:
        """Write what was held back."""
        ...

    def abandon(self) -> None:
        """Let go of the file, which nobody will read."""
        ...


class _Tsv:
    """row, prediction, probability, a column of logits for each class, error; timesteps, with an early exit."""

    def __init__(self, file: BinaryIO, class_names: Sequence[str], timesteps: bool) -> None:
        self.file, self.timesteps = file, timesteps
        self.classes = len(class_names)
        logits = [f"logit_{_one_line(name)}" for name in class_names]
        self._line(["row", "prediction", "probability", *logits, "error", *(["timesteps"] if timesteps else [])])

    def write(self, prediction: Prediction) -> None:
        probability = "" if prediction.probability is None else f"{prediction.probability:.6f}"
        logits = [str(logit) for logit in prediction.logits] or [""] * self.classes
        label, error = _one_line(prediction.prediction or ""), _one_line(prediction.error or "")
        ran = "" if prediction.timesteps is None else str(prediction.timesteps)
        self._line([str(prediction.row), label, probability, *logits, error, *([ran] if self.timesteps else [])])

    def _line(self, fields: list[str]) -> None:
        self.file.write(("\t".join(fields) + "\n").encode())

    def finish(self) -> None:
        """Nothing is held back."""

    def abandon(self) -> None:
        """Nothing holds it."""


class _JsonLines:
    """An object a line, with the fields of `Prediction`; those of a good row have no error, and the other way round."""

    def __init__(self, file: BinaryIO, class_names: Sequence[str], timesteps: bool) -> None:
        self.file = file

    def write(self, prediction: Prediction) -> None:
        fields = {name: value for name, value in vars(prediction).items() if value not in (None, ())}
        self.file.write((json.dumps(fields, ensure_ascii=False) + "\n").encode())

    def finish(self) -> None:
        """Nothing is held back."""

    def abandon(self) -> None:
        """Nothing holds it."""


class _Parquet:
    """A column for each field of `Prediction`; of the timesteps with an early exit alone."""

    def __init__(self, file: BinaryIO, class_names: Sequence[str], timesteps: bool) -> None:
        try:
            import pyarrow
            from pyarrow.parquet import ParquetWriter
        except ModuleNotFoundError as error:
            raise missing_extra("pyarrow") from error
        self.pyarrow = pyarrow
        types: dict[str, Any] = {
            "row": pyarrow.int64(),
            "prediction": pyarrow.string(),
            "probability": pyarrow.float64(),
            "logits": pyarrow.list_(pyarrow.int64()),
            "error": pyarrow.string(),
            **({"timesteps": pyarrow.int64()} if timesteps else {}),
        }
        self.schema = pyarrow.schema(list(types.items()))
        self.writer = ParquetWriter(file, self.schema)
        self.held: list[dict[str, Any]] = []

    def write(self, prediction: Prediction) -> None:
        self.held.append({name: getattr(prediction, name) for name in self.schema.names})
        if len(self.held) >= ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        self.writer.write_table(self.pyarrow.Table.from_pylist(self.held, self.schema))
        self.held = []

    def finish(self) -> None:
        if self.held:
            self._flush()
        self.writer.close()

    def abandon(self) -> None:
        with suppress(Exception):  # while the file is open: later it would complain where nobody can answer
            self.writer.close()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def check_predictions_path(path: Path, overwrite: bool) -> None:
    """Raises UserError where a file of predictions cannot be put at `path`."""
    check_path(FLAG, path, overwrite)


@contextmanager
def predictions_file(
    path: Path, class_names: Sequence[str], timesteps: bool = False
) -> Iterator[Callable[[Prediction], None]]:
    """A function that writes one prediction to `path`, in the format of its name: .jsonl, .parquet, else tab-separated.

    timesteps  whether the predictions tell after how many timesteps a sample stopped

    The file appears when the block ends well (`sim.whole_file`). Raises UserError where it cannot be written.
    """
    writers: dict[str, type] = {".jsonl": _JsonLines, ".parquet": _Parquet}
    with whole_file(FLAG, path) as file:
        with errors_name(FLAG, path):
            writer: PredictionsWriter = writers.get(path.suffix.lower(), _Tsv)(file, class_names, timesteps)

        def write(prediction: Prediction) -> None:
            with errors_name(FLAG, path):
                writer.write(prediction)

        try:
            yield write
            with errors_name(FLAG, path):
                writer.finish()
        except BaseException:
            writer.abandon()
            raise
