"""The serving loop: admission, queues, hand-over between stages, drops and outcomes, written once.

It does no I/O and has no clock. Events come in as calls (`ServingLoop.arrive`, and what the executor calls back),
commands go out through the `Executor`. So a simulated and a measured run of one experiment differ in time only.

How a worker lives::

    something arrives     -> the inbox; an idle worker takes it in at once
    the batch is done     -> tasks that left go on to the next stage; the policy decides; the batch is launched
    between two batches   -> the inbox is taken in (each task is admitted or dropped)

When the inbox is emptied is a property of the system that is modelled, not of the policy. With *intake* "before"
it is emptied before each decision: what arrives during an iteration can be part of the next. With "after" it is
emptied just after each launch, as NeuStream's workers do: what arrives during iteration k is taken in at the
start of k+1 and can first be scheduled for k+2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter

from .branching import Branching
from .budget import Budget
from .errors import BadInput, LawBroken
from .executor import Executor
from .invariants.answers import (
    OFTEN,
    check_decision,
    check_kept,
    check_repeat,
    check_time,
    check_whole,
    compared,
    fault,
    shown,
    write_fault,
)
from .invariants.code_inspection import named, own
from .invariants.integrity import Intact, comes_along
from .invariants.read_only import look_over, told
from .invariants.task_ledger import Stays
from .pipeline import Stage
from .policy import Batch, Decision, WorkerView
from .records import Recorder
from .request import CUT_OFF, Outcome, Outputs, Request, Task
from .routing import Router, first_worker
from .slo import latest
from .worker import NEVER, Worker

#: What a decision holds that drops, or runs, nobody.
NOBODY: tuple[Task, ...] = ()


def _at_once(callback: Callable[[], None]) -> bool:
    """What a loop asks instead of its executor that waits for nothing else at the same instant."""
    return False


class ServingLoop:
    """Serves requests with *workers*, whose stages come from one `Pipeline.stages` call.

    *branching* says where requests go in a pipeline that branches, *budget* how their SLO is shared out among the
    stages. *together* off: an idle worker begins with the first of several requests that come at one instant, as
    all did before 0.2; for repeating runs that were served so.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        workers: Sequence[Worker],
        executor: Executor,
        recorder: Recorder | None = None,
        *,
        router: Router = first_worker,
        budget: Budget | None = None,
        branching: Branching | None = None,
        together: bool = True,
    ) -> None:
        self.executor = executor
        self.together = together
        self._when_settled = executor.when_settled if together else _at_once
        self.recorder = recorder or Recorder()
        self.router = router
        self.workers = list(workers)
        self.serving: dict[str, list[Worker]] = {stage.name: [] for stage in stages}
        self._booked = any(worker.could_write for worker in self.workers)
        self.known: dict[int, tuple[float, float, bool, int]] = {}  # what live requests say (`_know`)
        self._stays = Stays()
        self._stages = [(stage, told(stage)) for stage in stages]
        self._changed = None if all(comes_along(type(own(w.policy))) for w in self.workers) else Intact().changed
        for index, worker in enumerate(self.workers):
            worker.place = worker.place._replace(number=index)
            worker.check_code()
            worker.show(self._booked)  # of all if of one: the tasks of a request lead to each other
            self.serving[worker.stage.name].append(worker)
            worker.attach(self)
        for stage in stages:
            if not self.serving[stage.name]:
                raise BadInput(f"no worker serves stage {stage.name}", right="a worker for each stage")
        self.entries = [s for s in stages if s.inputs == 0]
        # A request is in one place at a time, unless the graph forks: then it is counted in how many.
        self.forks = len(self.entries) > 1 or any(len(s.next) > 1 for s in stages)
        self._chooses = any(len(workers) > 1 for workers in self.serving.values())
        self.budget = budget
        self.branching = branching
        if branching is None and any(s.branches for s in stages):
            raise BadInput("the pipeline branches, and nothing says which way requests go", right="branching")
        self.live: dict[int, Request] = {}
        self._outputs: dict[int, Outputs] = {}  # true output lengths of live requests, which no policy may see
        self.stopped = False
        self._batches = 0
        self._now = executor.now
        self._over = self._done  # bound once
        self._held: list[Worker] | None = None  # those called while several requests are handed over
        self._hear_batch = self.recorder.of_batches()
        self._keep_ends = self.recorder.wants_batches
        alone = len(self.workers) == len(stages) == 1 and not stages[0].branches and budget is None
        #: A worker that is all there is may take requests in, and let them go, by a shorter way.
        self._direct = self.workers[0].direct() if alone else None

    # -- events -----------------------------------------------------------------------------------------

    def arrive(self, request: Request) -> None:
        """A client has sent *request*."""
        self.live[request.id] = request
        if self._booked and self._direct is None:
            self._know(request)
        self.recorder.arrived(request)
        if self.stopped:
            self._end(request, Outcome.FAILED, CUT_OFF[1])
            return
        if self._direct is not None:
            self._direct(request)
            return
        if request.outputs is not None:
            self._outputs[request.id] = request.outputs
            request.outputs = None  # type: ignore[misc]  # from here on nobody sees them
        if self.forks:
            request.waiting_for[""] = len(self.entries)
        for stage in self.entries:
            self._forward(request, stage, None)

    def stop(self, reason: str = CUT_OFF[0]) -> None:
        """End the run: what is still live fails. Batches in flight run out without effect."""
        self.stopped = True
        for request in list(self.live.values()):
            self._end(request, Outcome.FAILED, reason)
        for worker in self.workers:
            worker.clear()
            self._set_alarm(worker, None, self._now())

    def holders(self) -> str:
        """Which workers, under which policies, hold requests: for telling why a run does not end."""
        held = [w for w in self.workers if w.view.waiting or w.view.running or w.inbox or w.view.in_flight]
        return ", ".join(f"{w.name} ({named(w.policy)})" for w in held)

    def under(self) -> str:
        """All policies, with file and line."""
        return ", ".join(dict.fromkeys(named(worker.policy) for worker in self.workers))

    def look_over(self) -> None:
        """The run is over. Raises `PolicyFault` if a policy has changed what all of them are made of."""
        policies = [worker.policy for worker in self.workers]
        for request in self.live.values():
            if request.outcome is not None:
                raise write_fault(policies, f"outcome of request {request.id}", "outcome")
        for worker in self.workers:
            worker.look_over()
        look_over(policies, self._stages)
        self._check_ours(policies)

    def _check_ours(self, policies: Sequence[object]) -> None:
        found = self._changed() if self._changed is not None else []
        if found:
            raise write_fault(policies, *found[0])

    def close_books(self) -> None:
        """From here on tasks and requests are believed: a fault was found, and the run is only brought to its end."""
        self._booked = False
        if self._changed is not None:
            self._changed()  # puts back what was changed
        for worker in self.workers:
            worker.close_books()

    def _know(self, request: Request) -> None:
        """Remember what *request*, which policies are about to be shown, says. (Atoms only: nothing that the garbage
        collector would have to look through.)"""
        self.known[request.id] = request.arrival, request.deadline, request.missed, self._asked(request)

    def _asked(self, request: Request) -> int:
        """What *request* asks for, in a number that is the same as long as that is."""
        work, tokens = request.work, getattr(request, "tokens", None)
        try:
            asked = hash((*work.items(),)) if work else 0
            return asked if tokens is None else hash((asked, *[(name, str(said)) for name, said in tokens.items()]))
        except (AttributeError, TypeError):
            return -1  # it is no mapping any more; no hash is -1

    def _know_anew(self, request: Request) -> None:
        """A budget may have moved the deadline of *request*, or have forgiven what it missed."""
        if not self._booked:
            return
        arrival, _, _, asked = self.known[request.id]
        self.known[request.id] = arrival, request.deadline, request.missed, asked

    def _check_request(self, request: Request) -> None:
        """Raise `PolicyFault` if *request* says something else than what is known of it."""
        if not self._booked:
            return
        known = self.known.get(request.id)
        now = request.arrival, request.deadline, request.missed, self._asked(request)
        if known != now:
            names, policies = ("arrival", "deadline", "missed", "work"), [w.policy for w in self.workers]
            if known is None:
                raise write_fault(policies, f"id of {request}", "id")
            if known[:-1] == now[:-1]:  # of what it asked for a number is known, which tells nobody anything
                says = shown(getattr(request, "tokens", None) or request.work)
                raise write_fault(policies, f"work of request {request.id} (it says {says} now)", "work", "tokens")
            raise compared(policies, f"request {request.id}", names, now, known)
        self._stays.check(request, [w.policy for w in self.workers])

    def fail(self, request: Request, reason: str) -> None:
        """Something broke under *request* (a worker crashed, memory ran out): it ends as failed."""
        if request.outcome is None:
            self._end(request, Outcome.FAILED, reason)

    def _received(self, task: Task) -> None:
        """*task* is no longer on its way to its worker."""
        assert task.worker is not None
        worker = self.workers[task.worker[0]]
        del worker.coming[task]
        worker.receive(task)

    def _deliver(self, task: Task) -> None:
        """*task* has reached the queue of its worker."""
        if task.request.outcome is not None:
            return  # another branch was dropped, or the run was stopped, while it was on its way
        task.queued = self._now()
        assert task.worker is not None
        worker = self.workers[task.worker[0]]
        worker.inbox.append(task)
        if not worker.deciding and (worker.view.in_flight is None or worker.policy.ahead) and self._is_free(worker):
            self._turn(worker)

    def _done(self, batch: Batch) -> None:
        """The executor has run *batch*."""
        worker = self.workers[batch.worker[0]]
        view = worker.view
        now = batch.end = self._now()
        view.in_flight = None
        worker.deciding = True  # what comes meanwhile, a client answering with its next request say, has to wait
        self._hear_batch(batch)
        steps = batch.iterations * batch.count
        if worker.books is not None:
            worker.books.ended(batch.tasks, steps)
        if len(batch.tasks) != batch.size:
            what = f"it changed the list of {batch.size} tasks that it had decided to run at {worker.name}"
            raise fault(worker.policy, what)
        for task in batch.tasks:
            task.left -= steps
        worker.least -= steps
        if batch.leaves:
            self._let_go(batch, worker, now)
        if worker.purge:
            self._purge(worker)
        worker.policy.ended(batch, worker.shown, now)
        if view.backlog:
            self._launch(worker, view.backlog.popleft())
        worker.deciding = False
        # As _is_free would, without the call: this happens at every iteration.
        if not self.stopped and not worker.called:
            if self._when_settled(worker.awake):
                worker.called = True
            else:
                self._turn(worker, True)

    def _let_go(self, batch: Batch, worker: Worker, now: float) -> None:
        worker.ran = ()
        leavers = [task for task in batch.tasks if task.left <= 0]
        running, books = worker.view.running, worker.books
        for task in leavers:
            if books is not None:
                books.check_out(task)
            task.left = 0
            if task in running:
                del running[task]
            elif (
                task.request.outcome is None or task.flight is None
            ):  # else it ended elsewhere while it was in a batch
                raise worker.wrong_leaver(task, batch.tasks)
        together = len(leavers) > 1
        if together:
            self._hold()
        for task in leavers:
            if task.request.outcome is None:
                task.finished = now
                self._leave(task, now)
        if together:
            self._let_decide()

    def _ring(self, worker: Worker) -> None:
        worker.alarm, worker.alarm_at = None, NEVER
        worker.ring()

    # -- a worker's turn --------------------------------------------------------------------------------

    def _hold(self) -> None:
        """Several requests are about to be handed over: nobody decides before `_let_decide`."""
        if self.together:
            self._held = []

    def _let_decide(self) -> None:
        held, self._held = self._held, None
        for worker in held or ():
            worker.called = False
            self._call(worker)

    def _call(self, worker: Worker, settled: bool = False) -> None:
        """It is the turn of *worker*, now or later (`_is_free`)."""
        if self._is_free(worker):
            worker.turn(settled)

    def _is_free(self, worker: Worker) -> bool:
        """Whether *worker* may decide at once. Else it is called as soon as all that happens at this instant has, so
        that requests that arrive or are handed over together are there together."""
        if worker.called:
            return False
        if self._held is None:
            worker.called = self._when_settled(worker.awake)
            return not worker.called
        worker.called = True
        self._held.append(worker)
        return False

    def _turn(self, worker: Worker, settled: bool = False) -> None:
        """Let the policy of *worker* decide until it has nothing more to say. *settled* says that all else
        that follows from the present event has been seen to."""
        view, policy, shown = worker.view, worker.policy, worker.shown
        ahead = policy.ahead
        settled = settled and not ahead
        worker.deciding = True
        if worker.inbox and worker.intake == "before":
            self._take_in(worker)
        while view.in_flight is None or ahead:
            now = self._now()
            decision = policy.decide(shown, now)
            drop = decision.drop
            if drop:
                worker.ran = ()
                for task in worker.check_drop(decision):
                    self._drop(task, view)
            elif drop is not NOBODY and type(drop) is not list:  # None, say
                check_decision(policy, decision)
            if decision.run:
                self._commit(worker, decision, settled)
                if worker.inbox:
                    self._take_in(worker)
            elif worker.inbox:
                self._take_in(worker)
            else:
                if decision.run is not NOBODY:
                    check_decision(policy, decision)
                self._set_alarm(worker, decision.idle_until, now)
                break
        worker.deciding = False

    def _take_in(self, worker: Worker) -> None:
        view, shown, now = worker.view, worker.shown, self._now()
        inbox, worker.inbox = worker.inbox, []
        for task in inbox:
            if task.request.outcome is not None:
                continue
            task.admitted = now
            if worker.books is not None:
                worker.books.note(task)
            kept = worker.policy.admit(task, shown, now)
            if kept is True or check_kept(worker.policy, kept):
                view.waiting[task] = None
            else:
                self._drop(task, view)

    def _commit(self, worker: Worker, decision: Decision, settled: bool) -> None:
        """Turn a decision into a batch; launch it, or keep it for when the one in flight is done."""
        view = worker.view
        self._batches += 1
        books = worker.books
        tasks = tuple(decision.run) if books is None else books.take(decision)  # the policy may go on with its list
        batch = Batch(self._batches, worker, tasks, decision.whole, decision.repeat)
        idle = view.in_flight is None
        again = idle and bool(tasks) and tasks == worker.ran
        if not again:
            self._check_run(worker, decision, batch)
            worker.ran = tasks if idle else ()
        if not again or books is not None:
            worker.least = min([task.left for task in tasks])
        least = worker.least
        if least < 1:
            raise worker.spent(tasks)
        if batch.whole is not False and check_whole(worker.policy, batch.whole):
            batch.iterations = max([task.left for task in tasks])
            batch.leaves = batch.size
        elif least == 1:
            batch.leaves = [task.left for task in tasks].count(1)
            if not batch.leaves:
                raise worker.twice("run", tasks)
        elif decision.repeat is not None and not worker.inbox and (settled or not batch.joiners):
            # Newcomers in the inbox are taken in just after the launch, so the policy must be asked again.
            times = decision.repeat.times
            if type(times) is not int or times < 1:
                check_repeat(worker.policy, decision.repeat)
            batch.times = times if times < least else least
            batch.last = least
        if idle:
            self._launch(worker, batch)
        else:
            view.backlog.append(batch)

    def _check_run(self, worker: Worker, decision: Decision, batch: Batch) -> None:
        """Let the joiners of *batch* begin. Raises `PolicyFault` if it is too large or holds whom it may not."""
        view, tasks = worker.view, batch.tasks
        if not 0 < batch.size <= view.limit:
            check_decision(worker.policy, decision)
            what = f"a batch of {batch.size} is over the limit of {view.limit} of {worker.name}"
            raise fault(worker.policy, what if batch.size else "run of its decision is true, and holds no tasks")
        waiting, running = view.waiting, view.running
        if waiting and not waiting.keys().isdisjoint(tasks):
            batch.joiners = [task for task in tasks if task in waiting]
            for task in batch.joiners:
                if task not in waiting:
                    raise worker.twice("run", tasks)
                del waiting[task]
                running[task] = None
        if view.in_flight is not None and len(batch.joiners) < batch.size:  # who has waited was in no batch
            worker.check_free("runs", set(tasks).difference(batch.joiners))
        try:
            itemgetter(*tasks)(running)  # the fastest way to ask for all of them whether they are there
        except (KeyError, TypeError):
            check_decision(worker.policy, decision)
            raise worker.not_here("runs", worker.missing(tasks)) from None

    def _new_batch(self, worker: Worker, tasks: Sequence[Task]) -> Batch:
        self._batches += 1
        return Batch(self._batches, worker, tasks)

    def _launch(self, worker: Worker, batch: Batch) -> None:
        now = batch.start = self._now()
        for task in batch.joiners:
            task.started = now
        if worker.books is not None:
            for task in batch.joiners:
                worker.books.begun[task] = now
        batch.keep_ends = self._keep_ends
        worker.view.in_flight = batch
        worker.run(batch, self._over)

    def _set_alarm(self, worker: Worker, when: float | None, asked: float) -> None:
        """Wake *worker* at *when*, which must lie after the time at which its policy was *asked*; a real clock may
        have gone on since."""
        due = NEVER if when is None else when
        if due == worker.alarm_at:
            return
        if type(due) is not float:
            check_time(worker.policy, when)
            due = float(due)
        if not due > asked:  # nor is NaN
            what = f"it idles until {due:g} at {worker.name}, which is not in the future (it is {asked:g})"
            raise fault(worker.policy, what)
        worker.idles += 1
        if worker.idles_since != self._batches:  # something ran since it idled last
            worker.idles, worker.idles_from, worker.idles_since = 1, asked, self._batches
        elif not worker.idles % OFTEN and due < NEVER:
            worker.idled(asked)
        if worker.alarm is not None:
            worker.alarm.cancel()
            worker.alarm = None
        worker.alarm_at = due
        if due < NEVER:
            worker.alarm = self.executor.call_at(due, lambda: self._ring(worker))

    def _purge(self, worker: Worker) -> None:
        """Forget the tasks whose requests have ended elsewhere while they were in flight here."""
        worker.purge, worker.ran = False, ()
        for task in [t for t in worker.view.running if t.request.outcome is not None]:
            del worker.view.running[task]

    # -- a request's way --------------------------------------------------------------------------------

    def _forward(self, request: Request, stage: Stage, before: Task | None, jump: bool = False) -> None:
        """Hand *request* on to *stage*, after its stay *before*; a *jump* along a branch waits for no other input."""
        if stage.inputs > 1 and not jump:
            missing = request.waiting_for.get(stage.name, stage.inputs) - 1
            request.waiting_for[stage.name] = missing or stage.inputs
            if missing:
                request.waiting_for[""] -= 1
                if self.budget is not None:
                    self.budget.joins(request, stage.name, before)
                return
        now = self._now()
        serving = self.serving[stage.name]
        if self._booked and before is not None and request.outcome is None:  # else another branch was dropped
            self._check_request(request)
        target = serving[0] if len(serving) == 1 else self.router(request, serving, now)
        task = target.task(request, now)
        if self.budget is not None:
            self.budget.begins(task, before)
            if request.outcome is None:
                self._know_anew(request)
        request.tasks.append(task)
        if self._booked:
            self._stays.begins(task)
        source = self.workers[before.worker[0]] if before is not None and before.worker is not None else None
        if self._chooses:
            target.coming[task] = None
            self.executor.send(source, task, self._received)
        else:
            self.executor.send(source, task, target.receive)

    def _leave(self, task: Task, now: float) -> None:
        request, stage = task.request, task.stage
        if self._booked and self._direct is None:
            self._stays.check(request, [w.policy for w in self.workers])
            self._stays.over(task)
        jump = False
        after: Sequence[Stage] = stage.next
        if stage.branches and self.branching is not None:
            after, jump = self.branching.after(request, stage)
        if self.forks:
            request.waiting_for[""] += len(after) - 1
        if after:
            passes = True
            if self.budget is not None:
                self._check_request(request)
                passes = self.budget.passes(task, now)
                self._know_anew(request)
            if not passes:
                self._end(request, Outcome.DROPPED, f"not forwarded from {stage.name}")
                return
            for following in after:
                self._forward(request, following, task, jump)
            return
        if self.budget is not None:
            self._check_request(request)
            self.budget.ends(task, now)
            self._know_anew(request)
        if self.forks and request.waiting_for[""]:
            return
        request.finished = now
        due = request.deadline
        in_time = now <= due or now <= latest(due)
        self._end(request, Outcome.MET if in_time and not request.missed else Outcome.LATE)

    def _drop(self, task: Task, view: WorkerView) -> None:
        if task.request.outcome is None:
            view.waiting.pop(task, None)
            view.running.pop(task, None)
            self._end(task.request, Outcome.DROPPED, f"dropped at {view.name}")

    def _end(self, request: Request, outcome: Outcome, reason: str | None = None) -> None:
        if request.outcome is not None:
            if request.id in self.live:
                raise write_fault([w.policy for w in self.workers], f"outcome of request {request.id}", "outcome")
            raise LawBroken(f"request {request.id} ended twice: as {request.outcome}, then as {outcome}")
        if self._booked and self._direct is None:
            self._check_request(request)
            del self.known[request.id]
            self._stays.of.pop(request.id, None)
        request.outcome, request.reason = outcome, reason
        del self.live[request.id]
        if self._outputs:
            self._outputs.pop(request.id, None)
        now = self._now()
        if outcome is Outcome.DROPPED or outcome is Outcome.FAILED:
            for task in request.tasks:
                if task.worker is not None and task.finished is None:
                    worker = self.workers[task.worker[0]]
                    task.flight = worker.view.in_flight
                    worker.withdraw(task, now)
        if self.branching is not None:
            self.branching.forget(request)
        self.recorder.ended(request, now)
