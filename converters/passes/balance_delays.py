"""Finds when each value exists on a machine, and what must wait."""

from __future__ import annotations

from dataclasses import dataclass, field

from converters.graph import LIF, Graph
from converters.passes.rewrite import Rewrite
from converters.schedule import LatencyTable, Reset, Schedule


@dataclass(frozen=True)
class BalanceDelays:
    """Changes nothing, and gives a `Schedule`: each node waits for its slowest input, and the others are held back.

    The identity (retiming, Leiserson and Saxe 1991): where all inputs of a node lag behind the source by the same
    number of steps, the node lags too and computes the same. Exact; `sim.clocked` runs the graph by the schedule.
    """

    latencies: LatencyTable = field(default_factory=LatencyTable)
    name: str = "balance-delays"

    def rewrite(self, graph: Graph) -> Rewrite:
        """See the class."""
        schedule = balance_delays(graph, self.latencies)
        waits = sum(delay > 0 for delays in schedule.delay_steps.values() for delay in delays)
        return Rewrite(graph, f"{schedule.depth_steps} steps deep, {waits} inputs wait", schedule=schedule)


def balance_delays(graph: Graph, latencies: LatencyTable) -> Schedule:
    """The schedule of a graph on a machine with such latencies."""
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
    return Schedule(graph.timesteps, latencies, latency, delay, resets)
