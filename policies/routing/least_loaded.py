"""Least loaded: the worker whose device should be done first."""

from __future__ import annotations

from servetwin.core import Request, Worker
from servetwin.policies.routing.device_load import DeviceLoad


class LeastLoaded(DeviceLoad):
    """The worker whose device should be done first."""

    def weight(self, request: Request, worker: Worker, now: float) -> tuple[float, ...]:
        alone = [seconds for seconds, _ in self.jobs(request, worker, now)]
        return (sum(alone) * self.stretch(worker, len(alone)) / len(alone),)
