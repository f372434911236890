"""A worker with one batch in flight: iterations of a loop module, or whole passes through its modules.

How it lives::

    something arrives     -> the inbox; an idle worker takes it in at once
    the batch is done     -> tasks that left go on to the next stage; the policy decides; the batch is launched
    between two batches   -> the inbox is taken in (each task is admitted or dropped)

When the inbox is emptied is a property of the system that is modelled, not of the policy. With *intake* "before"
it is emptied before each decision: what arrives during an iteration can be part of the next. With "after" it is
emptied just after each launch, as NeuStream's workers do: what arrives during iteration k is taken in at the
start of k+1 and can first be scheduled for k+2.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from operator import itemgetter

from ..errors import PolicyFault
from ..isolation.answers import check_decision, check_kept, check_repeat, check_whole, fault
from ..pipeline import Stage
from ..policy import Batch, Decision, Policy, WorkerView
from ..request import Task
from .worker import UNASKED, Intake, Loop, Worker

#: What a decision holds that drops, or runs, nobody.
NOBODY: tuple[Task, ...] = ()


class BatchWorker(Worker):
    """Serves one stage with one policy; has one batch in flight at most."""

    policy: Policy
    #: Whether its policy may do something with steps (`servetwin.core.serving.acting_worker`).
    acts = False

    def __init__(
        self,
        stage: Stage,
        policy: Policy,
        view: WorkerView,
        *,
        device: str = "gpu0",
        intake: Intake = "before",
    ) -> None:
        super().__init__(stage, policy, view, device=device)
        self.intake = intake
        self.purge = False  # a request ended elsewhere while a task of it was in flight here
        self.over = self._done  # bound once

    def attach(self, loop: Loop) -> None:
        super().attach(loop)
        self.keep_ends = loop.recorder.wants_batches
        self.policy.start(self.shown)

    # -- events ---------------------------------------------------------------------------------------------

    def receive(self, task: Task) -> None:
        if task.request.outcome is not None:
            return  # another branch was dropped, or the run was stopped, while it was on its way
        task.queued = self.loop.now()
        self.inbox.append(task)
        self._ask_again()
        if not self.deciding and (self.view.in_flight is None or self.policy.ahead) and self.loop.is_free(self):
            self._decide()

    def turn(self, settled: bool = False) -> None:
        if not self.deciding and (self.view.in_flight is None or self.policy.ahead):
            self._decide(settled)

    def ring(self) -> None:
        # (With a batch in flight it was set before that began.)
        if (self.view.in_flight is None or self.policy.ahead) and not self.deciding and self.loop.is_free(self):
            self._decide()

    def withdraw(self, task: Task, now: float) -> None:
        view = self.view
        self._ask_again()
        if task in view.waiting:
            del view.waiting[task]
            self.policy.removed(task, self.shown, now)
        elif task in view.running:
            self.policy.removed(task, self.shown, now)
            batches = [b for b in (view.in_flight, *view.backlog) if b is not None]
            if any(task in b.tasks for b in batches):
                self.purge = True  # it runs out with its batch
            else:
                del view.running[task]
        elif task in self.inbox:
            self.inbox.remove(task)  # else it would hold its place here until the inbox is taken in
        if self.books is not None:
            self.books.check_out(task)

    def fail(self, now: float) -> list[Task]:
        view, batch = self.view, self.view.in_flight
        if batch is not None:
            self._cut_off(batch)
        view.in_flight = None
        view.backlog.clear()
        lost = [*view.running, *view.waiting]
        for task in lost:
            self._lose(task, now)
        lost += [task for task in self._take_out() if task.request.outcome is None]
        self.purge = False
        self._no_alarm()
        return lost

    def fail_batch(self, batch: Batch, now: float) -> list[Task]:
        view = self.view
        view.in_flight = None
        for task in batch.tasks:
            if task in view.running:
                self._lose(task, now)
        if self.purge:
            self._purge()
        return [*batch.tasks]

    def go_on(self) -> None:
        if self.view.backlog:
            self._launch(self.view.backlog.popleft())

    def _cut_off(self, batch: Batch) -> None:
        """*batch* ends now, in the middle of its last iteration."""
        batch.count -= 1
        if batch.ends is not None:
            del batch.ends[batch.count :]
        steps = batch.count  # several iterations are never those of whole requests
        if steps:
            if self.books is not None:
                self.books.ended(batch.tasks, steps)
            for task in batch.tasks:
                task.left -= steps

    def _lose(self, task: Task, now: float) -> None:
        view = self.view
        if task in view.waiting:
            del view.waiting[task]
            self.policy.removed(task, self.shown, now)
        else:
            self.policy.removed(task, self.shown, now)
            del view.running[task]
        if self.books is not None:
            self.books.check_out(task)

    def _take_out(self) -> list[Task]:
        """Empty the inbox."""
        inbox, self.inbox = self.inbox, []
        return inbox

    def clear(self) -> None:
        self.view.backlog.clear()
        self._ask_again()

    def _ask_again(self) -> None:
        """Let the policy's `Repeat` end with the iteration in flight: what it rests on has changed."""
        if self.view.in_flight is not None:
            self.view.in_flight.times = self.view.in_flight.count

    def _done(self, batch: Batch) -> None:
        """The executor has run *batch*."""
        view, loop = self.view, self.loop
        clock, hear = loop.now, loop.hear_batch  # a callable in an attribute costs less by way of a local name
        now = batch.end = clock()
        view.in_flight = None
        self.deciding = True  # what comes meanwhile, a client answering with its next request say, has to wait
        hear(batch)
        steps = batch.iterations * batch.count
        if self.books is not None:
            self.books.ended(batch.tasks, steps)
        for task in batch.tasks:
            task.left -= steps
        if batch.leaves:
            self._let_go(batch, now)
        if self.purge:
            self._purge()
            loop.freed(self.stage)  # when such a request ended, it still held its place here
        self.policy.ended(batch, self.shown, now)
        if view.backlog:
            self._launch(view.backlog.popleft())
        self.deciding = False
        # As `Loop.is_free` would, without the call: this happens at every iteration.
        if not loop.stopped and not self.called:
            settles = loop.when_settled
            if settles(self.awake):
                self.called = True
            else:
                self._decide(True)

    def _let_go(self, batch: Batch, now: float) -> None:
        leavers = [task for task in batch.tasks if task.left <= 0]
        running, books = self.view.running, self.books
        for task in leavers:
            if books is not None:
                books.check_out(task)
            task.left = 0
            if task in running:
                del running[task]
            elif task.request.outcome is None or task.flight is None:  # else it ended elsewhere, in a batch
                raise self.wrong_leaver(task, batch.tasks)
        together = len(leavers) > 1
        if together:
            self.loop.hold()
        for task in leavers:
            if task.request.outcome is None:
                task.finished = now
                self.loop.leave(task, now)
        if together:
            self.loop.let_decide()

    # -- a turn ---------------------------------------------------------------------------------------------

    def _decide(self, settled: bool = False) -> None:
        """Let the policy decide until it has nothing more to say (see `turn`)."""
        view, policy, shown, loop = self.view, self.policy, self.shown, self.loop
        ahead, clock = policy.ahead, loop.now
        settled = settled and not ahead
        self.deciding = True
        if self.inbox and self.intake == "before":
            self._take_in()
        decision: Decision = UNASKED
        try:
            while view.in_flight is None or ahead:
                now = clock()
                decision = policy.decide(shown, now)
                drop = decision.drop
                if drop:
                    for task in self.check_drop(decision):
                        loop.drop(task, view)
                elif drop is not NOBODY and type(drop) is not list:  # None, say
                    check_decision(policy, decision)
                if decision.run:
                    self._commit(decision, settled)
                    if self.inbox:
                        self._take_in()
                elif self.inbox:
                    self._take_in()
                else:
                    if decision.run is not NOBODY:
                        check_decision(policy, decision)
                    self.set_alarm(decision.idle_until, now)
                    break
        except Exception as error:
            self.explain(error, decision)
            raise
        self.deciding = False

    def _take_in(self) -> None:
        view, shown, now = self.view, self.shown, self.loop.now()
        inbox, self.inbox = self.inbox, []
        for task in inbox:
            if task.request.outcome is not None:
                continue
            task.admitted = now
            if self.books is not None:
                self.books.note(task)
            kept = self.policy.admit(task, shown, now)
            if kept is True or check_kept(self.policy, kept):
                view.waiting[task] = None
            else:
                self.loop.drop(task, view)

    def _commit(self, decision: Decision, settled: bool) -> None:
        """Turn a decision into a batch; launch it, or keep it for when the one in flight is done."""
        view, loop = self.view, self.loop
        loop.batches = number = loop.batches + 1
        tasks = decision.run
        if self.doubted:  # such a policy may go on with its list
            tasks = tuple(tasks) if self.books is None else self.books.take(decision)
        batch = Batch(number, self.place, tasks, decision.whole, decision.repeat)
        waiting = view.waiting
        if waiting and not waiting.keys().isdisjoint(tasks):
            self._begin(batch)
        if self.doubted or batch.size > view.limit:  # costs are known up to there
            self._check_run(decision, batch)
        left = [task.left for task in tasks]
        least = min(left)
        if least < 1:
            raise self.spent(tasks)
        if batch.whole is not False and check_whole(self.policy, batch.whole):
            batch.iterations = max(left)
            batch.leaves = batch.size
        elif least == 1:
            batch.leaves = left.count(1)
        elif decision.repeat is not None and not self.inbox and (settled or not batch.joiners):
            # Newcomers in the inbox are taken in just after the launch, so the policy must be asked again.
            times = decision.repeat.times
            if type(times) is not int or times < 1:
                check_repeat(self.policy, decision.repeat)
            if decision.repeat.longest == inf:
                batch.times = times if times < least else least
                batch.last = least
        if view.in_flight is None:
            self._launch(batch)
        else:
            view.backlog.append(batch)

    def _begin(self, batch: Batch) -> None:
        """Those of *batch* that have waited begin with it."""
        waiting, running = self.view.waiting, self.view.running
        batch.joiners = [task for task in batch.tasks if task in waiting]
        for task in batch.joiners:
            if task not in waiting:
                raise self.twice("run", batch.tasks)
            del waiting[task]
            running[task] = None

    def _check_run(self, decision: Decision, batch: Batch) -> None:
        """Raise `PolicyFault` if *batch* is too large or holds whom it may not."""
        view, tasks = self.view, batch.tasks
        if not 0 < batch.size <= view.limit:
            check_decision(self.policy, decision)
            what = f"a batch of {batch.size} is over the limit of {view.limit} of {self.name}"
            raise fault(self.policy, what if batch.size else "run of its decision is true, and holds no tasks")
        if not self.acts and (decision.steps or decision.reuse):
            what = f"it sets steps, or reuses predictions, at {self.name}, where nothing says that it may"
            raise fault(self.policy, what, "actions of the module in the experiment; else neither steps nor reuse")
        if decision.devices and [*decision.devices] != [0]:
            what = f"it runs a batch on devices {[*decision.devices]} of {self.name}, which has one"
            raise fault(self.policy, what, "view.group.free")
        if view.in_flight is not None and len(batch.joiners) < batch.size:  # who has waited was in no batch
            self.check_free("runs", set(tasks).difference(batch.joiners))
        try:
            itemgetter(*tasks)(view.running)  # the fastest way to ask for all of them whether they are there
        except (KeyError, TypeError):
            check_decision(self.policy, decision)
            raise self.not_here("runs", self.missing(tasks)) from None

    def _launch(self, batch: Batch) -> None:
        clock, run = self.loop.now, self.run
        now = batch.start = clock()
        if batch.joiners:
            for task in batch.joiners:
                task.started = now
            if self.books is not None:
                for task in batch.joiners:
                    self.books.begun[task] = now
        batch.keep_ends = self.keep_ends
        self.view.in_flight = batch
        run(batch, self.over)

    def _purge(self) -> None:
        """Forget the tasks whose requests have ended elsewhere while they were in flight here."""
        self.purge = False
        for task in [t for t in self.view.running if t.request.outcome is not None]:
            del self.view.running[task]

    # -- what is wrong with a batch -------------------------------------------------------------------------

    def spent(self, tasks: Sequence[Task]) -> PolicyFault:
        """Its policy runs *tasks*, one of which has nothing left, or runs twice and has less than was reckoned."""
        spent = min(tasks, key=lambda task: task.left)
        if tasks.count(spent) > 1:
            return self.twice("run", tasks)
        return fault(self.policy, f"it runs {spent!r}, which has nothing left to run")

    def missing(self, tasks: Sequence[object]) -> object:
        """The first of *tasks* that does not run here."""
        return next(task for task in tasks if task not in self.view.running)

    def wrong_leaver(self, task: Task, tasks: Sequence[Task]) -> PolicyFault:
        """*task*, which has left a batch of *tasks*, was not here, or not any more."""
        return self.twice("run", tasks) if len(set(tasks)) < len(tasks) else self.not_here("runs", task)
