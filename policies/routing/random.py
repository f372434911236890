"""Random: any worker, all equally likely. Each then sees a thinned stream of the arrivals, whatever the others do."""

from __future__ import annotations

from collections.abc import Sequence

from servetwin.core import Request
from servetwin.core.random_streams import stream
from servetwin.core.routing import Router, WorkerState


class Random(Router):
    """Any worker; drawn from the experiment's seed."""

    draws = static = True

    def start(self, workers: Sequence[WorkerState], seed: int) -> None:
        self.source = stream(seed, "router")

    def route(self, request: Request, workers: Sequence[WorkerState], now: float) -> WorkerState:
        return workers[int(self.source.integers(len(workers)))]
