"""A worker's place on a simulated device: computes its batches, disturbs its neighbours and is disturbed by them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from servetwin.core import Batch, Worker

from .time.calendar import Calendar, Moment
from .time.timing import Timing

#: At which rate a lane's host and device work get on while neighbours are busy; a list goes by the batch size of the
#: one of them that runs a loop (or else ends the pipeline; index 0: idle), a list of lists then by that of the next.
Rate = float | Sequence[float] | Sequence[Sequence[float]]
Rates = tuple[Rate, Rate]


#: The phases of a batch on its lane.
NOTHING, COMPUTING, DRAINING, HANDING_OVER, PAUSING = range(5)


def _at(rate: Rate, size: int, other: int) -> float:
    if isinstance(rate, float):
        return rate
    found = rate[min(size, len(rate) - 1)]
    return found if isinstance(found, float) else found[min(other, len(found) - 1)]


def _rank(lane: Lane) -> tuple[bool, bool]:
    return lane.rank


class Lane(Moment):
    """Runs one batch at a time, and is its own calendar event, placed anew for each.

    A batch goes through three phases: *computing* (until the host is done and the device nearly so), then, if
    requests leave, *draining* (the device catches up: what they leave with must be computed) and *handing over*.
    Where launching what follows the leavers keeps the host busy, the next batch begins with *pausing*, while the
    device is its neighbours' alone. While a neighbour on the device is busy, this lane's host and device work pass
    more slowly: by the rates in *rates*. Where several are busy at once the rates multiply, unless *together* has
    what was measured of just these.
    """

    def __init__(self, calendar: Calendar, worker: Worker, timing: Timing) -> None:
        super().__init__(calendar)
        self.place = calendar.place
        self.worker = worker
        self.timing = timing
        timing.view = worker.view
        self.draw = timing.draw
        self.rates: dict[Lane, Rates] = {}  # neighbour -> (host, device) rates while it is busy
        self.together: dict[frozenset[Lane], Rates] = {}  # the same for several that are all busy
        self.known: dict[tuple[int, ...], tuple[float, float]] = {}  # what `_rates` has found
        self.rank = (worker.stage.loop is not None, not worker.stage.next)  # by whose batch rates go first
        self.by_size = False  # whether rates here or at a neighbour depend on this lane's batch size
        self.size = 0  # of the batch in hand, or the last one
        self.busy = False
        self.batch: Batch  # in hand, or the last one
        self.done: Callable[[Batch], None]
        self.phase = NOTHING  # what ends at `due`
        self.took = 0.0
        self.due = -1.0
        self.updated = 0.0  # when the amounts below were true
        self.host = 0.0  # host seconds left of this iteration
        self.device = 0.0  # device seconds outstanding
        self.ahead = 0.0
        self.pause = 0.0  # seconds for which the host is still busy with those that have left
        self.host_rate = 1.0
        self.device_rate = 1.0

    def run(self, batch: Batch, done: Callable[[Batch], None]) -> None:
        """Compute *batch*; call *done* when it has ended and what leaves has been handed over."""
        self.batch, self.done = batch, done
        idle = 0.0
        if not self.busy:
            now = self.env.now
            idle = now - self.updated
            if idle > 0.0:
                self._pass_time(now)
            self.busy = True
            self._resized(batch.size)
        elif self.pause > 0.0:
            self._rest()
            self.phase = PAUSING
            self._place(self.pause)
            return
        elif self.by_size and batch.size != self.size:
            self._resized(batch.size)
        self._begin(batch, idle)

    def _begin(self, batch: Batch, idle: float) -> None:
        host, device, self.ahead = self.timing.demand(batch, idle, self.updated)
        if self.draw is not None:
            factor = self.draw()
            host, device = host * factor, device * factor
        self.host = host
        self.device += device
        self.phase = COMPUTING
        if batch.times > 1 and self.timing.settled:
            self._run_on(batch, self._computing())
        elif batch.keep_ends:
            batch.ends = [0.0]
        # As _place(_computing()) would, without the calls: this happens at every iteration.
        took = (self.device - self.ahead) / self.device_rate
        host = self.host / self.host_rate
        if took < host:
            took = host
        self.took = took
        self.due = due = self.updated + took
        self.place(self, due)

    def _resized(self, size: int) -> None:
        """This lane begins to compute, or goes on with another batch size."""
        self.size = size
        self.host_rate, self.device_rate = self._rates()
        for neighbour in self.rates:
            if neighbour.busy:
                neighbour.disturbed()

    def _computing(self) -> float:
        """Seconds until the worker can tell that the iteration is over."""
        device = (self.device - self.ahead) / self.device_rate
        host = self.host / self.host_rate
        return device if device > host else host

    def _goes_on(self, batch: Batch) -> bool:
        """Take further iterations of *batch*, one of which has just ended, if what had come between concerns others
        only: its policy would decide the same again. Whether there were any. (A recorder hears of runs as they were
        first taken.)"""
        if batch.keep_ends or not self.timing.settled or self.worker.policy.ahead:
            return False
        before = batch.count
        self._run_on(batch, 0.0)
        if batch.count == before:
            return False
        self._place(self._computing())
        return True

    def _run_on(self, batch: Batch, took: float) -> None:
        """Take further iterations of the same decision, as long as nothing else happens before they begin. The one
        that has begun ends when it has *took* so long from `updated` on."""
        horizon = self.env.next_time()
        repeat = batch.repeat
        assert repeat is not None
        limit, drift, times, last = repeat.limit, repeat.drift, batch.times, batch.last
        timing, draw, host_rate, device_rate = self.timing, self.draw, self.host_rate, self.device_rate
        keep_ends = batch.keep_ends
        ends = []
        start, left = self.updated, self.device
        stop = horizon if drift else min(horizon, limit)
        count = batch.count
        same_until = changes = -math.inf
        while count < times:
            end = start + took
            if end >= stop or (drift and end >= limit + count * drift):
                break
            if keep_ends:
                ends.append(end)
            start = end
            count += 1
            if start < same_until and count < last:
                continue
            if start >= changes or count == last:
                leaves = [task.left for task in batch.tasks].count(last) if count == last else 0
                host, device, ahead = timing.plain(batch.size, start, leaves)
                changes = timing.steady_until() if not leaves else start
                batch.leaves, self.ahead = leaves, ahead
            before = (left, took)
            left -= took * device_rate
            if left < 0.0:
                left = 0.0
            if draw is None:
                left += device
                self.host = host
            else:
                factor = draw()
                left += device * factor
                self.host = host * factor
            took = (left - ahead) / device_rate
            if took < self.host / host_rate:
                took = self.host / host_rate
            # Once an iteration leaves things as it found them, so do those that follow.
            same_until = changes if draw is None and (left, took) == before else -math.inf
        self.updated, self.device = start, left
        batch.count = count
        if keep_ends:
            batch.ends = [*ends, 0.0]

    def disturbed(self) -> None:
        """A neighbour on the device has become busy or idle, or goes on with another batch size."""
        rates = self._rates()
        if rates == (self.host_rate, self.device_rate):
            return
        now = self.env.now
        self._pass_time(now)
        self.host_rate, self.device_rate = rates
        if self.phase == COMPUTING:
            self._place(max(self._computing(), 0.0))
        elif self.phase == DRAINING:
            self._place(self.device / self.device_rate)

    def _rates(self) -> tuple[float, float]:
        """The rates of host and device, by who is busy and the sizes of the batches."""
        key = (self.size, *[neighbour.size if neighbour.busy else 0 for neighbour in self.rates])
        rates = self.known.get(key)
        if rates is None:
            rates = self.known[key] = self._rates_now()
        return rates

    def _rates_now(self) -> tuple[float, float]:
        if self.together:
            busy = frozenset([neighbour for neighbour in self.rates if neighbour.busy])
            rates = self.together.get(busy)
            if rates is not None:
                first, second = sorted((self, *busy), key=_rank, reverse=True)[:2]
                return _at(rates[0], first.size, second.size), _at(rates[1], first.size, second.size)
        host = device = 1.0
        for neighbour, (host_rate, device_rate) in self.rates.items():
            if neighbour.busy:
                first, second = (self, neighbour) if self.rank >= neighbour.rank else (neighbour, self)
                host *= _at(host_rate, first.size, second.size)
                device *= _at(device_rate, first.size, second.size)
        return host, device

    def _pass_time(self, now: float) -> None:
        """Bring the amounts of work left up to date; transfer and idling leave the device computing."""
        if now > self.updated:
            self._get_on(now - self.updated)
            self.updated = now

    def _get_on(self, seconds: float) -> None:
        host = self.host - seconds * self.host_rate
        self.host = host if host > 0.0 else 0.0
        device = self.device - seconds * self.device_rate
        self.device = device if device > 0.0 else 0.0

    def _place(self, seconds: float) -> None:
        """Let the phase end after *seconds* from `updated`."""
        self.took = seconds
        self.due = self.updated + seconds
        self.env.place(self, self.due)

    def fire(self) -> None:
        """The calendar has come to this lane: a phase of its batch ends, unless a neighbour has moved that since."""
        phase, now = self.phase, self.due
        if now != self.env.now or phase == NOTHING:
            return  # placed before a neighbour disturbed it
        batch, done = self.batch, self.done
        # By what was asked for, not by the clock: the two differ by rounding, and iterations taken together must end
        # at the same times, to the bit, as iterations taken one by one.
        host = self.host - self.took * self.host_rate  # as _get_on would, without the call
        self.host = host if host > 0.0 else 0.0
        device = self.device - self.took * self.device_rate
        self.device = device if device > 0.0 else 0.0
        self.updated = now
        if phase == COMPUTING and batch.count < batch.times and self._goes_on(batch):
            return
        self.phase = NOTHING
        if phase == PAUSING:
            self.busy = True
            self._resized(batch.size)
            self._begin(batch, 0.0)
            return
        if batch.leaves and phase != HANDING_OVER:
            if phase == COMPUTING and self.device > 0.0:
                self.phase = DRAINING
                self._place(self.device / self.device_rate)
                return
            seconds = self.timing.hand_over(batch)
            if seconds > 0.0:
                self.phase = HANDING_OVER
                self._place(seconds)
                return
        if batch.ends is not None:
            batch.ends[-1] = now
        self.pause = self.timing.pause(batch) if batch.leaves else 0.0
        done(batch)
        if self.phase == NOTHING:
            self._rest()

    def _rest(self) -> None:
        self.busy = False
        for neighbour in self.rates:
            if neighbour.busy:
                neighbour.disturbed()
