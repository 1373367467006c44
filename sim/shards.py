"""A shard: some samples that are run together, in this process or in another. What goes there and comes back."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from converters.bundle import Bundle, Tokenised, read_bundle
from converters.early_exit import EarlyExit, cut_values, stops_of
from converters.execution import Activity, EngineOptions, Execution, TokenBatch, run_batches
from converters.graph import Graph
from converters.readout import logits_over_time
from sim.activity import count_activity
from sim.check import require_golden
from sim.engines import open_engine
from sim.probe import NodeSummary, summarise
from sim.record import value_dtype
from sim.reference import walk
from sim.saturation import saturable_neurons
from sim.verify import LOGITS, TIMESTEPS, Comparison, Differences
from spikebert.commands import UserError

# Values of one sample held at a time; a network that has more is observed part by part. 12 blocks of 768 features have
# no more at T = 4 and 128 tokens.
SAMPLE_BYTES = 800 * 2**20
WEIGHTS = "model.safetensors"  # of a trained model
VALUE_BYTES = 8  # the largest integers that an engine gives


@dataclass(frozen=True)
class Job:
    """How samples are run: all that a process needs to know beside the samples.

    bundle  folder; every process that takes part must be able to read it
    engine  name
    model   folder of the trained model, for the engine `torch`
    verify  compare every node with the reference
    threads so many processors are for this process; 0 for all
    probe   nodes of which it is told in short what they did
    record  nodes whose values come back
    attention, stock_models  as in `converters.execution.EngineOptions`, for the engines of Lava
    early_exit when samples stop before T, or None
    over_time  whether the logits after every timestep come back
    digest, model_digest  of the bundle's manifest and of the model's weights: who opens them later or elsewhere refuses
               others; empty where it is this process that has them open
    """

    bundle: Path
    engine: str
    model: Path | None = None
    verify: bool = False
    threads: int = 0
    probe: tuple[str, ...] = ()
    record: tuple[str, ...] = ()
    attention: str = "process"
    stock_models: bool = False
    early_exit: EarlyExit | None = None
    over_time: bool = False
    digest: str = ""
    model_digest: str = ""

    def observes(self, graph: Graph, counts_activity: bool) -> tuple[str, ...]:
        """The nodes whose values the engine must give, in graph order: all when verifying, else what is probed or
        recorded, the readout for logits over time, and the spiking ones for an engine that does not count activity
        itself."""
        if self.verify:
            return tuple(graph.features)
        wanted = {*self.probe, *self.record, *(() if counts_activity else graph.spiking)}
        wanted |= {graph.output} if self.over_time else set()
        return tuple(name for name in graph.features if name in wanted)


def model_digest(model: Path | None) -> str:
    """sha256 of the weights in the folder of a trained model, or of a run that has it in `integer/`; empty where there
    are none."""
    places = (model / "integer" / WEIGHTS, model / WEIGHTS) if model else ()
    weights = next((path for path in places if path.is_file()), None)
    return hashlib.sha256(weights.read_bytes()).hexdigest() if weights else ""


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
    probes       what the nodes of `Job.probe` did
    batch        the tokens [B, N], and
    recorded     the values [T, B, N, D] of the nodes of `Job.record`, where there are any
    timesteps    int64 [B], after how many each sample stopped, with an early exit
    over_time    int64 [T, B, classes], the logits after every timestep, where `Job.over_time` asks for them
    """

    logits: np.ndarray
    real_tokens: np.ndarray
    notes: tuple[tuple[int, str], ...]
    seconds: float
    activity: Activity
    comparison: Comparison | None
    probes: Mapping[str, NodeSummary] = field(default_factory=dict)
    batch: TokenBatch | None = None
    recorded: Mapping[str, np.ndarray] = field(default_factory=dict)
    timesteps: np.ndarray | None = None
    over_time: np.ndarray | None = None


class ShardRunner:
    """Holds a bundle and its engine open and runs shards on it.

    Opening raises UserError where bundle or engine cannot be opened, and CheckFailed where, with `verify`, the
    reference does not repeat the bundle's golden samples on this machine.
    """

    def __init__(self, job: Job, bundle: Bundle | None = None) -> None:
        self.bundle = bundle or read_bundle(job.bundle)
        if job.digest and job.digest != self.bundle.manifest["digest"]:
            raise UserError(f"{job.bundle} is another bundle here, or now, than when the run began: run it again")
        if job.model_digest and job.model_digest != model_digest(job.model):
            raise UserError(f"--model {job.model}: its weights are not here, or others than when the run began")
        self.job, self.graph = job, self.bundle.graph
        options = EngineOptions(
            bundle=self.bundle.folder,
            model=job.model,
            threads=job.threads,
            early_exit=job.early_exit,
            attention=job.attention,
            stock_models=job.stock_models,
        )
        with ExitStack() as opened:
            self.engine = opened.enter_context(closing(open_engine(job.engine, self.graph, options)))
            if job.verify:
                require_golden(self.bundle)
            self.opened = opened.pop_all()
        self.parts = parts_of(self.graph, job.observes(self.graph, self.engine.counts_activity))
        self.saturable = () if self.engine.counts_activity else saturable_neurons(self.graph)

    def close(self) -> None:
        self.opened.close()

    def run(self, shard: Shard) -> ShardResult:
        """One shard by itself."""
        with closing(self.results([shard])) as results:
            return next(results)

    def results(self, shards: Iterable[Shard]) -> Generator[ShardResult, None, None]:
        """Tokenise and run shards, each as one batch, and give their results in order.

        An engine that can (`PipelinedEngine`) is kept busy from one to the next; of a shard that cannot be made, the
        results of those before it are given first. When verifying, batches are padded to n_max: padding is checked
        too.
        """
        return self._in_parts(shards) if len(self.parts) > 1 else self._streamed(shards)

    def _streamed(self, shards: Iterable[Shard]) -> Generator[ShardResult, None, None]:
        under_way: deque[_Work] = deque()
        failed: list[Exception] = []
        preparing = 0.0  # seconds in which the engine waited for a batch

        def batches() -> Iterator[TokenBatch]:
            nonlocal preparing
            start = time.perf_counter()
            try:
                for shard in shards:
                    under_way.append(_Work(self, shard))
                    preparing += time.perf_counter() - start
                    yield under_way[-1].batch
                    start = time.perf_counter()
            except Exception as error:  # raised when the engine has given what it holds
                failed.append(error)
            preparing += time.perf_counter() - start

        with closing(run_batches(self.engine, batches(), self.parts[0])) as executions:
            while True:
                start, before = time.perf_counter(), preparing
                execution = next(executions, None)
                seconds = time.perf_counter() - start - (preparing - before)
                if execution is None:
                    break
                work = under_way.popleft()
                work.take(execution, self.parts[0], seconds)
                result = work.result()
                del execution, work  # or their values would be held while the next batch runs
                yield result
        if failed:
            raise failed[0]

    def _in_parts(self, shards: Iterable[Shard]) -> Generator[ShardResult, None, None]:
        """Each batch is run once for each part of the network, so that only its values are held."""
        for shard in shards:
            work = _Work(self, shard)
            for part in self.parts:
                start = time.perf_counter()
                execution = self.engine.run(work.batch, part)
                work.take(execution, part, time.perf_counter() - start)
                del execution
            yield work.result()


class _Work:
    """A shard under way: its batch, and what is kept of what the engine did with it."""

    def __init__(self, runner: ShardRunner, shard: Shard) -> None:
        self.runner, self.job, self.graph = runner, runner.job, runner.graph
        bundle = runner.bundle
        texts = [bundle.tokenise(sample) if isinstance(sample, str) else sample for sample in shard.samples]
        self.batch = bundle.batch(texts, self.graph.n_max if self.job.verify else None)
        self.notes = tuple((i, message) for i, text in enumerate(texts) if (message := input_note(text)))
        self.differences = Differences(shard.first) if self.job.verify else None
        self.expected = walk(self.graph, self.batch)  # runs as far as it is asked
        self.probes: dict[str, NodeSummary] = {}
        self.kept: dict[str, np.ndarray] = {}
        self.over_time: np.ndarray | None = None
        self.seconds = 0.0
        self.last: Execution | None = None

    def take(self, execution: Execution, names: Sequence[str], seconds: float) -> None:
        """What the engine gave for the nodes `names`; parts of the network come in graph order."""
        self.seconds += seconds
        counting, stops = execution.activity is None, execution.timesteps
        if self.job.early_exit is not None and stops is None:
            raise ValueError("the engine does not say after how many timesteps samples stopped")
        for name in names:
            if name not in execution.values:
                raise ValueError(f"the engine gave no values of node '{name}'")
            values = execution.values[name]
            if self.differences is not None:
                node, expected = next(self.expected)
                cut = expected if stops is None else cut_values(expected, stops)
                self.differences.add(node.name, cut, values, stops)
                if name == self.graph.output:
                    self._compare_logits(self.differences, expected, execution)
                del expected, cut
            if name in self.job.probe:
                self.probes[name] = summarise(values, self.batch.mask, stops)
            if name == self.graph.output and self.job.over_time:
                self.over_time = logits_over_time(self.graph, values)
            if name in self.job.record or (counting and name in self.graph.spiking):
                self.kept[name] = compact(values, value_dtype(self.graph, name))
        self.last = Execution(execution.logits, activity=execution.activity, timesteps=stops)

    def _compare_logits(self, differences: Differences, readout: np.ndarray, execution: Execution) -> None:
        """Given the reference's value of the readout, from which it follows when a sample has to stop."""
        over_time = logits_over_time(self.graph, readout)
        last = np.full(len(self.batch), self.graph.timesteps)
        if self.job.early_exit is not None and execution.timesteps is not None:
            last = stops_of(self.graph, self.job.early_exit, over_time, self.batch.mask.sum(1))
            differences.add(TIMESTEPS, last[:, None], execution.timesteps[:, None])
        differences.add(LOGITS, over_time[last - 1, np.arange(len(last))], execution.logits)

    def result(self) -> ShardResult:
        assert self.last is not None
        stops = self.last.timesteps
        activity = self.last.activity or count_activity(self.graph, self.kept, self.batch, self.runner.saturable, stops)
        return ShardResult(
            self.last.logits,
            self.batch.mask.sum(1),
            self.notes,
            self.seconds,
            activity,
            None if self.differences is None else self.differences.comparison,
            self.probes,
            self.batch if self.job.record else None,
            {name: self.kept[name] for name in self.job.record},
            stops,
            self.over_time,
        )


def parts_of(graph: Graph, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """`names`, in graph order, cut into parts of which one sample's values take at most SAMPLE_BYTES; at least one."""
    parts: list[list[str]] = [[]]
    held = 0
    for name in names:
        size = sample_bytes(graph, [name])
        if parts[-1] and held + size > SAMPLE_BYTES:
            parts.append([])
            held = 0
        parts[-1].append(name)
        held += size
    return tuple(map(tuple, parts))


def sample_bytes(graph: Graph, names: Collection[str]) -> int:
    """What the values of these nodes take, of one sample of n_max tokens, in the integers that engines give."""
    return VALUE_BYTES * graph.timesteps * graph.n_max * sum(graph.features[name] for name in names)


def compact(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A copy in integers of `dtype` where they hold all values, else as they are (the engine is wrong then)."""
    info = np.iinfo(dtype)
    holds = not values.size or (values.min() >= info.min and values.max() <= info.max)
    return values.astype(dtype) if holds else values


def input_note(text: Tokenised) -> str | None:
    """What a person should know of an unusual text, or None."""
    if text.truncated:
        return f"cut to {len(text.ids):,} tokens of {text.full:,}"
    if text.is_empty:
        return "an empty text, classified as such"
    if text.only_unknown:
        return "only tokens the model does not know, so the class means little"
    return None
