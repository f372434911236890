"""Earliest deadline first, at step level: the textbook policy, with batches re-formed at every iteration.

Whoever must start its last stretch soonest runs: requests are ordered by the latest time at which the rest of their
work, served alone, could still begin. That order does not change while a request waits. A request that
could not make it even alone is dropped, unless *drop_late* is off.
"""

from __future__ import annotations

import math

from servetwin.core import Batch, Decision, Policy, Repeat, Task, WorkerView


class EDF(Policy):
    """Runs the *max_batch* most urgent requests (by default as many as the worker allows), an iteration at a time."""

    def __init__(self, max_batch: int | None = None, drop_late: bool = True) -> None:
        self.max_batch = max_batch
        self.drop_late = drop_late
        self.latest: dict[Task, float] = {}  # task -> when what follows its loop here must begin
        self.step = 0.0

    def start(self, view: WorkerView) -> None:
        self.most = min(self.max_batch or view.limit, view.limit)
        self.step = view.estimate(view.stage.loop, 1) if view.stage.loop else 0.0

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        self.latest[task] = task.deadline - (view.solo(task) - task.left * self.step)
        return True

    def decide(self, view: WorkerView, now: float) -> Decision:
        latest, step = self.latest, self.step
        slack = [(latest[t] - t.left * step, t.id, t) for queue in (view.running, view.waiting) for t in queue]
        slack.sort()
        drop = []
        if self.drop_late:
            drop = [t for last, _, t in slack if last < now]
            del slack[: len(drop)]
            for task in drop:
                del latest[task]
        run = [t for _, _, t in slack[: self.most]]
        repeat = None
        if run and len(slack) == len(run):  # nobody is left out, so nothing changes until somebody is late
            repeat = Repeat(run[0].left, slack[0][0] if self.drop_late else math.inf)
        return Decision(run, drop=drop, repeat=repeat)

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        for task in batch.tasks:
            if not task.left:
                self.latest.pop(task, None)

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        self.latest.pop(task, None)
