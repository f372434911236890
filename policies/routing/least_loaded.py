"""Least loaded: the worker whose device should be done first."""

from __future__ import annotations

from servetwin.core import Request
from servetwin.core.arithmetic import float_sum
from servetwin.core.routing import WorkerState

from ._device_load import DeviceLoad


class LeastLoaded(DeviceLoad):
    """The worker whose device should be done first."""

    def weight(self, request: Request, worker: WorkerState, now: float) -> tuple[float, ...]:
        alone = [seconds for seconds, _ in self.jobs(request, worker)]
        return (float_sum(alone) * self.stretch(worker, len(alone)) / len(alone),)
