"""The engine `netx`: a network file, loaded by lava-dl's own `Network` and run by Lava's ProcessModels.

It runs the file of a bundle that was exported for netx, and for any other bundle one that it writes for itself. Tokens
go through the network one after another, T steps each, and padding too, so that its silence is seen and not assumed.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converters.execution import EngineOptions, Execution, TokenBatch, check_observed
from converters.graph import Graph
from spikebert.commands import missing_extra
from targets.lava.plan import DOUBLING
from targets.lava.records import LavaMismatchError
from targets.lava.start_method import start_method_kept
from targets.netx.chain import Chain, Layer, host_value, on_host
from targets.netx.legal import lower_legal
from targets.netx.network_file import NETWORK_FILE, RESET_OFFSET, require_description, write_network

if TYPE_CHECKING:
    from targets.netx.program import NetworkProgram

RECORD_BYTES_MAX = 256 << 20  # a batch of which more would be recorded is run in parts


def require_lava_dl() -> None:
    """Raises MissingExtra where lava-dl is not installed. Imports nothing of it."""
    try:
        found = find_spec("lava.lib.dl.netx")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise missing_extra("lava.lib.dl")


def load_program(path: Path, chain: Chain) -> NetworkProgram:
    """The network of a file. Raises MissingExtra without lava-dl.

    An import of lava-dl prints a warning of a data set that it misses, which is not to reach whoever calls this.
    """
    require_lava_dl()
    with start_method_kept(), contextlib.redirect_stdout(io.StringIO()):
        from targets.netx.program import NetworkProgram
    return NetworkProgram(path, reset_interval=chain.timesteps, reset_offset=RESET_OFFSET)


class NetxEngine:
    """Runs a chain on lava-dl's network.

    graph must be legal for the target `netx`, else IllegalGraphError
    path  a network file of this graph; one is written for the time of loading where None
    """

    counts_activity = False

    def __init__(self, graph: Graph, path: Path | None = None) -> None:
        require_lava_dl()
        self.graph, self.chain = graph, lower_legal(graph)
        if path is not None:
            self._program: NetworkProgram | None = load_program(path, self.chain)
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / NETWORK_FILE
            write_network(self.chain, path)
            self._program = load_program(path, self.chain)

    def run(self, batch: TokenBatch, observe: Collection[str] = ()) -> Execution:
        """See `converters.execution.Engine`. Raises LavaMismatchError where a doubled current is odd.

        A run that breaks off leaves spikes under way, so it closes the engine.
        """
        batch.check_fits(self.graph)
        check_observed(self.graph, observe)
        parts = [self._run_part(part, observe) for part in self._parts(batch)]
        values = {name: np.concatenate([part.values[name] for part in parts], axis=1) for name in observe}
        return Execution(np.concatenate([part.logits for part in parts]), values)

    def close(self) -> None:
        """Forget the network; there is nothing outside this process to free."""
        self._program = None

    def _parts(self, batch: TokenBatch) -> Iterator[TokenBatch]:
        step_bytes = 4 * sum(2 * len(layer.weight) for layer in self.chain.layers)  # current and spikes, int32
        size = max(1, RECORD_BYTES_MAX // (step_bytes * self.graph.timesteps * batch.ids.shape[1]))
        return (batch[start : start + size] for start in range(0, len(batch), size))

    def _run_part(self, batch: TokenBatch, observe: Collection[str]) -> Execution:
        if self._program is None:
            raise RuntimeError("this engine is closed")
        chain = self.chain
        rows = to_rows(host_value(chain.laid, chain.host, batch))
        idle = np.zeros((chain.drain_steps, chain.channels), np.int32)
        try:
            currents, outputs = self._program.run(np.concatenate([rows, idle]))
        except BaseException:
            self.close()
            raise
        values = {name: host_value(self.graph, name, batch) for name in observe if on_host(self.graph, name)}
        for layer, current, output in zip(chain.layers, currents, outputs):
            if layer.synapses in observe:
                values[layer.synapses] = _halve(layer, self._values(layer, current, batch))
            if layer.neuron is not None and layer.neuron in observe:
                values[layer.neuron] = self._values(layer, output, batch)
        # The last layer sends running sums of 32 bits. What is added at a step fits, even where the sum wraps.
        added = np.diff(outputs[-1], axis=0, prepend=outputs[-1][:1])
        readout = _halve(chain.layers[-1], self._values(chain.layers[-1], added, batch))
        return Execution(readout.sum(axis=(0, 2)), values)

    def _values(self, layer: Layer, sent: np.ndarray, batch: TokenBatch) -> np.ndarray:
        """What a layer sent for a batch, int64 [T, B, N, D], from its rows [steps, channels]."""
        samples, tokens = batch.ids.shape
        steps = samples * tokens * self.graph.timesteps
        rows = sent[layer.latency_steps :][:steps, : layer.features].astype(np.int64)
        return rows.reshape(samples, tokens, self.graph.timesteps, -1).transpose(2, 0, 1, 3)


def _halve(layer: Layer, currents: np.ndarray) -> np.ndarray:
    """The currents of the graph, from doubled ones. Raises LavaMismatchError where one is odd."""
    if (currents % DOUBLING).any():
        raise LavaMismatchError(f"node '{layer.synapses}' gave an odd current, currents of a network file are doubled")
    return currents // DOUBLING


def to_rows(spikes: np.ndarray) -> np.ndarray:
    """[T, B, N, D] -> int32 [B * N * T, D]: token after token, T steps each."""
    return np.ascontiguousarray(spikes.transpose(1, 2, 0, 3), np.int32).reshape(-1, spikes.shape[-1])


def open_netx(graph: Graph, options: EngineOptions) -> NetxEngine:
    """The engine `netx`. Raises MissingExtra without lava-dl, IllegalGraphError, DescriptionError."""
    folder = None if options.bundle is None else options.bundle / "netx"
    if folder is None or not folder.is_dir():
        return NetxEngine(graph)
    require_lava_dl()
    require_description(lower_legal(graph), folder)
    return NetxEngine(graph, folder / NETWORK_FILE)
