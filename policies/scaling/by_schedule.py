"""By schedule: stated numbers of replicas at stated times, whatever comes."""

from __future__ import annotations

import itertools
from bisect import bisect_right

from servetwin.core import BadInput
from servetwin.core.parameters import above, at_least
from servetwin.core.scaling.autoscaler import Autoscaler, FleetState


class BySchedule(Autoscaler):
    """*points* are pairs of a time in seconds, from 0 on, and the replicas from then on. With *every* they begin anew
    after so many seconds. Each change comes *ahead* seconds early: what a start takes, say."""

    by_clock = True

    def __init__(self, points: list[tuple[float, int]], every: float | None = None, ahead: float = 0.0) -> None:
        at_least(0, "by_schedule", ahead=ahead)
        above(0, "by_schedule", every=every)
        times = [time for time, _ in points]
        if not points or times[0] != 0 or any(a >= b for a, b in itertools.pairwise(times)):
            right = "pairs in the order of their times, from 0 on: [[0, 1], [60, 4]]"
            raise BadInput(f"points are {points}", where="by_schedule", right=right)
        if min(count for _, count in points) < 0:
            raise BadInput(f"points are {points}", where="by_schedule", right="0 replicas or more")
        if every is not None and times[-1] >= every:
            right = f"more than {times[-1]:g}, the time of the last point"
            raise BadInput(f"every is {every:g}", where="by_schedule", right=right)
        self.times, self.counts = times, [count for _, count in points]
        self.every, self.ahead = every, ahead

    def want(self, fleet: FleetState, now: float) -> int:
        at = now + self.ahead
        if self.every is not None:
            at %= self.every
        return self.counts[bisect_right(self.times, at) - 1]
