"""A shard: some samples that are run together, in this process or in another. What goes there and comes back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.bundle import Bundle, Tokenised, read_bundle
from converters.execution import Activity, Engine, EngineOptions
from sim.activity import count_activity
from sim.check import require_golden
from sim.engines import open_engine
from sim.saturation import saturable_neurons
from sim.verify import Comparison, compare


@dataclass(frozen=True)
class Job:
    """How samples are run: all that a process needs to know beside the samples.

    bundle  folder; every process that takes part must be able to read it
    engine  name
    model   folder of the trained model, for the engine `torch`
    verify  compare every node with the reference
    threads so many processors are for this process; 0 for all
    """

    bundle: Path
    engine: str
    model: Path | None = None
    verify: bool = False
    threads: int = 0


@dataclass(frozen=True)
class Shard:
    """Texts, or samples that have been tokenised; `first` is the number of the first one in the whole run."""

    first: int
    samples: tuple[str | Tokenised, ...]


@dataclass(frozen=True, eq=False)
class ShardResult:
    """What a shard gave, B samples.

    logits       int64 [B, classes]
    real_tokens  int64 [B]
    notes        (index of a sample in the shard, what is unusual about its text)
    seconds      in the engine alone
    comparison   with the reference, or None
    """

    logits: np.ndarray
    real_tokens: np.ndarray
    notes: tuple[tuple[int, str], ...]
    seconds: float
    activity: Activity
    comparison: Comparison | None


class ShardRunner:
    """Holds a bundle and its engine open and runs shards on it.

    Opening raises UserError where bundle or engine cannot be opened, and CheckFailed where, with `verify`, the
    reference does not repeat the bundle's golden samples on this machine.
    """

    def __init__(self, job: Job, bundle: Bundle | None = None) -> None:
        self.bundle = bundle or read_bundle(job.bundle)
        self.job, self.graph = job, self.bundle.graph
        options = EngineOptions(bundle=self.bundle.folder, model=job.model, threads=job.threads)
        self.reference: Engine | None = None
        with ExitStack() as opened:
            self.engine = opened.enter_context(closing(open_engine(job.engine, self.graph, options)))
            if job.verify:
                self.reference = opened.enter_context(closing(open_engine("reference", self.graph)))
                require_golden(self.bundle, self.reference)
            self.opened = opened.pop_all()
        self.saturable = () if self.engine.counts_activity else saturable_neurons(self.graph)

    def close(self) -> None:
        self.opened.close()

    def run(self, shard: Shard) -> ShardResult:
        """Tokenise and run one shard, as one batch. When verifying it is padded to n_max: padding is checked too."""
        texts = self._tokenised(shard.samples)
        batch = self.bundle.batch(texts, self.graph.n_max if self.job.verify else None)
        counting = () if self.engine.counts_activity else self.graph.spiking
        observe = counting if self.reference is None else tuple(node.name for node in self.graph)
        start = time.perf_counter()
        execution = self.engine.run(batch, observe)
        seconds = time.perf_counter() - start
        activity = execution.activity or count_activity(self.graph, execution.values, batch, self.saturable)
        comparison = None
        if self.reference is not None:
            comparison = compare(self.graph, self.reference.run(batch, observe), execution, first_sample=shard.first)
        notes = tuple((i, message) for i, text in enumerate(texts) if (message := input_note(text)))
        return ShardResult(execution.logits, batch.mask.sum(1), notes, seconds, activity, comparison)

    def _tokenised(self, samples: Sequence[str | Tokenised]) -> list[Tokenised]:
        return [self.bundle.tokenise(sample) if isinstance(sample, str) else sample for sample in samples]


def input_note(text: Tokenised) -> str | None:
    """What a person should know of an unusual text, or None."""
    if text.truncated:
        return f"cut to {len(text.ids):,} tokens of {text.full:,}"
    if text.is_empty:
        return "an empty text, classified as such"
    if text.only_unknown:
        return "only tokens the model does not know, so the class means little"
    return None
