"""Memory does not grow with the requests that are done."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
from servetwin.core import (
    Batch,
    BatchWorker,
    Module,
    Pipeline,
    Policy,
    Recorder,
    Request,
    ServingLoop,
    Task,
    WorkerView,
)
from servetwin.core.serving.client import play
from servetwin.sim import SimExecutor, TableTiming
from worlds import POLICIES


def most_alive(policy: Callable[[], Policy], n: int) -> int:
    """Requests, tasks and batches alive, at most, at each quarter of *n* requests and at the end."""
    pipeline = Pipeline.chain(Module("dit", loop=True), Module("vae"))
    stages = pipeline.stages([["dit"], ["vae"]])
    workers = [
        BatchWorker(s, policy(), WorkerView(s, lambda m, n: 0.05 + 0.01 * n, limit=4, slo_factor=2.0)) for s in stages
    ]
    executor = SimExecutor(lambda worker: TableTiming([0.0, 0.06, 0.07, 0.08, 0.09]))
    counts: list[int] = []

    def count() -> None:
        gc.collect()
        counts.append(sum(isinstance(o, Request | Task | Batch) for o in gc.get_objects()))

    def source():
        for i in range(n):
            if i % (n // 4) == n // 4 - 1:
                count()
            yield Request(i, 0.25 * i, 2.0 + (i % 7) / 4, {"dit": 2 + i % 5})

    loop = ServingLoop(stages, workers, executor, Recorder())
    play(loop, source())
    executor.run_until_idle()
    assert loop.recorder.summary.requests == n
    count()
    return max(counts)


@pytest.mark.parametrize("name", POLICIES)
def test_memory_is_flat_in_the_requests_that_are_done(name: str) -> None:
    few, many = most_alive(POLICIES[name], 500), most_alive(POLICIES[name], 2000)
    assert many < 150
    assert many <= few + 25
