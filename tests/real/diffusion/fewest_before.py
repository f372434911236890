"""A router of a user's own, for measuring: where the fewest requests are due before this one."""

from __future__ import annotations

from collections.abc import Sequence

from servetwin.core import Request
from servetwin.core.routing import Router, WorkerState


class FewestBefore(Router):
    """Counts who is due before the request; of equals the worker with the fewest requests, then the first."""

    def route(self, request: Request, workers: Sequence[WorkerState], now: float) -> WorkerState:
        def before(worker: WorkerState) -> tuple[int, int]:
            return sum(job.deadline <= request.deadline for job in worker.jobs()), worker.present

        return min(workers, key=before)
