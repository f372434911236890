"""When each task must be done with its stage: what policies share that go by it."""

from __future__ import annotations

import math
from collections.abc import Iterable

from servetwin.core import Batch, Policy, Task, WorkerView
from servetwin.core.slo import latest


class Ends(Policy):
    """Keeps *ends*: by when (seconds since the run began) each task's loop here must have ended, so that what
    follows, served alone, still keeps the deadline. *step* is what an iteration of a single request takes in seconds,
    0 without a loop."""

    def start(self, view: WorkerView) -> None:
        self.step = view.estimate(view.stage.loop, 1) if view.stage.loop else 0.0
        self.ends: dict[Task, float] = {}

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        # Who would end exactly at the deadline is not late for a last bit: latest() has the tolerance of scores.
        self.ends[task] = latest(task.deadline) - (view.solo(task) - task.left * self.step)
        return True

    def latest_start(self, task: Task) -> float:
        """Until when the rest of *task* may begin, if it is served alone from then on."""
        return self.ends[task] - task.left * self.step

    def give_up(self, tasks: Iterable[Task], now: float) -> list[Task]:
        """Forget those of *tasks* that would be late even alone; gives them, to be dropped."""
        late = [task for task in tasks if self.latest_start(task) < now]
        for task in late:
            del self.ends[task]
        return late

    def next_late(self, tasks: Iterable[Task]) -> float:
        """Until when none of *tasks* is late; those that run gain on it."""
        return min(map(self.latest_start, tasks), default=math.inf)

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        if batch.leaves:
            for task in batch.tasks:
                if not task.left:
                    self.ends.pop(task, None)

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        self.ends.pop(task, None)
