"""As many steps as the deadline bears: quality is given up for time, request by request, and no more than is needed.

A policy of ServeTwin's own, for stages that say what may be done with steps (``pipeline.modules.NAME.actions``); of
others every step runs. Between any two steps::

    a request that could not make it even alone, with the fewest steps that it may have, is dropped
    whoever has begun runs on
    the others join in the order in which they must begin, if there is room, and if in the larger batch nobody who
                      runs ends late; who joins gets as many steps as that batch does until its deadline, the fewest
                      at least and those that were asked for at most

Under light load everybody gets all steps. The longer the queue, the less time is left to those who join, and the
fewer steps they get; so the batch turns over faster. How many steps a request has is settled when it begins, since
the noise levels of all its steps depend on their number.

Stages without a loop run by deadline, as many together as there is room for.
"""

from __future__ import annotations

from servetwin.core import Decision, Repeat, Task, WorkerView
from servetwin.core.parameters import at_least
from servetwin.core.pipeline import StepActions
from servetwin.policies.diffusion._ends import Ends


class FewerSteps(Ends):
    """*max_batch* bounds the batch (None: by the worker's limit); *reserve* are the seconds that are set aside for
    each hand-over to a later stage."""

    uses_actions = ("quality",)

    def __init__(self, max_batch: int | None = None, reserve: float = 0.01) -> None:
        at_least(1, "fewer-steps", max_batch=max_batch)
        at_least(0, "fewer-steps", reserve=reserve)
        self.max_batch, self.reserve = max_batch, reserve

    def start(self, view: WorkerView) -> None:
        super().start(view)
        loop, most = view.stage.loop, min(self.max_batch or view.limit, view.limit)
        times = [view.estimate(loop, n) for n in range(1, most + 1)] if loop else [0.0] * most
        # Where a larger batch is quicker by the profile, that is noise: the smaller is no slower.
        self.seconds = [0.0, *(min(times[n:]) for n in range(most))]
        self.actions: StepActions | None = view.stage.actions

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        super().admit(task, view, now)
        self.ends[task] -= self.reserve * view.stage.hops
        return True

    def latest_start(self, task: Task) -> float:
        return self.ends[task] - self._due(task) * self.step

    def _due(self, task: Task) -> int:
        """The steps that *task* cannot do without."""
        begun = task.started is not None
        return task.left if begun or self.actions is None else self.actions.fewest(task.iterations)

    def decide(self, view: WorkerView, now: float) -> Decision:
        waiting = [*view.waiting]
        drop = self.give_up([*view.running, *waiting], now) if view.stage.loop else []
        batch = [task for task in view.running if task in self.ends]
        waiting = [task for task in waiting if task in self.ends]
        joining: list[Task] = []
        for task in sorted(waiting, key=lambda task: (self.latest_start(task), task.id)):
            together = [*batch, *joining, task]
            if len(together) == len(self.seconds) or not (len(together) == 1 or self._bear(together, now)):
                break
            joining.append(task)
        batch += joining
        if not batch:
            return Decision((), drop)
        steps = {task: count for task in joining if (count := self._steps(task, len(batch), now)) < task.iterations}
        return Decision(batch, drop, self._repeat(view, batch, steps), steps=steps)

    def _bear(self, batch: list[Task], now: float) -> bool:
        """Whether all of *batch* can end in time if it stays as it is."""
        pace = self.seconds[len(batch)]
        return all(now + self._due(task) * pace <= self.ends[task] for task in batch)

    def _steps(self, task: Task, size: int, now: float) -> int:
        """The steps of *task* if it begins in a batch of that *size*."""
        if self.actions is None:
            return task.iterations
        bears = int((self.ends[task] - now) / self.seconds[size])
        return max(self.actions.fewest(task.iterations), min(task.iterations, bears))

    # -- speed only -----------------------------------------------------------------------------------------

    def _repeat(self, view: WorkerView, batch: list[Task], steps: dict[Task, int]) -> Repeat | None:
        """Where nobody is left out, the batch stays until somebody leaves it, or cannot make it any more."""
        if len(batch) < len(view.running) + len(view.waiting):
            return None
        left = {task: steps.get(task, task.left) for task in batch}
        return Repeat(min(left.values()), min(self.ends[task] - n * self.step for task, n in left.items()))
