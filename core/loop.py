"""The serving loop: admission, queues, hand-over between stages, drops and outcomes, written once.

It does no I/O and has no clock. Events come in as calls (`ServingLoop.arrive`, and what the executor calls
back), commands go out through the `Executor`. A simulated and a measured run of one experiment
therefore differ in time only.

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

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from .budget import Budget
from .errors import BadInput, LawBroken
from .pipeline import Stage
from .records import Recorder
from .request import CUT_OFF, Outcome, Outputs, Request, Task
from .seam import Batch, Decision, Executor, Handle, Policy, WorkerView
from .ways import Ways

Intake = Literal["before", "after"]
NEVER = float("inf")
Router = Callable[[Request, "Sequence[Worker]", float], "Worker"]


class Worker:
    """Serves one stage with one policy; has one batch in flight at most.

    A kind of worker that serves in another way (`servetwin.core.pool`) overrides `attach` (which sets `receive`),
    `ring`, `withdraw` and `clear`; the loop serves all others itself.
    """

    def __init__(
        self,
        stage: Stage,
        policy: Policy,
        view: WorkerView,
        *,
        device: str = "gpu0",
        intake: Intake = "before",
    ) -> None:
        self.name = view.name
        self.stage = stage
        self.policy = policy
        self.view = view
        self.device = device
        self.intake = intake
        self.index = -1  # place in the loop's list of workers
        self.inbox: list[Task] = []
        self.alarm: Handle | None = None
        self.alarm_at = NEVER
        self.deciding = False
        self.purge = False  # a request ended elsewhere while a task of it was in flight here

    def attach(self, loop: ServingLoop) -> None:
        """Work for *loop*, before anything arrives."""
        self.loop = loop
        self.receive: Callable[[Task], None] = loop._deliver
        self.policy.start(self.view)

    def task(self, request: Request, now: float) -> Task:
        """The stay of *request* here, to which it is sent *now*."""
        return Task(request, self.stage, now, self)

    def seconds_alone(self, request: Request, now: float) -> float:
        """What *request*, which is not here yet, would take here and later if it were served alone."""
        return self.view.solo(Task(request, self.stage, now))

    def ring(self) -> None:
        """The time has come until which the policy wanted to idle."""
        if self.view.in_flight is None or self.policy.ahead:  # else it was set before the batch began
            self.loop._turn(self)

    def withdraw(self, task: Task, now: float) -> None:
        """The request of *task* has ended elsewhere: take it out of the queues, if it is still there."""
        view = self.view
        if task in view.waiting:
            del view.waiting[task]
            self.policy.removed(task, view, now)
        elif task in view.running:
            self.policy.removed(task, view, now)
            batches = [b for b in (view.in_flight, *view.backlog) if b is not None]
            if any(task in b.tasks for b in batches):
                self.purge = True  # it runs out with its batch
            else:
                del view.running[task]

    def direct(self) -> Callable[[Request], None] | None:
        """Its own way of taking a request in and letting it go, if this is the only worker of the only stage."""
        return None

    def clear(self) -> None:
        """The run has been stopped: forget what was decided ahead."""
        self.view.backlog.clear()

    def __repr__(self) -> str:
        return f"<Worker {self.name} on {self.device}>"


def first_worker(request: Request, workers: Sequence[Worker], now: float) -> Worker:
    """The router of a system without replicas."""
    return workers[0]


class ServingLoop:
    """Serves requests with *workers*, whose stages come from one `Pipeline.stages` call.

    *ways* says where requests go in a pipeline that branches, *budget* how their SLO is shared out among the stages.
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
        ways: Ways | None = None,
    ) -> None:
        self.executor = executor
        self.recorder = recorder or Recorder()
        self.router = router
        self.workers = list(workers)
        self.serving: dict[str, list[Worker]] = {stage.name: [] for stage in stages}
        for index, worker in enumerate(self.workers):
            worker.index = index
            self.serving[worker.stage.name].append(worker)
            worker.attach(self)
        for stage in stages:
            if not self.serving[stage.name]:
                raise BadInput(f"no worker serves stage {stage.name}", right="a worker for each stage")
        self.entries = [s for s in stages if s.inputs == 0]
        # A request is in one place at a time, unless the graph forks: then it is counted in how many.
        self.forks = len(self.entries) > 1 or any(len(s.next) > 1 for s in stages)
        self.budget = budget
        self.ways = ways
        if ways is None and any(s.branches for s in stages):
            raise BadInput("the pipeline branches, and nothing says which way requests go", right="ways")
        self.live: dict[int, Request] = {}
        self._outputs: dict[int, Outputs] = {}  # true output lengths of live requests, which no policy may see
        self.stopped = False
        self._batches = 0
        self._now = executor.now
        self._hear_batch = self.recorder.batch
        self._keep_ends = self.recorder.wants_batches
        alone = len(self.workers) == len(stages) == 1 and not stages[0].branches and budget is None
        #: A worker that is all there is may take requests in, and let them go, by a shorter way.
        self._direct = self.workers[0].direct() if alone else None

    # -- events -----------------------------------------------------------------------------------------

    def arrive(self, request: Request) -> None:
        """A client has sent *request*."""
        self.live[request.id] = request
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

    def fail(self, request: Request, reason: str) -> None:
        """Something broke under *request* (a worker crashed, memory ran out): it ends as failed."""
        if request.outcome is None:
            self._end(request, Outcome.FAILED, reason)

    def _deliver(self, task: Task) -> None:
        """*task* has reached the queue of its worker."""
        if task.request.outcome is not None:
            return  # another branch was dropped, or the run was stopped, while it was on its way
        task.queued = self._now()
        worker = task.worker
        assert worker is not None
        worker.inbox.append(task)
        if not worker.deciding and (worker.view.in_flight is None or worker.policy.ahead):
            self._turn(worker)

    def _done(self, batch: Batch) -> None:
        """The executor has run *batch*."""
        worker = batch.worker
        view = worker.view
        now = batch.end = self._now()
        view.in_flight = None
        worker.deciding = True  # what comes meanwhile, a client answering with its next request say, has to wait
        self._hear_batch(batch)
        steps = batch.iterations * batch.count
        for task in batch.tasks:
            task.left -= steps
        if batch.leaves:
            self._let_go(batch, view, now)
        if worker.purge:
            self._purge(worker)
        worker.policy.ended(batch, view, now)
        if view.backlog:
            self._launch(worker, view.backlog.popleft())
        worker.deciding = False
        if not self.stopped:
            self._turn(worker, settled=True)

    def _let_go(self, batch: Batch, view: WorkerView, now: float) -> None:
        leavers = [task for task in batch.tasks if task.left <= 0]
        for task in leavers:
            task.left = 0
            view.running.pop(task, None)  # its request may have ended elsewhere while its batch was in the backlog
        for task in leavers:
            if task.request.outcome is None:
                task.finished = now
                self._leave(task, now)

    def _ring(self, worker: Worker) -> None:
        worker.alarm, worker.alarm_at = None, NEVER
        worker.ring()

    # -- a worker's turn --------------------------------------------------------------------------------

    def _turn(self, worker: Worker, settled: bool = False) -> None:
        """Let the policy of *worker* decide until it has nothing more to say. *settled* says that all else
        that follows from the present event has been seen to."""
        view, policy = worker.view, worker.policy
        ahead = policy.ahead
        settled = settled and not ahead
        worker.deciding = True
        if worker.inbox and worker.intake == "before":
            self._take_in(worker)
        while view.in_flight is None or ahead:
            now = self._now()
            decision = policy.decide(view, now)
            if decision.drop:
                for task in decision.drop:
                    self._drop(task, view)
                both = [task for task in decision.drop if task in decision.run]
                if both:
                    raise LawBroken(f"{worker.name}: the policy both runs and drops {both[0]}")
            if decision.run:
                self._commit(worker, decision, settled)
                if worker.inbox:
                    self._take_in(worker)
            elif worker.inbox:
                self._take_in(worker)
            else:
                self._set_alarm(worker, decision.idle_until, now)
                break
        worker.deciding = False

    def _take_in(self, worker: Worker) -> None:
        view, now = worker.view, self._now()
        inbox, worker.inbox = worker.inbox, []
        for task in inbox:
            if task.request.outcome is not None:
                continue
            task.admitted = now
            if worker.policy.admit(task, view, now):
                view.waiting[task] = None
            else:
                self._drop(task, view)

    def _commit(self, worker: Worker, decision: Decision, settled: bool) -> None:
        """Turn a decision into a batch; launch it, or keep it for when the one in flight is done."""
        view = worker.view
        self._batches += 1
        tasks = decision.run
        batch = Batch(self._batches, worker, tasks, decision.whole, decision.repeat)
        if batch.size > view.limit:
            raise LawBroken(f"{worker.name}: a batch of {batch.size} is over the limit of {view.limit}")
        waiting = view.waiting
        if waiting and not waiting.keys().isdisjoint(tasks):
            batch.joiners = [task for task in tasks if task in waiting]
            for task in batch.joiners:
                del waiting[task]
                view.running[task] = None
        left = [task.left for task in tasks]
        least = min(left)
        if least < 1:
            raise LawBroken(
                f"{worker.name}: the policy ran {tasks[left.index(least)]}, which has nothing left to run"
            )
        if batch.whole:
            batch.iterations = max(left)
            batch.leaves = batch.size
        elif least == 1:
            batch.leaves = left.count(1)
        elif decision.repeat is not None and not worker.inbox and (settled or not batch.joiners):
            # Newcomers in the inbox are taken in just after the launch, so the policy must be asked again.
            batch.times = min(decision.repeat.times, least)
            batch.last = least
        if view.in_flight is None:
            self._launch(worker, batch)
        else:
            view.backlog.append(batch)

    def _new_batch(self, worker: Worker, tasks: Sequence[Task]) -> Batch:
        self._batches += 1
        return Batch(self._batches, worker, tasks)

    def _launch(self, worker: Worker, batch: Batch) -> None:
        now = batch.start = self._now()
        for task in batch.joiners:
            task.started = now
        batch.keep_ends = self._keep_ends
        worker.view.in_flight = batch
        self.executor.run(worker, batch, self._done)

    def _set_alarm(self, worker: Worker, when: float | None, asked: float) -> None:
        """Wake *worker* at *when*, which must lie after the time at which its policy was *asked*; a real clock may
        have gone on since."""
        due = NEVER if when is None else when
        if due == worker.alarm_at:
            return
        if not due > asked:  # nor is NaN
            raise LawBroken(f"{worker.name}: the policy idles until {due:g}, which is not in the future")
        if worker.alarm is not None:
            worker.alarm.cancel()
            worker.alarm = None
        worker.alarm_at = due
        if due < NEVER:
            worker.alarm = self.executor.call_at(due, lambda: self._ring(worker))

    def _purge(self, worker: Worker) -> None:
        """Forget the tasks whose requests have ended elsewhere while they were in flight here."""
        worker.purge = False
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
        target = serving[0] if len(serving) == 1 else self.router(request, serving, now)
        task = target.task(request, now)
        if self.budget is not None:
            self.budget.begins(task, before)
        request.tasks.append(task)
        source = before.worker if before is not None else None
        self.executor.send(source, task, target.receive)

    def _leave(self, task: Task, now: float) -> None:
        request, stage = task.request, task.stage
        jump = False
        after: Sequence[Stage] = stage.next
        if stage.branches and self.ways is not None:
            after, jump = self.ways.after(request, stage)
        if self.forks:
            request.waiting_for[""] += len(after) - 1
        if after:
            if self.budget is not None and not self.budget.passes(task, now):
                self._end(request, Outcome.DROPPED, f"not forwarded from {stage.name}")
                return
            for following in after:
                self._forward(request, following, task, jump)
            return
        if self.budget is not None:
            self.budget.ends(task, now)
        if self.forks and request.waiting_for[""]:
            return
        request.finished = now
        self._end(request, Outcome.MET if now <= request.deadline and not request.missed else Outcome.LATE)

    def _drop(self, task: Task, view: WorkerView) -> None:
        if task.request.outcome is None:
            view.waiting.pop(task, None)
            view.running.pop(task, None)
            self._end(task.request, Outcome.DROPPED, f"dropped at {view.name}")

    def _end(self, request: Request, outcome: Outcome, reason: str | None = None) -> None:
        if request.outcome is not None:
            raise LawBroken(f"request {request.id} ended twice: as {request.outcome}, then as {outcome}")
        request.outcome, request.reason = outcome, reason
        del self.live[request.id]
        if self._outputs:
            self._outputs.pop(request.id, None)
        now = self._now()
        if outcome is Outcome.DROPPED or outcome is Outcome.FAILED:
            for task in request.tasks:
                if task.worker is not None and task.finished is None:
                    task.worker.withdraw(task, now)
        if self.ways is not None:
            self.ways.forget(request)
        self.recorder.ended(request, now)


def play(loop: ServingLoop, source: Iterator[Request]) -> None:
    """Send the requests of *source* at their arrival times: an open-loop client on the executor's clock.

    The source is read one request ahead, so a long workload need not be held in memory.
    """
    call_at, arrive = loop.executor.call_at, loop.arrive
    coming = next(source, None)

    def send() -> None:
        nonlocal coming
        assert coming is not None
        arrive(coming)
        coming = next(source, None)
        if coming is not None:
            call_at(coming.arrival, send)

    if coming is not None:
        call_at(coming.arrival, send)
