"""A worker that serves one stage on a group of devices: several batches at once, each on devices of its own.

The policy is asked as long as a device is free. Each decision names the devices of its batch; with ``whole`` they
compute the batch until all its requests are done, else one iteration, after which these may go on elsewhere. No
device is in two batches at once, and each iteration of a request runs on one set of devices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..arithmetic import float_sum
from ..isolation.answers import check_whole, fault
from ..pipeline import Stage
from ..policy import Batch, ByDegree, Decision, DeviceGroup, Policy, WorkerView
from ..request import GroupTask, Request, Task
from ..serving.pool import ManyInFlight
from ..serving.shaped_worker import ShapedView


class GroupWorker(ManyInFlight):
    """Serves one stage with *size* devices, so many of which as *degrees* hold may compute a batch together;
    *estimate* is what its policy is told that takes. *change* is what a step takes longer before which a request
    changes devices, in seconds; None: that is not known, and none may.

    Counted as it goes, in seconds: *device_seconds* by degree (a batch of a second on four devices counts four), and
    how often a *change* was paid for.
    """

    kind = "group"

    def __init__(
        self,
        stage: Stage,
        policy: Policy,
        view: WorkerView,
        *,
        size: int,
        degrees: Sequence[int],
        estimate: ByDegree,
        change: float | None = None,
        device: str = "gpu0",
    ) -> None:
        super().__init__(stage, policy, view, device=device)
        self.size, self.degrees, self.change = size, tuple(degrees), change
        self.flying: dict[int, Batch] = {}  # by device
        self.moving: set[Task] = set()  # those in a batch
        self.last: dict[Task, tuple[int, ...]] = {}  # on which devices each ran last
        self.used: dict[Task, float] = {}  # device-seconds of the batches of each that are over
        self.changed: Counter[Task] = Counter()
        self.device_seconds: dict[int, float] = {}
        self.batch_seconds = 0.0
        self.changes = 0
        view.form(
            DeviceGroup(
                self.degrees,
                estimate,
                self._free,
                size=size,
                busy=self.moving.__contains__,
                devices_of=lambda task: self.last.get(task, ()),
                change=change,
                shapes=tuple(view.limits) if isinstance(view, ShapedView) else (),
            )
        )

    @property
    def most(self) -> int:
        return self.view.limit * self.size

    @property
    def device_count(self) -> int:
        return self.size

    @property
    def batches_under_way(self) -> Sequence[Batch]:
        return [*dict.fromkeys(self.flying.values())]

    @property
    def room(self) -> bool:
        return len(self.flying) < self.size

    def task(self, request: Request, now: float) -> Task:
        return GroupTask(request, self.stage, now, self.place)

    def usage(self) -> dict[str, Any]:
        """What its devices did: *device_seconds* in all and by degree, *mean_degree* over the time of its batches
        (None if it ran none), and how many batches a change came before."""
        total = float_sum(self.device_seconds.values())
        return {
            "devices": self.size,
            "device_seconds": total,
            "device_seconds_by_degree": {str(n): self.device_seconds[n] for n in sorted(self.device_seconds)},
            "mean_degree": total / self.batch_seconds if self.batch_seconds else None,
            "changes": self.changes,
        }

    def _free(self) -> tuple[int, ...]:
        return tuple([n for n in range(self.size) if n not in self.flying])

    # -- a batch ----------------------------------------------------------------------------------------------

    def carry_out(self, decision: Decision, now: float) -> None:
        loop, view = self.loop, self.view
        tasks, devices = tuple(decision.run), tuple(decision.devices)
        self._check(tasks, devices)
        joiners = [task for task in tasks if task in view.waiting]
        for task in joiners:
            del view.waiting[task]
            view.running[task] = None
            task.started = now
            if self.books is not None:
                self.books.begun[task] = now
        loop.batches += 1
        whole = check_whole(self.policy, decision.whole)
        batch = Batch(loop.batches, self.place, tasks, whole)
        batch.joiners, batch.devices, batch.start = joiners, devices, now
        batch.iterations = max([task.left for task in tasks]) if whole else 1
        batch.leaves = sum([task.left <= batch.iterations for task in tasks])
        batch.changed = self._move(tasks, devices)
        self.flying.update(dict.fromkeys(devices, batch))
        self.moving.update(tasks)
        self.run(batch, self._done)

    def _check(self, tasks: Sequence[Task], devices: Sequence[int]) -> None:
        """Raise `PolicyFault` if *tasks* may not run together on *devices*, or not now."""
        policy, view, name = self.policy, self.view, self.name
        for task in tasks:
            if task not in view.waiting and task not in view.running:
                raise self.not_here("runs", task)
            if task in self.moving:
                raise fault(policy, f"it runs {task!r}, which is in a batch already", "tasks that are free")
            if self.books is not None:
                self.books.check_left(task, self.books.rest[task])
        if len(set(tasks)) < len(tasks):
            raise self.twice("run", tasks)
        shapes = {task.request.shape for task in tasks}
        if len(shapes) > 1:
            what = f"it runs requests of several shapes together: {' and '.join(sorted(map(str, shapes)))}"
            raise fault(policy, what, "tasks whose shape is equal (task.shape)")
        most = view.limit_of(tasks[0].request.shape)
        if len(tasks) > most:
            raise fault(policy, f"a batch of {len(tasks)} is over the limit of {most} of {name}")
        if len(set(devices)) < len(devices) or not set(devices) <= set(self._free()):
            what = f"it runs a batch on devices {[*devices]} of {name}, of which {[*self._free()]} are free"
            raise fault(policy, what, "numbers of view.group.free, each once")
        if len(devices) not in self.degrees:
            what = f"it runs a batch on {len(devices)} devices of {name}"
            raise fault(policy, what, f"so many as view.group.degrees says: {', '.join(map(str, self.degrees))}")

    def _move(self, tasks: Sequence[Task], devices: tuple[int, ...]) -> bool:
        """Note that *tasks* run on *devices* from now on; whether one of them ran on others before. Raises
        `PolicyFault` if nobody knows what such a change takes."""
        moved = [task for task in tasks if task in self.last and set(self.last[task]) != set(devices)]
        if moved and self.change is None:
            what = f"{moved[0]!r} ran on devices {[*self.last[moved[0]]]} of {self.name}, and now on {[*devices]}"
            right = "the same devices to the end; or a profile with the cost of changing them (<loop>.regroup)"
            raise fault(self.policy, what, right)
        self.changed.update(moved)
        self.last.update(dict.fromkeys(tasks, devices))
        self.changes += bool(moved)
        return bool(moved)

    def _done(self, batch: Batch) -> None:
        """The executor has run *batch*."""
        loop, view, books = self.loop, self.view, self.books
        now = batch.end = loop.now()
        for device in batch.devices:
            del self.flying[device]
        self.moving.difference_update(batch.tasks)
        loop.hear_batch(batch)
        seconds, degree = now - batch.start, len(batch.devices)
        self.batch_seconds += seconds
        self.device_seconds[degree] = self.device_seconds.get(degree, 0.0) + degree * seconds
        self.deciding, deciding = True, self.deciding  # a client may answer with its next request
        for task in batch.tasks:
            self.used[task] = self.used.get(task, 0.0) + seconds * degree / batch.size
            task.left -= batch.iterations
            if books is not None and task in books.rest:
                books.rest[task] -= batch.iterations
            if task.request.outcome is not None:  # it ended elsewhere meanwhile
                view.running.pop(task, None)
                self._forget(task)
        leavers = [task for task in batch.tasks if task.left <= 0 and task.request.outcome is None]
        if len(leavers) > 1:
            loop.hold()
        for task in leavers:
            if books is not None:
                books.check_out(task)
            task.left = 0
            del view.running[task]
            self._tell(task)
            self._forget(task)
            task.finished = now
            loop.leave(task, now)
        if len(leavers) > 1:
            loop.let_decide()
        self.policy.ended(batch, self.shown, now)
        self.deciding = deciding
        loop.call(self)

    def _tell(self, task: Task) -> None:
        """Let *task*, whose visit ends, say what it used of the devices."""
        if isinstance(task, GroupTask):
            task.device_seconds, task.changes = self.used.get(task, 0.0), self.changed[task]

    def _forget(self, task: Task) -> None:
        del self.changed[task]
        self.used.pop(task, None)
        self.last.pop(task, None)

    def check_drop(self, decision: Decision) -> tuple[Task, ...]:
        dropped = super().check_drop(decision)
        for task in dropped:
            if task in self.moving:
                raise fault(self.policy, f"it drops {task!r}, which is in a batch", "tasks that are free")
        return dropped

    def withdraw(self, task: Task, now: float) -> None:
        view = self.view
        here = task in view.waiting or task in view.running  # else its policy has dropped it
        self._tell(task)
        view.waiting.pop(task, None)
        if task not in self.moving:  # else it runs out with its batch
            view.running.pop(task, None)
            self._forget(task)
        if here:
            self.policy.removed(task, self.shown, now)
        if self.books is not None:
            self.books.check_out(task)
