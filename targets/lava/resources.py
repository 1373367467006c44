"""What a network in the Lava runtime takes from the machine, checked before it is started.

Lava fails late and badly without: a process that cannot open a channel leaves the others waiting for ever.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from targets.lava.cgroups import left_in_cgroups
from targets.lava.grouping import Group
from targets.lava.plan import Plan, weight_bytes
from targets.lava.records import RecordLayout

CHANNEL_SLOTS = 4  # see COMPILE_CONFIG in network.py
ITEM_BYTES = 4
RECORDER_PORTS = 256  # see processes/streams.py, which needs Lava
UNLIMITED = 1 << 62

# What an actor, and a channel between actors, take; measured, and held against a large network by a test
DESCRIPTORS_PER_ACTOR, DESCRIPTORS_BESIDE = 6, 40  # of the process that holds the runtime
TASKS_PER_ACTOR, TASKS_PER_CHANNEL, TASKS_BESIDE = 6, 2, 30  # a thread waits at each end of a channel
# Apart from weights and channels. An actor took 13 MiB on one machine, and 18 on another with the same libraries.
ACTOR_BYTES, BYTES_BESIDE = 24 << 20, 192 << 20
ADDRESS_BYTES = 2 << 30  # of one process with Lava and the libraries that it loads
STACK_BYTES = 8 << 20  # of a thread, in address space


class ResourceError(RuntimeError):
    """The machine has too little of something for this network."""


@dataclass(frozen=True)
class Resources:
    """What a network needs, or what there is.

    file_descriptors    of the process that holds the runtime: a hard limit
    tasks               processes and threads
    memory_bytes        for everything
    address_space_bytes of the largest process
    """

    file_descriptors: int
    tasks: int
    memory_bytes: int
    address_space_bytes: int


REMEDIES = {
    "file_descriptors": "raise the hard limit (ulimit -Hn) or run fewer blocks",
    "tasks": "raise the limit of processes (ulimit -u; in a container: --pids-limit) or end other processes",
    "memory_bytes": "use a machine or a container with more memory, or the engine lava-inline",
    "address_space_bytes": "raise the limit of address space (ulimit -v)",
}
REMEDY_OF_ERRNO = {
    errno.EMFILE: REMEDIES["file_descriptors"],
    errno.ENFILE: "this machine has too many files open: end other processes",
    errno.ENOMEM: REMEDIES["memory_bytes"],
    errno.EAGAIN: REMEDIES["tasks"],
}
REASON_OF_SIGNAL = {
    signal.SIGKILL: "; the kernel does that when memory runs out",
    signal.SIGBUS: "; memory that it shared could not be had",
}


def actors(groups: Sequence[Group], layout: RecordLayout) -> int:
    """How many operating system processes Lava starts: the feed, the groups, the recorders, Lava's own service."""
    recorders = -(-len(layout.names) // RECORDER_PORTS)
    return 1 + len(groups) + recorders + 1


def channels(plan: Plan, groups: Sequence[Group], layout: RecordLayout) -> list[int]:
    """Bytes of one message on each channel between actors, those for Lava's own commands apart."""
    senders = [name for group in groups for name in group.inputs] + list(layout.names)
    return [plan.tokens * plan[name].channels * ITEM_BYTES for name in senders]


def needed(plan: Plan, groups: Sequence[Group], layout: RecordLayout) -> Resources:
    """An estimate, rather too high than too low."""
    count, messages = actors(groups, layout), channels(plan, groups, layout)
    weights = weight_bytes(plan.specs, plan.tokens)
    return Resources(
        DESCRIPTORS_BESIDE + DESCRIPTORS_PER_ACTOR * count,
        TASKS_BESIDE + TASKS_PER_ACTOR * count + TASKS_PER_CHANNEL * len(messages),
        BYTES_BESIDE + ACTOR_BYTES * count + 3 * weights + CHANNEL_SLOTS * sum(messages),
        ADDRESS_BYTES + STACK_BYTES * (2 * count + len(messages)) + 3 * weights + CHANNEL_SLOTS * sum(messages),
    )


def available() -> Resources:
    """What this machine has now. Where nothing limits it, as much as anyone may want."""
    cgroups = left_in_cgroups(UNLIMITED)
    return Resources(
        _unless_infinite(resource.getrlimit(resource.RLIMIT_NOFILE)[1]),  # the child raises its soft limit
        min(cgroups.tasks, _left_of_user_tasks()),
        min(cgroups.memory_bytes, _memory_available()),
        _unless_infinite(resource.getrlimit(resource.RLIMIT_AS)[0]),
    )


def check_resources(plan: Plan, groups: Sequence[Group], layout: RecordLayout) -> int:
    """The soft limit of file descriptors to set. Raises ResourceError naming everything there is too little of."""
    want, have = needed(plan, groups, layout), available()
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


def remedy_for(error: Exception) -> str | None:
    """What to change where an error says that the machine has too little of something, else None."""
    if isinstance(error, OSError):
        return REMEDY_OF_ERRNO.get(error.errno or 0)
    if isinstance(error, MemoryError):
        return REMEDIES["memory_bytes"]
    return REMEDIES["tasks"] if str(error) == "can't start new thread" else None


@contextlib.contextmanager
def shortages_explained() -> Iterator[None]:
    """An error in this block that says so is raised again as a ResourceError that says what to change."""
    try:
        yield
    except (OSError, MemoryError) as error:
        remedy = remedy_for(error)
        if remedy is None:
            raise
        raise ResourceError(f"{error}: {remedy}") from error


def signal_text(number: int) -> str:
    """A signal in words, with what it may mean: "signal 9 (SIGKILL; the kernel does that when memory runs out)"."""
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
    return f"signal {number} ({name}{REASON_OF_SIGNAL.get(signal.Signals(number), '')})"


def _unless_infinite(limit: int) -> int:
    return UNLIMITED if limit == resource.RLIM_INFINITY else limit


def _left_of_user_tasks() -> int:
    """How many more this user may have by RLIMIT_NPROC, which does not bind root."""
    limit, user = _unless_infinite(resource.getrlimit(resource.RLIMIT_NPROC)[0]), os.getuid()
    if limit == UNLIMITED or user == 0:
        return UNLIMITED
    return max(0, limit - sum(_tasks_of(process, user) for process in Path("/proc").glob("[0-9]*")))


def _tasks_of(process: Path, user: int) -> int:
    try:
        return len(os.listdir(process / "task")) if process.stat().st_uid == user else 0
    except (FileNotFoundError, ProcessLookupError):  # it ended just now
        return 0


def _memory_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return UNLIMITED
