"""The ProcessModels of a network, called in order in one Python process.

Lava compiles the network and builds every ProcessModel just as for its runtime; only the channels between them
are queues here, and nothing runs in parallel. So exceptions come through, and a debugger works.
"""

from __future__ import annotations

import logging
from collections import deque

import numpy as np
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.process.process import ProcessServer

from targets.lava.network import COMPILE_CONFIG, build, run_config
from targets.lava.program import Setup
from targets.lava.stepfile import StepFile


class QueueEnd:
    """One end of a channel, with the part of Lava's port interface that ProcessModels use.

    name  of the port it belongs to
    dtype, shape of a message; Lava's channels cast to the sender's dtype, so this one does
    """

    def __init__(self, name: str, queue: deque[np.ndarray], shape: tuple[int, ...], dtype: type) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype
        self._queue = queue

    def send(self, data: np.ndarray) -> None:
        """Append a copy of one message. Raises AssertionError on a wrong shape, as Lava does."""
        if data.shape != self.shape:
            raise AssertionError(f"port '{self.name}' sends shape {self.shape}, it was given {data.shape}")
        self._queue.append(np.array(data, dtype=self.dtype))

    def recv(self) -> np.ndarray:
        """The oldest message. Raises IndexError where a runtime would wait for ever."""
        return self._queue.popleft()


class InlineNetwork:
    """A network that steps in this Python process."""

    def __init__(self, setup: Setup, feed: StepFile, records: StepFile) -> None:
        handlers, registered = list(logging.getLogger().handlers), list(ProcessServer().processes)
        try:
            network = build(setup.plan, setup.groups, setup.layout, feed, records)
            executable = network.head.compile(run_config(setup.models), dict(COMPILE_CONFIG))
        finally:
            logging.getLogger().handlers[:] = handlers  # each Lava process adds a handler to the root logger
            ProcessServer().processes[:] = registered  # and is kept alive for ever
        for channel in executable.channel_builders:
            source, target = channel.src_port_initializer, channel.dst_port_initializer
            queue: deque[np.ndarray] = deque()
            out_end = QueueEnd(source.name, queue, source.shape, source.d_type)
            in_end = QueueEnd(target.name, queue, source.shape, source.d_type)
            executable.proc_builders[channel.src_process].set_csp_ports([out_end])
            builder = executable.proc_builders[channel.dst_process]
            builder.set_csp_ports([in_end])
            builder.add_csp_port_mapping(f"{channel.src_process.id}_{source.name}", in_end)
        # each after those it waits for: the plan is in such an order, groups are, and recorders come last
        names = [process.name for process in network.processes]
        if setup.models is not None:  # groups were taken apart
            names = [spec.name for spec in setup.plan.specs]
        place = {name: number for number, name in enumerate(names)}
        order = sorted(executable.proc_builders, key=lambda process: place.get(process.name, len(place)))
        self.models: tuple[PyLoihiProcessModel, ...] = tuple(
            executable.proc_builders[process].build() for process in order
        )

    def run(self, steps: int) -> None:
        """Advance by `steps`. What a ProcessModel raises comes through."""
        for _ in range(steps):
            for model in self.models:
                model.time_step += 1
                model.run_spk()

    def close(self) -> None:
        """Forget the ProcessModels; there is nothing outside this process to free."""
        self.models = ()
