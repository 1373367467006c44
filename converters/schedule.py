"""When each value of a graph exists on a machine whose connections take time.

In a graph every node sees its inputs of the same `t`. On a machine a connection answers later, so each node lags
behind the source by a *latency*, and a way that is shorter than another into the same node waits for it. The pass
`balance_delays` makes a schedule; `sim.clocked` runs a graph by one.
"""

from __future__ import annotations

from dataclasses import dataclass

from converters.graph import Add, Attention, Coincidence, Node, Norm, Product, Readout, Synapses


@dataclass(frozen=True)
class LatencyTable:
    """Steps from the arrival of a node's inputs to its own value, as a backend has them; 0 for all other nodes.

    The defaults are Lava 0.10 on the CPU. Every connection process there sends the sum of the step before, so each
    costs 1: an add one for the connection that leads into it, as a coincidence and a product; a norm, a process of
    ours, sends one step late too. Neurons answer in the same step.
    """

    synapses: int = 1
    attention: int = 1
    add: int = 1
    coincidence: int = 1
    product: int = 1
    norm: int = 1

    def of(self, node: Node) -> int:
        """Steps that `node` takes."""
        if isinstance(node, (Synapses, Readout)):
            return self.synapses
        if isinstance(node, Attention):
            return self.attention
        if isinstance(node, Norm):
            return self.norm
        if isinstance(node, Add):
            return self.add
        if isinstance(node, Coincidence):
            return self.coincidence
        return self.product if isinstance(node, Product) else 0


@dataclass(frozen=True)
class Reset:
    """A LIF's membrane is cleared before time_step `s` wherever `s % interval_steps == offset_steps`."""

    interval_steps: int
    offset_steps: int


@dataclass(frozen=True)
class Schedule:
    """Timesteps `t` of sample `k` are at a node at time_step `k * timesteps + t + 1 + latency_steps[node]`.

    timesteps     T; samples follow each other every T steps, without a gap
    latencies     what each kind of node takes
    latency_steps node -> steps behind the source
    delay_steps   node -> for each of its inputs, how many steps that input is held back
    resets        LIF -> when its membrane is cleared
    """

    timesteps: int
    latencies: LatencyTable
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


def schedule_table(schedule: Schedule) -> str:
    """The schedule as text, a line for each node."""
    lines = [
        f"T={schedule.timesteps} depth={schedule.depth_steps} steps",
        f"{'node':<28} {'latency':>7} {'delays of its inputs':<22} reset",
    ]
    for name, latency in schedule.latency_steps.items():
        delays = ", ".join(map(str, schedule.delay_steps[name]))
        reset = schedule.resets.get(name)
        when = f"every {reset.interval_steps} at {reset.offset_steps}" if reset else ""
        lines.append(f"{name:<28} {latency:>7} {delays:<22} {when}".rstrip())
    return "\n".join(lines) + "\n"
