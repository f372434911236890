"""SimPy's event calendar, entered by absolute time, and read without a detour for our own events."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from typing import Any

import simpy
from simpy.core import StopSimulation
from simpy.events import NORMAL, EventPriority

#: Later than any event.
NEVER = float("inf")


class Calendar(simpy.Environment):
    """A SimPy environment whose events can be placed at a time instead of after a delay.

    ``now + (when - now)`` is not always *when* in floating point, and recorded times must be the ones asked for.

    *now* is the time in seconds since the run began. ``place(event, when)`` lets an event happen at that time, after
    what was placed there before; ``clock()`` tells the time. Nobody but this module touches what SimPy keeps for
    itself.
    """

    # SimPy's own field in a slot, so that it can be read under a public name without the way through a property.
    __slots__ = ("_now",)

    now: float

    def __init__(self) -> None:
        super().__init__()
        self.clock: Callable[[], float] = partial(getattr, self, "_now")
        self.place = self._placing()

    def _placing(self) -> Callable[[simpy.Event, float], None]:
        """`place`, as a function that has all it needs at hand: it is called for each event."""
        queue, number, push, priority = self._queue, self._eid.__next__, heappush, NORMAL

        def place(event: simpy.Event, when: float) -> None:
            push(queue, (when, priority, number(), event))

        return place

    def next_time(self) -> float:
        """When the next event happens; infinite if there is none."""
        queue = self._queue
        return queue[0][0] if queue else NEVER

    def next_time_besides(self, kind: type) -> float:
        """When the next event happens that is not of that *kind*; infinite if there is none."""
        return min([entry[0] for entry in self._queue if not isinstance(entry[3], kind)], default=NEVER)

    def next_time_after(self, first: object) -> float | None:
        """When something happens after *first*, an event, if that is what happens next; infinite if nothing does."""
        queue = self._queue
        if not queue or queue[0][3] is not first:
            return None
        return min([entry[0] for entry in queue[1:3]], default=NEVER)

    def take_first(self, event: object) -> None:
        """Take *event*, which is what happens next, off the calendar."""
        assert heappop(self._queue)[3] is event

    def pass_to(self, when: float) -> bool:
        """Let time go on to *when*, if nothing happens before or then; whether it did."""
        queue = self._queue
        if queue and queue[0][0] <= when:
            return False
        self._now = when
        return True

    def take_out(self, *events: object) -> bool:
        """Take *events* (None: no event) off the calendar if nothing else stands there; whether that was so."""
        queue, these = self._queue, [event for event in events if event is not None]
        if len(queue) != len(these) or any(entry[3] not in these for entry in queue):
            return False
        queue.clear()
        return True

    def set_time(self, now: float) -> None:
        """It is *now*, for one who has taken everything off the calendar and lets time pass himself."""
        self._now = now

    def when_settled(self, callback: Callable[[], None]) -> bool:
        """As `servetwin.core.serving.executor.Executor.when_settled`."""
        queue = self._queue
        if not queue:
            return False
        when, priority, _, _ = queue[0]
        if when > self._now or priority > NORMAL:
            return False
        Timer(self, self._now, callback, last=True)
        return True

    def run(self, until: Any = None) -> Any:
        """As SimPy's. Without *until*, events of our own (`Moment`) are called without what SimPy does for those that
        somebody may wait for; all others go SimPy's way, and both come in the order of the calendar."""
        if until is not None:
            return super().run(until)
        queue = self._queue
        try:
            while queue:
                entry = heappop(queue)
                event = entry[3]
                if isinstance(event, Moment):
                    self._now = entry[0]
                    event.fire()
                else:
                    heappush(queue, entry)
                    self.step()
        except StopSimulation as stop:
            return stop.args[0]
        return None


Calendar.now = Calendar._now  # type: ignore[misc]  # the slot's descriptor, under its public name

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
    """One call at one time; `cancel` makes it do nothing. With *last* it comes after all others of its instant."""

    def __init__(self, calendar: Calendar, when: float, call: Callable[[], None], last: bool = False) -> None:
        self.env = calendar
        self.callbacks = FIRE
        self.fire = call  # type: ignore[method-assign]  # what is to be done, without a step between
        heappush(calendar._queue, (when, LAST if last else NORMAL, next(calendar._eid), self))

    def cancel(self) -> None:
        self.fire = _nothing  # type: ignore[method-assign]
