"""A graph as one hierarchical Lava process, to be connected in a Lava program of your own.

    network = as_process(graph)
    feed = RingBuffer(data=np.moveaxis(network.spikes(batch), 0, -1))  # of lava.proc.io.source
    feed.s_out.connect(network.spikes_in)
    for port in network.currents_out:
        port.connect(your_process.a_in)

Everything else is Lava as you know it. `Loihi2SimCfg(select_tag="fixed_pt")` runs the network in one operating system
process, with our ProcessModel; with `select_sub_proc_model=True` it is taken apart into stock Lava processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from lava.magma.core.process.ports.ports import InPort, OutPort

from converters.execution import TokenBatch
from converters.graph import Graph
from converters.readout import logits_of
from targets.lava.grouping import group
from targets.lava.network import make_group
from targets.lava.plan import DOUBLING, Plan, processes_of
from targets.lava.processes.group import ProcessGroup
from targets.lava.records import feed_rows
from targets.lava.target import lower_legal


@dataclass(frozen=True, eq=False)
class GraphProcess:
    """A lowered graph as one process.

    process the hierarchical process, its parts the stock processes of `plan`
    """

    graph: Graph
    plan: Plan
    process: ProcessGroup

    @property
    def spikes_in(self) -> InPort:
        """Where the encoded text enters: (N, 1, channels), the features of the encoder, then its valid lanes."""
        return self.process.input_from(self.plan.specs[0].name)

    @property
    def currents_out(self) -> tuple[OutPort, ...]:
        """Where the readout's currents leave, each (N, 1, classes). Mostly one; of several the sum is meant, which an
        InPort makes when all are connected to it. Doubled, as every current on Lava here is."""
        return tuple(self.process.output_of(name) for name in processes_of(self.plan.homes[self.graph.output]))

    @property
    def latency_steps(self) -> int:
        """Timestep `t` of sample `k` is in the currents at Lava's time_step `k * T + t + 1 + latency_steps`; a process
        that receives them there sees it at that step."""
        return self.plan.schedule.latency_steps[self.graph.output]

    def steps(self, samples: int) -> int:
        """Time_steps from the first spike of the first sample to the last current of the last."""
        return samples * self.graph.timesteps + self.latency_steps

    def spikes(self, batch: TokenBatch) -> np.ndarray:
        """What is to be sent to `spikes_in` from time_step 1 on, int32 [steps, N, 1, channels]: the samples back to
        back, then silence until the last current is out."""
        batch.check_fits(self.graph)
        rows = feed_rows(self.graph, self.plan, batch)
        silence = np.zeros((self.latency_steps, rows.shape[1]), rows.dtype)
        return np.concatenate([rows, silence]).reshape(-1, *self.spikes_in.shape)

    def logits(self, currents: np.ndarray, batch: TokenBatch) -> np.ndarray:
        """The integer logits int64 [B, classes] of what came from `currents_out`: integers [steps, N, 1, classes], from
        time_step 1 on. Raises ValueError where these are too few steps."""
        if len(currents) < self.steps(len(batch)):
            raise ValueError(f"{len(batch)} samples take {self.steps(len(batch))} steps, these are {len(currents)}")
        own = currents[self.latency_steps : self.steps(len(batch))]
        own = own.astype(np.int64).reshape(len(batch), self.graph.timesteps, -1, self.graph.features[self.graph.output])
        return logits_of(self.graph, own.swapaxes(0, 1) // DOUBLING)


def as_process(graph: Graph) -> GraphProcess:
    """The graph as one process, not yet connected. Raises IllegalGraphError where Lava cannot hold it."""
    plan = lower_legal(graph)
    readout = processes_of(plan.homes[graph.output])
    [whole] = group(plan, "core", readout, cores=1)
    return GraphProcess(graph, plan, make_group(plan, whole))
