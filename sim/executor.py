"""The simulated executor: workers are lanes on shared devices, and a batch takes as long as was measured.

One calendar event per batch, none per request or iteration more than that; where a policy allows it (`Repeat`) a run
of iterations between two other events is one event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import simpy
from servetwin.core import BadInput, Batch, Request, Worker

from .calendar import Calendar, Timer


class Timing(Protocol):
    """How long the batches of one worker take on an otherwise idle device."""

    def seconds(self, batch: Batch) -> float:
        """Seconds for one run of *batch* as decided (one iteration, or whole), joins and leaves included."""

    def plain(self, size: int) -> float:
        """Seconds for one iteration of *size* requests in which nobody joins or leaves."""

    def noise(self) -> float:
        """The next factor on a batch's time; 1.0 if there is no noise."""


class Delay(Protocol):
    """How long a request is under way between two queues."""

    def __call__(self) -> float: ...


class Lane(simpy.Event):
    """A worker's place on its device. It is its own calendar event, placed anew for each batch."""

    def __init__(self, executor: SimExecutor, worker: Worker, timing: Timing) -> None:
        self.env: Calendar = executor.calendar
        self._ok = True
        self._value = None
        self._again: list[Callable[[Any], None]] = [self._fire]
        self.callbacks = self._again
        self.worker = worker
        self.timing = timing
        self.noise = timing.noise
        self.others: list[Lane] = []  # lanes of the same device that this one contends with
        self.drag: dict[Lane, float] = {}  # other lane -> how much longer this one takes while that one computes
        self.batch: Batch | None = None
        self.done: Callable[[Batch], None] | None = None
        self.due = -1.0
        self.pace = 1.0  # seconds that pass per second of undisturbed work
        self.updated = 0.0
        self.work = 0.0  # undisturbed seconds left at `updated`

    def run(self, batch: Batch, done: Callable[[Batch], None]) -> None:
        self.batch, self.done = batch, done
        start = self.env.now
        if self.others:
            self.pace = self._pace()
        work = self.timing.seconds(batch) * self.noise()
        end = start + work * self.pace
        if batch.times > 1:
            start, work, end = self._run_on(batch, start, work, end)
        elif batch.keep_ends:
            batch.ends = [end]
        self.updated, self.work = start, work
        self.due = end
        self.env.place(self, end)
        for other in self.others:
            other.disturbed()

    def _run_on(self, batch: Batch, start: float, work: float, end: float) -> tuple[float, float, float]:
        """Take further iterations of the same decision, as long as nothing else happens before they begin."""
        horizon: float = self.env.peek()
        repeat = batch.repeat
        assert repeat is not None
        limit, drift, times = repeat.limit, repeat.drift, batch.times
        plain, noise, pace = self.timing.plain(batch.size), self.noise, self.pace
        ends = [end]
        count = 1
        while count < times and end < horizon and end < limit + count * drift:
            start, work = end, plain * noise()
            end = start + work * pace
            count += 1
            if batch.keep_ends:
                ends.append(end)
        batch.count = count
        if batch.keep_ends:
            batch.ends = ends
        return start, work, end

    def _pace(self) -> float:
        pace = 1.0
        for other in self.others:
            if other.batch is not None:
                pace += self.drag[other]
        return pace

    def disturbed(self) -> None:
        """A neighbour on the device has begun or ended a batch."""
        if self.batch is None:
            return
        pace = self._pace()
        if pace == self.pace:
            return
        now = self.env.now
        self.work -= (now - self.updated) / self.pace
        self.updated, self.pace = now, pace
        self.due = now + max(self.work, 0.0) * pace
        if self.batch.ends:
            self.batch.ends[-1] = self.due
        self.env.place(self, self.due)

    def _fire(self, _: simpy.Event) -> None:
        self.callbacks = self._again
        batch, done = self.batch, self.done
        if batch is None or done is None or self.env.now != self.due:
            return  # placed before a neighbour disturbed it
        self.batch = None
        for other in self.others:
            other.disturbed()
        done(batch)


class SimExecutor:
    """Runs batches in simulated time. *timing* gives each worker its `Timing`.

    *drag* tells contention: for a pair (worker, other worker on the same device), how much longer the first takes
    while the second computes (0.3: 30 % longer); pairs that are not named do not disturb each other. *delays* holds
    the transport between two workers by name (None: the client); what is not named takes no time.
    """

    def __init__(
        self,
        timing: Callable[[Worker], Timing],
        *,
        drag: Mapping[tuple[str, str], float] | None = None,
        delays: Mapping[tuple[str | None, str], Delay] | None = None,
    ) -> None:
        self.calendar = Calendar()
        self._timing = timing
        self._drag = dict(drag or {})
        self._delays = dict(delays or {})
        self._lanes: dict[Worker, Lane] = {}

    def now(self) -> float:
        return self.calendar.now

    def run(self, worker: Worker, batch: Batch, done: Callable[[Batch], None]) -> None:
        lane = self._lanes.get(worker)
        if lane is None:
            lane = self._add_lane(worker)
        lane.run(batch, done)

    def send(self, source: Worker | None, target: Worker, request: Request, deliver: Callable[[], None]) -> None:
        delay = self._delays.get((source.name if source else None, target.name))
        seconds = delay() if delay is not None else 0.0
        if seconds > 0.0:
            Timer(self.calendar, self.calendar.now + seconds, deliver)
        else:
            deliver()

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        if when < self.calendar.now:
            raise BadInput(f"a call at {when:g} s, but it is {self.calendar.now:g} s already", right="a time to come")
        return Timer(self.calendar, when, callback)

    def run_until_idle(self) -> None:
        """Let time pass until nothing is left to happen."""
        self.calendar.run()

    def _add_lane(self, worker: Worker) -> Lane:
        lane = self._lanes[worker] = Lane(self, worker, self._timing(worker))
        for other in self._lanes.values():
            if other.worker.device != worker.device or other is lane:
                continue
            for a, b in ((lane, other), (other, lane)):
                drag = self._drag.get((a.worker.name, b.worker.name), 0.0)
                back = self._drag.get((b.worker.name, a.worker.name), 0.0)
                if drag or back:
                    a.others.append(b)
                    a.drag[b] = drag
        return lane
