"""A plan for the chip becomes connected Lava processes, with adapters where the host and the chip meet.

Written from what is public: the processes of lava-nc, its `networks/gradedvecnetwork.py`, whose InputVec and OutputVec
put an adapter of Intel's extension between a process of the host and one of the chip, and the tutorials that do the
same. The extension itself is not public, so this ran with a stand-in for its adapters only (tests/targets).
"""

from __future__ import annotations

import numpy as np
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2HwCfg, RunConfig

from targets.lava.network import make_recorders
from targets.lava.plan import NeuronSpec, Plan
from targets.lava.processes.streams import SpikeFeed, recorder_port
from targets.lava.program import Setup
from targets.lava.records import RecordLayout
from targets.lava.stepfile import StepFile
from targets.lava.stock import connect, in_port, make_process, out_port
from targets.loihi2.chip_plan import GRADED_BITS, with_probes


def run_config() -> RunConfig:
    """Lava's choice of ProcessModels for the chip: those of Intel's extension for stock processes, ours for the two
    ends on the host, which have no others."""
    return Loihi2HwCfg()


def signed(messages: np.ndarray) -> np.ndarray:
    """What messages from the chip mean, int32: 24 bits with a sign, as OutputVec.get_data of Lava reads them."""
    unused = 32 - GRADED_BITS
    return (messages << unused) >> unused


class ChipNetwork:
    """The network of a setup whose plan is for the chip, with Lava's runtime in this process.

    Not supervised, as the CPU engine's is: where a ProcessModel of the extension raises, Lava may wait for ever.
    """

    def __init__(self, setup: Setup, feed: StepFile, records: StepFile) -> None:
        self._records = records
        self._head: AbstractProcess | None = build(setup.plan, setup.layout, feed, records)
        self._config = run_config()

    def run(self, steps: int) -> None:
        """Advance it by `steps`; the first time the network is compiled and loaded."""
        if self._head is None:
            raise RuntimeError("this network is closed")
        self._head.run(condition=RunSteps(num_steps=steps), run_cfg=self._config)
        self._records.rows[:] = signed(self._records.rows)

    def close(self) -> None:
        """Let go of the chip. May be called twice."""
        head, self._head = self._head, None
        if head is not None:
            head.stop()


def build(plan: Plan, layout: RecordLayout, feed: StepFile, records: StepFile) -> AbstractProcess:
    """Connect everything; any of the processes stands for all of them.

    feed    where the source reads its spikes, width tokens * channels of the source
    records where the recorders write, width of the layout
    """
    plan, senders = with_probes(plan, layout.names)
    source, *others = plan.specs
    host = SpikeFeed(shape=(plan.tokens, 1, source.channels), steps=feed, name=source.name)
    ports = {source.name: _onto_chip(host, plan.tokens * source.channels)}
    for spec in others:
        process = make_process(spec, plan.tokens)
        for slot, producer in enumerate(spec.inputs):
            connect(ports[producer], in_port(spec, process, slot))
        ports[spec.name] = out_port(process)
    for recorder, names in make_recorders(plan, layout, records):
        for index, name in enumerate(names):
            sender = plan[senders[name]]
            bits = 0 if isinstance(sender, NeuronSpec) else GRADED_BITS  # 0: a spike without a payload
            adapter = _off_chip(plan.tokens * sender.channels, bits)
            connect(ports[sender.name], adapter.inp)
            connect(adapter.out, getattr(recorder, recorder_port(index)))
    return host


def _onto_chip(host: SpikeFeed, width: int) -> object:
    """The port on which the chip gets what a process of the host sends."""
    from lava.proc import embedded_io  # Intel's extension

    adapter = embedded_io.spike.PyToNxAdapter(shape=(width,), num_message_bits=GRADED_BITS)
    connect(host.s_out, adapter.inp)
    return adapter.out


def _off_chip(width: int, message_bits: int) -> AbstractProcess:
    from lava.proc import embedded_io

    return embedded_io.spike.NxToPyAdapter(shape=(width,), num_message_bits=message_bits)
