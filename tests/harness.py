"""What several tests need: whole runs under the invariants, an executor worked by hand, a scripted policy."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from servetwin.core import (
    BatchWorker,
    Decision,
    Module,
    Pipeline,
    Policy,
    Recorder,
    Request,
    ServingLoop,
    Stage,
    Worker,
    WorkerView,
)
from servetwin.core.faults.faults import Faults
from servetwin.core.invariants.checker import InvariantChecker
from servetwin.core.routing import first_worker
from servetwin.core.serving.branching import Branching
from servetwin.core.serving.budget import Budget
from servetwin.core.serving.client import play
from servetwin.core.serving.dispatch import Dispatcher
from servetwin.core.serving.pool import Pool
from servetwin.sim import SimExecutor, TableTiming
from servetwin.sim.pool_lane import CallTimes

NAN = float("nan")


@dataclass
class WorkerSetup:
    """A worker to be: the modules it serves, its policy, and how long its batches take by size."""

    modules: Sequence[str]
    policy: Policy
    seconds: Sequence[float] = (1.0,)  # by batch size, from 1; the last one goes on for larger batches
    limit: int = 8
    intake: str = "before"
    device: str = "gpu0"
    name: str = ""
    timing: object | None = None  # instead of *seconds*
    threads: int | None = None  # a pool of threads, whose calls take *calls*
    calls: CallTimes | None = None

    def table(self) -> list[float]:
        seconds = list(self.seconds)
        return [NAN, *seconds, *[seconds[-1]] * (self.limit - len(seconds))]


@dataclass
class Simulation:
    loop: ServingLoop
    executor: SimExecutor
    checker: InvariantChecker
    requests: list[Request]

    @property
    def summary(self):
        return self.loop.recorder.summary

    def outcomes(self) -> list[str]:
        return [r.outcome.value for r in self.requests]

    def stamps(self, stage: str) -> list[tuple[float, float, float]]:
        """(queued, started, finished) of every request at *stage*."""
        return [(t.queued, t.started, t.finished) for r in self.requests for t in r.tasks if t.stage.name == stage]


def simulate(
    pipeline: Pipeline,
    setups: Sequence[WorkerSetup],
    requests: Iterable[Request],
    *,
    estimate: Callable[[str, int], float] | None = None,
    slo_factor: float | None = 3.0,
    recorder: Recorder | None = None,
    router: Callable[[Sequence[Worker]], Dispatcher] | None = None,
    stop_at: float | None = None,
    most_events: int = 20_000,
    budget: Callable[[Sequence[Stage]], Budget] | None = None,
    seed: int = 0,
    faults: Callable[[Sequence[Worker]], Faults] | None = None,
    **executor,
) -> Simulation:
    """Serve *requests* to the end in simulated time, under the invariants.

    A policy's estimates are the times of its module's setup, unless *estimate* says otherwise.
    """
    requests = list(requests)
    groups = list(dict.fromkeys(tuple(setup.modules) for setup in setups))
    stages = {stage.modules: stage for stage in pipeline.stages(groups)}
    tables = {m: setup.table() for setup in setups for m in setup.modules}
    estimate = estimate or (lambda module, n: tables[module][n])
    workers, timings, calls = [], {}, {}
    for setup in setups:
        stage = stages[tuple(setup.modules)]
        if setup.threads is not None:
            pool = Pool(stage, setup.policy, estimate, threads=setup.threads, name=setup.name)
            calls[pool.name] = setup.calls or CallTimes(pool.name, "list", values=setup.seconds)
            workers.append(pool)
            continue
        view = WorkerView(stage, estimate, limit=setup.limit, name=setup.name, slo_factor=slo_factor)
        worker = BatchWorker(stage, setup.policy, view, device=setup.device, intake=setup.intake)
        timings[worker] = setup.timing or TableTiming(setup.table())
        workers.append(worker)
    sim = SimExecutor(lambda worker: timings[worker], calls=calls, **executor)
    sim.breaks = faults is not None
    checker = InvariantChecker(recorder)
    order = list(stages.values())
    loop = ServingLoop(
        order,
        workers,
        sim,
        checker,
        router=router(workers) if router is not None else first_worker,
        budget=budget(order) if budget else None,
        branching=Branching(order, seed) if any(s.branches for s in order) else None,
        fleet=faults(workers) if faults is not None else None,
    )
    checker.watch(loop)
    play(loop, iter(requests))
    if stop_at is not None:
        sim.call_at(stop_at, loop.stop)
    for _ in range(most_events):
        if sim.calendar.peek() == math.inf:
            break
        sim.calendar.step()
    else:
        raise AssertionError(f"the run does not come to an end: it is {sim.now():g} s after {most_events} events")
    checker.finish()
    return Simulation(loop, sim, checker, requests)


def one_stage(policy: Policy, requests: Iterable[Request], *, loop: bool = True, **setup) -> Simulation:
    """Serve *requests* on a single worker of a single module ``m``."""
    return simulate(Pipeline([Module("m", loop=loop)], []), [WorkerSetup(["m"], policy, **setup)], requests)


class Stepping(Policy):
    """*inner* without its `Repeat`: the executor has to take every iteration by itself."""

    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self.ahead = inner.ahead
        self.start, self.admit, self.ended, self.removed = inner.start, inner.admit, inner.ended, inner.removed

    def decide(self, view: WorkerView, now: float) -> Decision:
        decision = self.inner.decide(view, now)
        decision.repeat = None
        return decision


class Script(Policy):
    """Does as *decide* says, a function of (view, now); keeps a log of what it was told."""

    def __init__(self, decide: Callable[[WorkerView, float], Decision] | None = None, *, admit=None, ahead=False):
        self._decide = decide or run_all
        self._admit = admit or (lambda task, view, now: True)
        self.ahead = ahead
        self.log: list[tuple] = []

    def told(self, word: str) -> list[tuple]:
        return [entry[1:] for entry in self.log if entry[0] == word]

    def start(self, view):
        self.log.append(("start",))

    def admit(self, task, view, now):
        self.log.append(("admit", task.id, now))
        return self._admit(task, view, now)

    def decide(self, view, now):
        decision = self._decide(view, now)
        self.log.append(("decide", now, [t.id for t in decision.run]))
        return decision

    def ended(self, batch, view, now):
        self.log.append(("ended", [t.id for t in batch.tasks], now))

    def removed(self, task, view, now):
        self.log.append(("removed", task.id, now))


def run_all(view: WorkerView, now: float) -> Decision:
    """All that the worker holds, an iteration at a time."""
    return Decision([*view.running, *view.waiting][: view.limit])


class HandExecutor:
    """An executor worked by hand: batches end, and what is under way arrives, when the test says so."""

    def __init__(self) -> None:
        self.time = 0.0
        self.in_flight: dict[str, tuple] = {}
        self.under_way: list[tuple] = []
        self.alarms: list[tuple] = []
        self.deliver_at_once = True
        self._order = itertools.count()

    def now(self) -> float:
        return self.time

    def run(self, worker, batch, done) -> None:
        assert worker.name not in self.in_flight
        self.in_flight[worker.name] = (batch, done)

    def send(self, source, task, deliver) -> None:
        if self.deliver_at_once:
            deliver(task)
        else:
            origin = source.name if source else None
            self.under_way.append((origin, task.worker.name, task.id, partial(deliver, task)))

    def call_at(self, when, callback):
        alarm = _Alarm(when, callback)
        bisect.insort(self.alarms, (when, next(self._order), alarm))
        return alarm

    def when_settled(self, callback) -> bool:
        return False

    # -- what a test does --

    def batch(self, worker: str) -> list[int] | None:
        """The ids of the batch in flight at *worker*."""
        return [t.id for t in self.in_flight[worker][0].tasks] if worker in self.in_flight else None

    def end(self, worker: str, at: float) -> None:
        """Let the batch of *worker* end at time *at*."""
        self.wait(at)
        batch, done = self.in_flight.pop(worker)
        done(batch)

    def deliver(self, at: float) -> None:
        """Let all that is under way arrive."""
        self.wait(at)
        sent, self.under_way = self.under_way, []
        for *_, deliver in sent:
            deliver()

    def wait(self, until: float) -> None:
        """Let time pass."""
        while self.alarms and self.alarms[0][0] <= until:
            when, _, alarm = self.alarms.pop(0)
            self.time = when
            if alarm.callback is not None:
                alarm.callback()
        self.time = until


class _Alarm:
    def __init__(self, when, callback):
        self.when, self.callback = when, callback

    def cancel(self):
        self.callback = None
