"""Memory that is used again and again: a run allocates nothing large once it has seen a batch of that size."""

from __future__ import annotations

import math

import numpy as np

from sim.fast.vectors import aligned


class Buffers:
    """Arrays to borrow and to give back; those given back are lent again."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        self._lent: dict[int, tuple[np.ndarray, int]] = {}  # id of an array -> its room, and who still uses it

    def take(self, shape: tuple[int, ...], dtype: type, users: int = 1) -> np.ndarray:
        """An array that `users` will give back, one by one. It holds whatever was there before."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        fitting = [place for place, room in enumerate(self._free) if room.nbytes >= size]
        if fitting:
            room = self._free.pop(min(fitting, key=lambda place: self._free[place].nbytes))
        else:
            if self._free:  # the largest is too small: a larger one takes its place
                self._free.pop(max(range(len(self._free)), key=lambda place: self._free[place].nbytes))
            room = aligned((max(1, size),), np.uint8)
        array: np.ndarray = room[:size].view(dtype).reshape(shape)
        self._lent[id(array)] = room, users
        return array

    def give(self, array: np.ndarray) -> None:
        """One user of what `take` gave needs it no more."""
        room, users = self._lent.pop(id(array))
        if users > 1:
            self._lent[id(array)] = room, users - 1
        else:
            self._free.append(room)
