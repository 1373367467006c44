"""A network file, loaded by lava-dl and run by Lava's fixed-point ProcessModels, in order, in this Python process.

Lava compiles the network as for its runtime; only the channels between processes are queues here, as in
`targets/lava/inline.py`. What a process sends is also kept, so that every value can be read back.

Importing this module imports Lava, lava-dl and torch: see `targets.netx.engine.load_program`.
"""

from __future__ import annotations

import logging
import warnings
from collections import deque
from pathlib import Path

import numpy as np
from lava.lib.dl.netx.hdf5 import Network
from lava.magma.compiler.executable import Executable
from lava.magma.core.process.process import AbstractProcess, ProcessServer
from lava.magma.core.run_configs import Loihi2SimCfg

from targets.lava.inline import QueueEnd


class NetworkProgram:
    """A network that steps in this Python process.

    currents what the synapses of each layer sent, int32 [channels] a step
    outputs  what the neuron of each layer sent, int32 [channels] a step: spikes, of the last layer its running sum
    models   the ProcessModels in the order in which they run: synapses and neuron of each layer
    """

    def __init__(self, path: Path, reset_interval: int, reset_offset: int) -> None:
        handlers, registered = list(logging.getLogger().handlers), list(ProcessServer().processes)
        try:
            network = load_network(path, reset_interval, reset_offset)
            executable = network.compile(Loihi2SimCfg(select_tag="fixed_pt"), {})
        finally:
            logging.getLogger().handlers[:] = handlers  # each Lava process adds a handler to the root logger
            ProcessServer().processes[:] = registered  # and is kept alive for ever
        for channel in executable.channel_builders:
            queue: deque[np.ndarray] = deque()
            source, target = channel.src_port_initializer, channel.dst_port_initializer
            _attach(executable, channel.src_process, QueueEnd(source.name, queue, source.shape, source.d_type))
            _attach(executable, channel.dst_process, QueueEnd(target.name, queue, source.shape, source.d_type))
        self._input: deque[np.ndarray] = deque()
        first = network.in_layer.synapse
        _attach(executable, first, QueueEnd("s_in", self._input, first.s_in.shape, np.int32))
        self.currents = [_record(executable, layer.synapse, "a_out") for layer in network.layers]
        self.outputs = [_record(executable, layer.neuron, "s_out") for layer in network.layers]
        processes = [process for layer in network.layers for process in (layer.synapse, layer.neuron)]
        self.models = [executable.proc_builders[process].build() for process in processes]

    def run(self, rows: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Send `rows` [steps, channels in], one at each step; what the synapses and what the neurons of each layer sent
        at these steps, int32 [steps, channels] each. What a ProcessModel raises comes through."""
        for row in rows:
            self._input.append(row)
            for model in self.models:
                model.time_step += 1
                model.run_spk()
        sent = [[np.array(list(tape), np.int32) for tape in tapes] for tapes in (self.currents, self.outputs)]
        for tape in (*self.currents, *self.outputs):
            tape.clear()
        return sent[0], sent[1]


def load_network(path: Path, reset_interval: int, reset_offset: int) -> Network:
    """What lava-dl makes of a file."""
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        # the readout is a Sigma, which has no reset and needs none: differences of its sums are taken
        warnings.filterwarnings("ignore", message="Reset is not supported with Sigma Delta neurons")
        # and where no weight is positive netx divides by the largest, 0, which it compares with another quotient
        network = Network(str(path), reset_interval=reset_interval, reset_offset=reset_offset)
    network.net_config.f.close()  # lava-dl leaves it open
    return network


def _attach(executable: Executable, process: AbstractProcess, end: QueueEnd) -> None:
    executable.proc_builders[process].set_csp_ports([end])


def _record(executable: Executable, process: AbstractProcess, port: str) -> deque[np.ndarray]:
    """All that a process will send."""
    tape: deque[np.ndarray] = deque()
    shape = getattr(process, port).shape
    _attach(executable, process, QueueEnd(port, tape, shape, np.int32))
    return tape
