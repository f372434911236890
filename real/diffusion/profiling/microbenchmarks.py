"""Short runs in which a profile is measured: the serving loop and the lanes as in any run, under policies made for
it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from servetwin.core import (
    Batch,
    BatchWorker,
    Decision,
    Module,
    Pipeline,
    Policy,
    Recorder,
    Request,
    ServeTwinError,
    Shape,
    Stage,
    Task,
    Worker,
    WorkerView,
)
from servetwin.core.serving.shaped_worker import ShapedView, ShapedWorker

from ...executor import RealExecutor, undisturbed
from ...server import Log, Server, Spell
from ..lanes import StreamLane

#: An SLO that nothing misses, in seconds.
AGES = 1e6

Estimate = Callable[[str, int], float]


class Gather(Policy):
    """Waits for *size* requests, then runs them together, an iteration at a time or with *whole* to their end."""

    def __init__(self, size: int, whole: bool = False) -> None:
        self.size = size
        self.whole = whole

    def decide(self, view: WorkerView, now: float) -> Decision:
        if not view.running and len(view.waiting) < self.size:
            return Decision()
        return Decision([*view.running, *view.waiting][: view.limit], whole=self.whole)


class Rotate(Policy):
    """Runs whole batches of these *sizes*, one after the other."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(reversed(sizes))

    def decide(self, view: WorkerView, now: float) -> Decision:
        if not self.sizes or len(view.waiting) < self.sizes[-1]:
            return Decision()
        return Decision(list(view.waiting)[: self.sizes.pop()], whole=True)


class Cycle(Policy):
    """Runs *sizes* in turn, an iteration each, out of requests that all stay: nobody joins or leaves but at the ends.

    It waits until there are as many as the largest batch, and gives all up when it is through.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.most = max(sizes)
        self.sizes = [*reversed(sizes), self.most]  # in the first iteration all of them join

    def decide(self, view: WorkerView, now: float) -> Decision:
        tasks = [*view.running, *view.waiting]
        if not self.sizes:
            return Decision(drop=tasks)
        if len(tasks) < self.most:
            return Decision()
        return Decision(sorted(tasks, key=lambda task: task.id)[: self.sizes.pop()])


def _no_estimate(module: str, size: int) -> float:
    raise ServeTwinError("a microbenchmark has no estimates")


def workers_of(
    stages: Sequence[Stage],
    policies: Sequence[Policy],
    limit: int,
    device: str,
    estimate: Estimate = _no_estimate,
    slo_factor: float = 3.0,
    once: int | None = None,
    shape: Shape | None = None,
) -> list[Worker]:
    """A worker for each stage, with these policies: for batches of up to *limit*, or *once* where a module of the
    stage has no loop; of requests of that *shape*.
    """
    limits = [min(limit, once or limit) if set(stage.modules) != {stage.loop} else limit for stage in stages]
    if shape is not None:
        return [
            ShapedWorker(
                stage,
                policy,
                ShapedView(stage, {shape: estimate}, {shape: most}, slo_factor=slo_factor),
                device=device,
            )
            for stage, policy, most in zip(stages, policies, limits, strict=True)
        ]
    return [
        BatchWorker(stage, policy, WorkerView(stage, estimate, limit=most, slo_factor=slo_factor), device=device)
        for stage, policy, most in zip(stages, policies, limits, strict=True)
    ]


def measured_run(
    server: Server,
    placement: Sequence[Sequence[str]],
    policies: Sequence[Policy],
    works: Sequence[int],
    *,
    limit: int,
    device: str,
    gap: float = 0.0,
    due: Sequence[float] | None = None,
    estimate: Estimate = _no_estimate,
    once: int | None = None,
    shape: Shape | None = None,
    only: str | None = None,
) -> list[Spell]:
    """Serve requests of these step counts, *gap* seconds apart or when they are *due*, and give the batches that
    ran. All are of that *shape* (None: of the model's own). With *only*, a loop, nothing else is run of the model."""
    pipeline: Pipeline = Pipeline.chain(Module(only, loop=True)) if only else server.kind.pipeline()
    stages = pipeline.stages([[only]] if only else placement)
    workers = workers_of(stages, policies, limit, device, estimate, once=once, shape=shape)
    log = Log(Recorder())
    executor, loop = server.prepare(stages, workers, log, exercise=0.0)
    due = due or [i * gap for i in range(len(works))]
    work = [{server.kind.loop: steps} for steps in works]
    requests = [Request(i, due[i], AGES, work[i], shape=shape) for i in range(len(works))]
    try:
        executor.measured_run(loop, requests)
    finally:
        executor.close()
    return log.spells


class Duel:
    """Keeps two lanes busy at once, or one alone, with batches that never end; measures their periods."""

    def __init__(
        self, server: Server, stages: Sequence[Stage], limit: int, device: str, once: int | None = None
    ) -> None:
        workers = workers_of(stages, [Gather(1) for _ in stages], limit, device, once=once)
        self.executor, _ = server.prepare(stages, workers, Log(Recorder()), exercise=0.0)
        self.workers = {worker.name: worker for worker in workers}
        self.tasks: dict[str, list[Task]] = {}
        for i, worker in enumerate(workers):
            loop = worker.stage.loop
            work = {loop: 1000} if loop else {}
            self.tasks[worker.name] = [
                Task(Request(i * limit + j, 0.0, AGES, work), worker.stage, 0.0, worker.place) for j in range(limit)
            ]

    def periods(self, sizes: dict[str, int], seconds: float, least: int = 4) -> dict[str, float]:
        """The mean period of each named worker, all busy at once, in seconds; over *seconds* and *least* batches."""
        executor: RealExecutor = self.executor
        ends: dict[str, list[float]] = {name: [] for name in sizes}
        stopping = False

        def again(name: str) -> None:
            worker = self.workers[name]
            batch = Batch(0, worker.place, self.tasks[name][: sizes[name]])
            executor.run(worker, batch, done)

        def done(batch: Batch) -> None:
            name = batch.worker.name
            ends[name].append(time.monotonic())
            if not stopping:
                again(name)

        with undisturbed(executor.gpu, executor.pinned):
            begin = time.monotonic()
            for name in sizes:
                again(name)
            while executor.running:
                stopping = time.monotonic() - begin > seconds and all(len(e) > least for e in ends.values())
                self._poll()
        until = min(e[-1] for e in ends.values())
        result = {}
        for name, times in ends.items():
            kept = [t for t in times if t <= until][1:]
            result[name] = (kept[-1] - kept[0]) / (len(kept) - 1) if len(kept) > 1 else times[-1] - times[-2]
        return result

    def close(self) -> None:
        self.executor.close()

    def _poll(self) -> None:
        executor = self.executor
        if executor.gpu:
            for lane in list(executor.busy):
                if lane.is_over():
                    executor.busy.remove(lane)
                    executor.running -= 1
                    lane.finish()
                    if executor.pinned is not None:
                        executor.pinned.look()
            return
        lane_, problem = executor.heard.get()
        if isinstance(problem, BaseException):
            raise problem
        executor.running -= 1
        assert not isinstance(lane_, StreamLane)
        lane_.finish()  # type: ignore[attr-defined]
