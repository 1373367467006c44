"""The reference interpreter in machine time: a graph run by a schedule, step by step, samples back to back.

It takes from a schedule what a machine would take (what a node costs, how long each input is held back, when a
membrane is cleared) and reads every value at the step that the schedule names. If any of these is wrong, values differ
from the reference's.
"""

from __future__ import annotations

import numpy as np

from converters.encoder import decay, encode, fire, reset_membrane
from converters.execution import Execution, TokenBatch
from converters.graph import LIF, MEMBRANE_MAX, Graph, Node, Source
from converters.readout import logits_of
from converters.schedule import Schedule
from sim.reference import evaluate


def run_clocked(graph: Graph, schedule: Schedule, batch: TokenBatch) -> Execution:
    """Every value of every node, and the logits, of a batch whose samples follow each other every T steps."""
    batch.check_fits(graph)
    timesteps, samples = graph.timesteps, len(batch)
    last = samples * timesteps + schedule.depth_steps
    encoded = encode(graph.source, batch, timesteps)  # [T, B, N, D]
    silence = TokenBatch(np.zeros_like(batch.ids[:1]), np.zeros_like(batch.mask[:1]))
    alone = [*(batch[i : i + 1] for i in range(samples)), silence]  # each sample, and what is there where none is
    membranes: dict[str, np.ndarray] = {}
    history: dict[str, list[np.ndarray]] = {node.name: [] for node in graph}  # at index s - 1: the value at time_step s
    for step in range(1, last + 1):
        for node in graph:
            history[node.name].append(_step(graph, schedule, node, step, history, membranes, encoded, alone))
    values = {}
    for node in graph:
        first = schedule.latency_steps[node.name]
        seen = np.stack(history[node.name][first : first + samples * timesteps])  # [B * T, N, D]
        values[node.name] = seen.reshape(samples, timesteps, *seen.shape[1:]).swapaxes(0, 1)
    return Execution(logits_of(graph, values[graph.output]), values)


def _step(
    graph: Graph,
    schedule: Schedule,
    node: Node,
    step: int,
    history: dict[str, list[np.ndarray]],
    membranes: dict[str, np.ndarray],
    encoded: np.ndarray,
    alone: list[TokenBatch],
) -> np.ndarray:
    """The value [N, D] of one node at one time_step."""
    sample, t = divmod(step - 1 - schedule.latency_steps[node.name], graph.timesteps)
    running = 0 <= sample < len(alone) - 1
    if isinstance(node, Source):
        return encoded[t, sample] if running else np.zeros_like(encoded[0, 0])
    inputs = []
    for name, delay in zip(node.inputs, schedule.delay_steps[node.name]):
        at = step - 1 - schedule.latencies.of(node) - delay
        inputs.append(history[name][at] if at >= 0 else np.zeros_like(history[name][0]))
    if isinstance(node, LIF):
        return _fire(schedule, node, step, inputs[0], membranes)
    now = alone[sample if running else -1]  # biases and valid lanes ride on the mask of what is at this node now
    return evaluate(node, [x[None, None] for x in inputs], now, 1, graph.n_max)[0, 0]


def _fire(
    schedule: Schedule, node: LIF, step: int, current: np.ndarray, membranes: dict[str, np.ndarray]
) -> np.ndarray:
    """A LIF for one time_step: cleared where its reset says so, then the rule."""
    reset = schedule.resets[node.name]
    membrane = membranes.get(node.name, np.zeros_like(current))
    if step % reset.interval_steps == reset.offset_steps % reset.interval_steps:
        membrane = np.zeros_like(current)
    charged = np.clip(decay(membrane, node.dv) + (current << node.shift), -MEMBRANE_MAX, MEMBRANE_MAX)
    level = np.asarray(node.threshold, np.int64) << node.shift
    spikes = fire(charged, level, node.spike, node.cap)
    membranes[node.name] = reset_membrane(charged, level, spikes, node.reset)
    return spikes
