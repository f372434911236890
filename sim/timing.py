"""What a batch demands of host and device, before anything disturbs it.

A worker's host thread prepares and launches work; the device computes it. If the worker waits for the device in each
iteration, an iteration takes as long as both together; if it does not, the host runs ahead of the device by some
seconds of work and only the slower of the two counts. Both kinds occur in the measured systems.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from servetwin.core import Batch

#: Seconds of undisturbed host work and device work, and how much device work may be outstanding at the end: an
#: iteration is over, as far as the worker can tell, once the host's part is done and no more than that is left.
Demand = tuple[float, float, float]


class Timing(Protocol):
    """How long the batches of one worker take on an otherwise idle device."""

    def demand(self, batch: Batch, idle: float) -> Demand:
        """What one run of *batch* as decided takes (an iteration, or whole), its joins included, after *idle* seconds
        without work."""

    def plain(self, size: int) -> Demand:
        """What an iteration of *size* requests takes in which nobody joins or leaves."""

    #: Gives the next factor on an iteration's (or whole batch's) time; None if there is no noise.
    draw: Callable[[], float] | None

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

    def demand(self, batch: Batch, idle: float) -> Demand:
        once = self.once[batch.size] if self.once is not None and batch.leaves else 0.0
        return (0.0, batch.iterations * self.iteration[batch.size] + once, 0.0)

    def plain(self, size: int) -> Demand:
        return (0.0, self.iteration[size], 0.0)

    def hand_over(self, batch: Batch) -> float:
        return 0.0


@dataclass
class MeasuredTiming:
    """Times composed of measured terms; each list is indexed by batch size (index 0 unused), all in seconds.

    *host* and *device* are an iteration's demands, *ahead* how much device work may be outstanding at its end (None:
    the worker waits for the device). *join* is the host time that each joining request adds; *cold* are pairs (idle
    seconds, host seconds): a batch after so long an idle spell, or longer, takes that much more, instead of what
    its joins would. *leave* is the hand-over time per batch with leavers and per leaver. *before* and *after* are
    device demands of the stage's modules around its loop.
    """

    host: Sequence[float]
    device: Sequence[float]
    ahead: Sequence[float] | None = None
    join: float = 0.0
    cold: Sequence[tuple[float, float]] = ()
    leave: tuple[float, float] = (0.0, 0.0)
    before: Sequence[float] | None = None
    after: Sequence[float] | None = None
    draw: Callable[[], float] | None = None

    def demand(self, batch: Batch, idle: float) -> Demand:
        n, k = batch.size, batch.iterations
        host, device = k * self.host[n], k * self.device[n]
        extra = len(batch.joiners) * self.join
        for spell, seconds in self.cold:
            if idle >= spell:
                extra = seconds
        if self.before is not None and batch.joiners:
            device += self.before[len(batch.joiners)]
        if self.after is not None and batch.leaves:
            device += self.after[batch.leaves]
        if self.ahead is None:
            return (0.0, host + device + extra, 0.0)
        return (host + extra, device, self.ahead[n])

    def plain(self, size: int) -> Demand:
        host, device = self.host[size], self.device[size]
        return (0.0, host + device, 0.0) if self.ahead is None else (host, device, self.ahead[size])

    def hand_over(self, batch: Batch) -> float:
        return self.leave[0] + self.leave[1] * batch.leaves if batch.leaves else 0.0
