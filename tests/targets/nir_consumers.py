"""Programs that read NIR files, for tests: their code runs the network, ours only feeds it and listens.

Norse (norse 1.1.0) makes PyTorch modules of NIR nodes. What order they run in is decided by NIRTorch (nirtorch 2.6),
the library that the NIR project keeps for that: `nir_to_torch`, or `load`, which Norse's own `from_nir` still calls and
which takes chains only.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nir
import nirtorch
import norse.torch
import numpy as np
import torch
from norse.torch.utils.import_nir import _import_norse_module

from converters.execution import TokenBatch
from converters.graph import Graph
from sim.reference import ReferenceEngine
from targets.nir.network import DT

KINDS = (nir.IF, nir.LIF, nir.Affine, nir.Linear)


def norse_module(node: nir.NIRNode) -> torch.nn.Module:
    """Norse's module for one NIR node."""
    return _import_norse_module(node, dt=DT)


def open_in_nirtorch(network: nir.NIRGraph) -> torch.nn.Module:
    """Any graph: NIRTorch's interpreter, each node by Norse."""
    return nirtorch.nir_to_torch(network, dict.fromkeys(KINDS, norse_module))


def open_in_norse(network: nir.NIRGraph) -> torch.nn.Module:
    """A chain: what a user of Norse calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the `load` that it calls
        return norse.torch.from_nir(network, dt=DT)


def run(module: torch.nn.Module, x: np.ndarray) -> dict[str, np.ndarray]:
    """Module name -> what it gave, [T, rows, features], for x [T, rows, features]; from membranes of 0."""
    given: dict[str, list[np.ndarray]] = {}

    def listen(name: str, _module: object, _inputs: object, output: object) -> None:
        value = output[0] if isinstance(output, tuple) else output
        given.setdefault(name, []).append(value.detach().numpy().copy())

    hooks = [part.register_forward_hook(partial(listen, name)) for name, part in module.named_modules() if name]
    state = None
    with torch.no_grad():
        for step in torch.from_numpy(x.astype(np.float32)):
            _, state = module(step, state)
    for hook in hooks:
        hook.remove()
    return {name: np.stack(values) for name, values in given.items()}


def differences(
    graph: Graph, batch: TokenBatch, network: nir.NIRGraph, opener: Callable[[nir.NIRGraph], torch.nn.Module]
) -> list[str]:
    """The nodes whose values at real tokens, or the logits, are not those of the reference in every bit.

    Compared are all nodes that stand in the file under their own names; the readout is always among them.
    """
    names = [node.name for node in graph]
    expected = ReferenceEngine(graph).run(batch, names)
    real = batch.mask == 1
    x = expected.values[graph.source.name][:, real]
    if network.nodes["input"].input_type["input"] == x.shape[-1] + 1:  # the valid lane
        x = np.concatenate([x, np.ones_like(x[..., :1])], axis=-1)
    given = run(opener(network), x)
    compared = {name: given[name.replace(".", "_")] for name in names if name in network.nodes}
    wrong = [name for name, value in compared.items() if not np.array_equal(value, expected.values[name][:, real])]
    per_token = np.zeros((*batch.mask.shape, graph.features[graph.output]), np.int64)
    per_token[real] = compared[graph.output].astype(np.int64).sum(axis=0)
    return wrong if np.array_equal(per_token.sum(axis=1), expected.logits) else [*wrong, "logits"]


def read_again(graph: Graph, folder: Path) -> nir.NIRGraph:
    """The file that the target writes of a graph, read by nir."""
    from targets.nir.target import NirTarget

    NirTarget().emit(graph, folder)
    return nir.read(folder / "network.nir")
