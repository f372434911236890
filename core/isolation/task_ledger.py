"""The books of a worker: what its tasks say, where no policy can look.

Tasks are shown to policies as they are, since they are written at every iteration, and Python keeps nobody from
writing an attribute. So what they say is written down here as well and held against them whenever one joins a batch,
leaves it or ends its visit. Where a policy's code cannot write anything (`servetwin.core.isolation.purity`) nobody
needs books.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..errors import PolicyFault
from ..llm.policy import Step
from ..llm.request import AdapterTask, CachingTask, HandedTask, TokenRequest, TokenTask
from ..llm.speculation import SpeculativeTask
from ..pipeline import Stage
from ..policy import Decision
from ..request import ActingTask, GroupTask, Place, Request, Task
from .answers import check_decision, compared, write_fault

#: What a task says of itself, from when a policy is first shown it to the end of its visit.
SAID = ("id", "arrival", "deadline", "iterations", "queued", "admitted")

#: Attributes of tasks and requests that somebody who may not could write.
WRITABLE = frozenset(
    (
        *Task.__slots__,
        *TokenTask.__slots__,
        *CachingTask.__slots__,
        *HandedTask.__slots__,
        *ActingTask.__slots__,
        *GroupTask.__slots__,
        *SpeculativeTask.__slots__,
        *AdapterTask.__slots__,
        *Request.__slots__,
        *TokenRequest.__slots__,
        "generated",
        "computed",
        "count",
        "drop",
        *Step.__slots__,  # an engine goes by what a step said when it was made
    )
)

#: Whether books are kept for every policy, also for one whose code cannot write what it may only read.
BOOKED = False

#: Every so many batches all that is in one is looked over, beside what comes and goes.
LOOK = 64


class Served(Protocol):
    """What books are told of their worker (`servetwin.core.serving.worker.Worker`)."""

    stage: Stage
    place: Place

    @property
    def policy(self) -> object: ...

    def live_request(self, number: int) -> Request | None:
        """The request of that id, if it has not ended."""

    def not_here(self, word: str, task: object) -> PolicyFault: ...
    def twice(self, name: str, tasks: Sequence[Task]) -> PolicyFault: ...


class Books:
    """Those of *worker*."""

    def __init__(self, worker: Served) -> None:
        self.worker = worker
        self.kept: dict[Task, tuple[object, ...]] = {}  # what each task said when it was taken in (`SAID`)
        self.begun: dict[Task, float] = {}  # when each began
        self.clock = 0  # the iterations that were run
        self.taken = 0  # batches that were the last one again
        self.ran: list[Task] = []  # the last batch, if nobody has left it
        self.in_hand: tuple[Task, ...] = ()  # the last batch
        self.members: set[Task] = set()  # those of it who are still here
        self.ends: dict[Task, int] = {}  # at which reading of the clock each of them has run all, if they run on
        self.rest: dict[Task, int] = {}  # what all others have left
        self.reused: dict[Task, int] = {}  # in how many of its steps a task took the last prediction again

    def note(self, task: Task) -> None:
        """Remember what *task*, which its policy is about to be shown, says."""
        self.kept[task] = task.id, task.arrival, task.deadline, task.iterations, task.queued, task.admitted
        self.rest[task] = task.left

    def set_steps(self, task: Task, steps: int) -> None:
        """*task*, which has not begun, was given so many steps."""
        *before, _, queued, admitted = self.kept[task]
        self.kept[task] = (*before, steps, queued, admitted)
        self.rest[task] = steps

    def check_out(self, task: Task) -> None:
        """The visit of *task* is over. Raises `PolicyFault` if it does not say what it should."""
        self.ran = []
        kept = self.kept.pop(task, None)
        if kept is None:
            return
        if task in self.members:
            self.members.remove(task)
            left = self.ends.pop(task) - self.clock
        else:
            left = self.rest.pop(task, task.left)  # it is missing after a fault only
        begun = self.begun.pop(task, None)
        if (
            (task.id, task.arrival, task.deadline, task.iterations, task.queued, task.admitted) != kept
            or task.started != begun
            or task.left != left
            or task.request.id != kept[0]
            or task.stage is not self.worker.stage
            or task.worker is not self.worker.place
            or task not in task.request.tasks
        ):
            names = (*SAID, "started", "left", "request", "stage", "worker")
            now = [getattr(task, name) for name in names]
            before = (*kept, begun, left, self.worker.live_request(task.id), self.worker.stage, self.worker.place)
            if [*now] == [*before]:
                raise write_fault([self.worker.policy], f"tasks of {task.request}", "tasks")
            raise compared([self.worker.policy], f"task {task.id}", names, now, before)

    def check_left(self, task: Task, left: int) -> None:
        """Raise `PolicyFault` unless *task* says that it has so many left."""
        if task.left != left:
            raise compared([self.worker.policy], f"task {task.id}", ("left",), (task.left,), (left,))

    def ended(self, tasks: Sequence[Task], steps: int) -> None:
        """Each of *tasks*, a batch that was decided by now, has run *steps* iterations."""
        if tasks is self.in_hand:
            self.clock += steps
            return
        for task in tasks:  # another was decided ahead
            if task in self.rest:
                self.rest[task] -= steps

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
        """The tasks that *decision* runs. Raises `PolicyFault` if they cannot be run, or say what they should not."""
        policy, run, rest = self.worker.policy, decision.run, self.rest
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
            raise self.worker.not_here("runs", foreign) from None
        if len(new) < len(tasks):
            raise self.worker.twice("run", tasks)
        self.members, self.ran, self.in_hand = new, [*tasks], tasks
        return tasks


#: What a visit that is over says of itself, whatever kind it is of.
PAST = (
    "queued", "admitted", "started", "first_token", "finished", "arrival", "prompt", "limit", "budget",
    "preemptions", "base_generated", "base_computed", "device_seconds", "changes",
)  # fmt: skip


class Stays:
    """The visits of each live request, and what those that are over said then: later stages go by that."""

    def __init__(self) -> None:
        self.of: dict[int, dict[Task, tuple[object, ...] | None]] = {}

    def begins(self, task: Task) -> None:
        self.of.setdefault(task.request.id, {})[task] = None

    def over(self, task: Task) -> None:
        self.of[task.request.id][task] = _says_of_past(task)

    def check(self, request: Request, policies: Sequence[object]) -> None:
        """Raise `PolicyFault` if the visits of *request* are not what they were."""
        known = self.of.get(request.id, {})
        if request.tasks != [*known]:
            raise write_fault(policies, f"tasks of request {request.id}", "tasks")
        for task, said in known.items():
            if said is not None and said != (now := _says_of_past(task)):
                raise compared(policies, f"a visit of request {request.id} that is over", PAST, now, said)


def _says_of_past(task: Task) -> tuple[object, ...]:
    return tuple([getattr(task, name, None) for name in PAST])
