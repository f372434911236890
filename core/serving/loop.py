"""The serving loop: arrivals, transfer between stages, drops and outcomes, written once.

It does no I/O and has no clock. Events come in as calls (`ServingLoop.arrive`, and what the executor calls back),
commands go out through the `Executor`. So a simulated and a measured run of one experiment differ in time only.

It is the graph of stages. What happens at a stage, from a task's coming to its leaving, is its workers' affair
(`servetwin.core.serving.worker`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..errors import BadInput, InvariantBroken, PolicyFault
from ..isolation import integrity
from ..isolation.answers import compared, shown, write_fault
from ..isolation.code_inspection import named, own
from ..isolation.purity import read_again
from ..isolation.read_only import look_over, told
from ..isolation.task_ledger import Stays
from ..pipeline import Stage
from ..policy import WorkerView
from ..records import Recorder
from ..request import CUT_OFF, Outcome, Outputs, Request, Task
from ..routing import first_worker
from ..slo import latest
from .branching import Branching
from .budget import Budget
from .dispatch import Dispatcher, state_of
from .executor import Executor
from .worker import Handing, Handle, Scaling, Worker

#: What a request says of itself beside its work, in that order.
SAID = ("arrival", "deadline", "missed", "priority", "tenant", "weight", "class_name", "session", "shape")


#: Which of several workers of a stage a request goes to at a time; None: it waits centrally.
Choice = Callable[[Request, Sequence[Worker], float], "Worker | None"]


def _at_once(callback: Callable[[], None]) -> bool:
    """What a loop asks instead of its executor that waits for nothing else at the same instant."""
    return False


class ServingLoop:
    """Serves requests with *workers*, whose stages come from one `Pipeline.stages` call.

    *branching* says where requests go in a pipeline that branches, *budget* how their SLO is shared out among the
    stages. *handovers* send visits on from some workers of a stage to others that take no requests themselves.
    *together* off: an idle worker begins with the first of several requests that come at one instant, as
    all did before 0.2; for repeating runs that were served so. *fleet*: the workers of a stage are not always there.
    *entering*: by class, the modules that its requests begin with, if not with all that the pipeline begins with.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        workers: Sequence[Worker],
        executor: Executor,
        recorder: Recorder | None = None,
        *,
        router: Choice | Dispatcher = first_worker,
        budget: Budget | None = None,
        branching: Branching | None = None,
        together: bool = True,
        handovers: Sequence[Handing] = (),
        fleet: Scaling | None = None,
        entering: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.executor = executor
        self.together = together
        self.when_settled: Callable[[Callable[[], None]], bool] = executor.when_settled if together else _at_once
        self.recorder = recorder or Recorder()
        self.router = router
        self.dispatcher = router if isinstance(router, Dispatcher) else None
        self.workers = list(workers)
        self.serving: dict[str, list[Worker]] = {stage.name: [] for stage in stages}
        read_again()
        self._booked = any(worker.could_write for worker in self.workers)
        self.handovers = handovers
        for dispatcher in (self.dispatcher, *[handover.dispatcher for handover in handovers]):
            self._booked |= dispatcher is not None and dispatcher.could_write
        if self.dispatcher is not None:
            self.dispatcher.attach(self)
        self.known: dict[int, tuple[object, ...]] = {}  # what live requests say (`_know`)
        self._stays = Stays()
        self._stages = [(stage, told(stage)) for stage in stages]
        for worker in self.workers:
            worker.doubted = self._booked or not integrity.comes_along(type(own(worker.policy)))
        looks = not integrity.HELD and any(worker.doubted for worker in self.workers)
        self._changed = integrity.Intact().changed if looks else None
        peers = tuple([state_of(worker) for worker in self.workers]) if len(self.workers) > 1 else ()
        for index, worker in enumerate(self.workers):
            worker.place = worker.place._replace(number=index)
            if worker.doubted:
                worker.check_code()
            worker.show(self._booked, peers)  # of all if of one: the tasks of a request lead to each other
            if worker.takes_requests:
                self.serving[worker.stage.name].append(worker)
            worker.attach(self)
        for stage in stages:
            if not self.serving[stage.name]:
                raise BadInput(f"no worker serves stage {stage.name}", right="a worker for each stage")
        self.entries = [s for s in stages if s.inputs == 0]
        self.entering = self._entering(entering or {})
        # A request is in one place at a time, unless the graph forks: then it is counted in how many.
        self.forks = len(self.entries) > 1 or any(len(s.next) > 1 for s in stages)
        self.fleet = fleet
        self._chooses = fleet is not None or any(len(workers) > 1 for workers in self.serving.values())
        if not self._chooses:
            self.dispatcher = None
        self.budget = budget
        self.branching = branching
        if branching is None and any(s.branches for s in stages):
            raise BadInput("the pipeline branches, and nothing says which branch requests take", right="branching")
        self.live: dict[int, Request] = {}
        self._outputs: dict[int, Outputs] = {}  # true output lengths of live requests, which no policy may see
        self.stopped = False
        self.batches = 0
        self.now = executor.now
        for handover in handovers:
            handover.attach(self)
        self.held: list[Worker] | None = None  # those called while several requests are handed over
        self.hear_batch = self.recorder.of_batches()
        self._hear_arrival, self._hear_end = self.recorder.of_arrivals(), self.recorder.of_ends()
        alone = len(self.workers) == len(stages) == 1 and not stages[0].branches and budget is None and fleet is None
        #: Where requests go straight from the client, if the only worker takes them so (`Worker.serve_alone`).
        self.entrance = self.workers[0].serve_alone() if alone else None
        #: Whether a client has requests that it has not sent yet; set by whoever sends them.
        self.more_come: Callable[[], bool] = lambda: False
        if fleet is not None:
            fleet.attach(self)

    def _entering(self, by_class: Mapping[str, Sequence[str]]) -> dict[str, list[Stage]]:
        """By class, the stages at which its requests enter, given the modules; those of others enter everywhere."""
        return {name: [s for s in self.entries if s.modules[0] in modules] for name, modules in by_class.items()}

    def way_of(self, request: Request) -> set[str]:
        """The names of the stages that *request* passes, as far as no branch skips one."""
        found: set[str] = set()
        coming = [*self.entering.get(request.class_name, self.entries)]
        while coming:
            stage = coming.pop()
            if stage.name not in found:
                found.add(stage.name)
                coming += stage.next
        return found

    # -- events -----------------------------------------------------------------------------------------

    def arrive(self, request: Request) -> None:
        """A client has sent *request*."""
        self.live[request.id] = request
        if self._booked and self.entrance is None:
            self._know(request)
        self._hear_arrival(request)
        if self.stopped:
            self.end(request, Outcome.FAILED, CUT_OFF[1])
            return
        if self.entrance is not None:
            visit, receive = self.entrance
            task = visit(request, self.now())
            request.tasks.append(task)
            self.executor.send(None, task, receive)
            return
        if request.outputs is not None:
            self._outputs[request.id] = request.outputs
            request.outputs = None  # from here on nobody sees them
        entries = self.entering.get(request.class_name, self.entries) if self.entering else self.entries
        if self.forks:
            request.open_branches = len(entries)
        for stage in entries:
            self.forward(request, stage, None)
        if self.fleet is not None:
            self.fleet.arrived(request)

    def hear_ends(self, hear: Callable[[Request, float], None]) -> None:
        """Let *hear* be told of each request that has ended, and when, after the recorder is."""
        tell = self._hear_end

        def both(request: Request, now: float) -> None:
            tell(request, now)
            hear(request, now)

        self._hear_end = both

    def stop(self, reason: str = CUT_OFF[0]) -> None:
        """End the run: what is still live fails. Batches in flight run out without effect."""
        self.stopped = True
        for request in list(self.live.values()):
            self.end(request, Outcome.FAILED, reason)
        for worker in self.workers:
            worker.clear()
            worker.set_alarm(None, self.now())

    def check_ended(self) -> None:
        """Nothing is left to happen. Raises `PolicyFault` or `InvariantBroken` if requests have not ended."""
        if not self.live:
            return
        what = f"{len(self.live)} requests never ended, though nothing was left to happen"
        held = self.holders()
        if held:
            raise PolicyFault(f"{what}; held by {held}")
        raise InvariantBroken(f"{what}; held by no worker, under {self.under()}")

    def holders(self) -> str:
        """Which workers, under which policies, hold requests: for telling why a run does not end."""
        held = [w for w in self.workers if w.view.waiting or w.view.running or w.inbox or w.view.in_flight]
        return ", ".join(f"{w.name} ({named(w.policy)})" for w in held)

    def under(self) -> str:
        """All policies, with file and line."""
        return ", ".join(dict.fromkeys(named(worker.policy) for worker in self.workers))

    def look_over(self) -> None:
        """The run is over. Raises `PolicyFault` if a policy has changed what all of them are made of."""
        policies = self.policies()
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
        self.known[request.id] = self._said(request)

    def _said(self, request: Request) -> tuple[object, ...]:
        """What *request* says now: `SAID`, and what it asks for."""
        terms = request.priority, request.tenant, request.weight, request.class_name, request.session, request.shape
        return request.arrival, request.deadline, request.missed, *terms, self._asked(request)

    def _asked(self, request: Request) -> int:
        """What *request* asks for, in a number that is the same as long as that is."""
        work, tokens = request.work, getattr(request, "tokens", None)
        try:
            asked = hash((*work.items(),)) if work else 0
            return asked if tokens is None else hash((asked, *[(name, str(said)) for name, said in tokens.items()]))
        except (AttributeError, TypeError):
            return -1  # it is no mapping any more; no hash is -1

    def know_anew(self, request: Request) -> None:
        """A budget may have moved the deadline of *request*, or have forgiven what it missed."""
        if not self._booked:
            return
        arrival, _, _, *rest = self.known[request.id]
        self.known[request.id] = arrival, request.deadline, request.missed, *rest

    def _check_request(self, request: Request) -> None:
        """Raise `PolicyFault` if *request* says something else than what is known of it."""
        if not self._booked:
            return
        known = self.known.get(request.id)
        now = self._said(request)
        if known != now:
            names, policies = (*SAID, "work"), self.policies()
            if known is None:
                raise write_fault(policies, f"id of {request}", "id")
            if known[:-1] == now[:-1]:  # of what it asked for a number is known, which tells nobody anything
                says = shown(getattr(request, "tokens", None) or request.work)
                raise write_fault(policies, f"work of request {request.id} (it says {says} now)", "work", "tokens")
            raise compared(policies, f"request {request.id}", names, now, known)
        self._stays.check(request, self.policies())

    def fail(self, request: Request, reason: str) -> None:
        """Something broke under *request* (a worker crashed, memory ran out): it ends as failed."""
        if request.outcome is None:
            self.end(request, Outcome.FAILED, reason)

    def forget_visit(self, task: Task) -> None:
        """*task* was lost with its worker, and its request is about to be sent to its stage again."""
        task.request.tasks.remove(task)
        if self._booked:
            self._stays.of[task.request.id].pop(task, None)

    def _received(self, task: Task) -> None:
        """*task* is no longer on its way to its worker."""
        assert task.worker is not None
        worker = self.workers[task.worker[0]]
        del worker.coming[task]
        worker.receive(task)

    # -- what workers ask for (`servetwin.core.serving.worker.Loop`) --------------------------------------------

    def runner(self, worker: Worker) -> Callable[[Any, Any], None]:
        """What runs the batches of *worker*: executors may have something for each."""
        runner: Callable[[Worker], Callable[[Any, Any], None]] | None = getattr(self.executor, "runner", None)
        return runner(worker) if runner is not None else partial(self.executor.run, worker)

    @property
    def send(self) -> Callable[[None, Task, Callable[[Any], None]], None]:
        """Carries a task from the client (None) to the queue of its worker, and calls what is given with it there."""
        return self.executor.send

    def call_at(self, when: float, callback: Callable[[], None]) -> Handle:
        """Call *callback* at that time, in seconds since the run began."""
        return self.executor.call_at(when, callback)

    def policies(self) -> list[Any]:
        """Those of all workers, the routers, and the autoscaler."""
        asked = (self.dispatcher, *[handover.dispatcher for handover in self.handovers])
        routers = [router for dispatcher in asked if dispatcher is not None for router in dispatcher.routers]
        scaler = [self.fleet.scaler] if self.fleet is not None and self.fleet.scaler is not None else []
        return [*[worker.policy for worker in self.workers], *routers, *scaler]

    def outputs_of(self, request: Request) -> Outputs | None:
        """The true output lengths of *request*, which no policy may see."""
        return self._outputs.get(request.id)

    # -- whose turn it is -------------------------------------------------------------------------------

    def hold(self) -> None:
        """Several requests are about to be handed over: nobody decides before `let_decide`."""
        if self.together:
            self.held = []

    def let_decide(self) -> None:
        """All have been handed over."""
        held, self.held = self.held, None
        for worker in held or ():
            worker.called = False
            self.call(worker)

    def call(self, worker: Worker) -> None:
        """It is the turn of *worker*, now or later (`is_free`)."""
        if self.is_free(worker):
            worker.turn()

    def is_free(self, worker: Worker) -> bool:
        """Whether *worker* may decide at once. Else it is called as soon as all that happens at this instant has, so
        that requests that arrive or are handed over together are there together."""
        if worker.called:
            return False
        if self.held is None:
            worker.called = self.when_settled(worker.awake)
            return not worker.called
        worker.called = True
        self.held.append(worker)
        return False

    # -- a request's path -------------------------------------------------------------------------------

    def forward_held(self, waiting: dict[Request, list[tuple[Stage, Task | None]]]) -> None:
        """Send on those visits of *waiting* whose stage has workers now, and take them out of it."""
        for request, visits in list(waiting.items()):
            here = [visit for visit in visits if self.serving[visit[0].name]]
            left = [visit for visit in visits if visit not in here]
            if left:
                waiting[request] = left
            else:
                del waiting[request]
            for stage, before in here:
                if request.outcome is None:
                    self.forward(request, stage, before, True)

    def forward(
        self, request: Request, stage: Stage, before: Task | None, jump: bool = False, target: Worker | None = None
    ) -> None:
        """Hand *request* on to *stage*, after its visit *before*; a *jump* along a branch waits for no other input.
        It goes to *target*, or where the router says."""
        if target is None:
            if stage.inputs > 1 and not jump:
                missing = request.waiting_for.get(stage.name, stage.inputs) - 1
                request.waiting_for[stage.name] = missing or stage.inputs
                if missing:
                    request.open_branches -= 1
                    if self.budget is not None:
                        self.budget.joins(request, stage.name, before)
                    return
            serving = self.serving[stage.name]
            if self._booked and before is not None and request.outcome is None:  # else another branch was dropped
                self._check_request(request)
            if len(serving) == 1 and self.fleet is None:
                target = serving[0]
            else:
                target = self._routed(request, stage, before)
                if target is None:
                    return
        now = self.now()
        task = target.task(request, now)
        if self.budget is not None:
            self.budget.begins(task, before)
            if request.outcome is None:
                self.know_anew(request)
        request.tasks.append(task)
        if self._booked:
            self._stays.begins(task)
        source = self.workers[before.worker[0]] if before is not None and before.worker is not None else None
        if self._chooses:
            target.coming[task] = None
            if self.dispatcher is not None:
                self.dispatcher.sent(target)
            self.executor.send(source, task, self._received)
        else:
            self.executor.send(source, task, target.receive)

    def _routed(self, request: Request, stage: Stage, before: Task | None) -> Worker | None:
        """Which of several workers *request* goes to; None: it waits until one has room, or is there at all."""
        serving = self.serving[stage.name]
        if self.fleet is not None:
            stays = self.fleet.stays(stage, before)
            if stays is not None:
                return stays
            if not serving:
                self.fleet.hold(request, stage, before)
                return None
        target = self.router(request, serving, self.now())
        if self._booked and request.outcome is None:  # a router has seen it
            self._check_request(request)
        if target is None and self.dispatcher is not None:
            self.dispatcher.hold(request, stage, before, serving)
        return target

    def leave(self, task: Task, now: float) -> None:
        """*task* has ended its stage *now*: its request goes on, or ends."""
        request, stage = task.request, task.stage
        if self._booked and self.entrance is None:
            self._stays.check(request, self.policies())
            self._stays.over(task)
        if self.dispatcher is not None and not self.stopped:
            self.dispatcher.freed(stage)
        if self.fleet is not None:
            self.fleet.moved()
        jump = False
        after: Sequence[Stage] = stage.next
        if stage.branches and self.branching is not None:
            assert task.worker is not None
            after, jump = self.branching.after(request, stage, self.workers[task.worker[0]].choice(task, now))
        if self.forks:
            request.open_branches += len(after) - 1
        if after:
            passes = True
            if self.budget is not None:
                self._check_request(request)
                passes = self.budget.passes(task, now)
                self.know_anew(request)
            if not passes:
                self.end(request, Outcome.DROPPED, f"not forwarded from {stage.name}")
                return
            for following in after:
                self.forward(request, following, task, jump)
            return
        if self.budget is not None:
            self._check_request(request)
            self.budget.ends(task, now)
            self.know_anew(request)
        if self.forks and request.open_branches:
            return
        request.finished = now
        due = request.deadline
        in_time = now <= due or now <= latest(due)
        self.end(request, Outcome.MET if in_time and not request.missed else Outcome.LATE)

    def freed(self, stage: Stage) -> None:
        """A worker of *stage* may have room: one whose request had ended elsewhere has left it."""
        if self.dispatcher is not None and not self.stopped:
            self.dispatcher.freed(stage)

    def drop(self, task: Task, view: WorkerView) -> None:
        """The policy of that *view* gives the request of *task* up."""
        if task.request.outcome is None:
            view.waiting.pop(task, None)
            view.running.pop(task, None)
            self.end(task.request, Outcome.DROPPED, f"dropped at {view.name}")

    def end(self, request: Request, outcome: Outcome, reason: str | None = None) -> None:
        """*request* has ended so, at whatever stages it is."""
        if request.outcome is not None:
            if request.id in self.live:
                raise write_fault(self.policies(), f"outcome of request {request.id}", "outcome")
            raise InvariantBroken(f"request {request.id} ended twice: as {request.outcome}, then as {outcome}")
        if self._booked and self.entrance is None:
            self._check_request(request)
            del self.known[request.id]
            self._stays.of.pop(request.id, None)
        request.outcome, request.reason = outcome, reason
        del self.live[request.id]
        if self._outputs:
            self._outputs.pop(request.id, None)
        now = self.now()
        if outcome is Outcome.DROPPED or outcome is Outcome.FAILED:
            for task in request.tasks:
                if task.worker is not None and task.finished is None:
                    worker = self.workers[task.worker[0]]
                    task.flight = worker.view.in_flight
                    worker.withdraw(task, now)
        if self.dispatcher is not None:
            self.dispatcher.forget(request)
            if not self.stopped:
                for task in request.tasks:
                    if task.finished is None:
                        self.dispatcher.freed(task.stage)
        if self.branching is not None:
            self.branching.forget(request)
        self._hear_end(request, now)
        if self.fleet is not None:
            self.fleet.ended(request, now)
