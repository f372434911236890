"""Least violating: the worker where the fewest seconds past deadlines come about."""

from __future__ import annotations

from collections.abc import Sequence

from servetwin.core import Request
from servetwin.core.arithmetic import float_sum
from servetwin.core.routing import WorkerState

from ._device_load import DeviceLoad


class LeastViolating(DeviceLoad):
    """The worker where the fewest seconds past deadlines come about; of equals, the one that ends *request* first."""

    def weights(self, request: Request, workers: Sequence[WorkerState], now: float) -> list[tuple[float, float]]:
        return [self.weight(request, worker, now) for worker in workers]

    def weight(self, request: Request, worker: WorkerState, now: float) -> tuple[float, float]:
        jobs = list(self.jobs(request, worker))
        stretch = self.stretch(worker, len(jobs))
        late = float_sum(max(0.0, now + seconds * stretch - deadline) for seconds, deadline in jobs)
        return late, jobs[-1][0] * stretch
