"""Memory with one row of int32 per time_step, shared between the host and Lava's operating system processes.

An anonymous file (`memfd_create`, Linux): it has no name, so nothing can be left behind, and every process that
inherits its descriptor sees the same bytes. The host feeds spikes through one and reads records from another.
"""

from __future__ import annotations

import mmap
import os
import weakref

import numpy as np

HEADER_BYTES = 4096  # one page: int64 first_step, int64 steps, int64 reached
ITEM_BYTES = 4


class StepFile:
    """Rows int32 [steps, width] for time_steps `first_step .. first_step + steps - 1`.

    fd    descriptor of the memory, closed by `close`, or when this object is collected
    width values of a row
    """

    def __init__(self, fd: int, width: int) -> None:
        self.fd, self.width = fd, width
        self._close_fd = weakref.finalize(self, os.close, fd)
        self._header = np.frombuffer(mmap.mmap(fd, HEADER_BYTES), dtype=np.int64, count=3)
        self._span = (0, 0)
        self._rows = np.zeros((0, width), dtype=np.int32)

    @classmethod
    def create(cls, width: int) -> StepFile:
        """An empty one."""
        fd = os.memfd_create("spikebert-steps", os.MFD_CLOEXEC)
        os.ftruncate(fd, HEADER_BYTES)
        return cls(fd, width)

    def begin(self, first_step: int, steps: int) -> None:
        """Make room for rows of zeros. Only while the network stands still."""
        os.ftruncate(self.fd, HEADER_BYTES)  # forget what was there: new pages hold zeros
        os.ftruncate(self.fd, HEADER_BYTES + steps * self.width * ITEM_BYTES)
        self._header[:2] = first_step, steps

    @property
    def rows(self) -> np.ndarray:
        """All rows, int32 [steps, width], a view that writes through."""
        span = int(self._header[0]), int(self._header[1])
        if span != self._span:
            self._rows = self._map(span[1])
            self._span = span
        return self._rows

    def _map(self, steps: int) -> np.ndarray:
        count = steps * self.width
        if count == 0:
            return np.zeros((steps, self.width), dtype=np.int32)
        view = mmap.mmap(self.fd, HEADER_BYTES + count * ITEM_BYTES)
        return np.frombuffer(view, dtype=np.int32, count=count, offset=HEADER_BYTES).reshape(steps, self.width)

    def row(self, time_step: int) -> np.ndarray:
        """The row of one time_step, int32 [width]. Raises IndexError where none was begun for it."""
        first_step, steps = int(self._header[0]), int(self._header[1])
        if not first_step <= time_step < first_step + steps:
            raise IndexError(f"time_step {time_step} has no row, there are rows from {first_step} for {steps} steps")
        self._header[2] = time_step
        return self.rows[time_step - first_step]

    @property
    def reached(self) -> int:
        """The time_step whose row was asked for last, in any process; 0 before the first. Tells that steps go on."""
        return int(self._header[2])

    def close(self) -> None:
        """Give the memory back; views of its rows keep it until they go. May be called twice."""
        if self.fd >= 0:
            self._header, self._span = np.zeros(3, dtype=np.int64), (0, 0)  # a mapping holds a descriptor of its own
            self._rows = np.zeros((0, self.width), dtype=np.int32)
            self._close_fd()
            self.fd = -1
