"""Adapters that pass messages on, with the names, ports and arguments that Lava's public code uses.

They take no step: published outputs of the chip come at the step at which Lava's CPU models give them
(docs/loihi2.md). What leaves the chip has the lowest 24 bits only, as OutputVec.get_data of Lava expects it.
"""

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class PyToNxAdapter(AbstractProcess):
    """From the host to the chip."""

    def __init__(self, shape, num_message_bits=0):
        super().__init__(shape=shape, num_message_bits=num_message_bits)
        self.inp, self.out = InPort(shape=shape), OutPort(shape=shape)


class NxToPyAdapter(AbstractProcess):
    """From the chip to the host."""

    def __init__(self, shape, num_message_bits=0):
        super().__init__(shape=shape, num_message_bits=num_message_bits)
        self.inp, self.out = InPort(shape=shape), OutPort(shape=shape)


class _Adapter(PyLoihiProcessModel):
    inp: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)

    def run_spk(self):
        message = self.inp.recv()
        bits = self.proc_params["num_message_bits"]
        self.out.send(message & (2**bits - 1) if bits else message.astype(bool).astype(np.int32))


@implements(proc=PyToNxAdapter, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyToNxAdapterModel(_Adapter):
    pass


@implements(proc=NxToPyAdapter, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class NxToPyAdapterModel(_Adapter):
    pass
