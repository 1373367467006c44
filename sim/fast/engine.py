"""Runs a plan on batches: the samples are dealt out to threads, each of which takes its share through all steps."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Timer

import numpy as np

from converters.execution import Activity, EngineOptions, Execution, NodeActivity, TokenBatch, check_observed
from converters.graph import LIF, Graph, Source
from sim.fast import kernels
from sim.fast.buffers import Buffers
from sim.fast.plan import (
    AddStep,
    AttentionStep,
    EncodeStep,
    LIFStep,
    ReadoutStep,
    Step,
    SynapsesStep,
    blocks_of,
    make_plan,
    nodes_of,
    pair_timesteps,
    planes_of,
)
from sim.fast.vectors import BLOCK
from spikebert.commands import note, processors

NO_CURRENTS = np.zeros((0, 0, 0), np.int32)
NO_SPIKES = np.zeros(0, np.uint64)
COMPILING_IS_SLOW = 2.0  # seconds until it is said


@dataclass(frozen=True, eq=False)
class Value:
    """What a node gave, in a borrowed array: spikes uint64 [P, R, T, W], or currents int32 [R, T, at least D].

    lent    the array that was borrowed; `data` is all of it or a part
    payload of spikes: int64 [W * 64], for each neuron the sum of its values over tokens and timesteps
    events  of spikes: int64 [W * 64], how many of them are not 0
    """

    lent: np.ndarray
    data: np.ndarray
    payload: np.ndarray | None = None
    events: np.ndarray | None = None


@dataclass
class Share:
    """Some samples of a batch, packed: R real tokens side by side.

    ids, places int64 [R]: token ids, and where in its sample a token stands
    starts      int64 [B + 1]: where each sample begins
    buffers     where large arrays come from
    values      node name -> what it gave, while somebody needs it
    activity    node name -> its counts
    observed    node name -> [R, T, D], for the caller
    """

    ids: np.ndarray
    places: np.ndarray
    starts: np.ndarray
    buffers: Buffers
    values: dict[str, Value] = field(default_factory=dict)
    activity: dict[str, NodeActivity] = field(default_factory=dict)
    observed: dict[str, np.ndarray] = field(default_factory=dict)


class FastEngine:
    """Event-driven and compiled; every value is the reference's.

    threads: at most so many samples are in work at a time; 0 for all processors.
    """

    counts_activity = True

    def __init__(self, graph: Graph, threads: int = 0) -> None:
        self.graph = graph
        self.steps = make_plan(graph)
        self.pairs = pair_timesteps(graph.timesteps)
        self.threads = threads or processors()
        self.last_use = {name: index for index, step in enumerate(self.steps) for name in _reads(step)}
        self.pool = ThreadPoolExecutor(self.threads)
        self.buffers = [Buffers() for _ in range(self.threads)]
        with _said_if_slow():
            one = np.ones((1, 1), np.int64)
            self.run(TokenBatch(one * 0, one))  # compiles, or reads what was compiled before

    def run(self, batch: TokenBatch, observe: Collection[str] = ()) -> Execution:
        """See `converters.execution.Engine`. The activity is counted on the way."""
        batch.check_fits(self.graph)
        check_observed(self.graph, observe)
        observed = frozenset(observe)
        cuts = _cuts(batch.mask.sum(1), self.threads)
        shares = [_pack(batch[low:high], buffers) for (low, high), buffers in zip(pairwise(cuts), self.buffers)]
        if len(shares) == 1:
            logits = [self._run_share(shares[0], observed)]
        else:
            logits = list(self.pool.map(lambda share: self._run_share(share, observed), shares))
        real = batch.mask.astype(bool)
        values = {name: _unpack([share.observed[name] for share in shares], real) for name in observe}
        per_node = {
            node.name: sum((share.activity.get(node.name, NodeActivity()) for share in shares), NodeActivity())
            for node in self.graph
        }
        return Execution(np.concatenate(logits), values, Activity(self.graph.timesteps, per_node))

    def close(self) -> None:
        """Ends the threads."""
        self.pool.shutdown()

    def _run_share(self, share: Share, observed: frozenset[str]) -> np.ndarray:
        """Logits int64 [B, classes]; `share.observed` holds the observed nodes afterwards."""
        logits = np.zeros(0)
        for index, step in enumerate(self.steps):
            if isinstance(step, ReadoutStep):
                logits = self._read_out(step, share, observed)
            else:
                self._run_step(step, share, observed)
            made = nodes_of(step)
            for name in observed.intersection(made, share.values):
                share.observed[name] = _plain(share.values[name].data, self.graph.features[name])
            for name in share.values.keys() & {*made, *_reads(step)}:
                if self.last_use.get(name, -1) <= index:
                    share.buffers.give(share.values.pop(name).lent)
        return logits

    def _run_step(self, step: Step, share: Share, observed: frozenset[str]) -> None:
        if isinstance(step, EncodeStep):
            self._encode(step, share)
        elif isinstance(step, SynapsesStep):
            self._synapses(step, share, observed)
        elif isinstance(step, AttentionStep):
            self._attention(step, share, observed)
        elif isinstance(step, LIFStep):
            lent, neurons = self._room(share, step.node.name), step.neurons
            currents = share.values[step.node.inputs[0]].data
            kernels.lif(currents, neurons.free, neurons.level, neurons.keep, lent[0])
            self._keep(share, step.node, lent, lent)
        elif isinstance(step, AddStep):
            self._add(step, share)

    def _encode(self, step: EncodeStep, share: Share) -> None:
        lent, neurons = self._room(share, step.node.name), step.neurons
        kernels.encode(
            share.ids, share.places, step.table, step.position, step.node.kind == "sign", neurons.free, neurons.level,
            neurons.keep, lent[0],
        )  # fmt: skip
        self._keep(share, step.node, lent, lent)

    def _synapses(self, step: SynapsesStep, share: Share, observed: frozenset[str]) -> None:
        x, neurons, timesteps = share.values[step.layers[0].inputs[0]], step.neurons, self.graph.timesteps
        tokens, (blocks, inputs, _) = len(share.ids), step.weight.shape
        fires, count = bool(step.lifs), len(step.layers)
        keeps = not fires or not observed.isdisjoint(layer.name for layer in step.layers)
        shape = (tokens, timesteps, blocks * BLOCK)
        currents = share.buffers.take(shape, np.int32, users=count) if keeps else NO_CURRENTS
        spikes = share.buffers.take((tokens * timesteps * blocks,), np.uint64, users=count) if fires else NO_SPIKES
        index = share.buffers.take((kernels.tile_entries(inputs, len(x.data), timesteps),), step.index)
        kernels.synapses(
            x.data, step.weight, step.bias, step.wide, self.pairs, fires, neurons.free, neurons.level, neurons.keep,
            step.places, spikes, currents, index,
        )  # fmt: skip
        share.buffers.give(index)
        first = 0
        for place, layer in enumerate(step.layers):
            share.activity[layer.name] = _operations(x, step.fan_out[place])
            words = blocks_of(self.graph.features[layer.name])
            if keeps:
                share.values[layer.name] = Value(currents, currents[..., first * BLOCK :])
            if fires:
                own = spikes[tokens * timesteps * first : tokens * timesteps * (first + words)]
                self._keep(share, step.lifs[place], spikes, own.reshape(1, tokens, timesteps, words))
            first += words

    def _attention(self, step: AttentionStep, share: Share, observed: frozenset[str]) -> None:
        node, neurons, timesteps = step.node, step.neurons, self.graph.timesteps
        q, k, v = (share.values[name].data for name in node.inputs)
        width, longest = self.graph.features[node.name], int(np.diff(share.starts).max())
        keeps = step.lif is None or node.name in observed
        shape = (*q.shape[1:3], q.shape[3] * BLOCK)
        currents = share.buffers.take(shape, np.int32) if keeps else NO_CURRENTS
        lent = self._room(share, step.lif.name) if step.lif else np.zeros((1, 0, 0, 0), np.uint64)
        size = kernels.attention_cells(longest, timesteps, width, node.heads)
        cells, operations = share.buffers.take((size,), np.int32), np.zeros(2, np.int64)
        kernels.attention(
            q, k, v, share.starts, width, node.heads, np.empty(longest, step.sums), step.lif is not None, neurons.free,
            neurons.level, neurons.keep, lent[0], currents, cells, operations,
        )  # fmt: skip
        share.buffers.give(cells)
        share.activity[node.name] = NodeActivity(
            synaptic_operations=int(operations[0]), weighted_operations=int(operations[1])
        )
        if keeps:
            share.values[node.name] = Value(currents, currents)
        if step.lif:
            self._keep(share, step.lif, lent, lent)

    def _add(self, step: AddStep, share: Share) -> None:
        """The counts of a sum follow from those of its inputs, but for how many sums are not 0."""
        inputs = [share.values[name] for name in step.node.inputs]
        total = self._room(share, step.node.name)
        total[:] = 0
        for x in inputs:
            kernels.add(x.data, total)
        payload, events = (np.zeros(total.shape[3] * BLOCK, np.int64) for _ in range(2))
        kernels.count_events(total, events)
        for x in inputs:
            payload += x.payload
        share.values[step.node.name] = Value(total, total, payload, events)

    def _read_out(self, step: ReadoutStep, share: Share, observed: frozenset[str]) -> np.ndarray:
        """The sums over tokens and timesteps are made first: `sum(W x + b) = W sum(x) + T * tokens * b`."""
        x, name, width = share.values[step.node.inputs[0]], step.node.name, len(step.weight)
        payload = np.zeros((len(share.starts) - 1, x.data.shape[3] * BLOCK), np.int64)
        kernels.sum_samples(x.data, share.starts, payload)
        share.activity[name] = _operations(x, step.fan_out)
        if name in observed:
            share.observed[name] = _plain(x.data, width).astype(np.int64) @ step.weight + step.bias
        tokens = np.diff(share.starts)[:, None]
        return payload[:, :width] @ step.weight + self.graph.timesteps * tokens * step.bias

    def _room(self, share: Share, name: str) -> np.ndarray:
        """A borrowed array for the spikes of a node, or for sums of them."""
        planes, words = planes_of(self.graph, name), blocks_of(self.graph.features[name])
        return share.buffers.take((planes, len(share.ids), self.graph.timesteps, words), np.uint64)

    def _keep(self, share: Share, node: Source | LIF, lent: np.ndarray, spikes: np.ndarray) -> None:
        """The spikes of a neuron, counted."""
        events = np.zeros(spikes.shape[3] * BLOCK, np.int64)
        kernels.count_events(spikes, events)
        share.values[node.name] = Value(lent, spikes, events, events)
        sites = self.graph.timesteps * len(share.ids) * self.graph.features[node.name]
        share.activity[node.name] = NodeActivity(spikes=int(events.sum()), sites=sites)


def open_fast(graph: Graph, options: EngineOptions) -> FastEngine:
    """The fast engine, on as many threads as the options give it."""
    return FastEngine(graph, options.threads)


def _reads(step: Step) -> tuple[str, ...]:
    return step.layers[0].inputs if isinstance(step, SynapsesStep) else step.node.inputs


def _operations(x: Value, fan_out: np.ndarray) -> NodeActivity:
    """What the values of x cause in a layer, of whose weights an input reaches `fan_out` [in]."""
    assert x.payload is not None and x.events is not None
    inputs = len(fan_out)
    return NodeActivity(
        synaptic_operations=int(x.events[:inputs] @ fan_out), weighted_operations=int(x.payload[:inputs] @ fan_out)
    )


def _plain(data: np.ndarray, width: int) -> np.ndarray:
    """The values of a node [R, T, D] as integers of their own."""
    if data.dtype != np.uint64:
        return data[..., :width].copy()
    bits = np.unpackbits(data.astype("<u8").view(np.uint8), axis=-1, count=width, bitorder="little")
    return sum((plane.astype(np.int32) << p for p, plane in enumerate(bits)), np.zeros(bits.shape[1:], np.int32))


def _pack(batch: TokenBatch, buffers: Buffers) -> Share:
    real = batch.mask.astype(bool)
    starts = np.concatenate([[0], np.cumsum(real.sum(1))])
    return Share(batch.ids[real], np.nonzero(real)[1], starts, buffers)


def _unpack(shares: list[np.ndarray], real: np.ndarray) -> np.ndarray:
    """Values [R, T, D] of all shares and real bool [B, N] -> [T, B, N, D], padding 0."""
    packed = np.concatenate(shares)
    full = np.zeros((*real.shape, *packed.shape[1:]), packed.dtype)
    full[real] = packed
    return np.moveaxis(full, 2, 0)


def _cuts(lengths: np.ndarray, threads: int) -> list[int]:
    """Where to cut the samples so that each share has about as many tokens: 0 .. B, rising."""
    total = np.concatenate([[0], np.cumsum(lengths)])
    wanted = total[-1] * np.arange(1, threads) / threads
    return sorted({0, *np.searchsorted(total, wanted).tolist(), len(lengths)})


@contextmanager
def _said_if_slow() -> Iterator[None]:
    """Compiling takes a while, the first time: said where it does."""
    timer = Timer(COMPILING_IS_SLOW, note, ["fast engine: compiling for this machine; this is done once"])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
