"""The engine `torch`: the integer PyTorch model itself, beside which everything else is held."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import nn

from converters.early_exit import EarlyExit, stopped_early
from converters.execution import EngineOptions, Execution, TokenBatch, check_observed
from converters.fewer_tokens import with_tokens_of
from converters.from_torch import graph_from_model, load_integer_model
from converters.graph import Graph
from converters.readout import logits_over_time
from spikebert.commands import UserError
from spikebert.recording import record


class TorchEngine:
    """Runs a model of spiking layers in integer mode; the values are its own, not those of `graph`.

    All timesteps of a layer at once, with an early exit too: what comes after is cut.
    """

    counts_activity = False

    def __init__(self, graph: Graph, model: nn.Module, early_exit: EarlyExit | None = None) -> None:
        self.graph = graph
        self.model = model
        self.early_exit = early_exit

    def run(self, batch: TokenBatch, observe: Collection[str] = ()) -> Execution:
        """See `converters.execution.Engine`."""
        batch.check_fits(self.graph)
        check_observed(self.graph, observe)
        ids, mask = torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)
        device = next(self.model.parameters()).device
        recording = record(self.model, ids.to(device), mask.to(device))
        packed = recording.packed()

        def unpacked(name: str) -> np.ndarray:
            return _as_int64(recording.packing.unpack(packed[name]).cpu().numpy(), name)

        values = {name: unpacked(name) for name in observe}
        if self.early_exit is not None:
            logits = logits_over_time(self.graph, unpacked(self.graph.output))
            return stopped_early(self.graph, self.early_exit, logits, values, batch)
        assert recording.logits.integer_logits is not None  # a float model has no graph
        return Execution(recording.logits.integer_logits.cpu().numpy(), values)

    def close(self) -> None:
        """Nothing to free."""


def _as_int64(values: np.ndarray, name: str) -> np.ndarray:
    """The integers a float tensor holds. Raises ArithmeticError where one is no integer: rounding would hide it."""
    integers = values.astype(np.int64)
    if not np.array_equal(integers, values):
        raise ArithmeticError(f"node '{name}' of the torch model holds values that are no integers")
    return integers


def open_torch(graph: Graph, options: EngineOptions) -> TorchEngine:
    """The factory of the entry point. Raises UserError without `options.model`, or where its sizes do not fit."""
    if options.model is None:
        raise UserError("the engine 'torch' runs the trained model: name its folder with --model")
    model = load_integer_model(options.model)
    if options.bundle is not None:
        with_tokens_of(options.bundle, graph, model)
    if graph.timesteps <= model.config.timesteps or model.encoder.code is None:  # else the shapes differ, as told below
        model.set_timesteps(graph.timesteps)  # of an export with --timesteps
    own = graph_from_model(model)
    if _shape(own) != _shape(graph):
        raise UserError(
            f"--model {options.model}: its T, n_max, nodes or widths are not the bundle's: "
            "another model, or a bundle from which a pass of spikebert-export removed something"
        )
    return TorchEngine(graph, model, options.early_exit)


def _shape(graph: Graph) -> tuple:
    return graph.timesteps, graph.n_max, graph.source.table.shape, graph.features
