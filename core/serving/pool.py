"""A pool of threads: what serves a tool, such as a code executor, whose calls are not batched.

Up to *threads* calls run at a time, each by itself; what comes meanwhile waits in one queue. The policy orders that
queue: it is asked while a thread is free, with a limit of one task.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from ..errors import BadInput
from ..isolation.answers import check_decision, check_kept, fault
from ..pipeline import Stage
from ..policy import Batch, Decision, Policy, WorkerView
from ..request import Task
from .worker import UNASKED, Loop, Worker


class ManyInFlight(Worker):
    """A worker with several batches in flight, whose policy is asked as long as there is *room* for another. What
    comes is taken in at once. Subclasses say how a decision is carried out, and what follows when a batch is done."""

    policy: Policy

    @property
    def room(self) -> bool:
        """Whether another batch could begin."""
        raise NotImplementedError

    def carry_out(self, decision: Decision, now: float) -> None:
        """Begin the batch of *decision*. Raises `PolicyFault` if that may not be."""
        raise NotImplementedError

    def attach(self, loop: Loop) -> None:
        super().attach(loop)
        self.policy.start(self.shown)

    def receive(self, task: Task) -> None:
        if task.request.outcome is not None:
            return
        now = task.queued = task.admitted = self.loop.now()
        books = self.books
        if books is not None:
            books.note(task)
        kept = self.policy.admit(task, self.shown, now)
        if kept is True or check_kept(self.policy, kept):
            self.view.waiting[task] = None
        else:
            self.loop.drop(task, self.view)
        self.loop.call(self)

    def turn(self, settled: bool = False) -> None:
        """Let the policy decide until there is no room or it has nothing more to say."""
        if self.deciding:
            return
        self.deciding = True
        view, loop = self.view, self.loop
        decision: Decision = UNASKED
        try:
            while self.room and not loop.stopped:
                now = loop.now()
                decision = self.policy.decide(self.shown, now)
                if type(decision) is not Decision:
                    check_decision(self.policy, decision)
                if decision.drop:
                    for task in self.check_drop(decision):
                        loop.drop(task, view)
                if not decision.run:
                    check_decision(self.policy, decision)  # as to what says nothing: None, say
                    self.set_alarm(decision.idle_until, now)
                    break
                if self.doubted:
                    check_decision(self.policy, decision)
                if decision.steps or decision.reuse:
                    what = f"it sets steps, or reuses predictions, at {self.name}, where neither may be"
                    raise fault(self.policy, what, "neither steps nor reuse")
                self.carry_out(decision, now)
        except Exception as error:
            self.explain(error, decision)
            raise
        self.deciding = False


class Pool(ManyInFlight):
    """Serves one stage without a loop, with *threads* calls at a time. Raises `BadInput` if it cannot."""

    kind = "pool"

    def __init__(
        self,
        stage: Stage,
        policy: Policy,
        seconds: Callable[[str, int], float],
        *,
        threads: int,
        device: str = "cpu",
        name: str = "",
        slo_factor: float | None = None,
    ) -> None:
        super().__init__(
            stage, policy, WorkerView(stage, seconds, limit=1, name=name, slo_factor=slo_factor), device=device
        )
        if stage.loop is not None:
            raise BadInput(f"{stage.loop} is a loop, which no pool of threads serves", right="a worker")
        if not policy.pools:
            raise BadInput(f"policy {type(policy).__name__} cannot serve a pool of threads", right="fcfs")
        self.threads = threads
        self.free = list(range(threads))  # a heap

    @property
    def most(self) -> int:
        return self.threads

    @property
    def room(self) -> bool:
        return bool(self.free)

    def carry_out(self, decision: Decision, now: float) -> None:
        run = tuple(decision.run)
        if len(run) != 1 or run[0] not in self.view.waiting:
            what = f"a thread of {self.name} runs one of the waiting tasks, not {list(run)}"
            raise fault(self.policy, what)
        self._start(run[0], now)

    def _start(self, task: Task, now: float) -> None:
        view = self.view
        del view.waiting[task]
        view.running[task] = None
        task.started = now
        if self.books is not None:
            self.books.begun[task] = now
        loop = self.loop
        loop.batches += 1
        batch = Batch(loop.batches, self.place, [task])
        batch.joiners = batch.tasks
        batch.leaves = 1
        batch.thread = heappop(self.free)
        batch.start = now
        self.run(batch, self._done)

    def _done(self, batch: Batch) -> None:
        loop, view = self.loop, self.view
        now = batch.end = loop.now()
        (task,) = batch.tasks
        heappush(self.free, batch.thread)
        loop.recorder.batch(batch)
        view.running.pop(task, None)
        task.left = 0
        if self.books is not None and task in self.books.rest:
            self.books.rest[task] = 0
            self.books.check_out(task)
        self.deciding, deciding = True, self.deciding  # a client may answer with its next request
        if task.request.outcome is None:
            task.finished = now
            loop.leave(task, now)
        self.policy.ended(batch, self.shown, now)
        self.deciding = deciding
        self.loop.call(self)

    def withdraw(self, task: Task, now: float) -> None:
        if task in self.view.waiting:
            del self.view.waiting[task]
            self.policy.removed(task, self.shown, now)
        elif task in self.view.running:
            self.policy.removed(task, self.shown, now)  # the call runs out
        if self.books is not None:
            self.books.check_out(task)
