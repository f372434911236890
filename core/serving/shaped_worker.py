"""A worker whose requests are of several shapes (sizes, frames, images, guidance): a batch holds one shape.

What is known of it is by shape: `ShapedView` estimates each by its own measured times, and its limit may be lower for
large shapes. The worker refuses a batch of several shapes, and one that is larger than its shape allows, whoever
decided it; so no executor, simulated or real, is given one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..arithmetic import float_sum
from ..isolation.answers import check_decision, fault
from ..pipeline import Stage
from ..policy import Decision, Policy, WorkerView
from ..request import Shape, Task
from .batch_worker import BatchWorker
from .worker import Intake

#: Seconds that a module takes for a batch.
Estimate = Callable[[str, int], float]


class ShapedView(WorkerView):
    """What may be seen of a worker whose requests have shapes. *estimates* and *limits* are by shape; without one,
    all that `WorkerView` gives is of the first of them, and its limit the largest."""

    def __init__(
        self,
        stage: Stage,
        estimates: Mapping[Shape, Estimate],
        limits: Mapping[Shape, int],
        *,
        name: str = "",
        slo_factor: float | None = None,
    ) -> None:
        usual = next(iter(estimates.values()))
        super().__init__(stage, usual, limit=max(limits.values()), name=name, slo_factor=slo_factor)
        self.limits: dict[Shape, int] = {}
        self.views: dict[Shape, WorkerView] = {}
        for shape, estimate in estimates.items():
            self.add(shape, estimate, limits[shape])

    def add(self, shape: Shape, estimate: Estimate, limit: int) -> None:
        """Requests of that *shape* may come from now on, in batches of up to *limit*."""
        self.limits[shape] = limit
        self.views[shape] = WorkerView(self.stage, estimate, limit=limit, name=self.name, slo_factor=self.slo_factor)

    def estimate(self, module: str, batch: int, shape: Shape | None = None) -> float:
        return self._estimate(module, batch) if shape is None else self.views[shape].estimate(module, batch)

    def limit_of(self, shape: Shape | None) -> int:
        return self.limit if shape is None else self.limits[shape]

    def solo(self, task: Task, done: int = 0) -> float:
        shape = task.request.shape
        return super().solo(task, done) if shape is None else self.views[shape].solo(task, done)


@dataclass(frozen=True)
class SlotMemory:
    """GiB of the device's memory that are there for the requests of a worker, and what each takes of it by shape."""

    gib: float
    slots: Mapping[Shape | None, float]


class ShapedWorker(BatchWorker):
    """A `BatchWorker` whose batches hold requests of one shape.

    With *memory* it takes in no more requests than fit: the others wait before its policy sees them, first come,
    first served. What a batch takes while it runs is not in it; the limits of the view are such that there is room
    for that.
    """

    view: ShapedView

    def __init__(
        self,
        stage: Stage,
        policy: Policy,
        view: ShapedView,
        *,
        device: str = "gpu0",
        intake: Intake = "before",
        memory: SlotMemory | None = None,
    ) -> None:
        super().__init__(stage, policy, view, device=device, intake=intake)
        self.memory = memory
        self.door: list[Task] = []  # while it decides: those that do not fit yet; else they are in the inbox

    def _free(self, memory: SlotMemory) -> float:
        """GiB that are not taken."""
        held = (*self.view.waiting, *self.view.running)
        return memory.gib - float_sum([memory.slots[task.request.shape] for task in held])

    def _decide(self, settled: bool = False) -> None:
        super()._decide(settled)
        memory = self.memory
        if memory is None:
            return
        while self.door:
            # Whom the policy has just dropped made room, and nothing else may ever happen here.
            again = self.view.in_flight is None and memory.slots[self.door[0].request.shape] <= self._free(memory)
            self.inbox, self.door = [*self.door, *self.inbox], []
            if not again:
                return
            super()._decide(settled)

    def _take_in(self) -> None:
        memory = self.memory
        if memory is None:
            super()._take_in()
            return
        waiting, self.inbox = [*self.door, *self.inbox], []
        free, count = self._free(memory), 0
        for task in waiting:
            if task.request.outcome is None:
                free -= memory.slots[task.request.shape]
                if free < 0.0:
                    break
            count += 1
        self.inbox, self.door = waiting[:count], waiting[count:]
        super()._take_in()

    def _take_out(self) -> list[Task]:
        at_the_door, self.door = self.door, []
        return [*at_the_door, *super()._take_out()]

    def _commit(self, decision: Decision, settled: bool) -> None:
        self._check_shapes(decision)
        super()._commit(decision, settled)

    def _check_shapes(self, decision: Decision) -> None:
        """Raise `PolicyFault` if *decision* mixes shapes, or runs more of one than may run together."""
        try:
            shapes = {task.request.shape for task in decision.run}
        except (AttributeError, TypeError):
            check_decision(self.policy, decision)
            raise
        if len(shapes) > 1:
            what = f"it runs requests of several shapes together: {' and '.join(sorted(map(str, shapes)))}"
            raise fault(self.policy, what, "tasks whose shape is equal (task.shape)")
        (shape,) = shapes
        most = self.view.limit_of(shape)
        if len(decision.run) > most:
            what = f"a batch of {len(decision.run)} is over the limit of {most} of {self.name} for {shape}"
            raise fault(self.policy, what, "view.limit_of(shape) at most")
