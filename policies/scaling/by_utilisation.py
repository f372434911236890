"""By utilisation: replicas that compute a stated share of the time.

The rule of Kubernetes' Horizontal Pod Autoscaler ("Algorithm details" in its documentation): as many as there are,
times what is measured over what is wanted, rounded up; nothing is changed while the two differ by less than a
tolerance. Its stabilization window is the delay ``down_after`` of the experiment. A utilisation of 1 says nothing of
how much too few replicas there are: a queue doubles them at most each time that is asked.
"""

from __future__ import annotations

import math

from servetwin.core.parameters import above, at_least
from servetwin.core.scaling.autoscaler import Autoscaler, FleetState


class ByUtilisation(Autoscaler):
    """Replicas that compute the share *target* of the last window; what differs by less than *tolerance*, a share of
    the target, changes nothing. While replicas start, fewer are not wanted."""

    def __init__(self, target: float = 0.7, tolerance: float = 0.1) -> None:
        above(0, "by_utilisation", target=target)
        at_least(0, "by_utilisation", tolerance=tolerance)
        self.target, self.tolerance = target, tolerance

    def want(self, fleet: FleetState, now: float) -> int:
        if not fleet.ready:
            return max(fleet.starting, 1 if fleet.present else 0)
        ratio = fleet.utilisation / self.target
        if abs(ratio - 1.0) <= self.tolerance:
            return fleet.on
        wanted = math.ceil(fleet.ready * ratio)
        if fleet.present:
            wanted = max(wanted, 1)
        return max(wanted, fleet.on) if fleet.starting else wanted
