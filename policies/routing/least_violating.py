"""Least violating: the worker where the fewest seconds past deadlines come about."""

from __future__ import annotations

from servetwin.core import Request
from servetwin.core.arithmetic import float_sum
from servetwin.core.routing import WorkerState

from ._device_load import DeviceLoad


class LeastViolating(DeviceLoad):
    """The worker where the fewest seconds past deadlines come about; of equals, the one that ends *request* first."""

    def weight(self, request: Request, worker: WorkerState, now: float) -> tuple[float, ...]:
        jobs = list(self.jobs(request, worker))
        stretch = self.stretch(worker, len(jobs))
        late = float_sum(max(0.0, now + seconds * stretch - deadline) for seconds, deadline in jobs)
        return late, jobs[-1][0] * stretch
