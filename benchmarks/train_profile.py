"""Where the time of a step of training goes, by kind of work.

The profiler of PyTorch gives each operation the time in which it ran itself, without what it called. Together these
make up the whole step, Python between operations included. An operation of the backward pass belongs where the one of
the forward pass stands whose gradient it makes; the two bear one number.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spikingjelly.activation_based.neuron import BaseNode
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.spikingjelly_model import Attention
from benchmarks.timing import table
from benchmarks.train_ways import CLIPPING, Batch, Trainer
from spikebert.layers import SpikingAttention

LINEAR, ATTENTION, NEURONS, NORMS = "matrix products", "products of attention", "neurons", "norms"
UNPACKING, TABLES, OPTIMISER = "attention, all else", "tables of tokens, positions", "AdamW"
COPIES, REST = "elementwise and copies", "rest: Python, the profiler"
KINDS = (LINEAR, ATTENTION, NEURONS, NORMS, UNPACKING, TABLES, CLIPPING, OPTIMISER, COPIES, REST)

SCOPES: dict[type[nn.Module], str] = {  # a module inside another comes later in this search
    BaseNode: NEURONS,
    nn.BatchNorm1d: NORMS,
    nn.LayerNorm: NORMS,
    nn.Embedding: TABLES,
    SpikingAttention: UNPACKING,
    Attention: UNPACKING,
}
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_int_mm", "mkldnn_linear", "_linear_pointwise", "matmul", "linear")
STEP, ADAM = "step of training", "Optimizer.step"


def profile_steps(trainer: Trainer, batches: Sequence[Batch]) -> dict[str, float]:
    """Seconds of one step (the mean over these batches) by kind; each batch runs once before, unprofiled."""
    for batch in batches:
        trainer.step(batch)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if trainer.device.type == "cuda" else [])]
    hooks = [hook for module in trainer.model.modules() for hook in _mark(module)]
    try:
        with profile(activities=activities) as profiler:
            for batch in batches:
                with record_function(STEP):
                    trainer.step(batch)
    finally:
        for hook in hooks:
            hook.remove()
    found = by_kind(list(profiler.events()), on_gpu=trainer.device.type == "cuda")
    return {kind: seconds / len(batches) for kind, seconds in found.items()}


def _mark(module: nn.Module) -> list[Any]:
    """Have the profiler see when this module runs, if it is of `SCOPES`; the hooks that do it."""
    kind = next((kind for of_type, kind in SCOPES.items() if isinstance(module, of_type)), None)
    if kind is None:
        return []
    open_scopes: list[record_function] = []

    def enter(*_: object) -> None:
        open_scopes.append(record_function(kind))
        open_scopes[-1].__enter__()

    def leave(*_: object) -> None:
        open_scopes.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


def by_kind(events: Sequence[FunctionEvent], on_gpu: bool) -> dict[str, float]:
    """Seconds by kind of work of everything within `STEP`; on a GPU those of its kernels, which leave out `REST`."""
    makers = Makers.of(events)
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        if on_gpu or _inside(event, STEP):
            time = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            seconds[kind_of(event, makers)] += time / 1e6
    return {kind: seconds[kind] for kind in KINDS}


@dataclass(frozen=True)
class Makers:
    """The operations of the forward pass, by the number that their gradients bear."""

    numbers: Sequence[int]  # rising
    operations: Sequence[FunctionEvent]

    @classmethod
    def of(cls, events: Sequence[FunctionEvent]) -> Makers:
        forward = [event for event in events if event.sequence_nr >= 0 and not _gradients(_parents(event))]
        # several may know a number: the last to begin took it
        found = {event.sequence_nr: event for event in sorted(forward, key=lambda event: event.time_range.start)}
        numbers = sorted(found)
        return cls(numbers, [found[number] for number in numbers])

    def find(self, gradient: FunctionEvent) -> list[FunctionEvent]:
        """What made the number of a gradient, or what came right before: TorchScript does not tell what it runs."""
        place = bisect_right(self.numbers, gradient.sequence_nr)
        return [] if place == 0 else [self.operations[place - 1]]


def kind_of(event: FunctionEvent, makers: Makers) -> str:
    """One of KINDS."""
    path = _parents(event)
    for gradient in _gradients(path):
        for maker in makers.find(gradient):
            path += _parents(maker)
    names = [parent.name for parent in path]
    if names[0].split("::")[-1] in PRODUCTS:
        return ATTENTION if UNPACKING in names else LINEAR
    for kind in (NEURONS, NORMS, UNPACKING, TABLES, CLIPPING):
        if kind in names:
            return kind
    if any(name.startswith(ADAM) for name in names):
        return OPTIMISER
    return COPIES if "::" in names[0] or "Backward" in names[0] else REST


def _gradients(path: Sequence[FunctionEvent]) -> list[FunctionEvent]:
    return [event for event in path if event.name.startswith("autograd::engine::evaluate_function")]


def _parents(event: FunctionEvent) -> list[FunctionEvent]:
    """The event and all it ran in, from the inside out."""
    found = []
    current: FunctionEvent | None = event
    while current is not None:
        found.append(current)
        current = current.cpu_parent
    return found


def _inside(event: FunctionEvent, name: str) -> bool:
    return any(parent.name == name for parent in _parents(event))


def report(found: Mapping[str, Mapping[str, float]]) -> str:
    """A table: ms of a step, and the share of the whole, of each way by kind of work."""
    rows = []
    totals = {way: sum(of.values()) for way, of in found.items()}
    for kind in KINDS:
        cells = [(1000 * of[kind], of[kind] / totals[way]) for way, of in found.items()]
        rows.append([kind, *(cell for time, share in cells for cell in (f"{time:,.0f}", f"{share:.0%}"))])
    rows.append(["step", *(cell for total in totals.values() for cell in (f"{1000 * total:,.0f}", "100%"))])
    return table(["ms of a step", *(cell for way in found for cell in (way, "share"))], rows)
