"""A group of devices in simulation: batches run at once, each as long as was measured on so many devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from servetwin.core import Batch

from .time.calendar import Calendar, Timer
from .time.timing import Timing


class GroupLane:
    """Runs the batches of a group. *timings* are by degree, *change* are the seconds that a batch takes longer before
    which one of its requests changes devices. Batches on other devices of the group do not disturb each other."""

    def __init__(self, calendar: Calendar, timings: Mapping[int, Timing], change: float) -> None:
        self.calendar, self.timings, self.change = calendar, timings, change

    def run(self, batch: Batch, done: Callable[[Batch], None]) -> None:
        """Compute *batch*; call *done* when it has ended."""
        now = self.calendar.now
        _, seconds, _ = self.timings[len(batch.devices)].demand(batch, 0.0, now)
        if batch.changed:
            seconds += self.change
        Timer(self.calendar, now + seconds, partial(done, batch))
