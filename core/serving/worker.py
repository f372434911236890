"""A worker serves one stage of the serving loop with one policy.

This is the protocol between the two. A `ServingLoop` is the graph of stages and asks a `Worker` to take a task in
(`receive`), to decide (`turn`, `wake`, `ring`), and to let go of a task whose request has ended elsewhere
(`withdraw`). A worker asks its `Loop` for the time, hands on what leaves it, and says what it drops.

Kinds of workers:

- `servetwin.core.serving.batch_worker`: one batch in flight, the next one decided when it is done, or ahead
- `servetwin.core.serving.pool`: threads, a call on each
- `servetwin.core.llm.serving.worker`: an engine of a language model, step by step
- `servetwin.real.vllm.engine_process`: the same in another process, for real
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

from ..errors import BadInput, PolicyFault, ServeTwinError
from ..isolation import task_ledger
from ..isolation.answers import LEAST, MOST, OFTEN, check_decision, check_time, fault
from ..isolation.code_inspection import INTERPRETER, named, own, raised_at, says
from ..isolation.purity import innocent
from ..isolation.read_only import closed
from ..isolation.task_ledger import WRITABLE, Books
from ..pipeline import Stage
from ..policy import Batch, Decision, PolicyBase, WorkerView
from ..records import Recorder
from ..request import Outcome, Place, Request, Task
from ..routing import WorkerState

Intake = Literal["before", "after"]
NEVER = float("inf")
#: Stands for the answer of a policy that has not been asked yet.
UNASKED: Any = object()


def _none(request: Request) -> int:
    return 0


class Handle(Protocol):
    """A call that is still to come."""

    def cancel(self) -> None: ...


class Loop(Protocol):
    """What a worker may ask of the loop that it works for. Times are seconds since the run began."""

    recorder: Recorder
    stopped: bool  #: the run has been stopped: nothing more is decided
    live: dict[int, Request]  #: the requests that have not ended, by id
    batches: int  #: how many there have been; whoever makes one counts it
    held: list[Worker] | None  #: those whose turn it is when all that is handed over together has been, else None
    now: Callable[[], float]
    when_settled: Callable[[Callable[[], None]], bool]  #: as `servetwin.core.serving.executor.Executor.when_settled`
    hear_batch: Callable[[Any], None]  #: a batch is over

    def runner(self, worker: Worker) -> Callable[[Any, Any], None]:
        """What runs the batches of *worker*, given each and whom to call with it when it is done."""

    @property
    def send(self) -> Callable[[None, Task, Callable[[Any], None]], None]:
        """Carries a task from the client (None) to the queue of its worker, and calls what is given with it there."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Handle:
        """Call *callback* at that time."""

    def call(self, worker: Worker) -> None:
        """It is the turn of *worker*: at once, or when all that happens at this instant has."""

    def is_free(self, worker: Worker) -> bool:
        """Whether *worker* may decide at once; else it is called as in `call`."""

    def hold(self) -> None:
        """Several requests are about to be handed over: nobody decides before `let_decide`."""

    def let_decide(self) -> None:
        """They have been."""

    def leave(self, task: Task, now: float) -> None:
        """*task* has ended its stage: its request goes on, or ends."""

    def freed(self, stage: Stage) -> None:
        """A worker of *stage* may have room: one whose request had ended elsewhere has left it."""

    def drop(self, task: Task, view: WorkerView) -> None:
        """The policy of that *view* gives the request of *task* up."""

    def end(self, request: Request, outcome: Outcome) -> None:
        """*request* has ended so."""

    def fail(self, request: Request, reason: str) -> None:
        """Something broke under *request*."""

    def know_anew(self, request: Request) -> None:
        """The worker has written what *request* missed."""

    def outputs_of(self, request: Request) -> Any:
        """The true output lengths of *request*, which no policy may see, or None."""

    def policies(self) -> list[Any]:
        """Those of all workers, and the routers."""


class Handing(Protocol):
    """Sends visits on from some workers of a stage to others (`servetwin.core.llm.serving.handover.Handover`)."""

    @property
    def dispatcher(self) -> Any: ...

    def attach(self, loop: Any) -> None:
        """Work for *loop*."""


class Scaling(Protocol):
    """Lets workers come and go (`servetwin.core.fleets.fleet.Fleet`)."""

    called: str  #: the part of the summary, and the file beside it, that tell of it
    scaler: Any  #: who says how many there should be; None: nobody

    def attach(self, loop: Any) -> None:
        """Work for *loop*, before anything arrives."""

    def arrived(self, request: Request) -> None:
        """*request* has been sent."""

    def ended(self, request: Request, now: float) -> None:
        """*request* has ended."""

    def moved(self) -> None:
        """A request has left a worker."""

    def stays(self, stage: Stage, before: Task | None) -> Worker | None:
        """The worker of *stage* that a request is bound to after its visit *before*, if it is."""

    def hold(self, request: Request, stage: Stage, before: Task | None) -> None:
        """*request* waits until a worker of *stage* is there."""

    def summary(self, since: float, until: float) -> dict[str, Any]:
        """What the summary says of it, between these times."""

    def lines(self) -> list[dict[str, Any]]:
        """What the file holds."""

    def held(self, since: float, until: float) -> dict[str, float] | None:
        """Seconds between these times in which each device was held; None: all were, all the time."""


class Worker:
    """Serves one stage with one policy. Subclasses say how: at least by `receive`, `turn`, `ring` and `withdraw`.

    Its policy is *shown* a view that can only be read. What tasks say is kept here as well, where no policy can look:
    it is held against the tasks at each batch (*left*) and at the end of their visit.
    """

    #: What its policy answers.
    answer: type[Decision] = Decision
    #: Of which kind it is, as routers and other policies are told.
    kind: Literal["batch", "engine", "group", "pool"] = "batch"
    policy: PolicyBase
    view: WorkerView
    #: Whether requests come to it from clients and other stages; else from other workers of its stage only.
    takes_requests = True

    def __init__(self, stage: Stage, policy: PolicyBase, view: WorkerView, *, device: str = "gpu0") -> None:
        self.name = view.name
        self.stage = stage
        self.policy = policy
        self.view = view
        self.device = device
        self.place = Place(-1, view.name, stage, device)
        #: Whether its answers are held against its queues. Those of a policy that comes along are in the tests.
        self.doubted = True
        self.books: Books | None = None  # where its policy's code could write what it may only read
        self.shown: Any = None  # what its policy sees of it
        self.idles = 0  # answers on end by which the policy only idles
        self.idles_since = -1  # after which batch of the loop the first of them was given
        self.idles_from = 0.0  # when the first of them was given
        self.inbox: list[Task] = []
        self.coming: dict[Task, None] = {}  # sent here and not yet in the queue; where there is a choice of workers
        self.alarm: Handle | None = None
        self.alarm_at = NEVER
        self.awake = self.wake  # bound once
        self.deciding = False
        self.called = False  # it is to decide when all that happens at this instant has
        self.run: Callable[[Any, Any], None] = self._run_first  # runs a batch, and calls who is given when it is done

    @property
    def most(self) -> int:
        """How many requests run here at once at most."""
        return self.view.limit

    @property
    def device_count(self) -> int:
        """On how many devices it computes."""
        return 1

    @property
    def batches_under_way(self) -> Sequence[Batch]:
        """The batches that have begun and are not over."""
        return () if self.view.in_flight is None else (self.view.in_flight,)

    @property
    def kv_use(self) -> float:
        """The share of its KV blocks that are taken, from 0 to 1; 0 if it has none."""
        return 0.0

    def finds(self, *, kept: bool = False) -> Callable[[Request], int]:
        """What tells how many tokens of the prompt of a request, which is not here yet, its prefix cache holds; with
        *kept*, holds at this moment, whatever comes later. 0 if it has none."""
        return _none

    @property
    def unsettled(self) -> bool:
        """Whether what a router sees of it may change by more than what `note_changes` hears of."""
        return True

    def note_changes(self, noting: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Do by way of *noting* all that changes what a router sees of it, but sending a request here. Only a kind
        that does so is ever settled."""

    def seconds_left(self) -> list[float] | None:
        """The seconds that each request here still takes alone (as `servetwin.core.serving.dispatch.jobs_of` has
        them), if this kind has a quicker way."""
        return None

    def alike(self) -> object:
        """What is equal for workers that take the same for the same, whatever else is there (`WorkerState.alike`)."""
        return id(self)

    # -- what the loop asks of it ---------------------------------------------------------------------------

    def attach(self, loop: Loop) -> None:
        """Work for *loop*, before anything arrives."""
        self.loop = loop

    def serve_alone(self) -> tuple[Callable[[Request, float], Task], Callable[[Any], None]] | None:
        """It is the only worker, of the only stage, and no budget shares anything out. A kind that then takes
        requests straight from the client gives what makes their visits (as `task`; it takes out of them what policies
        must not see) and what these come to (as `receive`); it lets requests go by `Loop.end`."""
        return None

    def task(self, request: Request, now: float) -> Task:
        """The visit of *request* here, to which it is sent *now*."""
        return Task(request, self.stage, now, self.place)

    def choice(self, task: Task, now: float) -> Callable[[float], bool] | None:
        """What says whether *task*, which is done here *now*, takes the branch from here, given the number that was
        drawn for it; None where chance does."""
        return None

    def seconds_alone(self, request: Request, now: float) -> float:
        """What *request*, which is not here yet, would take here and later if it were served alone."""
        return self.view.solo(Task(request, self.stage, now))

    def receive(self, task: Task) -> None:
        """*task* has reached its queue."""
        raise NotImplementedError

    def turn(self, settled: bool = False) -> None:
        """Decide. *settled* says that all else that follows from the present event has been seen to."""
        raise NotImplementedError

    def ring(self) -> None:
        """The time has come until which the policy wanted to idle."""
        self.loop.call(self)

    def wake(self) -> None:
        """All that happens at this instant has: decide."""
        self.called = False
        if not self.loop.stopped:
            self.turn()

    def withdraw(self, task: Task, now: float) -> None:
        """The request of *task* has ended elsewhere: take it out of the queues, if it is still there."""
        raise NotImplementedError

    def clear(self) -> None:
        """The run has been stopped: forget what was decided ahead."""

    def restart(self) -> None:
        """Its process ends while nothing is here: what it keeps between requests is lost."""

    def fail(self, now: float) -> list[Task]:
        """It fails: gives the visits that were here, all of which are lost. The executor has forgotten its batches;
        they get as *count* the iterations that were over. Kinds of workers that may fail say how."""
        right = "an engine, or a worker with batches"
        raise BadInput(f"{self.name} is a {self.kind}, which cannot fail", right=right)

    def fail_batch(self, batch: Batch, now: float) -> list[Task]:
        """*batch*, which is in flight and which the executor has not begun, fails alone: gives its visits, which are
        lost. Kinds of workers of which batches may fail alone say how."""
        raise BadInput(f"no batch of {self.name} can fail alone", right="a restart, where memory runs out")

    def go_on(self) -> None:
        """Launch what was decided ahead of a batch that has failed alone (`fail_batch`), if anything was."""

    def take_up(self, task: Task, lost: Task) -> None:
        """*task*, which is about to be sent here, follows *lost*, which was lost with its worker."""

    # -- what its policy may see and say --------------------------------------------------------------------

    def show(self, kept: bool, peers: Sequence[WorkerState] = ()) -> None:
        """Make what its policy will see, *peers* included; with books of its tasks if they are to be *kept*."""
        self.view.peers = peers
        self.books = Books(self) if kept else None
        self.shown = closed(self.view, hide=kept)

    def look_over(self) -> None:
        """The run is over. Raises `PolicyFault` if the counts of its view are not what they come to."""

    def close_books(self) -> None:
        """From here on its tasks are believed."""
        self.books = None

    def check_code(self) -> None:
        """Raise `PolicyFault` if its policy's code says a word by which the interpreter shows what no view does."""
        found = says(self.policy, INTERPRETER)
        if found is not None:
            word, line = found
            what = f"it says {word}, by which it could look where no policy may"
            raise PolicyFault(f"{named(self.policy, line)}: {what}")

    @property
    def could_write(self) -> bool:
        """Whether its policy's code could write what it may only read, as far as anybody can tell."""
        return task_ledger.BOOKED or not innocent(self.policy, WRITABLE)

    def explain(self, error: Exception, decision: Any) -> None:
        """What *decision*, an answer of its policy, led to has raised *error*. Raises `PolicyFault` instead if that
        is no answer, and the error is neither one of ServeTwin's nor raised by the policy's own code."""
        if (
            decision is UNASKED
            or isinstance(error, ServeTwinError)
            or raised_at([own(self.policy)], error) is not None
        ):
            return
        check_decision(self.policy, decision, self.answer)

    def live_request(self, number: int) -> Request | None:
        """The request of that id, if it has not ended."""
        return self.loop.live.get(number)

    def not_here(self, word: str, task: object) -> PolicyFault:
        """Its policy speaks of a *task* that it does not have."""
        return fault(self.policy, f"it {word} {task!r}, which is not at {self.name}", "tasks of its view")

    def twice(self, name: str, tasks: Sequence[Task]) -> PolicyFault:
        """Its policy gives a list *name* that holds a task twice."""
        what = f"{name} of its decision holds {max(tasks, key=list(tasks).count)!r} twice"
        return fault(self.policy, what, "each task once")

    def check_free(self, word: str, tasks: Iterable[Task]) -> None:
        """Raise `PolicyFault` if one of *tasks* is in a batch already."""
        view = self.view
        taken = {task for batch in (view.in_flight, *view.backlog) if batch is not None for task in batch.tasks}
        for task in tasks:
            if task in taken:
                raise fault(self.policy, f"it {word} {task!r}, which is in a batch already", "tasks that are free")

    def check_drop(self, decision: Decision) -> tuple[Task, ...]:
        """The tasks that *decision* drops. Raises `PolicyFault` if they are not there, or run as well."""
        policy, drop = self.policy, decision.drop
        if type(drop) is not list and type(drop) is not tuple:
            check_decision(policy, decision)
        dropped, run = tuple(drop), decision.run
        waiting, running = self.view.waiting, self.view.running
        begun = []
        for task in dropped:
            if not isinstance(task, Task) or (task not in waiting and task not in running):
                check_decision(policy, decision)
                raise self.not_here("drops", task)
            if run and task in run:
                raise fault(policy, f"it both runs and drops {task!r}")
            if task not in waiting:
                begun.append(task)
        if len(dropped) > 1 and len(set(dropped)) < len(dropped):
            raise self.twice("drop", dropped)
        if begun and self.view.in_flight is not None:
            self.check_free("drops", begun)
        return dropped

    def idled(self, now: float) -> None:
        """Its policy has only idled, `servetwin.core.isolation.answers.OFTEN` times or so. Raises `PolicyFault` if
        that goes on for ever."""
        passed = now - self.idles_from
        if passed < LEAST or self.idles >= MOST:
            many = OFTEN if passed < LEAST else self.idles
            held = len(self.view.waiting) + len(self.view.running)
            what = f"it idled {many} times on end at {self.name}, the last {OFTEN} in {passed:g} s, and ran nothing"
            raise fault(self.policy, f"{what} of the {held} requests there (at {now:g} s)")
        self.idles_from = now

    def set_alarm(self, when: float | None, asked: float) -> None:
        """Wake it at *when*, after the time at which its policy was *asked*; a real clock may have gone on since."""
        due = NEVER if when is None else when
        if due == self.alarm_at:
            return
        if type(due) is not float:
            check_time(self.policy, when)
            due = float(due)
        if not due > asked:  # nor is NaN
            what = f"it idles until {due:g} at {self.name}, which is not in the future (it is {asked:g})"
            raise fault(self.policy, what)
        self.idles += 1
        if self.idles_since != self.loop.batches:  # something ran since it idled last
            self.idles, self.idles_from, self.idles_since = 1, asked, self.loop.batches
        elif not self.idles % OFTEN and due < NEVER:
            self.idled(asked)
        if self.alarm is not None:
            self.alarm.cancel()
            self.alarm = None
        self.alarm_at = due
        if due < NEVER:
            self.alarm = self.loop.call_at(due, self._alarmed)

    def _alarmed(self) -> None:
        self.alarm, self.alarm_at = None, NEVER
        self.ring()

    def _no_alarm(self) -> None:
        """It does not wake by itself any more."""
        if self.alarm is not None:
            self.alarm.cancel()
        self.alarm, self.alarm_at, self.idles = None, NEVER, 0

    def _run_first(self, batch: Any, done: Any) -> None:
        """Runs its first batch, and finds out what runs all others."""
        self.run = self.loop.runner(self)
        self.run(batch, done)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} on {self.device}>"
