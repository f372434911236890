"""Policies that know nothing of shapes, where requests are of several: each shape has a policy object of its own.

Such an object sees the tasks of its shape alone, with the times and the limit of that shape, and decides as if there
were no others. Whose decision is taken is settled here, whenever the worker is free: the objects are asked in order
of their most urgent task, until one has something to run. Most urgent is the task that must begin soonest to be in
time if it is served alone from then on; tasks that are late even so come after all others, oldest first. A policy can
say that its objects are to be asked in another order (``turn``): by who came first, or by who takes the least time.

A policy that decides ahead of the batch in flight (Clockwork) does so for the shape of that batch only: another shape
has its turn when the worker is idle.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import BadInput
from ..isolation.answers import check_decision, check_kept
from ..isolation.code_inspection import watcher
from ..isolation.read_only import closed
from ..policy import Batch, Decision, Policy, WorkerView
from ..request import ActingTask, Shape, Task
from ..slo import latest


class _GroupView(WorkerView):
    """What the policy object of one *shape* may see of a worker, of which *whole* is what may be seen in all."""

    def __init__(self, whole: WorkerView, shape: Shape | None) -> None:
        self.whole, self.shape = whole, shape

        def estimate(module: str, batch: int) -> float:
            return whole.estimate(module, batch, shape)

        limit = whole.limit_of(shape)
        super().__init__(whole.stage, estimate, limit=limit, name=whole.name, slo_factor=whole.slo_factor)
        self.peers = whole.peers

    @property
    def in_flight(self) -> Batch | None:
        batch = self.whole.in_flight
        return batch if batch is not None and batch.tasks[0].request.shape == self.shape else None

    @in_flight.setter
    def in_flight(self, batch: Batch | None) -> None:
        """The worker's."""

    @property
    def backlog(self) -> deque[Batch]:
        return deque(b for b in self.whole.backlog if b.tasks[0].request.shape == self.shape)

    @backlog.setter
    def backlog(self, batches: deque[Batch]) -> None:
        """The worker's."""


class _Group:
    """The tasks of one shape, and the *policy* object that decides about them."""

    def __init__(self, policy: Policy, whole: WorkerView, shape: Shape | None) -> None:
        self.policy = policy
        self.view = _GroupView(whole, shape)
        self.shown: Any = closed(self.view)
        self.alone: dict[Task, float] = {}  # seconds that each task took from its beginning on, served alone
        loop = whole.stage.loop
        self.step = self.view.estimate(loop, 1) if loop else 0.0
        policy.start(self.shown)

    def admit(self, task: Task, now: float) -> bool:
        kept = self.policy.admit(task, self.shown, now)
        if kept is not True and not check_kept(self.policy, kept):
            return False
        self.view.waiting[task] = None
        self.alone[task] = self.view.solo(task)
        return True

    def decide(self, now: float) -> Decision:
        decision = self.policy.decide(self.shown, now)
        check_decision(self.policy, decision)
        waiting, running = self.view.waiting, self.view.running
        for task in decision.run:
            if task in waiting:
                del waiting[task]
                running[task] = None
        for task, steps in (decision.steps or {}).items():
            if task in self.alone and isinstance(steps, int):  # else the worker says what is wrong
                self.alone[task] -= (task.iterations - steps) * self.step
        for task in decision.drop:
            self.forget(task)
        return decision

    def ended(self, batch: Batch, now: float) -> None:
        for task in batch.tasks:
            if task.left <= 0 or task.request.outcome is not None:
                self.forget(task)
        self.policy.ended(batch, self.shown, now)

    def removed(self, task: Task, now: float) -> None:
        self.policy.removed(task, self.shown, now)
        flying = self.view.in_flight
        if flying is None or task not in flying.tasks:  # else it runs out with its batch
            self.forget(task)

    def forget(self, task: Task) -> None:
        self.view.waiting.pop(task, None)
        self.view.running.pop(task, None)
        self.alone.pop(task, None)

    def urgency(self, now: float) -> tuple[bool, float, float, int]:
        """How urgent its most urgent task is; less is more."""
        step = self.step
        found = []
        for task, alone in self.alone.items():
            start = latest(task.deadline) - alone + (task.iterations - task.left) * step
            late = start < now
            found.append((late, 0.0 if late else start, task.arrival, task.id))
        return min(found)

    def oldest(self, now: float) -> tuple[float, int]:
        """When the first of its tasks came, and its id."""
        return min((task.arrival, task.id) for task in self.alone)

    def shortest(self, now: float) -> tuple[float, int]:
        """The seconds that its quickest task still takes alone, and its id."""
        left = [(alone - (t.iterations - t.left) * self.step, t.id) for t, alone in self.alone.items()]
        return min(left)


#: By what `Policy.turn` says: the order in which groups are asked, the least first.
ORDERS: dict[str, Callable[[_Group, float], tuple[float, ...]]] = {
    "slack": _Group.urgency,
    "arrival": _Group.oldest,
    "shortest": _Group.shortest,
}


@watcher
class ShapeTurns(Policy):
    """Gives each of *shapes* a policy object that *make* makes, and asks them in turn. *inner* is the first of
    them."""

    def __init__(self, make: Callable[[], Policy], shapes: Sequence[Shape]) -> None:
        self.make, self.shapes = make, shapes
        self.inner = make()
        self.ahead, self.pools, self.starves = self.inner.ahead, self.inner.pools, self.inner.starves
        self.order = ORDERS[self.inner.turn]
        self.groups: dict[Shape | None, _Group] = {}

    def start(self, view: WorkerView) -> None:
        self.view = view
        for shape in self.shapes:
            self.add(shape)

    def add(self, shape: Shape) -> None:
        """Requests of that *shape* may come from now on."""
        self.groups[shape] = _Group(self.make() if self.groups else self.inner, self.view, shape)

    def group(self, shape: Shape | None) -> _Group:
        """That of *shape*. Raises `BadInput` if it was not named before the run."""
        found = self.groups.get(shape)
        if found is None:
            raise BadInput(f"a request of {shape}", right=" or ".join(map(str, self.shapes)))
        return found

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        return self.group(task.request.shape).admit(task, now)

    def decide(self, view: WorkerView, now: float) -> Decision:
        held = [group for group in self.groups.values() if group.alone]
        held.sort(key=lambda group: self.order(group, now))
        flying = view.in_flight if self.ahead else None
        if flying is not None:
            shape = flying.tasks[0].request.shape
            held = held[:1] if held and held[0].view.shape == shape else []
        drop: list[Task] = []
        wake = math.inf
        for group in held:
            decision = group.decide(now)
            if decision.run:
                repeat = decision.repeat if len(held) == 1 else None
                more: dict[str, Any] = {"steps": decision.steps, "reuse": decision.reuse}
                return Decision(decision.run, [*drop, *decision.drop], repeat, decision.whole, **more)
            drop += decision.drop
            if decision.idle_until is not None:
                wake = min(wake, decision.idle_until)
        return Decision((), drop, idle_until=wake if wake < math.inf else None)

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        self.group(batch.tasks[0].request.shape).ended(batch, now)

    def onward(self, task: ActingTask, view: WorkerView, now: float) -> bool:
        group = self.group(task.request.shape)
        return group.policy.onward(task, group.shown, now)

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        self.group(task.request.shape).removed(task, now)
