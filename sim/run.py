"""Running texts of any number: rows are gathered into shards, shards are run, outcomes are told and summed in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field

import numpy as np

from converters.bundle import Tokenised
from converters.early_exit import EarlyExit
from converters.execution import Activity
from converters.graph import Graph
from sim.energy import Tokens
from sim.probe import NodeSummary
from sim.rows import BadRow, Row
from sim.shards import Shard, ShardResult, sample_bytes
from sim.verify import Comparison
from sim.workers import Workers

CHUNK_BYTES = 256 * 2**20  # values held at a time
BATCH_MAX = 64
BAD_ROWS_KEPT = 10  # with their reasons; the others are counted


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one row: logits (int64 [classes]), or nothing of a bad one.

    real_tokens  of its text, special tokens included
    note         what is unusual about its text
    timesteps    after how many it stopped, with an early exit, else None
    """

    row: Row | BadRow
    logits: np.ndarray | None = None
    real_tokens: int = 0
    note: str | None = None
    timesteps: int | None = None

    @property
    def prediction(self) -> int | None:
        """The lowest index among the largest logits."""
        return None if self.logits is None else int(self.logits.argmax())


@dataclass(eq=False)
class Summary:
    """A run in numbers.

    engine     name
    samples    how many were run
    bad        how many rows could not be read, and the first of them in `first_bad`
    seconds    in the engine alone; with several workers, from the first shard to the last result
    activity   counts over all samples, None where there was none
    comparison with the reference, or None
    probes     what the probed nodes did
    confusion  int64 [classes, classes]: labelled samples by true and predicted class
    tokens     of the samples
    early_exit when samples stop, or None
    stopped    int64 [T], with an early exit: how many samples stopped after each timestep; the last never did
    """

    engine: str
    confusion: np.ndarray
    samples: int = 0
    bad: int = 0
    first_bad: list[BadRow] = field(default_factory=list)
    seconds: float = 0.0
    activity: Activity | None = None
    comparison: Comparison | None = None
    probes: dict[str, NodeSummary] = field(default_factory=dict)
    tokens: Tokens = field(default_factory=Tokens)
    early_exit: EarlyExit | None = None
    stopped: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def mean_timesteps(self) -> float:
        """Of a sample, with an early exit."""
        return int(self.stopped @ np.arange(1, len(self.stopped) + 1)) / self.samples

    @property
    def samples_per_second(self) -> float:
        return self.samples / max(self.seconds, 1e-9)

    @property
    def accuracy(self) -> float | None:
        labelled = int(self.confusion.sum())
        return int(self.confusion.trace()) / labelled if labelled else None

    def count(self, outcome: Outcome) -> None:
        """Take one more row into account."""
        row, prediction = outcome.row, outcome.prediction
        if isinstance(row, BadRow):
            self.bad += 1
            if len(self.first_bad) < BAD_ROWS_KEPT:
                self.first_bad.append(row)
            return
        self.samples += 1
        spared = 0
        if outcome.timesteps is not None:
            self.stopped[outcome.timesteps - 1] += 1
            spared = len(self.stopped) - outcome.timesteps
        self.tokens = self.tokens.with_sentence(outcome.real_tokens, spared)
        if row.label is not None:
            self.confusion[row.label, prediction] += 1

    def count_shard(self, result: ShardResult) -> None:
        """Take into account what is known of a whole shard."""
        self.activity = result.activity if self.activity is None else self.activity + result.activity
        if result.comparison is not None:
            self.comparison = (self.comparison or Comparison()) + result.comparison
        for name, probe in result.probes.items():
            self.probes[name] = self.probes[name] + probe if name in self.probes else probe
        self.seconds += result.seconds

    def to_json(self, outcomes: Sequence[Outcome]) -> dict[str, object]:
        """The object of `spikebert-run --json`; a bad row has null for its prediction and its logits."""
        assert self.activity is not None  # there is one where a sample was run
        total = self.activity.total
        per_node = {
            name: {field: value for field, value in asdict(counts).items() if field != "sites"} | {"rate": counts.rate}
            for name, counts in self.activity.per_node.items()
        }
        return {
            "engine": self.engine,
            "samples": self.samples,
            "seconds": self.seconds,
            "samples_per_second": self.samples_per_second,
            "predictions": [outcome.prediction for outcome in outcomes],
            "logits": [None if outcome.logits is None else outcome.logits.tolist() for outcome in outcomes],
            "accuracy": self.accuracy,
            "labelled": int(self.confusion.sum()),
            "verify": None if self.comparison is None else {"against": "reference"} | self.comparison.to_json(),
            "activity": {
                "timesteps": self.activity.timesteps,
                "spikes": total.spikes,
                "synaptic_operations": total.synaptic_operations,
                "weighted_operations": total.weighted_operations,
                "saturations": total.saturations,
                "messages": total.messages,
                "normalised_values": total.normalised_values,
                "per_node": per_node,
            },
            "bad_rows": {"count": self.bad, "first": [asdict(row) for row in self.first_bad]},
            **self._exit_to_json(outcomes),
            **({"probes": {name: probe.to_json() for name, probe in self.probes.items()}} if self.probes else {}),
        }

    def _exit_to_json(self, outcomes: Sequence[Outcome]) -> dict[str, object]:
        if self.early_exit is None:
            return {}
        return {
            "early_exit": {
                "margin_units": self.early_exit.margin,
                "after": None if self.early_exit.after is None else list(self.early_exit.after),
                "mean_timesteps": self.mean_timesteps,
                "stopped_after": {str(t): count for t, count in enumerate(self.stopped.tolist(), start=1)},
            },
            "timesteps": [outcome.timesteps for outcome in outcomes],
        }


def run(
    rows: Iterable[Row | BadRow],
    workers: Workers,
    summary: Summary,
    shard_size: int,
    tell: Callable[[Outcome], None],
    sample_of: Callable[[Row], str | Tokenised] = lambda row: row.text,
    keep: Callable[[Sequence[Row], ShardResult], None] | None = None,
) -> None:
    """Run rows and tell the outcome of each, in order; `summary` grows with them. `keep` is given the result of each
    shard, with its rows.

    Nothing is kept of a row once it has been told, and only the rows of the shards under way are held.
    """

    def done(outcome: Outcome) -> None:
        summary.count(outcome)
        tell(outcome)

    under_way: deque[Row | BadRow] = deque()
    start = time.perf_counter()
    with closing(workers.results(_shards(rows, shard_size, under_way, done, sample_of))) as results:
        for result in results:
            notes, good, stops = dict(result.notes), [], result.timesteps
            for index, logits in enumerate(result.logits):
                _tell_bad(under_way, done)
                row = under_way.popleft()
                assert isinstance(row, Row)  # bad ones have been told
                timesteps = None if stops is None else int(stops[index])
                done(Outcome(row, logits, int(result.real_tokens[index]), notes.get(index), timesteps))
                good.append(row)
            if keep is not None:
                keep(good, result)
            summary.count_shard(result)
    _tell_bad(under_way, done)
    if workers.several:
        summary.seconds = time.perf_counter() - start


def _shards(
    rows: Iterable[Row | BadRow],
    size: int,
    under_way: deque[Row | BadRow],
    done: Callable[[Outcome], None],
    sample_of: Callable[[Row], str | Tokenised],
) -> Iterator[Shard]:
    """Rows in groups of `size`. A bad row ends its group, so that samples are numbered as rows are."""
    samples: list[str | Tokenised] = []
    for number, row in enumerate(rows):
        if isinstance(row, BadRow):
            if samples:
                yield Shard(number - len(samples), tuple(samples))
                samples = []
            if under_way:
                under_way.append(row)
            else:
                done(Outcome(row))
            continue
        under_way.append(row)
        samples.append(sample_of(row))
        if len(samples) == size:
            yield Shard(number + 1 - size, tuple(samples))
            samples = []
    if samples:
        yield Shard(number + 1 - len(samples), tuple(samples))


def _tell_bad(under_way: deque[Row | BadRow], done: Callable[[Outcome], None]) -> None:
    """Tell the bad rows that are first in line."""
    while under_way and isinstance(under_way[0], BadRow):
        done(Outcome(under_way.popleft()))


def batch_size_for(graph: Graph, observed: Collection[str]) -> int:
    """Samples whose values of the nodes `observed` take CHUNK_BYTES, at n_max tokens: 1 .. BATCH_MAX."""
    per_sample = sample_bytes(graph, observed)
    if per_sample == 0:
        return BATCH_MAX
    return int(np.clip(CHUNK_BYTES // per_sample, 1, BATCH_MAX))
