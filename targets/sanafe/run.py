"""What SANA-FE says of a run. Needs no sanafe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from targets.sanafe.expected import COUNTS, Counts

ENERGIES = ("synapse", "dendrite", "soma", "network", "total")


@dataclass(frozen=True, eq=False)
class Run:
    """What SANA-FE says of a run.

    counts      of each step
    joules      of each step, for each of ENERGIES: float64 [steps]
    seconds     of each step, its barrier too: float64 [steps]
    core_joules of each core over all steps, float64 [cores]; hops are charged to no core
    sending     seconds in which a core updates its neurons and sends, float64 [steps, cores]
    receiving   seconds in which a core takes messages to its synapses, float64 [steps, cores]
    last        int64 [steps]: the core that was done last; -1 where no core did anything
    """

    counts: Counts
    joules: dict[str, np.ndarray]
    seconds: np.ndarray
    core_joules: np.ndarray
    sending: np.ndarray
    receiving: np.ndarray
    last: np.ndarray


def joined(parts: Sequence[Run]) -> Run:
    """Steps one after the other."""
    counts = {name: np.concatenate([getattr(part.counts, name) for part in parts]) for name in COUNTS}
    return Run(
        Counts(**counts),
        {kind: np.concatenate([part.joules[kind] for part in parts]) for kind in ENERGIES},
        np.concatenate([part.seconds for part in parts]),
        np.sum([part.core_joules for part in parts], axis=0),
        np.concatenate([part.sending for part in parts]),
        np.concatenate([part.receiving for part in parts]),
        np.concatenate([part.last for part in parts]),
    )
