"""Sends each request where the least work is left."""

from __future__ import annotations

from collections.abc import Sequence

from servetwin.core import Request
from servetwin.core.routing import Router, WorkerState


class LeastWork(Router):
    """Weighs requests by the seconds that they still take alone; of equals the first worker."""

    def route(self, request: Request, workers: Sequence[WorkerState], now: float) -> WorkerState:
        return min(workers, key=lambda worker: sum(job.seconds for job in worker.jobs()))
