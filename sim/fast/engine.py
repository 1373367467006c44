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
from sim.fast.plan import (
    AddStep,
    AttentionStep,
    EncodeStep,
    LIFStep,
    ReadoutStep,
    Step,
    SynapsesStep,
    make_plan,
    nodes_of,
)
from spikebert.commands import note, processors

NOTHING = np.zeros((0, 0, 0), np.int32)
COMPILING_IS_SLOW = 2.0  # seconds until it is said


@dataclass
class Share:
    """Some samples of a batch, packed: R real tokens side by side.

    ids, places int64 [R]: token ids, and where in its sample a token stands
    starts      int64 [B + 1]: where each sample begins
    values      node name -> [R, T, D]
    """

    ids: np.ndarray
    places: np.ndarray
    starts: np.ndarray
    values: dict[str, np.ndarray] = field(default_factory=dict)
    activity: dict[str, NodeActivity] = field(default_factory=dict)


class FastEngine:
    """Event-driven and compiled; every value is the reference's.

    threads: at most so many samples are in work at a time; 0 for all processors.
    """

    counts_activity = True

    def __init__(self, graph: Graph, threads: int = 0) -> None:
        self.graph = graph
        self.steps = make_plan(graph)
        self.threads = threads or processors()
        self.last_use = {name: index for index, step in enumerate(self.steps) for name in _reads(step)}
        self.pool = ThreadPoolExecutor(self.threads)
        with _said_if_slow():
            one = np.ones((1, 1), np.int64)
            self.run(TokenBatch(one * 0, one))  # compiles, or reads what was compiled before

    def run(self, batch: TokenBatch, observe: Collection[str] = ()) -> Execution:
        """See `converters.execution.Engine`. The activity is counted on the way."""
        batch.check_fits(self.graph)
        check_observed(self.graph, observe)
        wanted = frozenset(observe)
        cuts = _cuts(batch.mask.sum(1), self.threads)
        shares = [_pack(batch[low:high]) for low, high in pairwise(cuts)]
        logits = list(self.pool.map(lambda share: self._run_share(share, wanted), shares))
        real = batch.mask.astype(bool)
        values = {name: _unpack([share.values[name] for share in shares], real) for name in observe}
        per_node = {
            node.name: sum((share.activity.get(node.name, NodeActivity()) for share in shares), NodeActivity())
            for node in self.graph
        }
        return Execution(np.concatenate(logits), values, Activity(self.graph.timesteps, per_node))

    def close(self) -> None:
        """Ends the threads."""
        self.pool.shutdown()

    def _run_share(self, share: Share, wanted: frozenset[str]) -> np.ndarray:
        """Logits int64 [B, classes]; `share.values` holds the wanted nodes afterwards."""
        logits = np.zeros(0)
        for index, step in enumerate(self.steps):
            if isinstance(step, ReadoutStep):
                logits = self._read_out(step, share, wanted)
            else:
                self._run_step(step, share, wanted)
            for name in (*_reads(step), *nodes_of(step)):
                if self.last_use.get(name, -1) <= index and name not in wanted:
                    share.values.pop(name, None)
        return logits

    def _run_step(self, step: Step, share: Share, wanted: frozenset[str]) -> None:
        if isinstance(step, EncodeStep):
            self._encode(step, share)
        elif isinstance(step, SynapsesStep):
            self._synapses(step, share, wanted)
        elif isinstance(step, AttentionStep):
            self._attention(step, share, wanted)
        elif isinstance(step, LIFStep):
            spikes, fired = self._new(share, step.node.name, np.uint8), np.zeros(1, np.int64)
            currents = np.ascontiguousarray(share.values[step.node.inputs[0]])
            kernels.lif(currents, step.neurons.level, step.neurons.keep, spikes, fired)
            self._count_spikes(share, step.node, int(fired[0]))
        elif isinstance(step, AddStep):
            total = self._new(share, step.node.name, step.dtype)
            total[:] = 0
            for name in step.node.inputs:
                kernels.add(np.ascontiguousarray(share.values[name]), total)

    def _encode(self, step: EncodeStep, share: Share) -> None:
        node, fired = step.node, np.zeros(1, np.int64)
        spikes = self._new(share, node.name, np.uint8)
        kernels.encode(
            share.ids, share.places, step.table, step.position, node.kind == "sign", step.neurons.level,
            step.neurons.keep, spikes, fired,
        )  # fmt: skip
        self._count_spikes(share, node, int(fired[0]))

    def _synapses(self, step: SynapsesStep, share: Share, wanted: frozenset[str]) -> None:
        x = np.ascontiguousarray(share.values[step.layers[0].inputs[0]])
        shape = (*x.shape[:2], step.weight.shape[1])
        fires = bool(step.lifs)
        keep_currents = not fires or any(layer.name in wanted for layer in step.layers)
        spikes = np.empty(int(np.prod(shape)) if fires else 0, np.uint8)
        currents = np.empty(shape, np.int32) if keep_currents else NOTHING
        operations, fired = np.zeros((len(step.layers), 2), np.int64), np.zeros(len(step.layers), np.int64)
        kernels.synapses(
            x, step.weight, step.bias, step.fan_out, step.graded, np.empty(shape[2], step.sums), step.ends, fires,
            step.neurons.level, step.neurons.keep, spikes, currents, operations, fired,
        )  # fmt: skip
        low, sites = 0, shape[0] * shape[1]
        for i, (layer, high) in enumerate(zip(step.layers, step.ends.tolist())):
            share.activity[layer.name] = _operations(operations[i])
            if keep_currents:
                share.values[layer.name] = currents[..., low:high]
            if fires:
                own = spikes[sites * low : sites * high]
                share.values[step.lifs[i].name] = own.reshape(*shape[:2], high - low)
                self._count_spikes(share, step.lifs[i], int(fired[i]))
            low = high

    def _attention(self, step: AttentionStep, share: Share, wanted: frozenset[str]) -> None:
        q, k, v = (share.values[name] for name in step.node.inputs)
        keep_currents = step.lif is None or step.node.name in wanted
        currents = np.empty(q.shape, np.int32) if keep_currents else NOTHING
        spikes = np.empty(q.shape if step.lif else (0, 0, 0), np.uint8)
        operations, fired = np.zeros((1, 2), np.int64), np.zeros(1, np.int64)
        kernels.attention(
            q, k, v, share.starts, step.node.heads, np.empty(q.shape[2] // step.node.heads, step.sums),
            step.lif is not None, step.neurons.level, step.neurons.keep, spikes, currents, operations, fired,
        )  # fmt: skip
        share.activity[step.node.name] = _operations(operations[0])
        if keep_currents:
            share.values[step.node.name] = currents
        if step.lif:
            share.values[step.lif.name] = spikes
            self._count_spikes(share, step.lif, int(fired[0]))

    def _read_out(self, step: ReadoutStep, share: Share, wanted: frozenset[str]) -> np.ndarray:
        """The sums over tokens and timesteps are made first: `sum(W x + b) = W sum(x) + T * tokens * b`."""
        x = np.ascontiguousarray(share.values[step.node.inputs[0]])
        tokens = np.diff(share.starts)
        payload, events = np.empty((len(tokens), x.shape[2]), np.int64), np.zeros(x.shape[2], np.int64)
        kernels.gather(x, share.starts, payload, events)
        share.activity[step.node.name] = NodeActivity(
            synaptic_operations=int(events @ step.fan_out),
            weighted_operations=int(payload.sum(0) @ step.fan_out),
        )
        if step.node.name in wanted:
            share.values[step.node.name] = x.astype(np.int64) @ step.weight + step.bias
        return payload @ step.weight + (self.graph.timesteps * tokens)[:, None] * step.bias

    def _new(self, share: Share, name: str, dtype: type) -> np.ndarray:
        """Room for the spikes of a node."""
        values: np.ndarray = np.empty((len(share.ids), self.graph.timesteps, self.graph.features[name]), dtype)
        share.values[name] = values
        return values

    def _count_spikes(self, share: Share, node: Source | LIF, fired: int) -> None:
        sites = self.graph.timesteps * len(share.ids) * self.graph.features[node.name]
        share.activity[node.name] = NodeActivity(spikes=fired, sites=sites)


def open_fast(graph: Graph, options: EngineOptions) -> FastEngine:
    """The fast engine, on as many threads as the options give it."""
    return FastEngine(graph, options.threads)


def _reads(step: Step) -> tuple[str, ...]:
    return step.layers[0].inputs if isinstance(step, SynapsesStep) else step.node.inputs


def _operations(counted: np.ndarray) -> NodeActivity:
    return NodeActivity(synaptic_operations=int(counted[0]), weighted_operations=int(counted[1]))


def _pack(batch: TokenBatch) -> Share:
    real = batch.mask.astype(bool)
    starts = np.concatenate([[0], np.cumsum(real.sum(1))])
    return Share(batch.ids[real], np.nonzero(real)[1], starts)


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
