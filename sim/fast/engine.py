"""Runs a plan on batches: the samples are dealt out to threads, each of which takes its share through all steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import groupby, pairwise
from operator import add
from threading import Timer
from typing import cast

import numpy as np

from converters.early_exit import EarlyExit
from converters.execution import Activity, EngineOptions, Execution, TokenBatch, check_observed
from converters.graph import Coincidence, Concat, Graph, Product, Relay, Slice, Source, ValidLane
from converters.readout import integrate, unit_of
from sim.fast import kernels, wiring
from sim.fast.counters import Counters
from sim.fast.plan import (
    AddStep,
    AttentionStep,
    EncodeStep,
    GradedEncodeStep,
    GradedLIFStep,
    LIFStep,
    NormStep,
    ReadoutStep,
    Step,
    SynapsesStep,
    WiringStep,
    assign_rooms,
    blocks_of,
    make_plan,
    nodes_of,
    planes_of,
    words_of,
)
from sim.fast.program import Program, Team, Work, team_of
from sim.fast.vectors import BLOCK, aligned
from spikebert.commands import note, processors

Call = Callable[[], object]

NO_CURRENTS = np.zeros((0, 0, 0), np.int32)
NO_LANE = np.zeros((0, 0, 0), np.uint64)
NO_ROWS = np.zeros(0, np.int64)
NO_SPIKES = np.zeros((1, 0, 0, 0), np.uint64)
COMPILING_IS_SLOW = 2.0  # seconds until it is said
TOGETHER_MOST = 4  # threads on one sample: small layers have no more to share


class Room:
    """Memory that is used again and again: nothing large is allocated once a batch of that size has been seen.

    moved  called when a larger array is asked for than ever before: what was given out is not used any more
    """

    def __init__(self, moved: Callable[[], None]) -> None:
        self._bytes, self._moved = aligned((0,), np.uint8), moved

    def array(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """As much of the room as is needed. It holds whatever was there before."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > len(self._bytes):
            self._bytes = aligned((size,), np.uint8)
            self._moved()
        array: np.ndarray = np.ndarray(shape, dtype, self._bytes)
        return array


@dataclass(frozen=True, eq=False)
class Spikes:
    """Spikes of a node, or sums of them.

    planes  uint64 [P, R, T, W], as in `kernels`
    payload int64 [W * 64], for each neuron the sum of its values over tokens and timesteps; see `Counters`
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
    observed    nodes whose values the caller wants
    timesteps   how many of the graph's are run, beginning with `first`
    rows        int64 [R]: where the membranes of each token are kept from one run to the next, in arrays of `kept_rows`
                tokens; int64 [0]: they begin at 0 and are not kept
    spikes      node name -> what it fires
    currents    node name -> int32 [R, T, at least D], where they are stored
    logits      int64 [B, classes]
    values      node name -> integers [R, T, D], of the nodes observed
    before      int64 [B, classes], the logits until `first`, or [1, 1] of 0
    alone       whether its batch has no other share, so that threads are free to help
    divided     whether steps are divided into units, which helpers can take
    stops       int64 [B]: after how many timesteps each sample stopped, with an early exit
    """

    ids: np.ndarray
    places: np.ndarray
    starts: np.ndarray
    observed: frozenset[str]
    timesteps: int
    first: int = 0
    rows: np.ndarray = field(default_factory=lambda: NO_ROWS)
    kept_rows: int = 0
    spikes: dict[str, Spikes] = field(default_factory=dict)
    currents: dict[str, np.ndarray] = field(default_factory=dict)
    logits: np.ndarray = field(default_factory=partial(np.zeros, 0))
    values: dict[str, np.ndarray] = field(default_factory=dict)
    before: np.ndarray = field(default_factory=lambda: np.zeros((1, 1), np.int64))
    stops: np.ndarray = field(default_factory=lambda: NO_ROWS)
    alone: bool = False
    divided: bool = False


class FastEngine:
    """Event-driven and compiled; every value is the reference's.

    threads: at most so many samples are in work at a time; 0 for all processors. A batch of a single sample is shared
             by up to TOGETHER_MOST of them: each computes some neurons of a layer, and reads their weights alone.
    early_exit: samples that have stopped are computed no further; membranes are carried from one check to the next
    """

    counts_activity = True

    def __init__(self, graph: Graph, threads: int = 0, early_exit: EarlyExit | None = None) -> None:
        self.graph, self.early_exit = graph, early_exit
        self.threads = threads or processors()
        steps = make_plan(graph)
        self.team = team_of(self, min(self.threads, TOGETHER_MOST) - 1)
        teams = [self.team, *(Team(0) for _ in range(self.threads - 1))]
        self.workers = [_Worker(graph, steps, early_exit, team) for team in teams]
        self.pool = ThreadPoolExecutor(self.threads)
        with _said_if_slow():  # compiles, or reads what was compiled before
            one = np.ones((1, 1), np.int64)
            for samples in (one, np.repeat(one, self.threads + 1, 0)):  # a sample alone, and shares of several
                self.run(TokenBatch(samples * 0, samples))

    def run(self, batch: TokenBatch, observe: Collection[str] = ()) -> Execution:
        """See `converters.execution.Engine`. The activity is counted on the way."""
        batch.check_fits(self.graph)
        check_observed(self.graph, observe)
        observed = frozenset(observe)
        cuts = _cuts(batch.mask.sum(1), self.threads)
        ids, mask, timesteps = batch.ids, batch.mask, self.graph.timesteps
        shares = [_pack(ids[low:high], mask[low:high], observed, timesteps) for low, high in pairwise(cuts)]
        shares[0].alone = len(shares) == 1
        run = self.pool.map if len(shares) > 1 else map
        work = _Worker.run if self.early_exit is None else _Worker.run_until_certain
        done, counts = zip(*run(work, self.workers, shares))
        values = {name: _unpack([share.values[name] for share in done], batch.mask.astype(bool)) for name in observe}
        logits = np.concatenate([share.logits for share in done])
        stops = None if self.early_exit is None else np.concatenate([share.stops for share in done])
        return Execution(logits, values, reduce(add, counts), stops)

    def close(self) -> None:
        """Ends the threads."""
        self.pool.shutdown()
        self.team.close()


class _Worker:
    """Takes a share through all steps, in memory of its own.

    A share is *bound* first: for each step, the calls that it takes, with their arrays. Those of a single sample are
    joined to programs, and kept for the next one of as many tokens: binding takes longer than its work.
    """

    def __init__(self, graph: Graph, steps: tuple[Step, ...], early_exit: EarlyExit | None, team: Team) -> None:
        self.graph, self.steps, self.early_exit, self.team = graph, steps, early_exit, team
        checks = early_exit.checks(graph) if early_exit else ()
        self.units = {t: unit_of(graph.readout, t) for t in checks}  # by the timesteps after which samples may stop
        self.counters = Counters(graph, steps)
        self._bound: dict[tuple[int, int], tuple[Share, list[Call]]] = {}  # by the number of tokens, the first timestep
        numbers = assign_rooms(steps)
        rooms = [Room(self._bound.clear) for _ in set(numbers)]
        self.rooms = [rooms[number] for number in numbers]
        self.scratch, self.lists = Room(self._bound.clear), Room(self._bound.clear)
        self.spans = np.zeros((kernels.TILE, 2), np.int64)
        self.membranes = [Room(self._bound.clear) for _ in steps]

    def run_until_certain(self, share: Share) -> tuple[Share, Activity]:
        """As `run`, from one check to the next, each time with the samples that have not stopped."""
        assert self.early_exit is not None
        lengths, running = np.diff(share.starts), np.arange(len(share.starts) - 1)
        share.logits = np.zeros((len(lengths), self.graph.features[self.graph.output]), np.int64)
        share.stops = np.full(len(lengths), share.timesteps)
        counts = []
        for first, end in pairwise((0, *self.units, self.graph.timesteps)):
            part, count = self.run(_part_of(share, running, first, end))
            counts.append(count)
            share.logits[running] = part.logits
            for name, values in part.values.items():
                whole = (len(share.ids), share.timesteps, values.shape[-1])
                share.values.setdefault(name, np.zeros(whole, values.dtype))[part.rows, first:end] = values
            if end < share.timesteps:
                stops = self.early_exit.certain(part.logits, self.units[end], lengths[running])
                share.stops[running[stops]] = end
                running = running[~stops]
            if not running.size:
                break
        return share, reduce(add, counts)

    def run(self, share: Share) -> tuple[Share, Activity]:
        """The share with its logits and values (perhaps not that one, but one like it), and the activity."""
        tokens, alone = len(share.ids), share.alone
        key = tokens, share.first
        if share.observed or len(share.starts) != 2 or tokens < share.kept_rows:
            calls = self._bind(share)
        elif key in self._bound:
            kept, calls = self._bound[key]
            kept.ids[:] = share.ids  # its places are those of every sample of as many tokens
            kept.before[:] = share.before
            share = kept
        else:
            share.divided = self.team.helpers > 0 and tokens > 0
            calls = _joined(self._bind(share), self.team)
            self._bound[key] = share, calls
        self.team.begin(alone and share.divided)
        self.counters.clear()
        for call in calls:
            call()
        return share, self.counters.activity(share.timesteps * tokens)

    def _bind(self, share: Share) -> list[Call]:
        calls: list[Call] = []
        for number, step in enumerate(self.steps):
            if isinstance(step, SynapsesStep):
                calls += self._synapses(number, step, share)
            elif isinstance(step, AddStep):
                calls += self._add(number, step, share)
            elif isinstance(step, AttentionStep):
                calls += self._attention(number, step, share)
            elif isinstance(step, EncodeStep):
                calls += self._encode(number, step, share)
            elif isinstance(step, GradedEncodeStep):
                calls += self._encode_graded(number, step, share)
            elif isinstance(step, LIFStep):
                calls += self._lif(number, step, share)
            elif isinstance(step, GradedLIFStep):
                calls += self._graded_lif(number, step, share)
            elif isinstance(step, NormStep):
                calls += self._norm(number, step, share)
            elif isinstance(step, ReadoutStep):
                calls += self._read_out(number, step, share)
            else:
                calls += self._wire(number, step, share)
            calls += [partial(self._keep, name, share) for name in share.observed.intersection(nodes_of(step))]
        return calls

    def _keep(self, name: str, share: Share) -> None:
        """Note what a node gave, as integers [R, T, D] of the caller's own."""
        width = self.graph.features[name]
        if name in share.currents:
            share.values[name] = share.currents[name][..., :width].copy()
        else:
            share.values[name] = _plain(share.spikes[name].planes, width, name in self.graph.signed)

    def _encode(self, number: int, step: EncodeStep, share: Share) -> Iterator[Call]:
        out, neurons = self._spikes(number, share, step.node.name), step.neurons
        code = np.ascontiguousarray(step.code[:, share.first : share.first + share.timesteps])
        arguments = (
            share.ids, share.places, step.table, step.position, code, step.node.kind == "sign", neurons.free,
            neurons.subtract, neurons.level, neurons.keep, out.planes[0], out.events, self.counters.cuts[number],
            *self._carried(number, neurons.level, share),
        )  # fmt: skip
        yield Work(kernels.encode, arguments)

    def _encode_graded(self, number: int, step: GradedEncodeStep, share: Share) -> Iterator[Call]:
        node, width = step.node, len(step.level)
        currents = np.empty((len(share.ids), share.timesteps, blocks_of(width) * BLOCK), np.int32)
        yield partial(self._look_up, node, share, currents)
        yield self._fire_graded(number, step, share, currents)
        if node.code is not None:
            out = share.spikes[node.name]
            yield partial(self._put_code, step, share, out)

    def _look_up(self, node: Source, share: Share, currents: np.ndarray) -> None:
        """The current of each token, the same at every timestep."""
        current = node.table[share.ids].astype(np.int32)
        if node.position is not None:
            current += node.position[share.places]
        currents[..., : current.shape[1]] = current[:, None]

    def _put_code(self, step: GradedEncodeStep, share: Share, out: Spikes) -> None:
        """Spike-coded positions stand behind the neurons' features, and are bits."""
        out.planes[0] |= step.code[share.places, share.first : share.first + share.timesteps]
        self._count(out)

    def _norm(self, number: int, step: NormStep, share: Share) -> Iterator[Call]:
        node = step.node
        current, *lane = node.inputs
        shape = (len(share.ids), share.timesteps, blocks_of(len(step.gamma)) * BLOCK)
        out = self.rooms[number].array(shape, np.int32)
        yield partial(
            kernels.norm, share.currents[current], node.kind == "layer", node.eps, step.gamma, step.beta, bool(lane),
            share.spikes[lane[0]].planes[0] if lane else NO_SPIKES[0], out,
        )  # fmt: skip
        share.currents[node.name] = out

    def _lif(self, number: int, step: LIFStep, share: Share) -> Iterator[Call]:
        out, neurons = self._spikes(number, share, step.node.name), step.neurons
        yield partial(
            kernels.lif, share.currents[step.node.inputs[0]], neurons.free, neurons.subtract, neurons.level,
            neurons.keep, out.planes[0], out.events, self.counters.cuts[number],
            *self._carried(number, neurons.level, share),
        )  # fmt: skip

    def _graded_lif(self, number: int, step: GradedLIFStep, share: Share) -> Iterator[Call]:
        yield self._fire_graded(number, step, share, share.currents[step.node.inputs[0]])

    def _fire_graded(
        self, number: int, step: GradedEncodeStep | GradedLIFStep, share: Share, currents: np.ndarray
    ) -> Call:
        node, out = step.node, self._spikes(number, share, step.node.name)
        return partial(
            kernels.graded_lif, currents, step.level, step.keep, node.reset == "subtract", node.spike == "ternary",
            node.cap, out.planes, out.payload, out.events, self.counters.cuts[number],
            *self._carried(number, step.level, share),
        )  # fmt: skip

    def _synapses(self, number: int, step: SynapsesStep, share: Share) -> Iterator[Call]:
        x, neurons, timesteps = share.spikes[step.layers[0].inputs[0]], step.neurons, share.timesteps
        tokens, (blocks, inputs, _), room = len(share.ids), step.weight.shape, self.rooms[number]
        sites, shape = tokens * timesteps, (tokens, timesteps, blocks * BLOCK)
        spikes, currents = NO_SPIKES.reshape(-1), NO_CURRENTS
        if step.lifs:
            spikes = room.array((sites * blocks,), np.uint64)
            kept = not share.observed.isdisjoint(layer.name for layer in step.layers)
            currents = np.empty(shape, np.int32) if kept else NO_CURRENTS
        else:
            kept, currents = True, room.array(shape, np.int32)
        size = inputs, len(x.planes), timesteps
        entries, count = kernels.chunk_entries(*size), kernels.chunk_lists(*size)
        index = self.scratch.array((kernels.CHUNKS * entries,), np.uint32)
        lists = self.lists.array((kernels.CHUNKS * count, 5), np.int64)
        arguments = (
            x.planes, step.weight, step.group, step.bias, step.wide, bool(step.lifs), neurons.free, neurons.subtract,
            neurons.level, neurons.keep, step.places, spikes, currents, index, lists, self.spans,
            self.counters.cuts[number], *self._carried(number, neurons.level, share),
        )  # fmt: skip
        if share.divided:
            longest = kernels.longest_list(step.wide, index)
            for first in range(0, tokens, kernels.TILE):
                left = tokens - first
                chunks = min(kernels.CHUNKS, -(-left // kernels.CHUNK))
                listed = x.planes, first, longest, entries, count, index, lists, self.spans
                yield Work(kernels.list_spikes, listed, chunks)
                yield Work(kernels.add_block, (*arguments, first, self.team.helpers + 1), blocks)
        else:
            yield Work(kernels.synapses, arguments)
        if step.lifs:
            yield Work(kernels.count_spikes, (spikes, step.places, sites, self.counters.fired[number]))
        first = 0
        for place, layer in enumerate(step.layers):
            words = blocks_of(layer.weight.shape[0])
            if kept:
                share.currents[layer.name] = currents[..., first * BLOCK :]
            if step.lifs:
                own = spikes[sites * first : sites * (first + words)].reshape(1, tokens, timesteps, words)
                self._send(step.lifs[place].name, own, share)
            first += words

    def _attention(self, number: int, step: AttentionStep, share: Share) -> Iterator[Call]:
        node, neurons, timesteps = step.node, step.neurons, share.timesteps
        q, k, v = (share.spikes[name].planes for name in node.inputs[:3])
        lane = NO_LANE if node.lane is None else share.spikes[node.lane].planes[0]
        width, longest = self.graph.features[node.name], int(np.diff(share.starts).max())
        planes, currents, kept = NO_SPIKES, NO_CURRENTS, step.lif is None or node.name in share.observed
        shape = (*q.shape[1:3], q.shape[3] * BLOCK)
        if step.lif is None:
            currents = self.rooms[number].array(shape, np.int32)
        else:
            planes = self._spikes(number, share, step.lif.name).planes
            currents = np.empty(shape, np.int32) if kept else NO_CURRENTS
        size = width // node.heads
        together = kernels.heads_together(size, node.heads) if share.divided else node.heads
        parts = node.heads // together
        room = parts * kernels.attention_cells(longest, timesteps, size, together)
        arguments: tuple = (
            q, k, v, lane, share.starts, width, node.heads, together, node.similarity == "xnor", step.bias,
            np.empty(0, step.sums), step.lif is not None, neurons.free, neurons.subtract, neurons.level, neurons.keep,
            planes[0], currents, self.scratch.array((room,), np.int32), self.counters.operations[number][0],
            self.counters.cuts[number], *self._carried(number, neurons.level, share), parts,
        )  # fmt: skip
        yield Work(kernels.attention, arguments, parts)
        if step.lif:
            sites = len(share.ids) * timesteps
            yield Work(kernels.count_spikes, (planes.reshape(-1), step.places, sites, self.counters.fired[number]))
        if kept:
            share.currents[node.name] = currents

    def _add(self, number: int, step: AddStep, share: Share) -> Iterator[Call]:
        """The counts of a sum follow from those of its inputs, but for how many sums are not 0."""
        if step.node.name in self.graph.signed:
            yield from self._add_signed(number, step, share)
            return
        total, *others = (share.spikes[name] for name in step.node.inputs)
        out = self._spikes(number, share, step.node.name)
        for x in others:
            counts = total.payload, x.payload, out.payload, out.events
            yield Work(kernels.add, (total.planes, x.planes, out.planes, *counts))
            total = out

    def _add_signed(self, number: int, step: AddStep, share: Share) -> Iterator[Call]:
        """Parts above 0 and parts below are added by themselves, then held against each other."""
        out = self._spikes(number, share, step.node.name)
        yield partial(out.planes.fill, 0)
        for name in step.node.inputs:
            yield partial(kernels.add_signed, share.spikes[name].planes, out.planes)
        yield partial(kernels.cancel, out.planes)
        yield partial(self._count, out)

    def _wire(self, number: int, step: WiringStep, share: Share) -> Iterator[Call]:
        node, out = step.node, self._spikes(number, share, step.node.name)
        if isinstance(node, (Slice, Concat)):
            yield partial(self._gather, node, out, share)
        elif isinstance(node, ValidLane):
            yield partial(self._valid_lane, node, out)
        elif isinstance(node, Coincidence):
            yield partial(self._coincidence, number, node, out, share)
        elif isinstance(node, Relay):
            yield partial(wiring.relay, share.currents[node.inputs[0]], self.graph.features[node.name], out.planes)
            yield partial(self._count, out)
        else:
            yield partial(self._product, number, node, out, share)

    def _gather(self, node: Slice | Concat, out: Spikes, share: Share) -> None:
        out.planes[:], out.payload[:], out.events[:], at = 0, 0, 0, 0
        for name in node.inputs:
            x, width = share.spikes[name], self.graph.features[name]
            start, stop = (node.start, node.stop) if isinstance(node, Slice) else (0, width)
            count = stop - start
            below = {name, node.name} <= self.graph.signed
            for half in range(1 + below):  # values above 0, and those below
                of = start + half * blocks_of(width) * BLOCK
                to = at + half * blocks_of(self.graph.features[node.name]) * BLOCK
                wiring.copy_features(x.planes, of, count, out.planes, to)
                out.payload[to : to + count], out.events[to : to + count] = (
                    x.payload[of:][:count],
                    x.events[of:][:count],
                )
            at += count

    def _valid_lane(self, node: ValidLane, out: Spikes) -> None:
        """Only real tokens are here."""
        lanes = np.arange(out.planes.shape[-1] * BLOCK) < node.lanes
        out.planes[:] = np.packbits(lanes, bitorder="little").view("<u8")
        out.payload[:] = out.events[:] = lanes * (out.planes.shape[1] * out.planes.shape[2])

    def _coincidence(self, number: int, node: Coincidence, out: Spikes, share: Share) -> None:
        (q, k), planes = (share.spikes[name] for name in node.inputs), out.planes[0]
        wiring.coincidence(q.planes[0], k.planes[0], share.starts, self.graph.features[node.inputs[0]], planes)
        kernels.count_bits(planes.reshape(-1, planes.shape[-1]), out.events)
        self.counters.operations[number][0] = self.graph.n_max * (q.payload.sum() + k.payload.sum())

    def _product(self, number: int, node: Product, out: Spikes, share: Share) -> None:
        (scores, v), width = (share.spikes[name] for name in node.inputs), self.graph.features[node.inputs[1]]
        wiring.product(scores.planes, v.planes, share.starts, width, node.heads, out.planes)
        size, keys = width // node.heads, self.graph.n_max
        counts = [size * x.sum() + keys * y.sum() for x, y in ((scores.events, v.events), (scores.payload, v.payload))]
        self.counters.operations[number][0] = counts
        self._count(out)

    def _count(self, out: Spikes) -> None:
        planes = out.planes
        out.payload[:] = 0
        kernels.sum_samples(planes, np.array([0, planes.shape[1]]), out.payload[None])
        kernels.count_sums(planes, self.scratch.array(planes.shape[1:], np.uint64), out.events)

    def _read_out(self, number: int, step: ReadoutStep, share: Share) -> Iterator[Call]:
        """The sums over tokens, and for kind "sum" over timesteps, come first: `sum(W x + b) = W sum(x) + b sum(1)`."""
        x = share.spikes[step.node.inputs[0]]
        tokens = np.diff(share.starts)
        share.logits = np.empty((len(tokens), len(step.bias)), np.int64)
        sums = np.zeros((len(tokens), len(x.payload)), np.int64)
        if step.node.kind == "sum":
            if len(tokens) == 1:
                sums = x.payload[None]
            else:
                yield partial(sums.fill, 0)
                yield partial(kernels.sum_samples, x.planes, share.starts, sums)
            arguments = sums, step.weight, step.bias, share.timesteps * tokens, share.before, share.logits
            yield Work(kernels.read_out, arguments)
        else:
            yield partial(self._integrate, step, share, x.planes, sums, tokens[:, None] * step.bias)
        if step.node.name in share.observed:
            yield partial(self._keep_readout, step, share)

    def _integrate(
        self, step: ReadoutStep, share: Share, planes: np.ndarray, sums: np.ndarray, bias: np.ndarray
    ) -> None:
        currents = np.empty((share.timesteps, *bias.shape), np.int64)
        for t, current in enumerate(currents):
            sums[:] = 0
            kernels.sum_samples(np.ascontiguousarray(planes[:, :, t : t + 1]), share.starts, sums)
            np.matmul(sums[:, : len(step.weight)], step.weight, current)
            current += bias
        share.logits[:] = integrate(step.node, currents, share.before)[-1]

    def _keep_readout(self, step: ReadoutStep, share: Share) -> None:
        x = _plain(share.spikes[step.node.inputs[0]].planes, len(step.weight))
        share.currents[step.node.name] = x.astype(np.int64) @ step.weight + step.bias

    def _spikes(self, number: int, share: Share, name: str) -> Spikes:
        """Room for the spikes of a node, or for sums of them, known to the nodes that read them."""
        planes, words = planes_of(self.graph, name), words_of(self.graph, name)
        shape = planes, len(share.ids), share.timesteps, words
        return self._send(name, self.rooms[number].array(shape, np.uint64), share)

    def _send(self, name: str, planes: np.ndarray, share: Share) -> Spikes:
        spikes = share.spikes[name] = Spikes(planes, self.counters.payload[name], self.counters.events[name])
        return spikes

    def _carried(self, number: int, level: np.ndarray, share: Share) -> tuple[np.ndarray, np.ndarray, bool]:
        """The membranes of a step's neurons, the rows of a share's tokens in them, and whether they begin at 0."""
        shape = share.kept_rows, len(level)
        return self.membranes[number].array(shape, level.dtype.type), share.rows, share.first == 0


def open_fast(graph: Graph, options: EngineOptions) -> FastEngine:
    """The fast engine, on as many threads as the options give it."""
    return FastEngine(graph, options.threads, options.early_exit)


def _joined(calls: Sequence[Call], team: Team) -> list[Call]:
    """The same, with works that follow one another joined to programs."""
    joined: list[Call] = []
    for together, group in groupby(calls, key=lambda call: isinstance(call, Work)):
        run = list(group)
        joined += [Program(cast("list[Work]", run), team)] if together else run
    return joined


def _plain(planes: np.ndarray, width: int, signed: bool = False) -> np.ndarray:
    """Planes [P, R, T, W] -> the values [R, T, D], integers of their own."""
    if signed:
        above, below = np.split(planes, 2, axis=-1)
        return _plain(above, width) - _plain(below, width)
    bits = np.unpackbits(planes.astype("<u8").view(np.uint8), axis=-1, count=width, bitorder="little")
    values: np.ndarray = (bits.astype(np.int32) << np.arange(len(bits))[:, None, None, None]).sum(0, dtype=np.int32)
    return values


def _pack(ids: np.ndarray, mask: np.ndarray, observed: frozenset[str], timesteps: int) -> Share:
    if len(mask) == 1:  # what follows, quicker
        count = int(mask.sum())
        return Share(ids[0, :count].copy(), np.arange(count), np.array([0, count]), observed, timesteps)
    samples, places = mask.nonzero()
    starts = np.zeros(len(mask) + 1, np.int64)
    np.cumsum(mask.sum(1), out=starts[1:])
    places = np.ascontiguousarray(places)  # or kernels would be compiled for another layout
    return Share(ids[samples, places], places, starts, observed, timesteps)


def _part_of(share: Share, samples: np.ndarray, first: int, end: int) -> Share:
    """Some samples of a share, from timestep `first` to before `end`."""
    lengths, tokens = np.diff(share.starts), len(share.ids)
    if len(samples) == len(lengths):
        ids, places, starts, rows = share.ids, share.places, share.starts, np.arange(tokens)
    else:
        rows = np.flatnonzero(np.repeat(np.isin(np.arange(len(lengths)), samples), lengths))
        ids, places, starts = share.ids[rows], share.places[rows], np.append(0, np.cumsum(lengths[samples]))
    part = Share(ids, places, starts, share.observed, end - first, first, rows, tokens, alone=share.alone)
    part.before = share.logits[samples]
    return part


def _unpack(shares: list[np.ndarray], real: np.ndarray) -> np.ndarray:
    """Values [R, T, D] of all shares and real bool [B, N] -> [T, B, N, D], padding 0."""
    packed = np.concatenate(shares)
    full = np.zeros((*real.shape, *packed.shape[1:]), packed.dtype)
    full[real] = packed
    return np.moveaxis(full, 2, 0)


def _cuts(lengths: np.ndarray, threads: int) -> list[int]:
    """Where to cut the samples so that each share has about as many tokens: 0 .. B, rising."""
    if len(lengths) == 1:
        return [0, len(lengths)]
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
