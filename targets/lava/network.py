"""A plan becomes connected Lava processes, stock ones wherever there are any."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.run_configs import Loihi2SimCfg
from lava.proc.conv.process import Conv
from lava.proc.graded.process import GradedVec
from lava.proc.lif.process import LIFReset
from lava.proc.prodneuron.process import ProdNeuron
from lava.proc.sparse.process import DelaySparse, Sparse
from scipy.sparse import coo_matrix, csr_matrix, identity, kron

from targets.lava import limits
from targets.lava.lowering import (
    AdderSpec,
    AttentionSpec,
    FanSpec,
    NeuronSpec,
    Plan,
    ProductSpec,
    RouteSpec,
    SourceSpec,
    Spec,
    SynapsesSpec,
    fan_entries,
)
from targets.lava.processes.attention import SpikingAttention, attention_port
from targets.lava.processes.streams import RECORDER_PORTS, Recorder, SpikeFeed, recorder_port
from targets.lava.records import RecordLayout
from targets.lava.stepfile import StepFile

DU = limits.DECAY.value  # a current that forgets everything at each step
COMPILE_CONFIG = {"pypy_channel_size": 4}  # slots a channel; the default of 64 takes 16 times the shared memory


@dataclass(frozen=True, eq=False)
class Network:
    """Connected processes, each after those that feed it."""

    processes: tuple[AbstractProcess, ...]

    @property
    def head(self) -> AbstractProcess:
        """Any process stands for the whole network in Lava's calls."""
        return self.processes[0]


def build(plan: Plan, layout: RecordLayout, feed: StepFile, records: StepFile) -> Network:
    """The network of a plan.

    feed    where the source reads its spikes, width tokens * channels of the source
    records where the recorders write, width of the layout
    """
    processes: dict[str, AbstractProcess] = {}
    for spec in plan.specs:
        process = _make_process(spec, plan.tokens, feed)
        for slot, producer in enumerate(spec.inputs):
            _connect(_out_port(processes[producer]), _in_port(spec, process, slot))
        processes[spec.name] = process
    recorders = tuple(
        _make_recorder(plan, layout, names, processes, records) for names in _chunks(layout.names, RECORDER_PORTS)
    )
    return Network((*processes.values(), *recorders))


def run_config(models: Mapping[str, str]) -> Loihi2SimCfg:
    """Lava's choice of ProcessModels: fixed point, and `models` (process class path -> model class path) first."""
    table = {load_class(process): load_class(model) for process, model in models.items()}
    return Loihi2SimCfg(select_tag="fixed_pt", exception_proc_model_map=table)


def load_class(path: str) -> type:
    """The class at "package.module:Name"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _make_process(spec: Spec, tokens: int, feed: StepFile) -> AbstractProcess:
    if isinstance(spec, SourceSpec):
        return SpikeFeed(shape=(tokens, 1, spec.channels), steps=feed, name=spec.name)
    if isinstance(spec, SynapsesSpec):
        return Conv(
            weight=spec.weight[:, None, None, :],  # (channels out, kernel x, kernel y, channels in)
            input_shape=(tokens, 1, spec.weight.shape[1]),
            num_message_bits=spec.message_bits,
            name=spec.name,
        )
    if isinstance(spec, NeuronSpec):
        return LIFReset(
            shape=(tokens, 1, spec.channels),
            du=DU,
            dv=spec.dv,
            vth=spec.vth,
            reset_interval=spec.reset_interval,
            reset_offset=spec.reset_offset,
            name=spec.name,
        )
    if isinstance(spec, AttentionSpec):
        return SpikingAttention(
            tokens=tokens,
            features=spec.channels,
            heads=spec.heads,
            input_channels=spec.input_channels,
            pieces=tuple((piece.slot, piece.source, piece.start, piece.count) for piece in spec.pieces),
            name=spec.name,
        )
    if isinstance(spec, RouteSpec):
        weights = csr_matrix(kron(identity(tokens, dtype=np.int32), spec.weight), dtype=np.int32)
        return _make_sparse(spec, weights)
    if isinstance(spec, FanSpec):
        out, into = fan_entries(spec, tokens)
        shape = (tokens * spec.channels, tokens * spec.input_channels)
        values = np.full(len(out), spec.weight, dtype=np.int32)
        return _make_sparse(spec, csr_matrix(coo_matrix((values, (out, into)), shape=shape), dtype=np.int32))
    if isinstance(spec, ProductSpec):
        product = ProdNeuron(shape=(tokens * spec.channels,), vth=spec.vth, exp=spec.exp)
        product.name = spec.name  # ProdNeuron takes no name
        return product
    assert isinstance(spec, AdderSpec)
    adder = GradedVec(shape=(tokens * spec.channels,), vth=spec.vth)
    adder.name = spec.name  # GradedVec takes no name
    return adder


def _make_sparse(spec: RouteSpec | FanSpec, weights: csr_matrix) -> Sparse:
    """On flat vectors, as Sparse has them: of a route one block a token, of a fan one row a pair."""
    weights.eliminate_zeros()
    if spec.delay_steps == 0:
        return Sparse(weights=weights, num_message_bits=spec.message_bits, name=spec.name)
    delays = weights.astype(bool).astype(int) * spec.delay_steps
    return DelaySparse(weights=weights, delays=delays, num_message_bits=spec.message_bits, name=spec.name)


def _make_recorder(
    plan: Plan, layout: RecordLayout, names: Sequence[str], processes: Mapping[str, AbstractProcess], steps: StepFile
) -> Recorder:
    recorder = Recorder(
        shapes=[(plan.tokens, 1, plan[name].channels) for name in names],
        columns=[layout.columns[name].start for name in names],
        steps=steps,
        name=f"recorder#{names[0]}",
    )
    for index, name in enumerate(names):
        _connect(_out_port(processes[name]), getattr(recorder, recorder_port(index)))
    return recorder


def _out_port(process: AbstractProcess) -> OutPort:
    """The one port on which a process sends: spikes of a neuron, or current of a connection."""
    return process.out_ports.members[0]


def _in_port(spec: Spec, process: AbstractProcess, slot: int) -> InPort:
    """Where input `slot` of a spec goes: those of an attention to ports of their own, the scores of a product to one
    and v to another, and for all others every input to one port, which adds them up."""
    if isinstance(spec, AttentionSpec):
        return getattr(process, attention_port(slot))
    if isinstance(spec, ProductSpec):
        return process.a_in1 if slot < spec.scores else process.a_in2
    return process.in_ports.members[0]


def _connect(producer: OutPort, consumer: InPort) -> None:
    """Connect, flattening or unflattening on the way: neurons are (tokens, 1, channels), Sparse is flat."""
    if producer.shape == consumer.shape:
        producer.connect(consumer)
    else:
        producer.reshape(consumer.shape).connect(consumer)


def _chunks(names: Sequence[str], size: int) -> list[Sequence[str]]:
    return [names[start : start + size] for start in range(0, len(names), size)]
