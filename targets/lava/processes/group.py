"""Several stock processes as one hierarchical process.

What it is made of stays stock: `SubGroupModel` takes it apart into Conv, LIFReset and so on, which is what a compiler
for a chip sees. On the CPU `PyGroupModel` runs the same parts in one operating system process.
"""

from __future__ import annotations

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.model.sub.model import AbstractSubProcessModel
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol

from targets.lava import parts, stock
from targets.lava.grouping import PORTS_MAX, Connection, Group, Neuron


class ProcessGroup(AbstractProcess):
    """A group of a plan. Port `in_3` takes what `group.inputs[3]` sends, `out_3` sends what `group.outputs[3]` does.

    All of shape (tokens, 1, channels); ports beyond those stay unconnected.

    tokens         N
    input_channels of each input
    """

    def __init__(self, *, group: Group, tokens: int, input_channels: tuple[int, ...]) -> None:
        super().__init__(group=group, tokens=tokens, name=group.name)
        channels = {spec.name: spec.channels for spec in group.specs}
        output_channels = [channels[name] for name in group.outputs]
        for number in range(PORTS_MAX):
            of_input = input_channels[number] if number < len(input_channels) else 1
            of_output = output_channels[number] if number < len(output_channels) else 1
            setattr(self, in_name(number), InPort(shape=(tokens, 1, of_input)))
            setattr(self, out_name(number), OutPort(shape=(tokens, 1, of_output)))
        self.group, self.tokens = group, tokens

    def input_from(self, process: str) -> InPort:
        """The port for what a process outside sends. Raises ValueError where the group does not read it."""
        return getattr(self, in_name(self.group.inputs.index(process)))

    def output_of(self, process: str) -> OutPort:
        """The port on which a process inside sends. Raises ValueError where nobody outside reads it."""
        return getattr(self, out_name(self.group.outputs.index(process)))


def in_name(number: int) -> str:
    """The name of the port of an input."""
    return f"in_{number}"


def out_name(number: int) -> str:
    """The name of the port of an output."""
    return f"out_{number}"


@implements(proc=ProcessGroup, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyGroupModel(PyLoihiProcessModel):
    """All parts in this operating system process. Its ports are declared below the class, all alike."""

    def __init__(self, proc_params: dict) -> None:
        super().__init__(proc_params)
        group: Group = proc_params["group"]
        tokens = proc_params["tokens"]
        self.connections = [
            (spec, parts.make_connection(spec, tokens)) for spec in group.specs if isinstance(spec, Connection)
        ]
        self.neurons = [(spec, parts.make_neuron(spec, tokens)) for spec in group.specs if isinstance(spec, Neuron)]
        at_once = {name for spec, _ in self.neurons for name in spec.inputs}  # currents that come from outside, if any
        inputs = [(name, in_name(number)) for number, name in enumerate(group.inputs)]
        self.currents = [(name, port) for name, port in inputs if name in at_once]
        self.spikes = [(name, port) for name, port in inputs if name not in at_once]
        self.ports = {name: out_name(number) for number, name in enumerate(group.outputs)}

    def run_spk(self) -> None:
        """One time_step. What connections send depends on the step before: all is sent before others are waited for."""
        sent: dict[str, np.ndarray] = {}
        for spec, connection in self.connections:
            sent[spec.name] = self._send(spec.name, connection.send())
        self._receive(self.currents, sent)
        for layer, neuron in self.neurons:
            currents = [sent[name] for name in layer.inputs]
            sent[layer.name] = self._send(layer.name, neuron.answer(currents, self.time_step))
        self._receive(self.spikes, sent)
        for spec, connection in self.connections:
            connection.receive([sent[name] for name in spec.inputs])

    def _send(self, name: str, values: np.ndarray) -> np.ndarray:
        if name in self.ports:
            getattr(self, self.ports[name]).send(values[:, None])
        return values

    def _receive(self, ports: list[tuple[str, str]], sent: dict[str, np.ndarray]) -> None:
        for name, port in ports:
            sent[name] = getattr(self, port).recv()[:, 0]


for _number in range(PORTS_MAX):
    setattr(PyGroupModel, in_name(_number), LavaPyType(PyInPort.VEC_DENSE, np.int32, precision=24))
    setattr(PyGroupModel, out_name(_number), LavaPyType(PyOutPort.VEC_DENSE, np.int32, precision=24))


@implements(proc=ProcessGroup, protocol=LoihiProtocol)
@tag("fixed_pt")
class SubGroupModel(AbstractSubProcessModel):
    """The stock processes of a group, connected as in the plan. Chosen by `select_sub_proc_model=True`."""

    def __init__(self, proc: ProcessGroup) -> None:
        made = {spec.name: stock.make_process(spec, proc.tokens) for spec in proc.group.specs}
        for number, process in enumerate(made.values()):
            setattr(self, f"part_{number}", process)  # Lava finds sub-processes among the attributes
        for spec in proc.group.specs:
            for slot, producer in enumerate(spec.inputs):
                source = stock.out_port(made[producer]) if producer in made else proc.input_from(producer)
                stock.connect(source, stock.in_port(spec, made[spec.name], slot))
        for name in proc.group.outputs:
            stock.connect(stock.out_port(made[name]), proc.output_of(name))
