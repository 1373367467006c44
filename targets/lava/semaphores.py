"""Semaphores without a name, in place of Python's named ones: a process that dies while it makes one leaves nothing.

Python makes a semaphore as a file in /dev/shm and removes the file at once; whoever is killed in between leaves it, and
glibc's own temporary name with it. Lava's actors inherit their semaphores when they are forked, so a name is never
used: POSIX's unnamed semaphores (`sem_init`, `pshared`), in memory that the forks share, do the same without any file.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from _multiprocessing import SemLock

SLOT_BYTES = 64  # a cache line; glibc's and musl's `sem_t` have 32 bytes or fewer


class UnnamedSemaphores:
    """Makes semaphores that this process shares with all that it forks from now on. They live as long as it."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._pages: list[mmap.mmap] = []
        self._free: list[int] = []  # addresses

    def make(self, kind: int, value: int, maxvalue: int, name: str, unlink: bool) -> SemLock:
        """As `_multiprocessing.SemLock(...)`, the name apart. Raises OSError where there is no memory."""
        del name, unlink  # of the file that there is not
        if not self._free:
            page = mmap.mmap(-1, mmap.PAGESIZE)
            self._pages.append(page)
            start = ctypes.addressof(ctypes.c_char.from_buffer(page))
            self._free = list(range(start, start + mmap.PAGESIZE, SLOT_BYTES))
        address = self._free.pop()
        if self._libc.sem_init(ctypes.c_void_p(address), 1, ctypes.c_uint(value)) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return SemLock._rebuild(address, kind, maxvalue, None)
