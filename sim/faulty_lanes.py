"""Lanes of workers that may fail, slow down and stand still. Until that happens they keep the times of the lanes that
they are made of, to the bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf

from servetwin.core import Batch, Worker
from servetwin.core.llm.batch import TokenBatch
from servetwin.core.llm.serving.worker import Host

from .batch_lane import COMPUTING, DRAINING, NOTHING, Lane
from .llm.async_lane import AheadLane, Done
from .llm.lane import TokenLane, TokenTiming
from .time.calendar import Calendar, Timer
from .time.timing import Timing


class FaultyLane(Lane):
    """A worker with one batch in flight."""

    def __init__(self, calendar: Calendar, worker: Worker, timing: Timing) -> None:
        super().__init__(calendar, worker, timing)
        self.factor = 1.0
        self.stood_at: float | None = None  # since when it stands still
        self.left = 0.0  # of its phase then, where that goes by time alone
        self.began = 0.0  # when the iteration in hand began

    def _begin(self, batch: Batch, idle: float) -> None:
        self.began = self.updated
        super()._begin(batch, idle)

    def _run_on(self, batch: Batch, took: float) -> None:
        super()._run_on(batch, took)
        self.began = self.updated

    def _rates_now(self) -> tuple[float, float]:
        host, device = super()._rates_now()
        return host / self.factor, device / self.factor

    def disturbed(self) -> None:
        if self.stood_at is None:
            super().disturbed()

    def abort(self) -> float:
        """Forget what is in hand; gives when the iteration that computes began (now, if none does)."""
        now = self.env.now
        began = self.began if self.phase != NOTHING else now
        self.phase, self.due, self.stood_at = NOTHING, -1.0, None
        self.host = self.device = self.ahead = self.pause = 0.0
        self.updated = max(now, self.updated)
        if self.busy:
            self._rest()
        return began

    def set_slowdown(self, factor: float) -> None:
        """All takes *factor* times as long from now on; infinite: it stands still."""
        if factor == inf:
            self._stand()
            return
        self.factor = factor
        self.known.clear()
        if self.stood_at is not None:
            self._go_on()
        elif self.busy:
            self.disturbed()

    def _stand(self) -> None:
        now = self.stood_at = self.env.now
        if self.phase == NOTHING:
            return
        if self.phase in (COMPUTING, DRAINING):
            self._pass_time(now)
        self.left, self.due = self.due - now, -1.0
        if self.busy:
            self._rest()

    def _go_on(self) -> None:
        self.stood_at, self.updated = None, self.env.now
        if self.phase == NOTHING:
            return
        self.busy = True
        self._resized(self.size)
        if self.phase == COMPUTING:
            self._place(max(self._computing(), 0.0))
        elif self.phase == DRAINING:
            self._place(self.device / self.device_rate)
        else:
            self._place(self.left)


class FaultyTokenLane(TokenLane):
    """An engine that decides a step when the last is over. Its steps are calls on the calendar."""

    def __init__(self, calendar: Calendar, timing: TokenTiming) -> None:
        super().__init__(calendar, timing)
        self.factor = 1.0
        self.start = 0.0  # of the step in hand
        self.left = 0.0  # of it, when the engine began to stand still
        self.timer: Timer | None = None

    def run(self, batch: TokenBatch, done: Callable[[TokenBatch], None]) -> None:
        if self.factor != 1.0:
            batch.times = 1
        before: float = self.env.now
        self.start = max(self.ready, before)
        self.firing = True  # it is not placed there
        super().run(batch, done)
        self.firing = False
        if batch.count > 1:
            self.start = self.end - batch.took
        elif self.factor != 1.0:
            self._ends_at(self.start + (self.end - self.start) * self.factor)
        self.timer = Timer(self.env, self.end, self._end)

    def _ends_at(self, end: float) -> None:
        later = end - self.end
        self.end, self.ready = end, self.ready + later
        self.batch.took += later

    def _end(self) -> None:
        batch, self.batch, self.timer = self.batch, None, None
        if batch.ends:
            batch.ends[-1] = self.end
        self.done(batch)

    def abort(self) -> float:
        """As `FaultyLane.abort`."""
        now: float = self.env.now
        if self.timer is not None:
            self.timer.cancel()
        began = self.start if self.batch is not None else now
        self.batch = self.timer = None
        self.left, self.ready = 0.0, now
        return began

    def set_slowdown(self, factor: float) -> None:
        """As `FaultyLane.set_slowdown`."""
        now: float = self.env.now
        if factor == inf:
            if self.timer is not None:
                self.timer.cancel()
                self.timer, self.left = None, self.end - now
            return
        before, self.factor = self.factor, factor
        if self.batch is None:
            return
        if self.timer is not None:
            self.timer.cancel()
            self.left = self.end - now
        waits = max(0.0, self.start - now) if self.timer is not None else 0.0
        self._ends_at(now + waits + (self.left - waits) * (factor / before))
        self.timer = Timer(self.env, self.end, self._end)


class FaultyAheadLane(AheadLane):
    """An engine that decides ahead."""

    def __init__(self, calendar: Calendar, timing: TokenTiming, host: Host) -> None:
        super().__init__(calendar, timing, host)
        self.factor = 1.0
        self.stood_at: float | None = None
        #: Of each step in hand: from when to when it computes, and when the host has launched it far enough for that.
        self.spans: deque[tuple[float, float, float]] = deque()

    def run(self, batch: TokenBatch, done: Done) -> None:
        before = self.last
        super().run(batch, done)
        ready = batch.start  # then, or sooner if the step waits for the one before
        if batch.start <= before:
            ready = min(self.calendar.now + self.host.beginning(batch), batch.start)
        if self.factor != 1.0:
            self.last = batch.start + (self.last - batch.start) * self.factor
            self._steps[-1][2].cancel()
            self._steps[-1] = batch, done, Timer(self.calendar, self.last, self._end)
        self.spans.append((batch.start, self.last, ready))

    def _end(self) -> None:
        self.spans.popleft()
        super()._end()

    def abort(self) -> float:
        """As `FaultyLane.abort`."""
        began = self.spans[0][0] if self.spans else self.calendar.now
        for _, _, timer in self._steps:
            timer.cancel()
        self._steps.clear()
        self.spans.clear()
        self.last, self.stood_at = self.calendar.now, None
        return began

    def set_slowdown(self, factor: float) -> None:
        """As `FaultyLane.set_slowdown`."""
        now = self.calendar.now
        if factor == inf:
            self.stood_at = now
            for _, _, timer in self._steps:
                timer.cancel()
            return
        since = now if self.stood_at is None else self.stood_at
        ratio, self.factor, self.stood_at = factor / self.factor, factor, None
        self._again(since, now - since, ratio)

    def _again(self, since: float, shift: float, ratio: float) -> None:
        """What was to be computed after *since* takes *ratio* times as long, and is all *shift* seconds later."""
        free = since  # when the device has done what comes before
        for place, ((start, end, ready), (batch, done, timer)) in enumerate(
            zip(self.spans, self._steps, strict=True)
        ):
            timer.cancel()
            if start > since:
                begins = max(ready, free)
                free = begins + (end - start) * ratio
                start = batch.start = begins + shift
                ready += shift
            else:
                free = since + (end - since) * ratio
            self.last = free + shift
            self.spans[place] = start, self.last, ready
            self._steps[place] = batch, done, Timer(self.calendar, self.last, self._end)
