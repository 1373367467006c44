"""From a process of a plan to the Lava process that it names, stock ones wherever there are any."""

from __future__ import annotations

import numpy as np
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.proc.conv.process import Conv
from lava.proc.graded.process import GradedVec
from lava.proc.lif.process import LIFReset
from lava.proc.prodneuron.process import ProdNeuron
from lava.proc.sparse.process import DelaySparse, Sparse
from scipy.sparse import coo_matrix, csr_matrix, identity, kron

from targets.lava import limits
from targets.lava.plan import (
    AdderSpec,
    AttentionSpec,
    FanSpec,
    NeuronSpec,
    NormSpec,
    ProductSpec,
    RouteSpec,
    Spec,
    SynapsesSpec,
    fan_entries,
)
from targets.lava.processes.attention import SpikingAttention, attention_port
from targets.lava.processes.neuron import RuleNeuron
from targets.lava.processes.norm import TokenNorm

DU = limits.DECAY.value  # a current that forgets everything at each step


def make_process(spec: Spec, tokens: int) -> AbstractProcess:
    """The process of one spec, the source apart, not yet connected."""
    if isinstance(spec, SynapsesSpec):
        return Conv(
            weight=spec.weight[:, None, None, :],  # (channels out, kernel x, kernel y, channels in)
            input_shape=(tokens, 1, spec.weight.shape[1]),
            num_message_bits=spec.message_bits,
            name=spec.name,
        )
    if isinstance(spec, NeuronSpec) and not spec.is_stock:
        return RuleNeuron(spec=spec, tokens=tokens)
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
            pieces=spec.pieces,
            similarity=spec.similarity,
            bias=spec.bias,
            name=spec.name,
        )
    if isinstance(spec, NormSpec):
        return TokenNorm(spec=spec, tokens=tokens, lane_channels=spec.lane_channels)
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


def out_port(process: AbstractProcess) -> OutPort:
    """The one port on which a process sends: spikes of a neuron, or current of a connection."""
    return process.out_ports.members[0]


def in_port(spec: Spec, process: AbstractProcess, slot: int) -> InPort:
    """Where input `slot` of a spec goes: those of an attention to ports of their own, the scores of a product to one
    and v to another, the lane of a norm beside its current, and for all others every input to one port, which adds them
    up."""
    if isinstance(spec, AttentionSpec):
        return getattr(process, attention_port(slot))
    if isinstance(spec, NormSpec):
        return process.a_in if slot < spec.parts else process.lane_in
    if isinstance(spec, ProductSpec):
        return process.a_in1 if slot < spec.scores else process.a_in2
    return process.in_ports.members[0]


def connect(producer: OutPort, consumer: InPort) -> None:
    """Connect, flattening or unflattening on the way: neurons are (tokens, 1, channels), Sparse is flat."""
    if producer.shape == consumer.shape:
        producer.connect(consumer)
    else:
        producer.reshape(consumer.shape).connect(consumer)
