"""Running batches on an engine: logits, activity, and a comparison with the reference where one is wanted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from converters.execution import Activity, Engine, Execution, TokenBatch
from converters.graph import Graph
from sim.activity import count_activity
from sim.verify import Comparison, compare
from spikebert.commands import progress

CHUNK_BYTES = 256 * 2**20  # values held at a time
BATCH_MAX = 64


@dataclass(frozen=True, eq=False)
class RunResult:
    """What `run` did.

    engine     name
    logits     int64 [B, classes]
    seconds    in the engine alone
    activity   counts over all samples
    comparison with the reference, or None
    """

    engine: str
    logits: np.ndarray
    seconds: float
    activity: Activity
    comparison: Comparison | None

    @property
    def predictions(self) -> np.ndarray:
        return Execution(self.logits).predictions

    @property
    def samples_per_second(self) -> float:
        return len(self.logits) / max(self.seconds, 1e-9)

    def accuracy(self, labels: Sequence[int] | None) -> float | None:
        return None if labels is None else float(np.mean(self.predictions == np.asarray(labels)))

    def to_json(self, labels: Sequence[int] | None) -> dict[str, object]:
        """The object of `spikebert-run --json`."""
        total = self.activity.total
        verify = None if self.comparison is None else {"against": "reference"} | self.comparison.to_json()
        per_node = {
            name: {field: value for field, value in asdict(counts).items() if field != "sites"} | {"rate": counts.rate}
            for name, counts in self.activity.per_node.items()
        }
        return {
            "engine": self.engine,
            "samples": len(self.logits),
            "seconds": self.seconds,
            "samples_per_second": self.samples_per_second,
            "predictions": self.predictions.tolist(),
            "logits": self.logits.tolist(),
            "accuracy": self.accuracy(labels),
            "verify": verify,
            "activity": {
                "timesteps": self.activity.timesteps,
                "spikes": total.spikes,
                "synaptic_operations": total.synaptic_operations,
                "weighted_operations": total.weighted_operations,
                "per_node": per_node,
            },
        }


def run(
    graph: Graph, batches: Sequence[TokenBatch], engine: Engine, name: str, reference: Engine | None = None
) -> RunResult:
    """Run batches on an engine; with `reference` run them there too and compare every node and the logits.

    Only one batch's values are held at a time. A progress bar appears on a terminal.
    """
    counting = () if engine.counts_activity else graph.spiking
    observe = counting if reference is None else tuple(node.name for node in graph)
    logits: list[np.ndarray] = []
    activity: Activity | None = None
    comparison = None if reference is None else Comparison()
    seconds, done = 0.0, 0
    for batch in progress(batches, f"running on {name}", len(batches)):
        start = time.perf_counter()
        execution = engine.run(batch, observe)
        seconds += time.perf_counter() - start
        counted = execution.activity or count_activity(graph, execution.values, batch.mask)
        activity = counted if activity is None else activity + counted
        if reference is not None and comparison is not None:
            comparison += compare(graph, reference.run(batch, observe), execution, first_sample=done)
        logits.append(execution.logits)
        done += len(batch)
    if activity is None:
        raise ValueError("no batches")
    return RunResult(name, np.concatenate(logits), seconds, activity, comparison)


def batch_size_for(graph: Graph, executions: int) -> int:
    """Samples whose values, int64 and at most n_max tokens, take CHUNK_BYTES: 1 .. BATCH_MAX.

    `executions` is how many are held at a time: 1, or 2 when comparing.
    """
    per_sample = 8 * graph.timesteps * graph.n_max * sum(graph.features.values()) * executions
    return int(np.clip(CHUNK_BYTES // per_sample, 1, BATCH_MAX))
