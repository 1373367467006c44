"""What travels between the spiking layers: spikes, with a memory of what made them, as a tensor of autograd has.

Only what the integer graph can say can be done with spikes: they go into a layer, or are added. Everything else is
refused where it is done, so that a model which runs is a model that can be exported.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikebert.packing import Packing

ACCEPTED = (
    "spikes may go into SpikingLinear, SpikingAttention, Readout or Block, be added (+, or the module Add), "
    "and pass nn.Identity and nn.Dropout"
)
_serial = itertools.count()


class SpikeOperationError(TypeError, AttributeError):
    """Something was done with spikes that an integer graph cannot say. An AttributeError too, for `hasattr`."""


class Spikes:
    """Spikes of the real tokens of a batch over T timesteps, and how they came about.

    values   float [T, R, D]: small integers, and sums of them; R the real tokens of the batch, side by side
    packing  where these tokens stand in the batch
    maximum  the largest |value| there can be: 1 from a binary neuron, after an addition the sum of its inputs' maxima
    signed   whether there may be values below 0: ternary neurons', and sums of them
    cap      the largest spike of one neuron among those that were added up: above 1 where some are graded
    maker    the layer that made them, None for a plain `+`
    inputs   what went into that layer
    current  float [T, R, D], what the layer made of its inputs; None for an encoder and an addition
    normed   float [T, R, D], what a norm over features made of the current; None without one. The neurons were given
             the last of the two
    serial   grows with every object, so a later layer's is greater
    forgotten_operations  float [], the synaptic operations of a history that was forgotten; see `operations.py`
    """

    forgotten_operations: Tensor | None = None

    def __init__(
        self,
        values: Tensor,
        packing: Packing,
        maximum: int = 1,
        maker: nn.Module | None = None,
        inputs: tuple[Spikes, ...] = (),
        current: Tensor | None = None,
        normed: Tensor | None = None,
        signed: bool = False,
        cap: int = 1,
    ) -> None:
        self.values, self.packing, self.maximum = values, packing, maximum
        self.maker, self.inputs, self.current, self.normed = maker, inputs, current, normed
        self.signed, self.cap = signed, cap
        self.serial = next(_serial)

    @property
    def features(self) -> int:
        return self.values.shape[-1]

    def without_history(self) -> Spikes:
        """The same spikes, but what went into them is forgotten, so that it need not be kept. `record` needs it."""
        return Spikes(self.values, self.packing, self.maximum, self.maker, signed=self.signed, cap=self.cap)

    def __repr__(self) -> str:
        return f"Spikes(T, tokens, features = {tuple(self.values.shape)}, maximum = {self.maximum})"

    def __add__(self, other: object) -> Spikes:
        if not isinstance(other, Spikes):
            refuse(f"adding a {type(other).__name__}")
        return add((self, other))

    def __radd__(self, other: object) -> Spikes:
        if isinstance(other, int) and other == 0:  # where `sum` begins
            return self
        refuse(f"adding a {type(other).__name__}")

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Spikes:
        """What PyTorch calls where one of its functions is given spikes."""
        kwargs = kwargs or {}
        if func is torch.add and len(args) == 2 and not kwargs and all(isinstance(x, Spikes) for x in args):
            return add(args)
        if func is F.dropout and isinstance(args[0], Spikes):
            return args[0]._dropped(**kwargs)
        refuse(getattr(func, "__name__", str(func)))

    def _dropped(self, p: float = 0.5, training: bool = True, inplace: bool = False) -> Spikes:
        """Dropout is noise in training and nothing in evaluation."""
        if not training or p == 0:
            return self
        values = F.dropout(self.values, p, training=True)
        dropped = Spikes(
            values, self.packing, self.maximum, self.maker, self.inputs, self.current, self.normed, self.signed,
            self.cap,
        )  # fmt: skip
        dropped.forgotten_operations = self.forgotten_operations
        return dropped

    def __getattr__(self, name: str) -> NoReturn:  # asked only for what is not there
        if hasattr(Tensor, name) and not name.startswith("__"):
            refuse(name)
        raise AttributeError(f"Spikes have no '{name}'")


def refuse(operation: str) -> NoReturn:
    """Raises SpikeOperationError."""
    raise SpikeOperationError(f"'{operation}' cannot be done with spikes: {ACCEPTED}")


def _refusal(name: str) -> Callable[..., NoReturn]:
    def method(self: Spikes, *_: object) -> NoReturn:
        refuse(name.strip("_"))

    return method


# Python looks these up at the class, not by __getattr__
for _name in (
    *("__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__", "__floordiv__", "__mod__"),
    *("__pow__", "__matmul__", "__rmatmul__", "__neg__", "__abs__", "__invert__", "__and__", "__or__", "__xor__"),
    *("__lt__", "__le__", "__gt__", "__ge__", "__getitem__", "__setitem__", "__len__", "__iter__", "__bool__"),
):
    setattr(Spikes, _name, _refusal(_name))


def add(inputs: Sequence[Spikes], maker: nn.Module | None = None) -> Spikes:
    """The sum of two or more spikes of one forward pass and one width: graded spikes."""
    first = check_spikes(inputs, "an addition")
    if len(inputs) < 2:
        raise SpikeOperationError("an addition of one input: give it two or more")
    values = sum((x.values for x in inputs[1:]), first.values)
    signed, cap = any(x.signed for x in inputs), max(x.cap for x in inputs)
    maximum = sum(x.maximum for x in inputs)
    return Spikes(values, first.packing, maximum, maker, tuple(inputs), signed=signed, cap=cap)


def check_spikes(inputs: Sequence[object], who: str, features: int | None = None) -> Spikes:
    """The first of `inputs`. Raises SpikeOperationError unless all are spikes of one batch and width (`features`)."""
    for x in inputs:
        if not isinstance(x, Spikes):
            raise SpikeOperationError(f"{who} takes spikes, as an Encoder makes them, and was given {type(x).__name__}")
    first, *others = inputs
    assert isinstance(first, Spikes)
    if features not in (None, first.features):
        raise SpikeOperationError(f"{who} takes {features} features and was given {first.features}")
    for x in others:
        assert isinstance(x, Spikes)
        if x.features != first.features:
            raise SpikeOperationError(f"{who} of {first.features} and of {x.features} features: they must be equal")
        if x.packing is not first.packing:
            raise SpikeOperationError(
                f"{who} of spikes of two encoders: call one encoder once and use its spikes twice"
            )
    return first


def made_by(end: Spikes) -> list[Spikes]:
    """`end` and all that it came from, in the order in which it was made."""
    found, open_ends = {id(end): end}, [end]
    while open_ends:
        for x in open_ends.pop().inputs:
            if id(x) not in found:
                found[id(x)] = x
                open_ends.append(x)
    return sorted(found.values(), key=lambda x: x.serial)
