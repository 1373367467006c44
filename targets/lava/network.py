"""A plan becomes connected Lava processes: the feed, one hierarchical process for each group, the recorders."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lava.magma.core.process.ports.ports import OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.run_configs import Loihi2SimCfg

from targets.lava import parts, stock
from targets.lava.grouping import Group
from targets.lava.plan import Plan
from targets.lava.processes.group import ProcessGroup
from targets.lava.processes.streams import RECORDER_PORTS, Recorder, SpikeFeed, recorder_port
from targets.lava.records import RecordLayout
from targets.lava.stepfile import StepFile

COMPILE_CONFIG = {"pypy_channel_size": 4}  # slots a channel; the default of 64 takes 16 times the shared memory


@dataclass(frozen=True, eq=False)
class Network:
    """Connected processes, each after those that feed it."""

    processes: tuple[AbstractProcess, ...]

    @property
    def head(self) -> AbstractProcess:
        """Any process stands for the whole network in Lava's calls."""
        return self.processes[0]


def build(plan: Plan, groups: Sequence[Group], layout: RecordLayout, feed: StepFile, records: StepFile) -> Network:
    """The network of a plan.

    groups  of `grouping.group`, made for the processes that the layout records
    feed    where the source reads its spikes, width tokens * channels of the source
    records where the recorders write, width of the layout
    """
    parts.compile_once()
    source = plan.specs[0]
    processes: list[AbstractProcess] = [
        SpikeFeed(shape=(plan.tokens, 1, source.channels), steps=feed, name=source.name)
    ]
    ports: dict[str, OutPort] = {source.name: stock.out_port(processes[0])}
    for group in groups:
        process = make_group(plan, group)
        processes.append(process)
        ports |= {name: process.output_of(name) for name in group.outputs}
    for group, process in zip(groups, processes[1:]):
        for name in group.inputs:
            ports[name].connect(process.input_from(name))
    for recorder, names in make_recorders(plan, layout, records):
        processes.append(recorder)
        for index, name in enumerate(names):
            ports[name].connect(getattr(recorder, recorder_port(index)))
    return Network(tuple(processes))


def make_group(plan: Plan, group: Group) -> ProcessGroup:
    """The Lava process of a group, not yet connected."""
    return ProcessGroup(
        group=group, tokens=plan.tokens, input_channels=tuple(plan[name].channels for name in group.inputs)
    )


def run_config(models: Mapping[str, str] | None) -> Loihi2SimCfg:
    """Lava's choice of ProcessModels, fixed point.

    models None: each group as one process, of ours. Else groups are taken apart, and a process gets the model that is
           named for it (process class path -> model class path), or Lava's own.
    """
    table = {load_class(process): load_class(model) for process, model in (models or {}).items()}
    return Loihi2SimCfg(select_tag="fixed_pt", select_sub_proc_model=models is not None, exception_proc_model_map=table)


def load_class(path: str) -> type:
    """The class at "package.module:Name"."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def make_recorders(plan: Plan, layout: RecordLayout, steps: StepFile) -> Iterator[tuple[Recorder, Sequence[str]]]:
    """Recorders, not yet connected, and the processes that each one's ports are for, in order."""
    for start in range(0, len(layout.names), RECORDER_PORTS):
        names = layout.names[start : start + RECORDER_PORTS]
        recorder = Recorder(
            shapes=[(plan.tokens, 1, plan[name].channels) for name in names],
            columns=[layout.columns[name].start for name in names],
            steps=steps,
            name=f"recorder#{names[0]}",
        )
        yield recorder, names
