"""By queue: so many requests to a replica.

What is there, waiting and running, is divided by a target for each replica, as Knative's autoscaler does with
concurrency ("Autoscaling", Knative Serving's documentation: concurrency targets) and KEDA with the length of a queue.
"""

from __future__ import annotations

import math

from servetwin.core.parameters import above
from servetwin.core.scaling.autoscaler import Autoscaler, FleetState


class ByQueue(Autoscaler):
    """As many replicas as there are *target* requests, those that run included, or (*waiting*) only those that wait,
    on top of the replicas that are busy with others."""

    def __init__(self, target: float = 4.0, waiting: bool = False) -> None:
        above(0, "by_queue", target=target)
        self.target, self.waiting = target, waiting

    def want(self, fleet: FleetState, now: float) -> int:
        if not self.waiting:
            return math.ceil(fleet.present / self.target)
        more = math.ceil(fleet.waiting / self.target)
        busy = min(fleet.ready, math.ceil(fleet.running / fleet.limit))
        return busy + more
