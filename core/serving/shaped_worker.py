"""A worker whose requests are of several shapes (sizes, frames, images, guidance): a batch holds one shape.

What is known of it is by shape: `ShapedView` estimates each by its own measured times, and its limit may be lower for
large shapes. The worker refuses a batch of several shapes, and one that is larger than its shape allows, whoever
decided it; so no executor, simulated or real, is given one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
        self.limits = dict(limits)
        self.views = {
            shape: WorkerView(stage, estimate, limit=limits[shape], name=self.name, slo_factor=slo_factor)
            for shape, estimate in estimates.items()
        }

    def estimate(self, module: str, batch: int, shape: Shape | None = None) -> float:
        return self._estimate(module, batch) if shape is None else self.views[shape].estimate(module, batch)

    def limit_of(self, shape: Shape | None) -> int:
        return self.limit if shape is None else self.limits[shape]

    def solo(self, task: Task, done: int = 0) -> float:
        shape = task.request.shape
        return super().solo(task, done) if shape is None else self.views[shape].solo(task, done)


class ShapedWorker(BatchWorker):
    """A `BatchWorker` whose batches hold requests of one shape."""

    view: ShapedView

    def __init__(
        self,
        stage: Stage,
        policy: Policy,
        view: ShapedView,
        *,
        device: str = "gpu0",
        intake: Intake = "before",
    ) -> None:
        super().__init__(stage, policy, view, device=device, intake=intake)

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
