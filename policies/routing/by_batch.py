"""A central queue of batches: requests that left the stage before together stay together.

They are bound to one worker that has nothing to do, in the order in which they left; so what a batcher has closed
(`servetwin.policies.diffusion.batcher`) runs as it was closed, on the first device that is free. At the first stage
of a pipeline requests that came at the same instant are together.
"""

from __future__ import annotations

from collections.abc import Sequence

from servetwin.core import Request
from servetwin.core.routing import Router, WorkerState


class ByBatch(Router):
    """Binds those who came together to one idle worker; free workers take turns."""

    def __init__(self) -> None:
        #: By stage, when the last ones came, and the worker they went to.
        self.bound: dict[str, tuple[float, str]] = {}

    def bind(
        self, queue: Sequence[Request], workers: Sequence[WorkerState], now: float
    ) -> tuple[Request, WorkerState] | None:
        first = queue[0]
        before = first.tasks[-1] if first.tasks else None
        came = first.arrival if before is None or before.finished is None else before.finished
        stage = workers[0].stage.name
        together = self.bound.get(stage)
        for worker in workers:
            if together == (came, worker.name) and not worker.running:
                return first, worker
        idle = [worker for worker in workers if not worker.present]
        if not idle:
            return None
        chosen = idle[self._turns() % len(idle)]
        self.bound[stage] = came, chosen.name
        return first, chosen
