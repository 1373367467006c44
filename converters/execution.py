"""What goes into an engine and what comes out: the contract between `sim`, `targets` and the commands.

An engine runs one graph. The reference interpreter, Lava and the integer PyTorch model are engines; they
are found by name through the entry-point group `spikebert.engines`.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from converters.graph import Graph

if TYPE_CHECKING:
    from converters.early_exit import EarlyExit  # which imports this module


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Token ids int64 [B, N] and mask (the valid lane) int64 [B, N] of 0 and 1; padding on the right."""

    ids: np.ndarray
    mask: np.ndarray

    def __post_init__(self) -> None:
        ids, mask = np.asarray(self.ids, dtype=np.int64), np.asarray(self.mask, dtype=np.int64)
        if ids.ndim != 2 or ids.shape != mask.shape or 0 in ids.shape:
            raise ValueError(f"ids and mask must have one shape [B, N], not {ids.shape} and {mask.shape}")
        if not np.isin(mask, (0, 1)).all() or (np.diff(mask, axis=1) > 0).any():
            raise ValueError("a mask is ones for the real tokens, then zeros: padding stands on the right")
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "mask", mask)

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __getitem__(self, samples: slice) -> TokenBatch:
        return TokenBatch(self.ids[samples], self.mask[samples])

    def check_fits(self, graph: Graph) -> None:
        """Raises ValueError where the batch is wider than the graph or an id lies outside its table."""
        vocabulary = graph.source.table.shape[0]
        if self.ids.shape[1] > graph.n_max:
            raise ValueError(f"a batch of {self.ids.shape[1]} tokens, the graph takes {graph.n_max}")
        if self.ids.min() < 0 or self.ids.max() >= vocabulary:
            raise ValueError(f"token ids {self.ids.min()} .. {self.ids.max()}, the table has {vocabulary} rows")


@dataclass(frozen=True)
class NodeActivity:
    """What one node did over some samples. All are totals over samples, timesteps, tokens and features.

    spikes              fired by this node; 0 for a node that is no neuron (an add passes spikes on, it fires none)
    sites               timesteps x real tokens x features of a neuron: how many spikes there could have been
    synaptic_operations synapses and readout: over the nonzero inputs, the nonzero weights they reach (the bias
                        lane apart); attention: features at which a real query and a real key match (nonzero
                        products in q k^T; for "xnor" equal ones), plus pairs of a score that is not 0, its bias
                        counted in, and a spike of v; nothing for adding the bias itself;
                        coincidence: n_max for each spike of q and k; product: d for each nonzero score, n_max for
                        each spike of v
    weighted_operations the same with each operation counted as often as the size of the value it carries (graded
                        spikes and scores); equal to synaptic_operations where all values are 0 and 1
    saturations         of a neuron: how often a membrane was cut at +-(2^23 - 1), that is sites at which
                        decay(v) + a * 2^shift lay outside
    messages            nonzero values that a node sends, each once, however many nodes read it: of a neuron its spikes,
                        of an add, a relay or a product its nonzero sums; 0 for what is only wiring
    normalised_values   of a norm: timesteps x real tokens x features; each takes three multiplications (by itself, by
                        the reciprocal of the root, by gamma)
    """

    spikes: int = 0
    sites: int = 0
    synaptic_operations: int = 0
    weighted_operations: int = 0
    saturations: int = 0
    messages: int = 0
    normalised_values: int = 0

    @property
    def rate(self) -> float | None:
        """spikes / (timesteps x real tokens x features); None for a node that is no neuron."""
        return self.spikes / self.sites if self.sites else None

    def __add__(self, other: NodeActivity) -> NodeActivity:
        return NodeActivity(
            self.spikes + other.spikes,
            self.sites + other.sites,
            self.synaptic_operations + other.synaptic_operations,
            self.weighted_operations + other.weighted_operations,
            self.saturations + other.saturations,
            self.messages + other.messages,
            self.normalised_values + other.normalised_values,
        )


COUNTS = tuple(count.name for count in fields(NodeActivity))


@dataclass(frozen=True, eq=False)
class Activity:
    """What every node of a graph did.

    names  the nodes, in graph order
    counts int64 [nodes, len(COUNTS)], its columns the fields of `NodeActivity`: an array, because a single sentence is
           soon run, and making the objects would take a good part of that
    """

    timesteps: int
    names: tuple[str, ...]
    counts: np.ndarray

    @classmethod
    def of(cls, timesteps: int, per_node: Mapping[str, NodeActivity]) -> Activity:
        """From node name -> its counts, in graph order."""
        counts = np.array([astuple(did) for did in per_node.values()], np.int64).reshape(-1, len(COUNTS))
        return cls(timesteps, tuple(per_node), counts)

    @cached_property
    def per_node(self) -> dict[str, NodeActivity]:
        """Node name -> its counts, in graph order."""
        return {name: NodeActivity(*counts) for name, counts in zip(self.names, self.counts.tolist())}

    @property
    def total(self) -> NodeActivity:
        return NodeActivity(*self.counts.sum(axis=0).tolist())

    def __add__(self, other: Activity) -> Activity:
        """The counts of two runs of the same graph together."""
        return Activity(self.timesteps, self.names, self.counts + other.counts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Activity):
            return NotImplemented
        return (self.timesteps, self.names) == (other.timesteps, other.names) and np.array_equal(
            self.counts, other.counts
        )


@dataclass(frozen=True, eq=False)
class Execution:
    """What one batch did.

    logits int64 [B, classes]
    values node name -> integers [T, B, N, D], for the nodes that were asked for. Spikes of source, LIF
           and add; currents of synapses, norm and attention; of the readout its current per token, D = classes.
    activity what every node did, from an engine that counts it on the way, else None
    timesteps int64 [B], after how many each sample stopped, with an early exit: `logits` are its sums until then, its
           values are 0 from there on, and only what it did until then is counted. None: all ran to the end
    """

    logits: np.ndarray
    values: dict[str, np.ndarray] = field(default_factory=dict)
    activity: Activity | None = None
    timesteps: np.ndarray | None = None

    @property
    def predictions(self) -> np.ndarray:
        """The class of each sample, int64 [B]: the lowest index among the largest logits."""
        return self.logits.argmax(axis=1)


def check_observed(graph: Graph, observe: Collection[str]) -> None:
    """Raises ValueError where `observe` names a node that the graph has not."""
    unknown = sorted(set(observe) - graph.features.keys())
    if unknown:
        raise ValueError(f"no such node in this graph: {', '.join(unknown)}")


class Engine(Protocol):
    """Runs one graph, batch after batch, until it is closed.

    counts_activity whether every `Execution` tells the activity; otherwise it is counted from the spiking nodes

    An engine whose pipeline would run empty between batches may also have `stream`: see `PipelinedEngine`.
    """

    graph: Graph
    counts_activity: bool

    def run(self, batch: TokenBatch, observe: Collection[str] = ()) -> Execution:
        """Run a batch; `observe` names the nodes whose values are wanted.

        Raises ValueError where the batch does not fit the graph (`TokenBatch.check_fits`) or `observe` names a node
        that the graph has not (`check_observed`).
        """
        ...

    def close(self) -> None:
        """Free what the engine holds (processes, shared memory). May be called twice."""
        ...


@runtime_checkable
class PipelinedEngine(Engine, Protocol):
    """An engine that keeps its pipeline full from one batch to the next."""

    def stream(self, batches: Iterable[TokenBatch], observe: Collection[str]) -> Iterator[Execution]:
        """What `run` gives for each batch, in order, one `Execution` a batch.

        It may take a batch or two before it gives the result of an earlier one, and takes them in the thread that asks
        for results. When the batches end it empties its pipeline and gives the rest. Raises as `run` does. Where it is
        closed before its end it must be usable again.
        """
        ...


def run_batches(
    engine: Engine, batches: Iterable[TokenBatch], observe: Collection[str] = ()
) -> Generator[Execution, None, None]:
    """The execution of each batch, in order: streamed where the engine can (`PipelinedEngine`), else one by one.

    Close it where not all are wanted. Raises what the engine raises, and RuntimeError where a stream has more or
    fewer results than batches.
    """
    if not isinstance(engine, PipelinedEngine):
        for batch in batches:
            yield engine.run(batch, observe)
        return
    taken = given = 0

    def counted() -> Iterator[TokenBatch]:
        nonlocal taken
        for batch in batches:
            taken += 1
            yield batch

    for execution in engine.stream(counted(), observe):
        given += 1
        if given > taken:
            raise RuntimeError(f"the engine gave {given} results for {taken} batches")
        yield execution
        del execution  # or its values would be held while the next batch runs
    if given < taken:
        raise RuntimeError(f"the engine gave {given} results for {taken} batches")


ATTENTION_KINDS = ("process", "stock")


@dataclass(frozen=True)
class EngineOptions:
    """What an engine may need beside the graph.

    bundle  folder of the bundle the graph was read from (a target finds its own files there)
    model   folder of the trained model; the `torch` engine runs that
    threads so many processors are for this engine; 0 for all
    early_exit when samples stop before T, for engines that can stop (`sim.engines.EXIT_ENGINES`)

    For engines that run on Lava alone:

    attention    "process": attention is one process of ours; "stock": it is made of Lava's own neurons and synapses,
                 by the pass `expand-attention`. The nodes of the graph have the same values either way
    stock_models whether Lava's own ProcessModels run, in the place of our faster ones for the same processes
    """

    bundle: Path | None = None
    model: Path | None = None
    threads: int = 0
    early_exit: EarlyExit | None = None
    attention: str = "process"
    stock_models: bool = False

    def __post_init__(self) -> None:
        if self.attention not in ATTENTION_KINDS:
            raise ValueError(f"attention '{self.attention}' is none of {', '.join(ATTENTION_KINDS)}")


class EngineFactory(Protocol):
    """What an entry point of the group `spikebert.engines` names. Raises ImportError if its extra is missing."""

    def __call__(self, graph: Graph, options: EngineOptions) -> Engine: ...
