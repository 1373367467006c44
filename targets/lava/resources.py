"""What a network in the Lava runtime takes from the machine, checked before it is started.

Lava fails late and badly without: a process that cannot open a channel leaves the others waiting for ever.
"""

from __future__ import annotations

import mmap
import resource
import shutil
from dataclasses import dataclass, fields
from pathlib import Path

from targets.lava.lowering import Plan, weight_bytes
from targets.lava.records import RecordLayout

CHANNEL_SLOTS = 4  # see COMPILE_CONFIG in network.py
ITEM_BYTES = 4
RECORDER_PORTS = 16  # see processes/streams.py, which needs Lava
FILE_DESCRIPTORS_PER_PROCESS = 12  # about 10 measured
FILE_DESCRIPTORS_BESIDE = 100
PROCESS_BYTES = 8 << 20  # measured, apart from weights
SERVICE_PROCESSES = 3  # the child, Lava's runtime service, its shared memory manager


class ResourceError(RuntimeError):
    """The machine has too little of something for this network."""


@dataclass(frozen=True)
class Resources:
    """What a network needs, or what there is."""

    file_descriptors: int
    shared_memory_bytes: int
    memory_bytes: int


REMEDIES = {
    "file_descriptors": "raise the hard limit (ulimit -Hn) or run fewer blocks",
    "shared_memory_bytes": "free space in /dev/shm (in a container: --shm-size)",
    "memory_bytes": "use a machine with more memory, or the engine lava-inline",
}


def needed(plan: Plan, layout: RecordLayout) -> Resources:
    """An estimate, rather too high than too low."""
    rows = {spec.name: plan.tokens * spec.channels * ITEM_BYTES for spec in plan.specs}
    channels = [rows[producer] for spec in plan.specs for producer in spec.inputs]
    channels += [rows[name] for name in layout.names]
    recorders = -(-len(layout.names) // RECORDER_PORTS)
    processes = len(plan.specs) + recorders + SERVICE_PROCESSES
    control_channels = 2 * processes
    shared = sum(_whole_pages(row * CHANNEL_SLOTS) for row in channels) + control_channels * mmap.PAGESIZE
    weights = weight_bytes(plan.specs, plan.tokens)
    return Resources(
        FILE_DESCRIPTORS_BESIDE + FILE_DESCRIPTORS_PER_PROCESS * processes,
        shared,
        processes * PROCESS_BYTES + 3 * weights + shared,
    )


def available() -> Resources:
    """What this machine has now. Where it does not say, as much as anyone may want."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    unlimited = 1 << 62
    return Resources(
        unlimited if hard == resource.RLIM_INFINITY else hard,
        shutil.disk_usage("/dev/shm").free,
        _memory_available(unlimited),
    )


def check_resources(plan: Plan, layout: RecordLayout) -> int:
    """The soft limit of file descriptors to set. Raises ResourceError naming everything there is too little of."""
    want, have = needed(plan, layout), available()
    short = [
        f"{field.name} {getattr(want, field.name):,} needed, {getattr(have, field.name):,} available: "
        f"{REMEDIES[field.name]}"
        for field in fields(Resources)
        if getattr(want, field.name) > getattr(have, field.name)
    ]
    if short:
        raise ResourceError("this machine has too little to start Lava: " + "; ".join(short))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(soft, want.file_descriptors)


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _memory_available(otherwise: int) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return otherwise
