"""A norm over the features of a token as one process. Lava's graded processes cannot do it exactly: docs/lava.md."""

from __future__ import annotations

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from targets.lava.parts import normed
from targets.lava.plan import NormSpec


class TokenNorm(AbstractProcess):
    """`a_out = 2 y` of the currents one step before, y as `converters.graph.Norm` defines it.

    Currents come in doubled and go out doubled, as all on Lava here. Sent one step late, as every connection process
    of Lava does. `a_in` adds up the parts of the current; `lane_in` takes what the process sends in which the valid
    lane stands, and stays unconnected where there is none.

    spec          what it computes
    tokens        N
    lane_channels of the process of the lane; 1 where there is none
    """

    def __init__(self, *, spec: NormSpec, tokens: int, lane_channels: int) -> None:
        super().__init__(spec=spec, name=spec.name)
        shape = (tokens, 1, spec.channels)
        self.a_in = InPort(shape=shape)
        self.lane_in = InPort(shape=(tokens, 1, lane_channels))
        self.a_out = OutPort(shape=shape)
        self.a_buff = Var(shape=shape, init=0)


@implements(proc=TokenNorm, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyTokenNormModel(PyLoihiProcessModel):
    """In integers, on a CPU."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    lane_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24)
    a_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)
    a_buff: np.ndarray = LavaPyType(np.ndarray, np.int32, precision=24)

    def run_spk(self) -> None:
        """One time_step: send what the last one gave, then take in this one's currents."""
        self.a_out.send(self.a_buff)
        spec: NormSpec = self.proc_params["spec"]
        current = self.a_in.recv()[:, 0]
        lane = None if spec.lane_channel is None else self.lane_in.recv()[:, 0, spec.lane_channel]
        self.a_buff = normed(spec, current, lane)[:, None]
