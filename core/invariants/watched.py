"""What stands between a `ServingLoop` and its workers, policies and executor, and tells
`checker.InvariantChecker` of each event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import broken
from ..isolation.answers import check_decision
from ..isolation.code_inspection import watcher
from ..llm.batch import TokenBatch
from ..llm.policy import Step
from ..llm.serving.pools import PrefillEngine
from ..llm.serving.worker import TokenWorker
from ..policy import Batch, Decision, PolicyBase, WorkerView
from ..request import Task
from ..serving.executor import Executor, Handle
from ..serving.pool import ManyInFlight, Pool
from ..serving.worker import Worker
from .engine_checker import (
    AheadCheck,
    DecodeAheadCheck,
    DecodeCheck,
    EngineCheck,
    PipelineCheck,
    PrefillAheadCheck,
    PrefillCheck,
    SpeculativeCheck,
)


def asked_of(task: Task) -> int:
    """The iterations that the task is to run at its stage: those that the request asks for, or fewer where its policy
    may say so. Raises `InvariantBroken` if it said less than it may."""
    loop = task.stage.loop
    asked = task.request.work.get(loop, 1) if loop else 1
    actions = task.stage.actions
    if actions is None:
        return asked
    if not actions.fewest(asked) <= task.iterations <= asked:
        least = actions.fewest(asked)
        raise broken(7, f"{task} is given {task.iterations} steps of {asked}, and {least} are the fewest")
    return task.iterations


class WatchedWorker:
    """What the checker knows of a worker, and its ear between the loop and the worker's policy."""

    def __init__(self, worker: Worker, checker: Any) -> None:
        self.worker = worker
        self.checker = checker
        self.flying: Batch | None = None
        self.news = False  # something came or ended since the policy was last asked
        self.idle_until: float | None = None  # as the policy last said
        worker.policy = WatchedPolicy(worker.policy, self)

    def started(self, batch: Batch) -> None:
        self.check_up(batch)
        if self.flying is not None:
            raise broken(3, f"{self.worker.name} starts {batch} while {self.flying} is in flight")
        self.flying = batch
        if not self.worker.policy.ahead:
            self.idle_until = None
        self.checker.check_batch(batch, self.worker)

    def stopped(self, batch: Batch) -> dict[Task, int]:
        """The executor says that *batch* is done. Gives the iterations that each of its live tasks has now done."""
        if self.flying is not batch:
            raise broken(3, f"{self.worker.name} ends {batch}, but {self.flying} is in flight")
        self.flying = None
        return self.counted(batch)

    def counted(self, batch: Batch) -> dict[Task, int]:
        """*batch* is done: the iterations that each of its live tasks has now done."""
        self.news = True
        if not 1 <= batch.count <= batch.times:
            raise broken(7, f"{batch} ran {batch.count} times on end where {batch.times} were allowed")
        steps = batch.iterations * batch.count
        done = {}
        for task in batch.tasks:
            if task.request.outcome is not None:
                continue
            ran, asked = self.checker.iterations.get(task, 0), asked_of(task)
            if ran + steps > asked and not batch.whole:
                raise broken(7, f"{task} runs {steps} iterations after {ran} of {asked}")
            done[task] = min(ran + steps, asked)
        self.checker.iterations.update(done)
        return done

    def decided(self, decision: Decision, now: float) -> None:
        """A policy may run and drop what the worker holds and does not compute; nothing twice."""
        view = self.worker.view
        name = self.worker.name
        self.news = False
        self.idle_until = None if decision.run else decision.idle_until
        taken = self.busy()
        for word, tasks in (("drops", decision.drop), ("runs", decision.run)):
            for task in tasks:
                if task in taken:
                    raise broken(4, f"the policy of {name} {word} {task} twice, or while it is in a batch")
                taken.add(task)
                if task not in view.waiting and task not in view.running:
                    raise broken(4, f"the policy of {name} {word} {task}, which is not there")

    def busy(self) -> set[Task]:
        """What is in a batch already."""
        view = self.worker.view
        batches = [view.in_flight, *view.backlog] if view.in_flight is not None else []
        return {task for batch in batches if batch is not None for task in batch.tasks}

    def check_idle(self, now: float) -> None:
        """Called when time moves on to *now*, before anything happens there: was nothing left undone?"""
        view, worker = self.worker.view, self.worker
        until = self.idle_until
        stopped = self.checker.loop is not None and self.checker.loop.stopped
        if until is not None and not stopped and until + self.checker.patience < now:
            raise broken(5, f"{worker.name} was to be woken at {until!r}, but it is {now!r}")
        if view.in_flight is not None or getattr(worker, "resting", False):
            return
        if view.backlog:
            raise broken(5, f"{worker.name} idles before {now!r} with {len(view.backlog)} batches decided")
        if any(task.request.outcome is None for task in worker.inbox):
            raise broken(5, f"{worker.name} idles before {now!r} and has not taken in what arrived")
        if self.news and (view.waiting or view.running):
            held = len(view.waiting) + len(view.running)
            raise broken(5, f"{worker.name} idles before {now!r} with {held} tasks, and its policy was not asked")

    def settled(self) -> None:
        """What followed from the end of a batch has been done."""

    # -- where workers may fail (`servetwin.core.faults`) -------------------------------------------------------

    def check_up(self, batch: Batch) -> None:
        """Invariant 15, as *batch* begins: its worker is not down, and each of its tasks is all that there is of its
        request at this stage."""
        loop = self.checker.loop
        is_down = getattr(loop.fleet, "is_down", None) if loop is not None else None
        if is_down is None:
            return
        if is_down(self.worker.name):
            raise broken(15, f"{self.worker.name} starts {batch} while it is down")
        for task in batch.tasks:
            visits = [t for t in task.request.tasks if t.stage is task.stage]
            if task.request.outcome is None and visits != [task]:
                raise broken(15, f"{self.worker.name} starts {batch}, and {task} is lost, or elsewhere too")

    def cut_off(self, batch: Batch) -> None:
        """*batch* was cut off by a fault; its *count* iterations were over."""
        for task in batch.tasks:
            if task.request.outcome is None:
                done = self.checker.iterations.get(task, 0) + batch.iterations * batch.count
                self.checker.iterations[task] = done

    def batch_failed(self, batch: Batch) -> None:
        """*batch* has failed alone, before it computed anything."""
        if self.flying is not batch:
            raise broken(3, f"{self.worker.name} loses {batch}, but {self.flying} is in flight")
        self.flying, self.news = None, True
        held = [task for task in batch.tasks if task in self.worker.view.running]
        if held or self.worker.view.in_flight is not None:
            raise broken(15, f"{batch} has failed, and {self.worker.name} still holds {held or 'a batch'}")

    def failed(self) -> None:
        """The worker has failed: nothing may be left in it."""
        view, worker = self.worker.view, self.worker
        self.flying, self.news, self.idle_until = None, False, None
        if view.in_flight is not None or view.backlog or view.running or view.waiting or worker.inbox:
            raise broken(15, f"{worker.name} has failed, and still holds {len(view.running)} running tasks or more")

    def check_empty(self) -> None:
        view, worker = self.worker.view, self.worker
        if view.in_flight is not None or view.backlog or self.flying is not None:
            raise broken(1, f"{worker.name} still has a batch when the run is over")
        if view.waiting or view.running or any(t.request.outcome is None for t in worker.inbox):
            raise broken(1, f"{worker.name} still holds tasks when the run is over")


class WatchedPool(WatchedWorker):
    """Likewise, of a pool of threads, or a group of devices: one batch in flight on each, and no request in two."""

    worker: ManyInFlight

    def __init__(self, worker: ManyInFlight, checker: Any) -> None:
        super().__init__(worker, checker)
        self.places: dict[int, Batch] = {}  # by thread, or device
        self.many = worker.threads if isinstance(worker, Pool) else worker.view.group.size

    def started(self, batch: Batch) -> None:
        name, busy = self.worker.name, self.busy()
        for place in batch.devices or (batch.thread,):
            if place in self.places or not 0 <= place < self.many:
                raise broken(3, f"{name} starts {batch} on {place}, busy with {self.places.get(place)}")
            self.places[place] = batch
        for task in batch.tasks:
            if task in busy:
                raise broken(4, f"{name} starts {batch}, and {task} is in a batch already")
        self.idle_until = None
        self.checker.check_batch(batch, self.worker)

    def stopped(self, batch: Batch) -> dict[Task, int]:
        there = [self.places.pop(place, None) for place in batch.devices or (batch.thread,)]
        if any(other is not batch for other in there):
            raise broken(3, f"{self.worker.name} ends {batch}, which is not in flight")
        return self.counted(batch)

    def busy(self) -> set[Task]:
        return {task for batch in self.places.values() for task in batch.tasks}

    def check_idle(self, now: float) -> None:
        view, free = self.worker.view, self.many - len(self.places)
        if self.worker.room != (free > 0):
            raise broken(3, f"{self.worker.name} has lost one of its places: {len(self.places)} are taken")
        if self.news and free and (view.waiting or len(view.running) > len(self.busy())):
            what = f"{self.worker.name} idles before {now!r} with {len(view.waiting)} tasks waiting"
            raise broken(5, f"{what}, and its policy was not asked")

    def check_empty(self) -> None:
        super().check_empty()
        if self.places:
            raise broken(1, f"{self.worker.name} still runs {len(self.places)} batches when the run is over")


class WatchedEngine(WatchedWorker):
    """Likewise, of an LLM engine."""

    worker: TokenWorker

    def __init__(self, worker: TokenWorker, checker: Any) -> None:
        super().__init__(worker, checker)
        ahead = worker.host is not None and worker.host.ahead
        stages = worker.view.limits.pipeline_parallel_size
        self.most = stages if stages > 1 else 2 if ahead else 1  # steps in flight
        self.check = AheadCheck(worker, checker.asked) if ahead else EngineCheck(worker, checker.asked)
        if worker.speculation is not None:
            self.check = SpeculativeCheck(worker, checker.asked)
        if stages > 1:
            self.check = PipelineCheck(worker, checker.asked)
        if worker.role != "both":
            kinds = (PrefillAheadCheck, DecodeAheadCheck) if ahead else (PrefillCheck, DecodeCheck)
            kind = kinds[worker.role == "decode"]
            self.check = kind(worker, checker.asked, checker.tokens)
        self.steps: list[Batch] = []

    def started(self, batch: Batch) -> None:
        self.check_up(batch)
        if len(self.steps) == self.most:
            raise broken(3, f"{self.worker.name} starts {batch} while {self.steps} are in flight")
        self.steps.append(batch)
        self.idle_until = None
        assert isinstance(batch, TokenBatch)
        self.check.started(batch)

    def stopped(self, batch: Batch) -> dict[Task, int]:
        if not self.steps or self.steps[0] is not batch:
            raise broken(3, f"{self.worker.name} ends {batch}, but {self.steps} are in flight")
        del self.steps[0]
        self.news = True
        return {}

    def heard(self, batch: Batch) -> None:
        """The recorder hears of *batch*: at its end, or when a host that decides ahead hears of that."""
        assert isinstance(batch, TokenBatch)
        self.check.stopped(batch)

    def decided(self, decision: Decision, now: float) -> None:
        assert isinstance(decision, Step)
        self.news = False
        # With a step in flight it is asked again when that is over, whatever it says.
        self.idle_until = None if self.steps else decision.idle_until
        self.check.decided(decision)

    def cut_off(self, batch: Batch) -> None:
        assert isinstance(batch, TokenBatch)
        self.check.cut_off(batch)

    def failed(self) -> None:
        super().failed()
        self.steps.clear()
        self.check.failed()

    def check_idle(self, now: float) -> None:
        if not self.worker.view.waiting and not self.worker.view.running:
            self.idle_until = None  # an engine without requests need not be woken
        if isinstance(self.worker.engine, PrefillEngine) and self.worker.engine.stands_still:
            self.idle_until, self.news = None, True  # it is asked when that is over
        super().check_idle(now)

    def settled(self) -> None:
        self.check.settled()

    def check_empty(self) -> None:
        super().check_empty()
        if self.steps:
            raise broken(1, f"{self.worker.name} still has {self.steps} when the run is over")
        if self.worker.coming or getattr(self.worker.engine, "kept", None):
            raise broken(6, f"{self.worker.name} still holds the KV of requests when the run is over")


@watcher
class WatchedPolicy(PolicyBase):
    """Passes everything on to *inner*, a policy of either kind, and what it decides to the checker."""

    def __init__(self, inner: Any, watched: WatchedWorker) -> None:
        self.inner = inner
        self.watched = watched
        for name in ("ahead", "chunks", "tokens_a_step"):  # by which an engine goes
            if hasattr(inner, name):
                setattr(self, name, getattr(inner, name))

    def start(self, view: WorkerView) -> None:
        self.inner.start(view)

    def admit(self, task: Task, view: WorkerView, now: float) -> Any:
        self.watched.news = True
        return self.inner.admit(task, view, now)

    def decide(self, view: WorkerView, now: float) -> Any:
        decision = self.inner.decide(view, now)
        # The invariants read it before the worker does, and what is no answer has nothing that they could read.
        check_decision(self.inner, decision, self.watched.worker.answer)
        self.watched.decided(decision, now)
        return decision

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        self.inner.ended(batch, view, now)

    def onward(self, task: Task, view: WorkerView, now: float) -> Any:
        return self.inner.onward(task, view, now)

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        self.inner.removed(task, view, now)


class WatchedExecutor:
    """Passes everything on to *inner*; hears of each event before the loop does."""

    def __init__(self, inner: Executor, checker: Any) -> None:
        self.inner = inner
        self.checker = checker
        self.now = inner.now

    def run(self, worker: Worker, batch: Batch, done: Callable[[Batch], None]) -> None:
        watched = self.checker.watched[worker.place.number]
        watched.started(batch)

        def ended(batch: Batch) -> None:
            self.checker.advance(self.now())
            counts = watched.stopped(batch)
            done(batch)
            watched.settled()
            self.checker.check_devices(self.inner)
            for task, n in counts.items():
                if task.left != asked_of(task) - n:
                    raise broken(7, f"{task} has {task.left} iterations left after {n} of {asked_of(task)}")

        self.inner.run(worker, batch, ended)
        self.checker.check_devices(self.inner)

    def send(self, source: Worker | None, task: Task, deliver: Callable[[Task], None]) -> None:
        if source is None and self.now() < task.arrival:
            raise broken(2, f"request {task.id} is sent at {self.now()!r}, before its arrival")

        def delivered(task: Task) -> None:
            self.checker.advance(self.now())
            deliver(task)

        self.inner.send(source, task, delivered)

    def call_at(self, when: float, callback: Callable[[], None]) -> Handle:
        def event() -> None:
            self.checker.advance(self.now())
            callback()

        return self.inner.call_at(when, event)

    def when_settled(self, callback: Callable[[], None]) -> bool:
        return self.inner.when_settled(callback)
