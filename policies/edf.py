"""Earliest deadline first, at step level: the textbook policy, with batches re-formed at every iteration.

Whoever must start its last stretch soonest runs: requests are ordered by the latest time at which the rest of their
work, served alone, could still begin. That time does not change while a request waits, and moves on by the same step
for all that run; so what waits is kept in order, and only a newly urgent request changes the batch. A request
that could not make it even alone is dropped, unless *drop_late* is off.
"""

from __future__ import annotations

import math
from bisect import insort

from servetwin.core import Batch, Decision, Policy, Repeat, Task, WorkerView

Item = tuple[float, int, Task]  # latest start of what is left, request id, task


class EDF(Policy):
    """Runs the *max_batch* most urgent requests (by default as many as the worker allows), an iteration at a time."""

    def __init__(self, max_batch: int | None = None, drop_late: bool = True) -> None:
        self.max_batch = max_batch
        self.drop_late = drop_late
        self.batch: list[Item] = []
        self.others: list[Item] = []  # in order; those that are not in the batch
        self.ends: dict[Task, float] = {}  # when each task's loop here must end

    def start(self, view: WorkerView) -> None:
        self.most = min(self.max_batch or view.limit, view.limit)
        self.step = view.estimate(view.stage.loop, 1) if view.stage.loop else 0.0

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        ends = self.ends[task] = task.deadline - (view.solo(task) - task.left * self.step)
        insort(self.others, (ends - task.left * self.step, task.id, task))
        return True

    def decide(self, view: WorkerView, now: float) -> Decision:
        ends, step, others = self.ends, self.step, self.others
        batch = [(ends[t] - t.left * step, i, t) for _, i, t in self.batch if t in ends]
        drop = self._hopeless(batch, now) + self._hopeless(others, now) if self.drop_late else []
        if others and (len(batch) < self.most or others[0] < batch[-1]):
            others.extend(batch)
            others.sort()  # two ordered runs: a merge
            batch = others[: self.most]
            del others[: self.most]
        self.batch = batch
        repeat = None
        if batch and not others:  # nobody is left out, so nothing changes until somebody is late
            repeat = Repeat(batch[0][2].left, batch[0][0] if self.drop_late else math.inf)
        return Decision([t for _, _, t in batch], drop=drop, repeat=repeat)

    def _hopeless(self, items: list[Item], now: float) -> list[Task]:
        late = 0
        while late < len(items) and items[late][0] < now:
            late += 1
        drop = [task for _, _, task in items[:late]]
        for task in drop:
            del self.ends[task]
        del items[:late]
        return drop

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        for task in batch.tasks:
            if not task.left:
                self.ends.pop(task, None)

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        self.ends.pop(task, None)
        self.others = [item for item in self.others if item[2] is not task]
