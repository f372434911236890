"""Which of several workers of a stage a request goes to.

A router is asked once per request and stage, when the request arrives there, and only where there is a choice. The
routers themselves are in `servetwin.policies.routing`. Whatever the router, a request stays on the device that it was
on if a worker there serves its next stage (`Affine`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .request import Request
from .worker import Worker

Router = Callable[[Request, "Sequence[Worker]", float], "Worker"]


class ByStage:
    """Asks another router for some stages."""

    def __init__(self, usual: Router, others: Mapping[str, Router]) -> None:
        self.usual = usual
        self.others = others

    def __call__(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        return self.others.get(workers[0].stage.name, self.usual)(request, workers, now)


class Affine:
    """Keeps a request on its device where that serves the next stage; asks *choose* about the rest."""

    def __init__(self, choose: Router) -> None:
        self.choose = choose

    def __call__(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        if request.tasks:
            last = request.tasks[-1].worker
            here = [w for w in workers if last is not None and w.device == last.device]
            if len(here) == 1:
                return here[0]
            workers = here or workers
        return self.choose(request, workers, now)


def first_worker(request: Request, workers: Sequence[Worker], now: float) -> Worker:
    """The router of a system without replicas."""
    return workers[0]
