"""By attainment: one more replica when too many requests miss their SLO, one fewer when there is room.

What ended in the last window is held against a target. That the SLO is kept says nothing of how many replicas would
be enough, so one is let go only if the others would not compute more than a stated share of the time.
"""

from __future__ import annotations

import math

from servetwin.core.parameters import above, at_least
from servetwin.core.scaling.autoscaler import Autoscaler, FleetState


class ByAttainment(Autoscaler):
    """With less than *target* of the requests of the window in time, *step* replicas more (none while some start);
    with at least that, one fewer if the others would compute at most the share *busy* of the time."""

    def __init__(self, target: float = 0.95, step: int = 1, busy: float = 0.7) -> None:
        above(0, "by_attainment", target=target, busy=busy)
        at_least(1, "by_attainment", step=step)
        self.target, self.step, self.busy = target, step, busy

    def want(self, fleet: FleetState, now: float) -> int:
        if not fleet.on:
            return 1 if fleet.present else 0
        attainment = fleet.attainment
        if attainment is not None and attainment < self.target:
            return fleet.on if fleet.starting else fleet.on + self.step
        if fleet.starting:
            return fleet.on
        needed = fleet.ready * fleet.utilisation / self.busy
        fewer = max(fleet.ready - 1, 1 if fleet.present else 0)
        return fewer if math.ceil(needed) <= fewer else fleet.ready
