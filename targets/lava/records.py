"""Between batches and rows: the spikes a network is fed with, and the values read back from its records.

Reading back checks what a lowered network promises beside its values: that it is silent whenever it has nothing
to do. A broken promise raises `LavaMismatchError`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from converters.encoder import encode
from converters.execution import TokenBatch
from converters.graph import CURRENTS, Graph
from targets.lava.lowering import DOUBLING, Plan


class LavaMismatchError(RuntimeError):
    """A Lava network did something that its plan rules out."""


@dataclass(frozen=True)
class RecordLayout:
    """What processes are recorded, and in which columns of a row: `names` in the order of the plan."""

    names: tuple[str, ...]
    columns: dict[str, slice]

    @property
    def width(self) -> int:
        """Values of a row."""
        return self.columns[self.names[-1]].stop


def make_layout(graph: Graph, plan: Plan, observe: Collection[str]) -> RecordLayout:
    """The layout that records what `observe`, nodes of the graph, and the readout need."""
    needed = {segment.process for name in {*observe, graph.output} for segment in plan.homes[name]}
    return layout_of(plan, needed)


def layout_of(plan: Plan, processes: Collection[str]) -> RecordLayout:
    """The layout that records these processes."""
    names = tuple(spec.name for spec in plan.specs if spec.name in processes)
    ends = np.cumsum([plan.tokens * plan[name].channels for name in names]).tolist()
    return RecordLayout(names, {name: slice(*span) for name, *span in zip(names, [0, *ends], ends)})


def feed_width(plan: Plan) -> int:
    """Values that the source sends in one step."""
    return plan.tokens * plan.specs[0].channels


def feed_rows(graph: Graph, plan: Plan, batch: TokenBatch) -> np.ndarray:
    """What the source sends: int32 [B * T, n_max * channels], sample after sample, padded to n_max."""
    spikes = encode(graph.source, batch, graph.timesteps)  # [T, B, N, D]
    timesteps, samples, tokens, features = spikes.shape
    rows = np.zeros((samples, timesteps, plan.tokens, plan.specs[0].channels), dtype=np.int32)
    rows[:, :, :tokens, :features] = spikes.swapaxes(0, 1)
    rows[:, :, :tokens, features:] = batch.mask[:, None, :, None]
    return rows.reshape(samples * timesteps, -1)


def read_values(
    graph: Graph,
    plan: Plan,
    layout: RecordLayout,
    name: str,
    records: np.ndarray,
    batch: TokenBatch,
    begins: bool = True,
    ends: bool = True,
) -> np.ndarray:
    """Values int64 [T, B, N, D] of one node from `records` int32 [steps, layout width], the first step of which is
    that at which the batch enters.

    begins, ends whether the network was empty before the batch and is so after it, or other samples stand there

    Raises LavaMismatchError where the node is not silent while the network is empty or in padding, where its lanes are
    not the mask, or where a doubled current is odd.
    """
    features, parts = graph.features[name], []
    for segment in plan.homes[name]:
        rows = records[:, layout.columns[segment.process]]
        start = plan.schedule.latency_steps[name]
        stop = start + len(batch) * graph.timesteps
        if begins:
            _require_silent(name, "before its first step", rows[:start])
        if ends:
            _require_silent(name, "after its last step", rows[stop:])
        sent = _by_sample(graph, plan, name, segment.process, rows[start:stop], batch)
        parts.append(sent[..., segment.start : segment.stop])
    adds_up = isinstance(graph[name], CURRENTS)
    values = np.sum(parts, axis=0) if adds_up else np.concatenate(parts, axis=-1)
    values = values[..., :features]
    if name in plan.doubled:
        if (values & 1).any():
            raise LavaMismatchError(f"node '{name}' gave an odd current, currents on Lava are doubled")
        values = values // DOUBLING
    return np.ascontiguousarray(values, dtype=np.int64)


def _by_sample(graph: Graph, plan: Plan, name: str, process: str, rows: np.ndarray, batch: TokenBatch) -> np.ndarray:
    """What a process sent for the samples, int32 [T, B, N, channels], once padding and lanes are checked."""
    samples, tokens = batch.ids.shape
    values = rows.reshape(samples, graph.timesteps, plan.tokens, -1).swapaxes(0, 1)
    _require_silent(name, "in the padding", values[:, :, tokens:])
    values = values[:, :, :tokens]
    if count := plan.lanes.get(process, 0):
        lanes = values[..., -count:]
        if not np.array_equal(lanes, np.broadcast_to(batch.mask[None, :, :, None], lanes.shape)):
            raise LavaMismatchError(f"node '{name}': its valid lanes differ from the mask")
    return values


def _require_silent(name: str, where: str, values: np.ndarray) -> None:
    if values.any():
        raise LavaMismatchError(f"node '{name}' is not silent {where}: {np.count_nonzero(values)} values differ from 0")
