"""SimPy's event calendar, entered by absolute time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from heapq import heappush
from typing import Any

import simpy
from simpy.events import NORMAL, EventPriority


class Calendar(simpy.Environment):
    """A SimPy environment whose events can be placed at a time instead of after a delay.

    ``now + (when - now)`` is not always *when* in floating point, and recorded times must be the ones asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        #: Tells the time. Asked several times per event, so it is spared the way through a property.
        self.clock: Callable[[], float] = partial(getattr, self, "_now")

    def place(self, event: simpy.Event, when: float) -> None:
        """Let *event* happen at *when* (seconds since the run began), after what was placed there before."""
        heappush(self._queue, (when, NORMAL, next(self._eid), event))


#: Events with this priority come after all others of their instant.
LAST = EventPriority(NORMAL + 1)


class Timer(simpy.Event):
    """One call at one time; `cancel` makes it do nothing. *priority* orders it among events at one time."""

    def __init__(
        self, calendar: Calendar, when: float, call: Callable[[], None], priority: EventPriority = NORMAL
    ) -> None:
        self.env = calendar
        self.callbacks = RING
        self._value = None
        self._ok = True
        self._call: Callable[[], None] | None = call
        heappush(calendar._queue, (when, priority, next(calendar._eid), self))

    def ring(self) -> None:
        if self._call is not None:
            self._call()

    def cancel(self) -> None:
        self._call = None


#: SimPy calls these with the event: one list for all timers.
RING: list[Any] = [Timer.ring]
