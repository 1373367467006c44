"""A streaming engine for tests: the reference, with a pipeline that is one batch long."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from converters.execution import Execution, TokenBatch
from sim.reference import ReferenceEngine


class OneBehind(ReferenceEngine):
    """Gives the result of a batch when the next one has come in, or none is left.

    streams      how many streams were begun
    is_streaming whether one is under way
    """

    streams = 0
    is_streaming = False

    def stream(self, batches: Iterable[TokenBatch], observe: Collection[str]) -> Iterator[Execution]:
        self.streams += 1
        self.is_streaming = True
        held: Execution | None = None
        try:
            for batch in batches:
                entered = self.run(batch, observe)
                if held is not None:
                    yield held
                held = entered
            if held is not None:
                yield from self.drained(held)
        finally:
            self.is_streaming = False

    def drained(self, held: Execution) -> Iterator[Execution]:
        """What is left at the end."""
        return iter([held])
