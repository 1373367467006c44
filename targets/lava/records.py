"""Between batches and rows: the spikes a network is fed with, and the values read back from its records.

Reading back checks what a lowered network promises beside its values: that it is silent whenever it has nothing
to do. A broken promise raises `LavaMismatchError`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from converters.encoder import encode
from converters.execution import TokenBatch
from converters.graph import CURRENTS, Graph
from targets.lava.plan import DOUBLING, Plan


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


class BatchRecords:
    """What is recorded of a batch, taken step by step as it comes, and the values that it holds.

    Of each process only the steps at which the batch is in it are kept: a deep network has many more steps under way,
    and a row of all its processes is large.

    names        the nodes whose values are wanted
    steps        from that at which the batch enters to that after which all is known
    begins, ends whether the network is empty before the batch and after it, or other samples stand there
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        layout: RecordLayout,
        names: Collection[str],
        batch: TokenBatch,
        steps: int,
        begins: bool = True,
        ends: bool = True,
    ) -> None:
        self.graph, self.plan, self.layout, self.batch = graph, plan, layout, batch
        self.missing_steps, self._taken_steps = steps, 0
        self._checks_silence = {"before its first step": begins, "after its last step": ends}
        self._loud: Counter[tuple[str, str]] = Counter()  # node, where -> values that should be 0
        length = len(batch) * graph.timesteps
        self._kept = {
            (name, segment.process): np.empty((length, _width(layout, segment.process)), np.int32)
            for name in names
            for segment in plan.homes[name]
        }

    def take(self, rows: np.ndarray) -> None:
        """The rows int32 [steps, layout width] that follow those taken before; what comes after `steps` is left."""
        rows = rows[: self.missing_steps]
        for (name, process), kept in self._kept.items():
            start = self.plan.schedule.latency_steps[name] - self._taken_steps  # of what is kept, from rows[0] on
            first, last = (min(max(step, 0), len(rows)) for step in (start, start + len(kept)))
            columns = rows[:, self.layout.columns[process]]
            kept[first - start : last - start] = columns[first:last]
            for where, silent in (("before its first step", columns[:first]), ("after its last step", columns[last:])):
                if self._checks_silence[where] and silent.any():
                    self._loud[name, where] += np.count_nonzero(silent)
        self._taken_steps += len(rows)
        self.missing_steps -= len(rows)

    def values(self, name: str) -> np.ndarray:
        """Values int64 [T, B, N, D] of a node, once all steps are taken.

        Raises LavaMismatchError where the node is not silent while the network is empty or in padding, where its lanes
        are not the mask, or where a doubled current is odd.
        """
        for where in self._checks_silence:
            _require_silent(name, where, self._loud[name, where])
        parts = []
        for segment in self.plan.homes[name]:
            rows = self._kept[name, segment.process]
            sent = _by_sample(self.graph, self.plan, name, segment.process, rows, self.batch)
            parts.append(sent[..., segment.start : segment.stop])
        adds_up = isinstance(self.graph[name], CURRENTS)
        values = np.sum(parts, axis=0) if adds_up else np.concatenate(parts, axis=-1)
        values = values[..., : self.graph.features[name]]
        if name in self.plan.doubled:
            if (values & 1).any():
                raise LavaMismatchError(f"node '{name}' gave an odd current, currents on Lava are doubled")
            values = values // DOUBLING
        return np.ascontiguousarray(values, dtype=np.int64)


def _width(layout: RecordLayout, process: str) -> int:
    columns = layout.columns[process]
    return columns.stop - columns.start


def _by_sample(graph: Graph, plan: Plan, name: str, process: str, rows: np.ndarray, batch: TokenBatch) -> np.ndarray:
    """What a process sent for the samples, int32 [T, B, N, channels], once padding and lanes are checked."""
    samples, tokens = batch.ids.shape
    values = rows.reshape(samples, graph.timesteps, plan.tokens, -1).swapaxes(0, 1)
    _require_silent(name, "in the padding", np.count_nonzero(values[:, :, tokens:]))
    values = values[:, :, :tokens]
    if count := plan.lanes.get(process, 0):
        lanes = values[..., -count:]
        if not np.array_equal(lanes, np.broadcast_to(batch.mask[None, :, :, None], lanes.shape)):
            raise LavaMismatchError(f"node '{name}': its valid lanes differ from the mask")
    return values


def _require_silent(name: str, where: str, loud: int) -> None:
    if loud:
        raise LavaMismatchError(f"node '{name}' is not silent {where}: {loud} values differ from 0")
