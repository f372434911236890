"""The executor of a serving loop that another engine drives step by step: it keeps what is to run, and the timers."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from servetwin.core import Batch, Task, Worker


class Alarm:
    """A call that is still to come."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class StepExecutor:
    """Holds the one *batch* that is in flight, until whoever runs its steps says that they are over (`step`). *clock*
    gives seconds; the run begins with zero."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.zero = clock, clock()
        self.batch: Batch | None = None
        self._done: Callable[[Batch], None] | None = None
        self._steps = 0
        self._alarms: list[tuple[float, int, Alarm]] = []
        self._number = itertools.count()
        self._settling: list[Callable[[], None]] = []

    # -- what the loop calls ---------------------------------------------------------------------------------

    def now(self) -> float:
        return self.clock() - self.zero

    def run(self, worker: Worker, batch: Batch, done: Callable[[Batch], None]) -> None:
        self.batch, self._done, self._steps = batch, done, 0

    def send(self, source: Worker | None, task: Task, deliver: Callable[[Task], None]) -> None:
        deliver(task)

    def call_at(self, when: float, callback: Callable[[], None]) -> Alarm:
        alarm = Alarm(callback)
        heapq.heappush(self._alarms, (when, next(self._number), alarm))
        return alarm

    def when_settled(self, callback: Callable[[], None]) -> bool:
        self._settling.append(callback)  # the engine asks when it is free: all that came meanwhile is there then
        return True

    # -- what the engine's scheduler calls -------------------------------------------------------------------

    def settle(self) -> None:
        """Make the calls that are due, until there are none."""
        while True:
            if self._settling:
                self._settling.pop(0)()
            elif self._alarms and self._alarms[0][0] <= self.now():
                callback = heapq.heappop(self._alarms)[2].callback
                if callback is not None:
                    callback()
            else:
                return

    def step(self) -> None:
        """A step of the batch in flight is over."""
        assert self.batch is not None
        self._steps += 1
        if self._steps >= self.batch.iterations:
            self.end()

    def end(self) -> None:
        """The batch in flight is over."""
        batch, done = self.batch, self._done
        assert batch is not None
        assert done is not None
        self.batch = self._done = None
        done(batch)
