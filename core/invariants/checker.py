"""The invariants of the design, checked while a run goes and on the records that it leaves.

`InvariantChecker` stands between a `ServingLoop` and its recorder, its policies and its executor, and raises
`InvariantBroken` at the first event that breaks an invariant. It decides nothing and changes no time, so a checked
run is the run itself. `check_records` reads the files of a run folder, simulated or measured, and checks the same
invariants on them.

    checker = InvariantChecker(recorder)
    loop = ServingLoop(stages, workers, executor, checker)
    checker.watch(loop)
    ...                       # play the requests
    checker.finish()

`docs/reference/invariants.md` lists the invariants, each with how it is checked. Invariants 8, 9, 11 and 12 are about
more than one run and are tests.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

from ..errors import INVARIANTS, broken
from ..isolation.answers import check_decision
from ..isolation.code_inspection import watcher
from ..llm.batch import TokenBatch
from ..llm.policy import Step
from ..llm.request import TokenTask
from ..llm.serving.pools import PrefillEngine
from ..llm.serving.worker import TokenWorker
from ..metrics import Summary
from ..pipeline import Stage
from ..policy import Batch, Decision, PolicyBase, WorkerView
from ..records import Recorder
from ..request import ActingTask, Outcome, Outputs, Place, Request, Task
from ..serving.executor import Executor, Handle
from ..serving.loop import ServingLoop
from ..serving.pool import ManyInFlight, Pool
from ..serving.worker import Worker
from ..slo import latest
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
from .record_checker import FINISHED, check_ends, check_order, check_records

__all__ = ["INVARIANTS", "InvariantChecker", "check_records"]


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


class InvariantChecker(Recorder):
    """Passes all that it hears on to *inner*, and raises `InvariantBroken` if it breaks an invariant.

    *patience* is how many seconds late a wake-up may come: none in simulated time, a little on a real clock.
    Without `watch` it checks what a recorder hears (invariants 1, 2, 4, 10 and the batches of invariant 3).
    """

    def __init__(self, inner: Recorder | None = None, *, patience: float = 0.0) -> None:
        self.inner = inner or Recorder()
        self.wants_batches = self.inner.wants_batches
        self.wants_token_times = self.inner.wants_token_times
        self.patience = patience
        self.clock = float("-inf")
        self.seen: set[int] = set()
        self.live: dict[int, Request] = {}
        self.outcomes: Counter[Outcome] = Counter()
        self.iterations: dict[Task, int] = {}  # done so far, by the checker's own count; of live requests
        self.reused: Counter[Task] = Counter()  # in how many of those the last prediction was taken again
        self.ends: dict[tuple[Place, int], float] = {}  # when the last batch of each worker (and thread) ended
        self.asked: dict[int, Outputs] = {}  # true output lengths of live requests
        self.tokens: dict[TokenTask, int] = {}  # generated so far, where engines hand requests over
        self.watched: list[WatchedWorker] = []
        self.loop: ServingLoop | None = None
        self.stages: dict[str, Stage] = {}  # by name
        self.plain: dict[str, list[Stage]] = {}  # stage -> those that lead there by plain edges
        self.jumps: dict[str, list[Stage]] = {}  # likewise, by branches

    @property
    def summary(self) -> Summary:
        """That of the recorder which it passes everything on to."""
        return self.inner.summary

    @summary.setter
    def summary(self, summary: Summary) -> None:
        self.inner.summary = summary

    def watch(self, loop: ServingLoop) -> None:
        """Stand between *loop* and its policies and executor. To be called once, before the first request."""
        self.loop = loop
        self.watched = [self._watched(worker) for worker in loop.workers]
        loop.executor = WatchedExecutor(loop.executor, self)
        self.stages = {worker.stage.name: worker.stage for worker in loop.workers}
        for stage in self.stages.values():
            for after in stage.next:
                self.plain.setdefault(after.name, []).append(stage)
            for branch in stage.branches:
                self.jumps.setdefault(branch.target.name, []).append(stage)

    def _watched(self, worker: Worker) -> WatchedWorker:
        if isinstance(worker, TokenWorker):
            return WatchedEngine(worker, self)
        return WatchedPool(worker, self) if isinstance(worker, ManyInFlight) else WatchedWorker(worker, self)

    # -- what a recorder hears ----------------------------------------------------------------------------

    def arrived(self, request: Request) -> None:
        if request.id in self.seen:
            raise broken(1, f"request {request.id} arrives again")
        self.seen.add(request.id)
        self.live[request.id] = request
        if request.outputs is not None:
            self.asked[request.id] = request.outputs
        self.inner.arrived(request)

    def ended(self, request: Request, now: float) -> None:
        self.advance(now)
        if self.live.pop(request.id, None) is None:
            raise broken(1, f"request {request.id} ends but is not live")
        outcome = request.outcome
        if outcome is None:
            raise broken(1, f"request {request.id} ends without an outcome")
        self.outcomes[outcome] += 1
        self._check_times(request, now)
        self._check_outcome(request, now)
        for task in request.tasks:
            watched = self.watched[task.worker.number] if self.watched and task.worker is not None else None
            if isinstance(watched, WatchedEngine):
                assert isinstance(task, TokenTask)
                watched.check.ended(task)
            else:
                self._check_iterations(task, self.iterations.pop(task, 0))
        self.asked.pop(request.id, None)
        self.inner.ended(request, now)

    def batch(self, batch: Batch) -> None:
        self.advance(batch.end)
        worker = batch.worker
        for place in batch.devices or (batch.thread,):
            last = self.ends.get((worker, place), float("-inf"))
            if batch.start < last:
                raise broken(
                    3, f"{worker.name} started {batch} at {batch.start!r}, before its last one ended at {last!r}"
                )
            self.ends[worker, place] = batch.end
        watched = self.watched[worker.number] if self.watched else None
        if isinstance(watched, WatchedEngine):
            watched.heard(batch)
        check_ends(batch.start, batch.end, batch.ends, batch.count, str(batch))
        self.check_batch(batch)
        self.reused.update(task for task in batch.reused if task.request.outcome is None)
        self.inner.batch(batch)

    def finish(self) -> None:
        """Nothing more will happen: invariants 1 and 10 for the run as a whole, and nothing is left in any queue."""
        if self.live:
            some = ", ".join(str(i) for i in itertools.islice(self.live, 5))
            raise broken(1, f"{len(self.live)} requests never ended: {some}")
        for watched in self.watched:
            watched.check_empty()
        summary = self.summary
        if summary.requests != len(self.seen) or any(summary.outcomes[o] != self.outcomes[o] for o in Outcome):
            raise broken(10, f"the summary counts {dict(summary.outcomes)}, but the run had {dict(self.outcomes)}")
        met = self.outcomes[Outcome.MET]
        if self.seen and (summary.met != met or summary.attainment != met / len(self.seen)):
            raise broken(10, f"attainment is {summary.attainment!r}, but {met} of {len(self.seen)} were met")

    # -- single invariants --------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Time has come to *now*; nothing may have been left undone before."""
        if now < self.clock:
            raise broken(2, f"the clock went back from {self.clock!r} to {now!r}")
        if now > self.clock:
            for watched in self.watched:
                watched.check_idle(now)
            self.clock = now

    def check_devices(self, executor: Executor) -> None:
        """Invariant 14: those that share a device in time get on at rates that come to one at most. (What overlaps at
        measured rates is the profile's word; an executor that knows nothing of shares has nothing to say.)"""
        shares = getattr(executor, "shares", None)
        for names, rate in shares() if shares is not None else ():
            if rate > 1.0 + 1e-9:
                raise broken(14, f"{', '.join(names)} get on at {rate:g} times the speed of their device")

    def _check_times(self, request: Request, now: float) -> None:
        stays = Counter(task.stage.name for task in request.tasks)
        for task in request.tasks:
            if stays[task.stage.name] > 1 and not task.stage.again:
                raise broken(2, f"request {request.id} stays twice at {task.stage.name}")
        self._check_graph(request, stays)
        for task in request.tasks:
            way = [("arrival", request.arrival), ("queued", task.queued)]
            marks = (("admitted", task.admitted), ("started", task.started), ("finished", task.finished))
            for (name, at), (after, later) in itertools.pairwise(marks):
                if at is None and later is not None:
                    raise broken(2, f"{task} is {after} but was never {name}")
            way += [(name, at) for name, at in marks if at is not None]
            if task.finished is not None:
                way.append(("end of the request", now))
            check_order(way, str(task))

    def _check_graph(self, request: Request, stays: Counter[str]) -> None:
        """Each visit follows what leads to it (a join: all of it); no finished request left a stage for nowhere."""
        visits: Counter[str] = Counter()
        finishes: dict[str, list[float]] = {}
        for task in request.tasks:
            if task.finished is not None:
                finishes.setdefault(task.stage.name, []).append(task.finished)
        for task in request.tasks:
            name = task.stage.name
            visits[name] += 1
            plain, jumps = self.plain.get(name, ()), self.jumps.get(name, ())
            came = [sum(at <= task.queued for at in finishes.get(s.name, ())) for s in (*plain, *jumps)]
            wanted = visits[name] - (not task.stage.inputs)
            if task.stage.inputs > 1 and not jumps:
                fed = min(came) >= wanted
            else:
                fed = sum(came) >= wanted
            if self.loop is not None and not fed:
                sources = ", ".join(s.name for s in (*plain, *jumps))
                raise broken(2, f"{task} is queued at {task.queued!r}, before {sources} is finished")
        if request.outcome not in FINISHED or self.loop is None:
            return
        for name, feeders in self.plain.items():
            certain = not self.jumps.get(name) and all(not s.branches for s in feeders)
            counts = {stays[s.name] for s in feeders}
            joins = self.stages[name].inputs > 1
            expected = counts if joins else {sum(stays[s.name] for s in feeders)}
            if certain and expected != {stays[name]}:
                raise broken(7, f"{request} stayed {stays[name]} times at {name}, which it was sent to {expected}")

    def _check_outcome(self, request: Request, now: float) -> None:
        if request.outcome not in FINISHED:
            if request.finished is not None:
                raise broken(10, f"{request} has a time at which it finished")
            if not request.reason:
                raise broken(10, f"{request} does not say why")
            return
        if request.finished is None:
            raise broken(10, f"{request} has no time at which it finished")
        in_time = request.finished <= latest(request.deadline) and not request.missed
        if request.outcome is not (Outcome.MET if in_time else Outcome.LATE):
            raise broken(10, f"{request} finished at {request.finished!r}, deadline {request.deadline!r}")
        last = max(t.finished for t in request.tasks if t.finished is not None)
        if not request.finished == last == now:
            raise broken(
                2, f"{request} finished at {request.finished!r}, its last stage at {last!r}, told at {now!r}"
            )
        missing = (self.loop.way_of(request) if self.loop else set()) - {task.stage.name for task in request.tasks}
        if missing and not self.jumps:
            raise broken(7, f"{request} never passed {', '.join(sorted(missing))}")

    def _check_iterations(self, task: Task, done: int) -> None:
        asked = asked_of(task)
        counted = task.iterations - task.left
        if self.watched and counted != done:
            raise broken(7, f"{task} counts {counted} iterations, but ran {done}")
        if not 0 <= counted <= asked or (task.request.outcome in FINISHED and counted != asked):
            raise broken(7, f"{task} ended {task.request.outcome} after {counted} of {asked} iterations")
        if isinstance(task, ActingTask):
            self._check_steps(task, counted)

    def _check_steps(self, task: ActingTask, counted: int) -> None:
        """What its policy left out of *task*, which has run so many steps, is what the batches say and may be left
        out."""
        reused = self.reused.pop(task, 0)
        if task.reused != reused:
            raise broken(7, f"{task} counts {task.reused} steps reused, its batches {reused}")
        if task.request.outcome in FINISHED and task.may_skip < 0:
            raise broken(7, f"{task} ended with {counted - reused} of {task.asked} steps computed")

    def check_batch(self, batch: Batch, worker: Worker | None = None) -> None:
        if isinstance(batch, TokenBatch):
            return  # see `servetwin.core.invariants.engine_checker`
        worker = worker or (self.watched[batch.worker.number].worker if self.watched else None)
        if batch.size < 1 or (worker is not None and batch.size > worker.view.limit):
            limit = worker.view.limit if worker is not None else "not known"
            raise broken(4, f"{batch}: the limit is {limit}")
        if batch.size != len(batch.tasks) or len(set(batch.tasks)) != batch.size:
            raise broken(4, f"{batch} holds a task twice: {[t.id for t in batch.tasks]}")
        if len({task.request.shape for task in batch.tasks}) > 1:
            raise broken(4, f"{batch} holds requests of several shapes")
        if not set(batch.reused) <= set(batch.tasks) or (batch.reused and (batch.whole or batch.times > 1)):
            raise broken(7, f"{batch} reuses predictions of {[t.id for t in batch.reused]}, or more than once")
        for task in batch.tasks:
            if task.worker != batch.worker or task.stage is not batch.worker.stage:
                raise broken(4, f"{batch} holds {task}, which is not at this worker")


class WatchedWorker:
    """What the checker knows of a worker, and its ear between the loop and the worker's policy."""

    def __init__(self, worker: Worker, checker: InvariantChecker) -> None:
        self.worker = worker
        self.checker = checker
        self.flying: Batch | None = None
        self.news = False  # something came or ended since the policy was last asked
        self.idle_until: float | None = None  # as the policy last said
        worker.policy = WatchedPolicy(worker.policy, self)

    def started(self, batch: Batch) -> None:
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

    def check_empty(self) -> None:
        view, worker = self.worker.view, self.worker
        if view.in_flight is not None or view.backlog or self.flying is not None:
            raise broken(1, f"{worker.name} still has a batch when the run is over")
        if view.waiting or view.running or any(t.request.outcome is None for t in worker.inbox):
            raise broken(1, f"{worker.name} still holds tasks when the run is over")


class WatchedPool(WatchedWorker):
    """Likewise, of a pool of threads, or a group of devices: one batch in flight on each, and no request in two."""

    worker: ManyInFlight

    def __init__(self, worker: ManyInFlight, checker: InvariantChecker) -> None:
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

    def __init__(self, worker: TokenWorker, checker: InvariantChecker) -> None:
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

    def __init__(self, inner: Executor, checker: InvariantChecker) -> None:
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
