"""Least slack first, the slack reckoned at the speed of the batch: re-formed at every iteration.

The textbook policy (least laxity first: A. Mok, "Fundamental Design Problems of Distributed Systems for the
Hard-Real-Time Environment", MIT 1983): whoever can wait the shortest before it would be late goes first. The slack is
the deadline, less now, less the time that the rest of the request takes.

The textbook has one job at a time and its run time. Here a batch runs, whose iterations take longer the larger it is.
So each iteration that is left counts with what it takes in a batch of all that are there, as many as fit. (`edf` has
the same rule with iterations of a request alone; the two differ where step counts do.) What follows at later stages
counts as if alone. A request that would be late even alone is dropped, unless *drop_late* is off.
"""

from __future__ import annotations

import math

from servetwin.core import Decision, Repeat, Task, WorkerView
from servetwin.core.parameters import at_least
from servetwin.policies.diffusion._ends import Ends


class LSF(Ends):
    """Runs the *max_batch* requests of the least slack, an iteration at a time; by default as many as the worker
    allows. *drop_late*: give up what could not make it even alone."""

    def __init__(self, max_batch: int | None = None, drop_late: bool = True) -> None:
        at_least(1, "lsf", max_batch=max_batch)
        self.max_batch = max_batch
        self.drop_late = drop_late

    def start(self, view: WorkerView) -> None:
        super().start(view)
        self.most = min(self.max_batch or view.limit, view.limit)
        loop = view.stage.loop
        self.steps = [view.estimate(loop, n) if loop else 0.0 for n in range(1, self.most + 1)]

    def decide(self, view: WorkerView, now: float) -> Decision:
        tasks = [*view.running, *view.waiting]
        drop = self.give_up(tasks, now) if self.drop_late else []
        if drop:
            tasks = [task for task in tasks if task in self.ends]
        if len(tasks) <= self.most:
            return Decision(tasks, drop, self._repeat(tasks))
        ends, step = self.ends, self.steps[self.most - 1]

        def slack(task: Task) -> tuple[float, int]:
            return ends[task] - task.left * step, task.id  # now is the same for all

        return Decision(sorted(tasks, key=slack)[: self.most], drop)

    # -- speed only -----------------------------------------------------------------------------------------

    def _repeat(self, tasks: list[Task]) -> Repeat | None:
        """Where nobody is left out, all run until one of them is late."""
        if not tasks:
            return None
        return Repeat(tasks[0].left, self.next_late(tasks) if self.drop_late else math.inf)
