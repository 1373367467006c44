"""What a model made of spiking layers does with a batch, layer by layer: the bridge to the graph reads it.

The model is run once. Every `Spikes` knows what made it, so from what the readout was given all layers are found, and
how they hang together. Layers go by their qualified names (`blocks.0.query`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikebert.layers import Encoder, Logits, Readout, SpikingLayer, SpikingLinear
from spikebert.packing import Packing
from spikebert.spikes import SpikeOperationError, Spikes, made_by


class RecordingError(ValueError):
    """A module that is no model of spiking layers. The message names the module, and what would be accepted."""


@dataclass(frozen=True, eq=False)
class Step:
    """One use of a layer.

    name    its qualified name, a valid name of a graph node; a layer used again gets a number: `up`, `up_2`
    layer   Encoder, SpikingLinear, SpikingAttention or Add; None for a plain `+`
    inputs  the names of the values it was given (`Step.output` of earlier steps)
    spikes  what it gave
    """

    name: str
    layer: nn.Module | None
    inputs: tuple[str, ...]
    spikes: Spikes

    @property
    def output(self) -> str:
        """The name of its spikes. `name` is that of the current where there is one, as in the graph."""
        return self.name if self.spikes.current is None else f"{self.name}.lif"

    @property
    def norm_name(self) -> str:
        """The name of the norm over features between current and spikes, where there is one."""
        return f"{self.name}.norm"

    def values(self) -> Iterator[tuple[str, Tensor]]:
        """Node name and packed value [T, R, D]: of the current and of what a norm made of it, if any, and of the
        spikes."""
        if self.spikes.current is not None:
            yield self.name, self.spikes.current
        if self.spikes.normed is not None:
            yield self.norm_name, self.spikes.normed
        yield self.output, self.spikes.values


@dataclass(frozen=True, eq=False)
class Recording:
    """A model and one batch.

    steps        in the order in which they were done; the first is the encoder
    readout      the classifier, `readout_name` its name, `readout_input` the name of what it was given
    logits       what it gave
    packing      where the real tokens of the batch stand
    calls        of each layer with weights, which of its calls are in `steps`, or the readout's (0 the first): what
                 nothing reads is no part of the graph
    """

    steps: tuple[Step, ...]
    readout: Readout
    readout_name: str
    readout_input: str
    logits: Logits
    packing: Packing
    calls: Mapping[SpikingLinear | Readout, tuple[int, ...]]

    @property
    def encoder(self) -> Encoder:
        return self.steps[0].layer  # type: ignore[return-value]  # record made sure

    def packed(self) -> dict[str, Tensor]:
        """Node name -> value [T, R, D] of all nodes, in the order and by the names of the graph."""
        return packed_values(self.steps) | {self.readout_name: self.logits.current}

    def trace(self) -> dict[str, Tensor]:
        """Node name -> value [T, B, N, D], padding 0."""
        return {name: self.packing.unpack(value) for name, value in self.packed().items()}

    def uses(self) -> dict[SpikingLinear | Readout, int]:
        """Layer -> the largest |value| its inputs can have, over all its uses."""
        maxima = {step.output: step.spikes.maximum for step in self.steps}
        found: dict[SpikingLinear | Readout, int] = {}
        for step in self.steps:
            if isinstance(step.layer, SpikingLinear):
                found[step.layer] = max(found.get(step.layer, 1), maxima[step.inputs[0]])
        return found | {self.readout: maxima[self.readout_input]}

    def signed_uses(self) -> frozenset[SpikingLinear | Readout]:
        """The layers whose inputs may be below 0, in any use."""
        signed = {step.output for step in self.steps if step.spikes.signed}
        layers = (step.layer for step in self.steps if not signed.isdisjoint(step.inputs))
        readout = {self.readout} if self.readout_input in signed else set()
        return frozenset({layer for layer in layers if isinstance(layer, SpikingLinear)} | readout)


def packed_values(steps: tuple[Step, ...]) -> dict[str, Tensor]:
    """Node name -> packed value [T, R, D], in graph order."""
    return {name: value for step in steps for name, value in step.values()}


def steps_to(end: Spikes, names: Mapping[nn.Module, str]) -> tuple[Step, ...]:
    """How `end` came about. `names`: the qualified name of every module. Raises RecordingError for one without."""
    taken: set[str] = set()
    steps: dict[Spikes, Step] = {}
    for x in made_by(end):
        if x.maker is not None and x.maker not in names:
            raise RecordingError(
                f"a {type(x.maker).__name__} was run that is no part of the model: keep it as an attribute, or in an "
                "nn.ModuleList"
            )
        name = _unused("add" if x.maker is None else names[x.maker], taken)
        steps[x] = Step(name, x.maker, tuple(steps[y].output for y in x.inputs), x)
    return tuple(steps.values())


def _unused(name: str, taken: set[str]) -> str:
    """`name`, or `name_2`, `name_3`, ... where it is taken; it is taken then."""
    numbered = (name if i == 1 else f"{name}_{i}" for i in range(1, len(taken) + 2))
    free = next(each for each in numbered if each not in taken)
    taken.add(free)
    return free


def qualified_names(model: nn.Module) -> dict[nn.Module, str]:
    """Module -> its name in `model`; below `model.` where it would not begin with a letter, as in an nn.Sequential."""
    names = {module: name for name, module in model.named_modules() if name}
    return {module: name if name[0].isalpha() else f"model.{name}" for module, name in names.items()}


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout; each module is then again in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def record_one_token(model: nn.Module) -> Recording:
    """`record` for where the layers matter and not the values: a text of one token."""
    device = next((parameter.device for parameter in model.parameters()), None)
    one = torch.ones(1, 1, dtype=torch.long, device=device)
    return record(model, torch.zeros_like(one), one)


def record(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Recording:
    """Run `model(input_ids, attention_mask)`, both [B, N], in evaluation, and tell what its layers did.

    The model is any module whose forward gives its ids and its mask to one Encoder, sends the spikes through
    SpikingLinear, SpikingAttention, Block, modules of such layers and additions, gives them to one Readout, and
    returns what that gave (`Logits`, or its `logits`, or an output that holds them).

    Raises RecordingError for any other, with the module, what it did, and what would be accepted.
    """
    _check_signature(model)
    names = qualified_names(model)
    active: list[nn.Module] = []  # whose forward is running, outermost first
    read: list[tuple[Readout, tuple, Logits]] = []
    gave: dict[SpikingLinear, list[Any]] = {}

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        active.append(module)
        if isinstance(module, Encoder) and not _same((*args, *kwargs.values()), (input_ids, attention_mask)):
            raise SpikeOperationError("an Encoder takes the model's own input_ids and attention_mask, unchanged")

    def leave(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        active.pop()
        if isinstance(module, Readout):
            read.append((module, (*args, *kwargs.values()), output))
        elif isinstance(module, SpikingLinear):
            gave.setdefault(module, []).append(output)

    modules = list(model.modules())
    handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in modules]
    handles += [module.register_forward_hook(leave, with_kwargs=True) for module in modules]
    try:
        with in_evaluation(model):
            returned = model(input_ids, attention_mask)
    except SpikeOperationError as error:
        raise RecordingError(f"{_describe(active, names)}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    if len(read) != 1:
        raise RecordingError(f"{type(model).__name__}: {len(read)} readouts were run, a model has one `Readout`")
    readout, (end, *_), logits = read[0]
    if not _holds(returned, logits):
        raise RecordingError(
            f"{type(model).__name__}: forward must return what '{names[readout]}' gave, unchanged: the graph ends there"
        )
    steps = steps_to(end, names)
    encoders = [step.name for step in steps if isinstance(step.layer, Encoder)]
    if len(encoders) != 1:
        raise RecordingError(f"{encoders} were run: a model has one Encoder; call it once and use its spikes again")
    is_read = {step.spikes for step in steps}
    calls = {layer: tuple(i for i, output in enumerate(each) if output in is_read) for layer, each in gave.items()}
    own = {layer: numbers for layer, numbers in calls.items() if numbers}
    return Recording(steps, readout, names[readout], steps[-1].output, logits, end.packing, own | {readout: (0,)})


def float_layers(recording: Recording) -> list[str]:
    """The names of the layers that are not in integer mode."""
    used = {step.name: step.layer for step in recording.steps} | {recording.readout_name: recording.readout}
    return [name for name, layer in used.items() if isinstance(layer, SpikingLayer) and not layer.integer]


def _check_signature(model: nn.Module) -> None:
    try:
        inspect.signature(model.forward).bind(None, None)
    except TypeError:
        raise RecordingError(
            f"{type(model).__name__}: forward must take (input_ids, attention_mask). Of an nn.Sequential of spiking "
            "layers make a spikebert.SpikingChain, of one of SpikingJelly modules spikebert.from_spikingjelly"
        ) from None


def _describe(active: list[nn.Module], names: Mapping[nn.Module, str]) -> str:
    """The module whose forward was running."""
    if not active:
        return "the model"
    name = names.get(active[-1])
    return f"{type(active[-1]).__name__} (the model)" if name is None else f"'{name}' ({type(active[-1]).__name__})"


def _same(given: tuple, own: tuple) -> bool:
    return len(given) == len(own) and all(x is y for x, y in zip(given, own))


def _holds(returned: Any, logits: Logits) -> bool:
    """Whether `returned` is these logits, or a tuple or mapping that holds them."""
    if isinstance(returned, Mapping):
        returned = tuple(returned.values())
    return any(x is logits.logits for x in (returned if isinstance(returned, tuple) else (returned,)))
