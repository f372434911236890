"""A worker: serves one stage with one policy, and keeps the books that the policy's word is held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from .answers import LEAST, MOST, OFTEN, check_decision, compared, fault, written
from .closed import closed
from .errors import PolicyFault
from .pipeline import Stage
from .place import innocent
from .request import Place, Request, Task
from .seam import Decision, Handle, Policy, WorkerView
from .tokens import TokenRequest, TokenTask

if TYPE_CHECKING:
    from .loop import ServingLoop

Intake = Literal["before", "after"]
NEVER = float("inf")

#: What a task says of itself, from when a policy is first shown it to the end of its stay.
SAID = ("id", "arrival", "deadline", "iterations", "queued", "admitted")

#: Attributes of tasks and requests that somebody who may not could write.
WRITABLE = frozenset(
    (*Task.__slots__, *TokenTask.__slots__, *Request.__slots__, *TokenRequest.__slots__, "generated", "computed", "count")
)

#: Whether books are kept for every policy, also for one whose code cannot write what it may only read.
BOOKED = False

#: Every so many batches all that is in one is looked over, beside what comes and goes.
LOOK = 64


class Worker:
    """Serves one stage with one policy; has one batch in flight at most.

    A kind of worker that serves in another way (`servetwin.core.pool`) overrides `attach` (which sets `receive`),
    `ring`, `withdraw` and `clear`; the loop serves all others itself.

    Its policy is *shown* a view that can only be read. What tasks say is kept here as well, where no policy can look:
    it is held against the tasks at each batch (*left*) and at the end of their stay.
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
        self.place = Place(-1, view.name, stage, device)
        self.shown = closed(view)
        #: Whether its policy's code could write what it may only read, so that books must be kept.
        self.booked = BOOKED or not innocent(policy, WRITABLE)
        self.kept: dict[Task, tuple[object, ...]] = {}  # what each task said when it was taken in (`SAID`)
        self.begun: dict[Task, float] = {}  # when each began
        self.clock = 0  # the iterations that were run
        self.taken = 0  # batches that were the last one again
        self.ran: list[Task] = []  # the last batch, if nobody has left it
        self.in_hand: tuple[Task, ...] = ()  # the last batch
        self.members: set[Task] = set()  # those of it who are still here
        self.ends: dict[Task, int] = {}  # at which reading of the clock each of them has run all, if they run on
        self.rest: dict[Task, int] = {}  # what all others have left
        self.idles = 0  # answers on end by which the policy only idles
        self.idles_from = 0.0  # when the first of them was given
        self.inbox: list[Task] = []
        self.coming: dict[Task, None] = {}  # sent here and not yet in the queue; where there is a choice of workers
        self.alarm: Handle | None = None
        self.alarm_at = NEVER
        self.deciding = False
        self.called = False  # it is to decide when all that happens at this instant has
        self.purge = False  # a request ended elsewhere while a task of it was in flight here

    def attach(self, loop: ServingLoop) -> None:
        """Work for *loop*, before anything arrives."""
        self.loop = loop
        self.receive: Callable[[Task], None] = loop._deliver
        self.policy.start(self.shown)

    @property
    def policy_name(self) -> str:
        """The class of its policy, also where somebody watches that (`servetwin.core.laws`)."""
        return type(getattr(self.policy, "inner", self.policy)).__name__

    @property
    def index(self) -> int:
        """Its place in the loop's list of workers."""
        return self.place.number

    def note(self, task: Task) -> None:
        """Remember what *task*, which its policy is about to be shown, says."""
        self.kept[task] = task.id, task.arrival, task.deadline, task.iterations, task.queued, task.admitted
        self.rest[task] = task.left

    def check_out(self, task: Task) -> None:
        """The stay of *task* is over. Raises `PolicyFault` if it does not say what it should."""
        self.ran = []
        if not self.booked:
            return
        kept = self.kept.pop(task, None)
        if kept is None:
            return
        if task in self.members:
            self.members.remove(task)
            left = self.ends.pop(task) - self.clock
        else:
            left = self.rest.pop(task)
        begun = self.begun.pop(task, None)
        if (
            (task.id, task.arrival, task.deadline, task.iterations, task.queued, task.admitted) != kept
            or task.started != begun
            or task.left != left
            or task.request.id != kept[0]
            or task.stage is not self.stage
            or task.worker is not self.place
            or task not in task.request.tasks
        ):
            names = (*SAID, "started", "left", "request", "stage", "worker")
            now = [getattr(task, name) for name in names]
            before = (*kept, begun, left, self.loop.live.get(task.id), self.stage, self.place)
            if [*now] == [*before]:
                raise written([self.policy], f"tasks of {task.request}", "tasks")
            raise compared([self.policy], f"task {task.id}", names, now, before)

    def check_left(self, task: Task, left: int) -> None:
        """Raise `PolicyFault` unless *task* says that it has so many left."""
        if task.left != left:
            raise compared([self.policy], f"task {task.id}", ("left",), (task.left,), (left,))

    def ended(self, tasks: Sequence[Task], steps: int) -> None:
        """Each of *tasks*, a batch that was decided by now, has run *steps* iterations."""
        if tasks is self.in_hand:
            self.clock += steps
            return
        for task in tasks:  # another was decided ahead
            if task in self.rest:
                self.rest[task] -= steps

    def holds(self, task: Task) -> bool:
        """Whether *task* is one that its policy may speak of."""
        return task in self.view.waiting or task in self.view.running

    def look(self) -> None:
        """Raise `PolicyFault` unless all that were in the last batch say what they have left."""
        for task in self.members:
            self.check_left(task, self.ends[task] - self.clock)

    def part(self, task: Task) -> None:
        """*task*, of the last batch, is not in the next."""
        self.members.remove(task)
        self.rest[task] = left = self.ends.pop(task) - self.clock
        self.check_left(task, left)

    def take(self, decision: Decision) -> tuple[Task, ...]:
        """The tasks that *decision* runs. Raises `PolicyFault` if they cannot be run, or do not say what they should."""
        policy, run, rest = self.policy, decision.run, self.rest
        if run == self.ran:
            self.taken += 1
            if not self.taken % LOOK:
                self.look()
            return self.in_hand
        if type(run) is not list and type(run) is not tuple:
            check_decision(policy, decision)
        tasks = tuple(run)
        try:
            new = set(tasks)
            if not self.members <= new:
                for task in self.members - new:
                    self.part(task)
            for task in new - self.members:
                left = rest.pop(task)
                if task.left != left:
                    self.check_left(task, left)
                self.ends[task] = self.clock + left
        except (TypeError, KeyError):
            check_decision(policy, decision)
            foreign = next((task for task in tasks if task not in self.kept), None)
            raise self.not_here("runs", foreign) from None
        if len(new) < len(tasks):
            raise self.twice("run", tasks)
        self.members, self.ran, self.in_hand = new, [*tasks], tasks
        return tasks

    def not_here(self, word: str, task: object) -> PolicyFault:
        """Its policy speaks of a *task* that it does not have."""
        return fault(self.policy, f"it {word} {task!r}, which is not at {self.name}", "tasks of its view")

    def twice(self, name: str, tasks: Sequence[Task]) -> PolicyFault:
        """Its policy gives a list *name* that holds a task twice."""
        what = f"{name} of its decision holds {max(tasks, key=list(tasks).count)!r} twice"
        return fault(self.policy, what, "each task once")

    def wrong_leaver(self, task: Task, tasks: Sequence[Task]) -> PolicyFault:
        """*task*, which has left a batch of *tasks*, was not here, or not any more."""
        return self.twice("run", tasks) if len(set(tasks)) < len(tasks) else self.not_here("runs", task)

    def check_free(self, word: str, tasks: Sequence[Task]) -> None:
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
        dropped = tuple(drop)
        for task in dropped:
            if not isinstance(task, Task) or not self.holds(task):
                check_decision(policy, decision)
                raise self.not_here("drops", task)
            if task in decision.run:
                raise fault(policy, f"it both runs and drops {task!r}")
        if len(set(dropped)) < len(dropped):
            raise self.twice("drop", dropped)
        if self.view.in_flight is not None:
            self.check_free("drops", dropped)
        return dropped

    def idled(self, now: float, until: float) -> None:
        """Its policy has nothing to run before *until*. Raises `PolicyFault` if that goes on for ever."""
        self.idles += 1
        if self.idles == 1:
            self.idles_from = now
        elif self.idles % OFTEN == 0 and until < float("inf"):
            passed = now - self.idles_from
            if passed < LEAST or self.idles >= MOST:
                many = OFTEN if passed < LEAST else self.idles
                held = len(self.view.waiting) + len(self.view.running)
                what = f"it idled {many} times on end at {self.name}, the last {OFTEN} in {passed:g} s, and ran nothing"
                raise fault(self.policy, f"{what} of the {held} requests there (at {now:g} s)")
            self.idles_from = now

    def task(self, request: Request, now: float) -> Task:
        """The stay of *request* here, to which it is sent *now*."""
        return Task(request, self.stage, now, self)

    def seconds_alone(self, request: Request, now: float) -> float:
        """What *request*, which is not here yet, would take here and later if it were served alone."""
        return self.view.solo(Task(request, self.stage, now))

    def ring(self) -> None:
        """The time has come until which the policy wanted to idle."""
        if self.view.in_flight is None or self.policy.ahead:  # else it was set before the batch began
            self.loop._call(self)

    def wake(self) -> None:
        """All that happens at this instant has: decide."""
        self.called = False
        if not self.loop.stopped:
            self.turn()

    def turn(self, settled: bool = False) -> None:
        """Decide. *settled* says that all else that follows from the present event has been seen to."""
        if not self.deciding and (self.view.in_flight is None or self.policy.ahead):
            self.loop._turn(self, settled)

    def withdraw(self, task: Task, now: float) -> None:
        """The request of *task* has ended elsewhere: take it out of the queues, if it is still there."""
        view = self.view
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
        self.check_out(task)

    def direct(self) -> Callable[[Request], None] | None:
        """Its own way of taking a request in and letting it go, if this is the only worker of the only stage."""
        return None

    def clear(self) -> None:
        """The run has been stopped: forget what was decided ahead."""
        self.view.backlog.clear()

    def __repr__(self) -> str:
        return f"<Worker {self.name} on {self.device}>"
