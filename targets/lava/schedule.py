"""Retiming: when each value of a graph exists on a machine whose connections take time.

In a graph every node sees its inputs of the same `t`. On Lava a synapse answers one step later, so each node
lags behind the source by a *latency*, and a path that is shorter than another into the same node waits for it.
Pure arithmetic on the graph; Lava is not imported.
"""

from __future__ import annotations

from dataclasses import dataclass

from converters.graph import LIF, Add, Attention, Graph, Node, Source


@dataclass(frozen=True)
class LatencyTable:
    """Steps from the arrival of a node's inputs to its own value. Lava 0.10 on the CPU; a chip may differ.

    Every connection process of Lava sends the sum of the step before, so each costs 1. An add costs 1 for the
    connection that leads into it. Neurons answer in the same step.
    """

    synapses: int = 1
    attention: int = 1
    add: int = 1
    lif: int = 0

    def of(self, node: Node) -> int:
        """Steps that `node` takes."""
        if isinstance(node, Source):
            return 0
        if isinstance(node, LIF):
            return self.lif
        if isinstance(node, Add):
            return self.add
        return self.attention if isinstance(node, Attention) else self.synapses


LAVA_LATENCIES = LatencyTable()


@dataclass(frozen=True)
class Reset:
    """A LIF's membrane is cleared before time_step `s` wherever `s % interval_steps == offset_steps`."""

    interval_steps: int
    offset_steps: int


@dataclass(frozen=True)
class Schedule:
    """Timesteps `t` of sample `k` are at a node at time_step `k * timesteps + t + 1 + latency_steps[node]`.

    timesteps     T; samples follow each other every T steps, without a gap
    latency_steps node -> steps behind the source
    delay_steps   node -> for each of its inputs, how many steps that input is held back
    resets        LIF -> when its membrane is cleared
    """

    timesteps: int
    latency_steps: dict[str, int]
    delay_steps: dict[str, tuple[int, ...]]
    resets: dict[str, Reset]

    @property
    def depth_steps(self) -> int:
        """Steps by which the slowest node lags."""
        return max(self.latency_steps.values())

    @property
    def drain_steps(self) -> int:
        """Steps of silence after the last sample: at least the depth, and whole samples, so that the next batch
        begins at the same phase of the resets."""
        return -(-self.depth_steps // self.timesteps) * self.timesteps


def make_schedule(graph: Graph, latencies: LatencyTable = LAVA_LATENCIES) -> Schedule:
    """The schedule of a graph.

    Each node waits for its slowest input, and the other inputs are held back to arrive with it: an add's residual,
    and the q, k and v of an attention.
    """
    latency: dict[str, int] = {}
    delay: dict[str, tuple[int, ...]] = {}
    for node in graph:
        arrivals = [latency[producer] + latencies.of(node) for producer in node.inputs]
        latency[node.name] = max(arrivals, default=0)
        delay[node.name] = tuple(latency[node.name] - arrival for arrival in arrivals)
    resets = {
        node.name: Reset(graph.timesteps, (1 + latency[node.name]) % graph.timesteps)
        for node in graph
        if isinstance(node, LIF)
    }
    return Schedule(graph.timesteps, latency, delay, resets)
