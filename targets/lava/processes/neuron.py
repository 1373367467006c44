"""A LIF that Lava's stock processes do not have: soft reset, graded and ternary spikes."""

from __future__ import annotations

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from targets.lava.parts import Membrane
from targets.lava.plan import NeuronSpec


class RuleNeuron(AbstractProcess):
    """Neurons that obey `converters.graph.LIF`, whatever their reset and their spikes; cleared as a LIFReset is.

    Currents come in doubled, spikes go out as they are: integers with a sign. Stock neurons of Lava reset to 0 and send
    bits, or -1, 0 and 1 without being cleared between samples (`TernaryLIF`).

    spec   what they compute
    tokens N
    """

    def __init__(self, *, spec: NeuronSpec, tokens: int) -> None:
        super().__init__(spec=spec, tokens=tokens, name=spec.name)
        shape = (tokens, 1, spec.channels)
        self.a_in = InPort(shape=shape)
        self.s_out = OutPort(shape=shape)


@implements(proc=RuleNeuron, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyRuleNeuronModel(PyLoihiProcessModel):
    """In integers, on a CPU."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)

    def __init__(self, proc_params: dict) -> None:
        super().__init__(proc_params)
        self.membrane = Membrane(proc_params["spec"], proc_params["tokens"])

    def run_spk(self) -> None:
        """One time_step: spikes of the currents of this step, in the same step."""
        current = np.ascontiguousarray(self.a_in.recv()[:, 0], dtype=np.int32)
        self.s_out.send(self.membrane.answer([current], self.time_step)[:, None])
