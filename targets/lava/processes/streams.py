"""What stands at the ends of a network: the feed of spikes from the host, and the recorder of values for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from targets.lava.stepfile import StepFile

RECORDER_PORTS = 256


class SpikeFeed(AbstractProcess):
    """Sends, at each time_step, the row of `steps` for it.

    shape of the spikes, (tokens, 1, channels)
    steps a `StepFile` as wide as that
    """

    def __init__(self, *, shape: tuple[int, ...], steps: StepFile, name: str) -> None:
        super().__init__(shape=shape, steps=steps, name=name)
        self.s_out = OutPort(shape=shape)


@implements(proc=SpikeFeed, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PySpikeFeedModel(PyLoihiProcessModel):
    """Reads the host's spikes."""

    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24)

    def run_spk(self) -> None:
        """One time_step."""
        row = self.proc_params["steps"].row(self.time_step)
        self.s_out.send(row.reshape(self.proc_params["shape"]))


class Recorder(AbstractProcess):
    """Writes, at each time_step, what up to `RECORDER_PORTS` processes send.

    One process records many, because a process costs 0.4 ms a step and reading a Var 35 us a value. Port `in_3`
    goes to the columns from `columns[3]` of the row; ports beyond `shapes` stay unconnected.

    shapes  of what is recorded, at most RECORDER_PORTS
    columns first column of each
    steps   a `StepFile`
    """

    def __init__(
        self, *, shapes: Sequence[tuple[int, ...]], columns: Sequence[int], steps: StepFile, name: str
    ) -> None:
        super().__init__(columns=tuple(columns), steps=steps, name=name)
        unused = [(1,)] * (RECORDER_PORTS - len(shapes))
        for index, shape in enumerate([*shapes, *unused]):
            setattr(self, recorder_port(index), InPort(shape=shape))


def recorder_port(index: int) -> str:
    """The name of a recorder's port."""
    return f"in_{index}"


@implements(proc=Recorder, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyRecorderModel(PyLoihiProcessModel):
    """Writes to the host's memory. Its ports are declared below the class, all alike."""

    def run_spk(self) -> None:
        """One time_step."""
        row = self.proc_params["steps"].row(self.time_step)
        for index, column in enumerate(self.proc_params["columns"]):
            values = getattr(self, recorder_port(index)).recv()
            row[column : column + values.size] = values.ravel()


for _index in range(RECORDER_PORTS):
    setattr(PyRecorderModel, recorder_port(_index), LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24))
