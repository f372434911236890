"""SimPy's event calendar, entered by absolute time, and read without a detour for our own events."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from typing import Any

import simpy
from simpy.core import StopSimulation
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

    def when_settled(self, callback: Callable[[], None]) -> bool:
        """As `servetwin.core.executor.Executor.when_settled`."""
        queue = self._queue
        if not queue:
            return False
        when, priority, _, _ = queue[0]
        now = self._now
        if when > now or priority > NORMAL:
            return False
        Timer(self, now, callback, LAST)
        return True

    def run(self, until: Any = None) -> Any:
        """As SimPy's. Without *until*, events of our own (`Moment`) are called without what SimPy does for those that
        somebody may wait for; all others go SimPy's way, and both come in the order of the calendar."""
        if until is not None:
            return super().run(until)
        queue = self._queue
        try:
            while queue:
                event = queue[0][3]
                if isinstance(event, Moment):
                    self._now = heappop(queue)[0]
                    event.fire()
                else:
                    self.step()
        except StopSimulation as stop:
            return stop.args[0]
        return None


#: Events with this priority come after all others of their instant.
LAST = EventPriority(NORMAL + 1)


class Moment(simpy.Event):
    """An event for which nobody waits: when its time comes, `fire` is called. It may be placed anew each time."""

    # Of the class, so that they need not be set for each: what SimPy looks at when it steps.
    _ok = True
    _value = None

    def __init__(self, calendar: Calendar) -> None:
        self.env: Calendar = calendar
        self.callbacks = FIRE

    def fire(self) -> None:
        """Its time has come."""
        raise NotImplementedError


def _nothing() -> None:
    """What a timer does that was cancelled."""


def _fire(event: Moment) -> None:
    event.callbacks = FIRE  # SimPy has taken them away
    event.fire()


#: SimPy calls these with the event: one list for all.
FIRE: list[Any] = [_fire]


class Timer(Moment):
    """One call at one time; `cancel` makes it do nothing. *priority* orders it among events at one time."""

    def __init__(
        self, calendar: Calendar, when: float, call: Callable[[], None], priority: EventPriority = NORMAL
    ) -> None:
        self.env = calendar
        self.callbacks = FIRE
        self.fire = call  # type: ignore[method-assign]  # what is to be done, without a step between
        heappush(calendar._queue, (when, priority, next(calendar._eid), self))

    def cancel(self) -> None:
        self.fire = _nothing  # type: ignore[method-assign]
