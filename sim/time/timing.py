"""What a batch demands of host and device, before anything disturbs it.

A worker's host thread prepares and launches work; the device computes it. If the worker waits for the device in each
iteration, an iteration takes as long as both together; if it does not, the host runs ahead of the device by some
seconds of work and only the slower of the two counts. Both kinds occur in the measured systems.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from servetwin.core import Batch, WorkerView

#: Seconds of undisturbed host work and device work, and how much device work may be outstanding at the end: an
#: iteration is over, as far as the worker can tell, once the host's part is done and no more than that is left.
Demand = tuple[float, float, float]


class HostSlowdown(Protocol):
    """Gives the factor on host time at a time (seconds since the run began), which stays *until* then."""

    until: float

    def __call__(self, now: float) -> float: ...


class Timing(Protocol):
    """How long the batches of one worker take on an otherwise idle device.

    *draw* gives the next factor on an iteration's (or whole batch's) time; None if there is none. While *settled* is
    false, the next batch is not a plain one.
    """

    draw: Callable[[], float] | None
    view: WorkerView | None  #: of the worker, whose lane sets it

    @property
    def settled(self) -> bool: ...

    def demand(self, batch: Batch, idle: float, now: float) -> Demand:
        """What one run of *batch* as decided takes (an iteration, or whole), its joins included, if it begins *now*
        after *idle* seconds without work."""

    def plain(self, size: int, now: float, leaves: int = 0) -> Demand:
        """What an iteration of *size* requests takes in which nobody joins and *leaves* of them end."""

    def step(self, size: int, now: float) -> Demand:
        """What an iteration of *size* requests takes by itself: the network, and nothing around it."""

    def steady_until(self) -> float:
        """Iterations of one size in which nobody leaves take the same as the last one, but for *draw*, if they begin
        before this time (seconds since the run began)."""

    def pause(self, batch: Batch) -> float:
        """Seconds from the end of *batch*, which some requests leave, until the worker can launch the next."""

    def hand_over(self, batch: Batch) -> float:
        """Seconds for which the worker stands still after *batch* to hand its leaving requests on."""


@dataclass
class TableTiming:
    """Times from lists by batch size (index 0 unused), in seconds.

    *iteration* holds the loop's (or, without a loop, the whole stage's); *once* what a request's other modules of the
    stage take for a whole batch; *draw*, if given, gives a factor for each iteration.
    """

    iteration: Sequence[float]
    once: Sequence[float] | None = None
    draw: Callable[[], float] | None = None
    settled: bool = True
    view: WorkerView | None = None

    def demand(self, batch: Batch, idle: float, now: float) -> Demand:
        once = self.once[batch.size] if self.once is not None and batch.leaves else 0.0
        return (0.0, batch.iterations * self.iteration[batch.size] + once, 0.0)

    def plain(self, size: int, now: float, leaves: int = 0) -> Demand:
        once = self.once[size] if self.once is not None and leaves else 0.0
        return (0.0, self.iteration[size] + once, 0.0)

    def step(self, size: int, now: float) -> Demand:
        return (0.0, self.iteration[size], 0.0)

    def steady_until(self) -> float:
        return math.inf

    def hand_over(self, batch: Batch) -> float:
        return 0.0

    def pause(self, batch: Batch) -> float:
        return 0.0


@dataclass
class MeasuredTiming:
    """Times composed of measured terms; each list is indexed by batch size (index 0 unused), all in seconds.

    *host* and *device* are an iteration's demands, *ahead* how much device work may be outstanding at its end (None:
    the worker waits for the device in each iteration, which then takes as long as the slower of the two). *join* is
    the host time that each joining request adds. After an idle period the first iterations take longer: by *cold*, or
    by *cold_long* if the spell lasted *long_spell* or more. *leave* is the transfer time per batch with leavers and
    per leaver, *pausing* what the host is busy with after that, per leaver; *joins*, *leaves* and *pauses* hold the
    same by how many join or leave at once, where that was measured, and go before them. *deciding* is the scheduler's
    own time for each request that it leaves waiting. *before* and *after* are device demands of the stage's modules
    around its loop. *slow_spells* gives the factor on host time at a time.
    """

    host: Sequence[float]
    device: Sequence[float]
    ahead: Sequence[float] | None = None
    join: float = 0.0
    cold: Sequence[float] = ()
    cold_long: Sequence[float] = ()
    long_spell: float = math.inf
    leave: tuple[float, float] = (0.0, 0.0)
    pausing: float = 0.0
    joins: Sequence[float] = ()
    leaves: Sequence[float] = ()
    pauses: Sequence[float] = ()
    deciding: float = 0.0
    before: Sequence[float] | None = None
    after: Sequence[float] | None = None
    draw: Callable[[], float] | None = None
    slow_spells: HostSlowdown | None = None
    view: WorkerView | None = field(default=None, init=False)
    settled: bool = field(default=True, init=False)
    _cold: list[float] = field(default_factory=list, init=False)  # still to come, last first
    _planning: float = field(default=0.0, init=False)  # the scheduler's own time in each iteration of this batch

    def demand(self, batch: Batch, idle: float, now: float) -> Demand:
        n, k, joins = batch.size, batch.iterations, len(batch.joiners)
        host = k * self.host[n]
        if self.slow_spells is not None:
            host *= self.slow_spells(now)
        if idle > 0.0:
            self._cold = list(reversed(self.cold if idle < self.long_spell else self.cold_long))
        extra = joins * self.join if not self.joins or not joins else self.joins[min(joins, len(self.joins) - 1)]
        if self.deciding:
            view = self.view
            assert view is not None
            self._planning = self.deciding * (len(view.waiting) + len(view.running) - n)
            extra += self._planning
        if self._cold:
            extra += self._cold.pop()
        self.settled = not self._cold
        device = k * self.device[n]
        around = 0.0
        if self.before is not None and joins:
            around += self.before[joins]
        if self.after is not None and batch.leaves:
            around += self.after[batch.leaves]
        if self.ahead is None:
            return (0.0, max(host, device) + extra + around, 0.0)
        return (host + extra, device + around, self.ahead[n])

    def plain(self, size: int, now: float, leaves: int = 0) -> Demand:
        host, device = self.host[size], self.device[size]
        if self.slow_spells is not None:
            host *= self.slow_spells(now)
        after = self.after[leaves] if self.after is not None and leaves else 0.0
        if self.ahead is None:
            return (0.0, (host if host > device else device) + self._planning + after, 0.0)
        return (host + self._planning, device + after, self.ahead[size])

    def step(self, size: int, now: float) -> Demand:
        host = self.host[size] * (self.slow_spells(now) if self.slow_spells is not None else 1.0)
        if self.ahead is None:
            return (0.0, max(host, self.device[size]), 0.0)
        return (host, self.device[size], self.ahead[size])

    def steady_until(self) -> float:
        return math.inf if self.slow_spells is None else self.slow_spells.until

    def hand_over(self, batch: Batch) -> float:
        if self.leaves and batch.leaves:
            return self.leaves[min(batch.leaves, len(self.leaves) - 1)]
        return self.leave[0] + self.leave[1] * batch.leaves if batch.leaves else 0.0

    def pause(self, batch: Batch) -> float:
        if self.pauses and batch.leaves:
            return self.pauses[min(batch.leaves, len(self.pauses) - 1)]
        return self.pausing * batch.leaves
