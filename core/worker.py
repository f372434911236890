"""A worker: serves one stage with one policy, and keeps the books that the policy's word is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from .errors import PolicyFault
from .executor import Handle
from .invariants import task_ledger
from .invariants.answers import LEAST, MOST, OFTEN, check_decision, fault
from .invariants.code_inspection import INTERPRETER, named, says
from .invariants.purity import innocent
from .invariants.read_only import closed
from .invariants.task_ledger import WRITABLE, Books
from .pipeline import Stage
from .policy import Decision, Policy, WorkerView
from .request import Place, Request, Task

if TYPE_CHECKING:
    from .loop import ServingLoop

Intake = Literal["before", "after"]
NEVER = float("inf")


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
        self.ran: tuple[Task, ...] = ()  # its last batch, while all of that are here and may go on
        self.least = 0  # what the least of them has left
        self.run: Callable[[Any, Any], None] = self._first  # runs a batch, and calls who is given when it is done
        self.purge = False  # a request ended elsewhere while a task of it was in flight here

    def show(self, kept: bool) -> None:
        """Make what its policy will see; with books of its tasks if they are to be *kept*."""
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

    def attach(self, loop: ServingLoop) -> None:
        """Work for *loop*, before anything arrives."""
        self.loop = loop
        self.receive: Callable[[Task], None] = loop._deliver
        self.policy.start(self.shown)

    def _first(self, batch: Any, done: Any) -> None:
        """Runs its first batch, and finds out what runs all others: executors may have something for each worker."""
        executor = self.loop.executor
        runner: Callable[[Worker], Callable[[Any, Any], None]] | None = getattr(executor, "runner", None)
        self.run = runner(self) if runner is not None else partial(executor.run, self)
        self.run(batch, done)

    @property
    def index(self) -> int:
        """Its place in the loop's list of workers."""
        return self.place.number

    def not_here(self, word: str, task: object) -> PolicyFault:
        """Its policy speaks of a *task* that it does not have."""
        return fault(self.policy, f"it {word} {task!r}, which is not at {self.name}", "tasks of its view")

    def twice(self, name: str, tasks: Sequence[Task]) -> PolicyFault:
        """Its policy gives a list *name* that holds a task twice."""
        what = f"{name} of its decision holds {max(tasks, key=list(tasks).count)!r} twice"
        return fault(self.policy, what, "each task once")

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
        """Its policy has only idled, `servetwin.core.invariants.answers.OFTEN` times or so. Raises `PolicyFault` if
        that goes on for ever."""
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
        loop = self.loop
        # (With a batch in flight it was set before that began.)
        if (self.view.in_flight is None or self.policy.ahead) and not self.deciding and loop._is_free(self):
            loop._turn(self)

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
        self.ran = ()
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
        if self.books is not None:
            self.books.check_out(task)

    def direct(self) -> Callable[[Request], None] | None:
        """Its own way of taking a request in and letting it go, if this is the only worker of the only stage."""
        return None

    def clear(self) -> None:
        """The run has been stopped: forget what was decided ahead."""
        self.view.backlog.clear()

    def __repr__(self) -> str:
        return f"<Worker {self.name} on {self.device}>"
