"""Runs a plan on batches: the samples are dealt out to threads, each of which takes its share through all steps."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from operator import add
from threading import Timer

import numpy as np

from converters.execution import Activity, EngineOptions, Execution, NodeActivity, TokenBatch, check_observed
from converters.graph import LIF, Graph, Source
from sim.fast import kernels
from sim.fast.plan import (
    AddStep,
    AttentionStep,
    EncodeStep,
    LIFStep,
    ReadoutStep,
    Step,
    SynapsesStep,
    assign_rooms,
    blocks_of,
    make_plan,
    nodes_of,
    planes_of,
)
from sim.fast.vectors import BLOCK, aligned
from spikebert.commands import note, processors

NO_CURRENTS = np.zeros((0, 0, 0), np.int32)
NO_SPIKES = np.zeros((1, 0, 0, 0), np.uint64)
NO_COUNTS = np.zeros(0, np.int64)
COMPILING_IS_SLOW = 2.0  # seconds until it is said


class Room:
    """Memory that is used again and again: nothing large is allocated once a batch of that size has been seen."""

    def __init__(self) -> None:
        self._bytes = aligned((0,), np.uint8)

    def array(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """All of the room, or what is needed of it. It holds whatever was there before."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > len(self._bytes):
            self._bytes = aligned((size,), np.uint8)
        array: np.ndarray = self._bytes[:size].view(dtype).reshape(shape)
        return array


@dataclass(frozen=True, eq=False)
class Spikes:
    """Spikes of a node, or sums of them.

    planes  uint64 [P, R, T, W], as in `kernels`
    payload int64 [W * 64], for each neuron the sum of its values over tokens and timesteps
    events  int64 [W * 64], how many of them are not 0
    """

    planes: np.ndarray
    payload: np.ndarray
    events: np.ndarray


@dataclass
class Share:
    """Some samples of a batch, packed: R real tokens side by side.

    ids, places int64 [R]: token ids, and where in its sample a token stands
    starts      int64 [B + 1]: where each sample begins
    spikes      node name -> what it fired
    currents    node name -> int32 [R, T, at least D]
    activity    node name -> its counts
    """

    ids: np.ndarray
    places: np.ndarray
    starts: np.ndarray
    spikes: dict[str, Spikes] = field(default_factory=dict)
    currents: dict[str, np.ndarray] = field(default_factory=dict)
    activity: dict[str, NodeActivity] = field(default_factory=dict)


class FastEngine:
    """Event-driven and compiled; every value is the reference's.

    threads: at most so many samples are in work at a time; 0 for all processors.
    """

    counts_activity = True

    def __init__(self, graph: Graph, threads: int = 0) -> None:
        self.graph = graph
        self.threads = threads or processors()
        steps = make_plan(graph)
        self.workers = [_Worker(graph, steps) for _ in range(self.threads)]
        self.pool = ThreadPoolExecutor(self.threads)
        with _said_if_slow():
            one = np.ones((1, 1), np.int64)
            self.run(TokenBatch(one * 0, one))  # compiles, or reads what was compiled before

    def run(self, batch: TokenBatch, observe: Collection[str] = ()) -> Execution:
        """See `converters.execution.Engine`. The activity is counted on the way."""
        batch.check_fits(self.graph)
        check_observed(self.graph, observe)
        observed = frozenset(observe)
        cuts = _cuts(batch.mask.sum(1), self.threads)
        parts = [(batch.ids[low:high], batch.mask[low:high]) for low, high in pairwise(cuts)]
        jobs = [(_pack(*part), worker) for part, worker in zip(parts, self.workers)]
        run = self.pool.map if len(jobs) > 1 else map
        results = list(run(lambda job: job[1].run(job[0], observed), jobs))
        real = batch.mask.astype(bool)
        values = {name: _unpack([kept[name] for _, kept, _ in results], real) for name in observe}
        activity = reduce(add, (counts for _, _, counts in results))
        return Execution(np.concatenate([logits for logits, _, _ in results]), values, activity)

    def close(self) -> None:
        """Ends the threads."""
        self.pool.shutdown()


class _Worker:
    """Takes a share through all steps, in memory of its own."""

    def __init__(self, graph: Graph, steps: tuple[Step, ...]) -> None:
        self.graph, self.steps = graph, steps
        numbers = assign_rooms(steps)
        rooms = [Room() for _ in set(numbers)]
        self.rooms = [rooms[number] for number in numbers]
        self.scratch, self.lists = Room(), Room()

    def run(self, share: Share, observed: frozenset[str]) -> tuple[np.ndarray, dict[str, np.ndarray], Activity]:
        """Logits int64 [B, classes], the observed values [R, T, D], and the activity."""
        kept: dict[str, np.ndarray] = {}
        logits = np.zeros(0)
        for step, room in zip(self.steps, self.rooms):
            if isinstance(step, ReadoutStep):
                logits = self._read_out(step, share, observed)
            else:
                self._run_step(step, room, share, observed)
            for name in observed.intersection(nodes_of(step)):
                width = self.graph.features[name]
                current = share.currents.get(name)
                kept[name] = (
                    _plain(share.spikes[name].planes, width) if current is None else current[..., :width].copy()
                )
        counts = {node.name: share.activity.get(node.name, NodeActivity()) for node in self.graph}
        return logits, kept, Activity(self.graph.timesteps, counts)

    def _observed(self, name: str, share: Share) -> np.ndarray:
        """What a node gave, as integers [R, T, D] of the caller's own."""
        width = self.graph.features[name]
        if name in share.currents:
            return share.currents[name][..., :width].copy()
        return _plain(share.spikes[name].planes, width)

    def _run_step(self, step: Step, room: Room, share: Share, observed: frozenset[str]) -> None:
        if isinstance(step, EncodeStep):
            self._encode(step, room, share)
        elif isinstance(step, SynapsesStep):
            self._synapses(step, room, share, observed)
        elif isinstance(step, AttentionStep):
            self._attention(step, room, share, observed)
        elif isinstance(step, LIFStep):
            planes, fired = self._planes(room, share, step.node.name)
            currents, neurons = share.currents[step.node.inputs[0]], step.neurons
            kernels.lif(currents, neurons.free, neurons.level, neurons.keep, planes[0], fired)
            self._keep_spikes(share, step.node, planes, fired)
        elif isinstance(step, AddStep):
            self._add(step, room, share)

    def _encode(self, step: EncodeStep, room: Room, share: Share) -> None:
        (planes, fired), neurons = self._planes(room, share, step.node.name), step.neurons
        kernels.encode(
            share.ids, share.places, step.table, step.position, step.node.kind == "sign", neurons.free, neurons.level,
            neurons.keep, planes[0], fired,
        )  # fmt: skip
        self._keep_spikes(share, step.node, planes, fired)

    def _synapses(self, step: SynapsesStep, room: Room, share: Share, observed: frozenset[str]) -> None:
        x, neurons, timesteps = share.spikes[step.layers[0].inputs[0]], step.neurons, self.graph.timesteps
        tokens, (blocks, inputs, _) = len(share.ids), step.weight.shape
        sites = tokens * timesteps
        if step.lifs:
            spikes = room.array((sites * blocks,), np.uint64)
            kept = not observed.isdisjoint(layer.name for layer in step.layers)
            currents = np.empty((tokens, timesteps, blocks * BLOCK), np.int32) if kept else NO_CURRENTS
        else:
            spikes, kept = NO_SPIKES.reshape(-1), True
            currents = room.array((tokens, timesteps, blocks * BLOCK), np.int32)
        size = inputs, len(x.planes), timesteps
        index = self.scratch.array((kernels.tile_entries(*size),), np.uint32)
        lists = self.lists.array((kernels.tile_lists(*size), 5), np.int64)
        fired = np.empty(blocks * BLOCK, np.int64)
        kernels.synapses(
            x.planes, step.weight, step.group, step.bias, step.wide, bool(step.lifs), neurons.free, neurons.level,
            neurons.keep, step.places, spikes, currents, index, lists, fired,
        )  # fmt: skip
        operations, first = _operations(x, step.fan_out), 0
        for place, layer in enumerate(step.layers):
            words = blocks_of(layer.weight.shape[0])
            share.activity[layer.name] = operations[place]
            if kept:
                share.currents[layer.name] = currents[..., first * BLOCK :]
            if step.lifs:
                own = spikes[sites * first : sites * (first + words)].reshape(1, tokens, timesteps, words)
                self._keep_spikes(share, step.lifs[place], own, fired[first * BLOCK : (first + words) * BLOCK])
            first += words

    def _attention(self, step: AttentionStep, room: Room, share: Share, observed: frozenset[str]) -> None:
        node, neurons, timesteps = step.node, step.neurons, self.graph.timesteps
        q, k, v = (share.spikes[name].planes for name in node.inputs)
        width, longest = self.graph.features[node.name], int(np.diff(share.starts).max())
        (planes, fired), kept = (NO_SPIKES, NO_COUNTS), step.lif is None or node.name in observed
        shape = (*q.shape[1:3], q.shape[3] * BLOCK)
        if step.lif is None:
            currents = room.array(shape, np.int32)
        else:
            planes, fired = self._planes(room, share, step.lif.name)
            currents = np.empty(shape, np.int32) if kept else NO_CURRENTS
        cells = self.scratch.array((kernels.attention_cells(longest, timesteps, width, node.heads),), np.int32)
        operations = np.empty(2, np.int64)
        kernels.attention(
            q, k, v, share.starts, width, node.heads, np.empty(longest, step.sums), step.lif is not None, neurons.free,
            neurons.level, neurons.keep, planes[0], currents, cells, operations,
            fired,
        )  # fmt: skip
        plain, weighted = operations.tolist()
        share.activity[node.name] = NodeActivity(synaptic_operations=plain, weighted_operations=weighted)
        if kept:
            share.currents[node.name] = currents
        if step.lif:
            self._keep_spikes(share, step.lif, planes, fired)

    def _add(self, step: AddStep, room: Room, share: Share) -> None:
        """The counts of a sum follow from those of its inputs, but for how many sums are not 0."""
        inputs = [share.spikes[name] for name in step.node.inputs]
        total, events = self._planes(room, share, step.node.name)
        total[:] = 0
        for x in inputs:
            kernels.add(x.planes, total)
        kernels.count_sums(total, self.scratch.array(total.shape[1:], np.uint64), events)
        payload = inputs[0].payload.copy()
        for x in inputs[1:]:
            payload += x.payload
        share.spikes[step.node.name] = Spikes(total, payload, events)

    def _read_out(self, step: ReadoutStep, share: Share, observed: frozenset[str]) -> np.ndarray:
        """The sums over tokens and timesteps are made first: `sum(W x + b) = W sum(x) + T * tokens * b`."""
        x, name, width = share.spikes[step.node.inputs[0]], step.node.name, len(step.weight)
        payload = np.zeros((len(share.starts) - 1, len(x.payload)), np.int64)
        kernels.sum_samples(x.planes, share.starts, payload)
        (share.activity[name],) = _operations(x, step.fan_out)
        if name in observed:
            share.currents[name] = _plain(x.planes, width).astype(np.int64) @ step.weight + step.bias
        tokens = np.diff(share.starts)[:, None]
        return payload[:, :width] @ step.weight + self.graph.timesteps * tokens * step.bias

    def _planes(self, room: Room, share: Share, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Room for the spikes of a node, or for sums of them, and for the count of each neuron."""
        planes, words = planes_of(self.graph, name), blocks_of(self.graph.features[name])
        shape = (planes, len(share.ids), self.graph.timesteps, words)
        return room.array(shape, np.uint64), np.empty(words * BLOCK, np.int64)

    def _keep_spikes(self, share: Share, node: Source | LIF, planes: np.ndarray, fired: np.ndarray) -> None:
        share.spikes[node.name] = Spikes(planes, fired, fired)
        sites = self.graph.timesteps * len(share.ids) * self.graph.features[node.name]
        share.activity[node.name] = NodeActivity(spikes=int(fired.sum()), sites=sites)


def open_fast(graph: Graph, options: EngineOptions) -> FastEngine:
    """The fast engine, on as many threads as the options give it."""
    return FastEngine(graph, options.threads)


def _operations(x: Spikes, fan_out: np.ndarray) -> list[NodeActivity]:
    """What the values of x cause in each layer that reads them; `fan_out` [layers, in]."""
    operations = np.empty((len(fan_out), 2), np.int64)
    kernels.count_operations(x.payload, x.events, fan_out, operations)
    return [NodeActivity(synaptic_operations=plain, weighted_operations=w) for plain, w in operations.tolist()]


def _plain(planes: np.ndarray, width: int) -> np.ndarray:
    """Planes [P, R, T, W] -> the values [R, T, D], integers of their own."""
    bits = np.unpackbits(planes.astype("<u8").view(np.uint8), axis=-1, count=width, bitorder="little")
    values: np.ndarray = (bits.astype(np.int32) << np.arange(len(bits))[:, None, None, None]).sum(0, dtype=np.int32)
    return values


def _pack(ids: np.ndarray, mask: np.ndarray) -> Share:
    real = mask.astype(bool)
    starts = np.concatenate([[0], np.cumsum(mask.sum(1))])
    return Share(ids[real], np.nonzero(real)[1], starts)


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
