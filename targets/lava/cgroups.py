"""What the control groups of this process leave it: limits of a container, of which /proc/meminfo knows nothing.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst, and cgroup-v1/memory.rst and pids.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PIDS = ("pids.max", "pids.current")  # of both versions
MEMORY_OF_VERSION = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}
CACHE = ("inactive_file", "active_file")  # bytes in memory.stat that the kernel takes back when memory runs short


@dataclass(frozen=True)
class Left:
    """The least that any group above this process leaves; `otherwise` where nothing limits it.

    memory_bytes counting the cache of files as free
    tasks        processes and threads
    """

    memory_bytes: int
    tasks: int


def left_in_cgroups(otherwise: int, proc: Path = Path("/proc/self")) -> Left:
    """What is left in the groups of versions 1 and 2 that this process is in, up to the topmost one it can see."""
    left = Left(otherwise, otherwise)
    for version, folder in _folders(proc):
        memory = _left(folder, *MEMORY_OF_VERSION[version], _cache_bytes(folder))
        tasks = _left(folder, *PIDS, 0)
        left = Left(
            left.memory_bytes if memory is None else min(left.memory_bytes, memory),
            left.tasks if tasks is None else min(left.tasks, tasks),
        )
    return left


def _folders(proc: Path) -> Iterator[tuple[int, Path]]:
    """Version and folder of each group that this process is in, and of those above it."""
    lines = (proc / "cgroup").read_text().splitlines()
    groups = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    for line in (proc / "mountinfo").read_text().splitlines():
        place, _, source = line.partition(" - ")
        root, mounted = place.split()[3:5]
        kind, _, options = source.split()[:3]
        for controllers, path in groups.items():  # of version 2 there is one group, without controllers
            if kind == ("cgroup" if controllers else "cgroup2") and controllers in options:
                inside = Path(path).relative_to(root) if Path(path).is_relative_to(root) else Path()
                for part in (inside, *inside.parents):
                    yield (1 if controllers else 2), Path(mounted) / part


def _left(folder: Path, limit_name: str, used_name: str, returned: int) -> int | None:
    try:
        limit = (folder / limit_name).read_text().strip()
        used = int((folder / used_name).read_text())
    except (OSError, ValueError):  # this group does not limit it, as the topmost one of a machine
        return None
    return None if limit == "max" else max(0, int(limit) - used + returned)


def _cache_bytes(folder: Path) -> int:
    """`total_`: version 1, where a group's own numbers leave out those of the groups below."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    counts = {name: int(value) for name, value in (line.split() for line in lines)}
    return sum(counts.get(f"total_{name}", counts.get(name, 0)) for name in CACHE)
