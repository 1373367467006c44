"""The arithmetic of a Lava network without Lava, and of that the matrix products alone.

`PartsNetwork` calls the parts of all processes (`targets/lava/parts.py`, what `PyGroupModel` calls) one after another
in this Python process: no runtime, no channels, no other processes. It notes which matrix products they make, and
`blas_seconds` makes just those again: the least that numpy's BLAS needs for this network.

Times are those that the processor gave to this thread: while other programs have it, the clock stands still. numpy must
be told to use one thread (OPENBLAS_NUM_THREADS=1), or part of the work would not be seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from targets.lava import parts
from targets.lava.grouping import Connection, Neuron
from targets.lava.plan import AttentionSpec, Plan, Spec, SynapsesSpec
from targets.lava.program import Setup
from targets.lava.stepfile import StepFile

Product = Callable[[], object]  # makes one matrix product, its result thrown away


class PartsNetwork:
    """A network for `LavaProgram`: one step after another, each as `PyGroupModel.run_spk` does it for its group.

    seconds         spent in `run` so far
    noting          whether steps are noted now
    rows_multiplied of each step noted: process -> tokens whose spikes were multiplied
    """

    def __init__(self, setup: Setup, feed: StepFile, records: StepFile) -> None:
        parts.compile_once()
        self._plan, self._layout, self._feed, self._records = setup.plan, setup.layout, feed, records
        self._source = setup.plan.specs[0]
        tokens, specs = setup.plan.tokens, setup.plan.specs
        self._connections = [
            (spec, parts.make_connection(spec, tokens)) for spec in specs if isinstance(spec, Connection)
        ]
        self._neurons = [(spec, parts.make_neuron(spec, tokens)) for spec in specs if isinstance(spec, Neuron)]
        self._time_step = 0
        self.seconds = 0.0
        self.noting = False
        self.rows_multiplied: list[dict[str, int]] = []

    def run(self, steps: int) -> None:
        """Advance by `steps`."""
        begun = time.thread_time()
        for _ in range(steps):
            self._time_step += 1
            sent = self._step()
            if self.noting:
                self.rows_multiplied.append(_rows_multiplied(self._plan, sent))
        self.seconds += time.thread_time() - begun

    def close(self) -> None:
        """There is nothing to free."""

    def products(self) -> list[Product]:
        """The matrix products of the steps noted, in their order: float32, of the same shapes, with the same weights.

        The values multiplied are ones, for the time of a product does not depend on them.
        """
        ready: dict[tuple[str, int], list[Product]] = {}
        found = []
        for noted in self.rows_multiplied:
            for spec, part in self._connections:
                if rows := noted.get(spec.name, 0):
                    key = (spec.name, rows)
                    if key not in ready:
                        ready[key] = _products_of(spec, part, rows)
                    found += ready[key]
        return found

    def _step(self) -> dict[str, np.ndarray]:
        row = self._feed.row(self._time_step)
        sent = {self._source.name: row.reshape(self._plan.tokens, self._source.channels)}
        for spec, connection in self._connections:
            sent[spec.name] = connection.send()
        for cell, neuron in self._neurons:
            sent[cell.name] = neuron.answer([sent[name] for name in cell.inputs], self._time_step)
        for spec, connection in self._connections:
            connection.receive([sent[name] for name in spec.inputs])
        record = self._records.row(self._time_step)
        for name, columns in self._layout.columns.items():
            record[columns] = sent[name].ravel()
        return sent


def _rows_multiplied(plan: Plan, sent: dict[str, np.ndarray]) -> dict[str, int]:
    """For each process that makes products, how many tokens it multiplies of what was sent at a step."""
    rows = {}
    for spec in plan.specs:
        if isinstance(spec, (SynapsesSpec, AttentionSpec)):
            rows[spec.name] = max(parts.tokens_alive(sent[name]) for name in spec.inputs)
    return rows


def _products_of(spec: Spec, part: parts.Connection, rows: int) -> list[Product]:
    if isinstance(part, parts.Synapses):
        return [_product((rows, part.matrix.shape[0]), part.matrix)]
    assert isinstance(spec, AttentionSpec)
    d = spec.channels // spec.heads
    keys, values = np.ones((spec.heads, d, rows), np.float32), np.ones((spec.heads, rows, d), np.float32)
    return [_product((spec.heads, rows, d), keys), _product((spec.heads, rows, rows), values)]


def _product(shape: tuple[int, ...], right: np.ndarray) -> Product:
    left = np.ones(shape, np.float32)
    result = left @ right
    return lambda: np.matmul(left, right, out=result)


def blas_seconds(products: Sequence[Product]) -> float:
    """Seconds to make these products, one after another."""
    begun = time.thread_time()
    for product in products:
        product()
    return time.thread_time() - begun
