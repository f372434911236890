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
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import INVARIANTS, broken
from ..llm.batch import TokenBatch
from ..llm.request import TokenTask
from ..llm.serving.worker import TokenWorker
from ..metrics import Summary
from ..pipeline import Stage
from ..policy import Batch
from ..records import Recorder
from ..request import ActingTask, Outcome, Outputs, Place, Request, Task
from ..serving.executor import Executor
from ..serving.loop import ServingLoop
from ..serving.pool import ManyInFlight
from ..serving.worker import Worker
from ..slo import latest
from .record_checker import FINISHED, check_ends, check_order, check_records
from .watched import WatchedEngine, WatchedExecutor, WatchedPool, WatchedWorker, asked_of

__all__ = ["INVARIANTS", "InvariantChecker", "check_records"]


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

    @property
    def attempts(self) -> Mapping[int, Sequence[Mapping[str, Any]]]:
        """Those that the recorder knows which it passes everything on to."""
        return self.inner.attempts

    @attempts.setter
    def attempts(self, attempts: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
        self.inner.attempts = attempts

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
        if not batch.lost:  # one that was cut off may have ended before: when its worker stood still
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
        if watched is not None and batch.lost:
            watched.cut_off(batch)
        elif isinstance(watched, WatchedEngine):
            watched.heard(batch)
        check_ends(batch.start, batch.end, batch.ends, batch.count, str(batch))
        self.check_batch(batch)
        self.reused.update(task for task in batch.reused if task.request.outcome is None)
        self.inner.batch(batch)

    def failed(self, place: Place, now: float) -> None:
        self.advance(now)
        if self.watched:
            self.watched[place.number].failed()
        self.inner.failed(place, now)

    def batch_failed(self, batch: Batch, now: float) -> None:
        self.advance(now)
        if self.watched:
            self.watched[batch.worker.number].batch_failed(batch)
        self.inner.batch_failed(batch, now)

    def again(self, lost: Task, task: Task) -> None:
        if lost in task.request.tasks or task not in task.request.tasks:
            raise broken(15, f"{task} takes up a visit that is not over")
        if self.watched:
            assert lost.worker is not None
            assert task.worker is not None
            before, after = self.watched[lost.worker.number], self.watched[task.worker.number]
            if isinstance(before, WatchedEngine) and isinstance(after, WatchedEngine):
                assert isinstance(lost, TokenTask)
                assert isinstance(task, TokenTask)
                after.check.takes_up(task, before.check.lost(lost))
            else:
                self._check_iterations(lost, self.iterations.pop(lost, 0))
        self.inner.again(lost, task)

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
