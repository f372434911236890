"""Least loaded: the worker whose device should be done first.

What a device has to do is the seconds that each of its requests still takes alone, by the profile and if it generates
as much as it may. Of engines with a device each the sum over those that are there is kept, and made anew only where a
request has come or gone or a step has ended; to it comes what the new request takes. Other workers are weighed anew
for each request: what is left of their batches goes by the time.
"""

from __future__ import annotations

from collections.abc import Sequence

from servetwin.core import Request
from servetwin.core.arithmetic import float_sum
from servetwin.core.routing import Kept, WorkerState

from ._device_load import DeviceLoad


def load(worker: WorkerState) -> float:
    """Seconds that the requests at *worker* still take, each alone."""
    return float_sum(worker.left())


class LeastLoaded(DeviceLoad):
    """The worker whose device should be done first."""

    def start(self, workers: Sequence[WorkerState], seed: int) -> None:
        super().start(workers, seed)
        self.kept: dict[str, Kept[float]] = {}
        if len(self.on) == len(workers) and all(worker.kind == "engine" for worker in workers):
            for stage in dict.fromkeys(worker.stage.name for worker in workers):
                served = [worker for worker in workers if worker.stage.name == stage]
                self.kept[stage] = Kept(served, load, timed=True)
        self.offered: Sequence[WorkerState] = ()
        self.kinds: list[int] = []  # of those offered last: `WorkerState.alike`
        self.first: dict[int, WorkerState] = {}  # of each kind

    def weights(self, request: Request, workers: Sequence[WorkerState], now: float) -> list[float]:
        kept = self.kept.get(workers[0].stage.name)
        if kept is None:
            return [self.weight(request, worker, now) for worker in workers]
        if workers is not self.offered:
            self.offered, self.kinds = workers, [worker.alike() for worker in workers]
            self.first = dict(zip(reversed(self.kinds), reversed(workers), strict=True))
        loads = kept.of(workers)
        alone = {kind: worker.alone(request) for kind, worker in self.first.items()}
        if len(alone) == 1:
            (more,) = alone.values()
            return [load + more for load in loads]
        return [load + alone[kind] for load, kind in zip(loads, self.kinds, strict=True)]

    def weight(self, request: Request, worker: WorkerState, now: float) -> float:
        alone = [seconds for seconds, _ in self.jobs(request, worker)]
        if worker.kind == "engine" and len(self.on[worker.device]) == 1:
            return float_sum(alone)  # what counts is all there is to do
        return float_sum(alone) * self.stretch(worker, len(alone)) / len(alone)
