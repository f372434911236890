"""Timings that need no profile: constant and random service, for tests and for queueing theory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from servetwin.core import Batch


@dataclass
class TableTiming:
    """Times from lists by batch size (index 0 unused), in seconds.

    *iteration* holds the loop's (or, without a loop, the whole stage's); *once* what a request's other modules of the
    stage take for a whole batch; *draw*, if given, gives a factor for each iteration.
    """

    iteration: Sequence[float]
    once: Sequence[float] | None = None
    draw: Callable[[], float] | None = None

    def seconds(self, batch: Batch) -> float:
        once = self.once[batch.size] if self.once is not None and batch.leaves else 0.0
        return batch.iterations * self.iteration[batch.size] + once

    def plain(self, size: int) -> float:
        return self.iteration[size]

    def noise(self) -> float:
        return self.draw() if self.draw is not None else 1.0
