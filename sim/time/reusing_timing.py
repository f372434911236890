"""How long batches take of a worker that may take the network's last prediction again for some of their requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from servetwin.core import Batch, WorkerView

from .timing import Demand, Timing


class _Part:
    """A batch as if only *size* of its requests were in it."""

    def __init__(self, batch: Batch, size: int) -> None:
        self.tasks, self.size, self.whole = batch.tasks, size, batch.whole
        self.joiners, self.leaves, self.iterations = batch.joiners, batch.leaves, batch.iterations


class ReusingTiming:
    """As *inner* says, but for steps that reuse a prediction. The network runs for the rest of the batch alone, and
    takes as long as for a batch of that size; those that reuse it take *ratio* (by how many they are, index 0 unused)
    of what the network would take for them. Joins, leaves and what else is around a step take as long as ever."""

    def __init__(self, inner: Timing, ratio: Sequence[float]) -> None:
        self.inner, self.ratio = inner, ratio
        self.draw: Callable[[], float] | None = inner.draw
        self.plain, self.step = inner.plain, inner.step
        self.steady_until, self.pause, self.hand_over = inner.steady_until, inner.pause, inner.hand_over

    @property
    def view(self) -> WorkerView | None:
        return self.inner.view

    @view.setter
    def view(self, view: WorkerView | None) -> None:
        self.inner.view = view

    @property
    def settled(self) -> bool:
        return self.inner.settled

    def demand(self, batch: Batch, idle: float, now: float) -> Demand:
        reused = len(batch.reused)
        if not reused:
            return self.inner.demand(batch, idle, now)
        computed = batch.size - reused
        part: Any = _Part(batch, computed or reused)
        host, device, ahead = self.inner.demand(part, idle, now)
        host_step, device_step, _ = self.inner.step(reused, now)
        # Where nobody's is computed, the demand above has a step that does not take place.
        factor = self.ratio[reused] - (0.0 if computed else 1.0)
        return max(0.0, host + factor * host_step), max(0.0, device + factor * device_step), ahead
