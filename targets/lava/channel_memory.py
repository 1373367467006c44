"""Memory for Lava's channels that cannot be left behind, in place of Lava's own shared memory manager.

Lava makes a named segment in /dev/shm for each channel, held open by two descriptors, with a manager process beside.
Its actors inherit all memory when they are forked, so the name is never used: whoever dies, it is only left over, and a
/dev/shm that fills up kills actors in the midst of a step. Anonymous memory does the same without any of these.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Segment:
    """As much of a `multiprocessing.shared_memory.SharedMemory` as Lava's channels use."""

    buf: memoryview


class ChannelMemory:
    """Has the methods of Lava's `SharedMemoryManager`. The memory lives as long as a process that has it."""

    def start(self) -> None:
        """Nothing needs to be started."""

    def shutdown(self) -> None:
        """Nothing needs to be ended."""

    def create_shared_memory(self, size: int) -> Segment:
        """`size` bytes of zeros that this process shares with all that it forks from now on."""
        return Segment(memoryview(mmap.mmap(-1, size)))
