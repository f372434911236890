"""Groups of devices in simulated time, against closed forms and recursions that know nothing of them."""

from __future__ import annotations

import heapq
import math
from typing import Any

import pytest
from servetwin.core import Module, Pipeline, Recorder, Request, ServingLoop, WorkerView
from servetwin.core.groups.group_worker import GroupWorker
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.random_streams import stream
from servetwin.core.serving.client import play
from servetwin.policies.diffusion.fixed_degree import FixedDegree
from servetwin.sim import SimExecutor, TableTiming

#: Seconds of a step by degree.
STEP = {1: 1.0, 2: 0.6, 4: 0.4, 8: 0.3}


class Starts(Recorder):
    """When each request began, was done, and what it used, by id."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[float, float, float]] = {}

    def ended(self, request: Request, now: float) -> None:
        super().ended(request, now)
        task: Any = request.tasks[0]
        self.seen[request.id] = task.started, now, task.device_seconds


def served(degree: int, arrivals: list[float], steps: int, *, size: int = 8) -> tuple[Starts, GroupWorker]:
    """Whole requests of so many *steps* on *degree* of *size* devices, under all invariants."""
    (stage,) = Pipeline.chain(Module("dit", loop=True)).stages([["dit"]])
    degrees = [degree for degree in STEP if degree <= size]
    view = WorkerView(stage, lambda _, n: STEP[1], limit=1)
    worker = GroupWorker(
        stage, FixedDegree(degree), view, size=size, degrees=degrees, estimate=lambda m, n, d, shape: STEP[d]
    )
    executor = SimExecutor(lambda worker: {d: TableTiming([math.nan, STEP[d]]) for d in degrees})
    recorder = Starts()
    checker = InvariantChecker(recorder)
    loop = ServingLoop([stage], [worker], executor, checker)
    checker.watch(loop)
    play(loop, (Request(i, at, 1e9, {"dit": steps}) for i, at in enumerate(arrivals)))
    executor.run_until_idle()
    checker.finish()
    return recorder, worker


@pytest.mark.parametrize("degree", STEP)
def test_one_request_takes_its_steps_on_so_many_devices(degree: int) -> None:
    recorder, worker = served(degree, [2.0], 50)
    assert recorder.seen[0] == pytest.approx((2.0, 2.0 + 50 * STEP[degree], degree * 50 * STEP[degree]))
    assert worker.usage() == {
        "devices": 8,
        "device_seconds": pytest.approx(degree * 50 * STEP[degree]),
        "device_seconds_by_degree": {str(degree): pytest.approx(degree * 50 * STEP[degree])},
        "mean_degree": pytest.approx(degree),
        "changes": 0,
    }


@pytest.mark.parametrize("degree", [1, 4, 8])
def test_whole_requests_are_a_queue_of_as_many_servers_as_fit(degree: int) -> None:
    """M/D/c with c = 8 / degree, to the last request: each begins when the first server is free."""
    service, servers, count = 5 * STEP[degree], 8 // degree, 3000
    gaps = stream(1, "arrivals").exponential(service / servers / 0.8, count)
    arrivals = [float(at) for at in gaps.cumsum()]
    recorder, _ = served(degree, arrivals, 5)
    free = [0.0] * servers
    for i, at in enumerate(arrivals):
        begins = max(at, heapq.heappop(free))
        heapq.heappush(free, begins + service)
        assert recorder.seen[i][0] == pytest.approx(begins, abs=1e-6)
