"""Join the shortest queue: the worker with the fewest requests, those being computed and those on their way included.

Optimal for equal workers and exponential service times if nothing is known of requests. Source: Winston, "Optimality
of the Shortest Line Discipline" (Journal of Applied Probability 14, 1977).
"""

from __future__ import annotations

from collections.abc import Sequence

from servetwin.core import Request
from servetwin.core.routing import Kept, Router, WorkerState


class JSQ(Router):
    """The worker with the fewest requests; those with equally many take turns."""

    def __init__(self) -> None:
        self.next: dict[str, int] = {}  # by stage, the place of the worker whose turn it is among equals

    def start(self, workers: Sequence[WorkerState], seed: int) -> None:
        stages = dict.fromkeys(worker.stage.name for worker in workers)
        self.present = {
            stage: Kept([w for w in workers if w.stage.name == stage], lambda w: w.here()) for stage in stages
        }

    def route(self, request: Request, workers: Sequence[WorkerState], now: float) -> WorkerState:
        stage, many = workers[0].stage.name, len(workers)
        first = self.next.get(stage, 0)
        present = self.present[stage].of(workers)
        least = min(present)
        place = present.index(least)
        if place < first and least in present[first:]:
            place = present.index(least, first)
        self.next[stage] = (place + 1) % many
        return workers[place]
