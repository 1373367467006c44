"""An estimate of how long a step and a sentence take.

**No timing of Loihi 2 is public.** These are the events of Loihi 1 (14 nm, 2018) as SANA-FE is calibrated for them. On
each core they follow one another, cores work side by side, and a step ends when the slowest is done and all have met.
Ways through the mesh and between chips are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from targets.loihi2.mapping.place import Mapping

SOURCE = "Loihi 1, as calibrated for SANA-FE 2.2.9 (examples/loihi.yaml); Loihi 2's are not public"


@dataclass(frozen=True)
class EventTimes:
    """Of a core, in nanoseconds; `barrier` once a step.

    neuron          access (6.0) and update (3.7) of each neuron, whether it got something or not
    shared_synapse  a message at a weight that tokens share (SANA-FE: loihi_conv_synapse)
    sparse_synapse  at any other (loihi_sparse_synapse)
    spike           a neuron sends
    message_out     to one box
    message_in
    barrier         of a chip all of whose tiles take part
    """

    neuron: float = 9.7
    shared_synapse: float = 3.1
    sparse_synapse: float = 4.7
    spike: float = 30.0
    message_out: float = 5.1
    message_in: float = 16.0
    barrier: float = 1800.0


@dataclass(frozen=True)
class Times:
    """step_us        of the slowest core, and the barrier
    slowest_core   and `parts_us`, what its time goes into
    mean_core_us   of all cores, without the barrier
    stream_ms      a sentence where one follows the other: T steps
    alone_ms       a sentence alone: T steps, and those by which the last neuron lags
    """

    step_us: float
    slowest_core: int
    parts_us: dict[str, float]
    mean_core_us: float
    stream_ms: float
    alone_ms: float


def estimate(mapping: Mapping, events: EventTimes | None = None) -> Times:
    """Of a step with the mean messages of `mapping.traffic`."""
    events = events or EventTimes()
    sent = mapping.traffic
    out = np.asarray(sent.between.sum(axis=1)).ravel()
    into = np.asarray(sent.between.sum(axis=0)).ravel() + sent.from_host
    counts = {
        "neuron": mapping.core_use[:, 0],
        "shared_synapse": sent.events[0],
        "sparse_synapse": sent.events[1],
        "spike": sent.spikes,
        "message_out": out,
        "message_in": into,
    }
    parts = {name: counts[name] * getattr(events, name) * 1e-3 for name in counts}
    busy = np.sum(list(parts.values()), axis=0)
    slowest = int(busy.argmax())
    step = float(busy[slowest]) + events.barrier * 1e-3
    steps, depth = mapping.network.timesteps, mapping.network.depth_steps
    return Times(
        step,
        slowest,
        {name: float(part[slowest]) for name, part in parts.items()},
        float(busy.mean()),
        step * steps * 1e-3,
        step * (steps + depth) * 1e-3,
    )
