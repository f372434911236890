"""Deadline less the work left (least slack) decides who runs; batches are re-formed at every iteration.

It goes by no bare deadline, as textbooks' earliest deadline first does: of two requests with one deadline the longer
one runs first. Whoever must start its last stretch soonest runs: requests are ordered by the latest time at which the
rest of their work, served alone, could still begin. That time does not change while a request waits, and moves on by
the same step for all that run; so both those that run and those that wait stay in order, and only where the two
orders meet somebody may have to change places. A request that could not make it even alone is dropped, unless
*drop_late* is off.
"""

from __future__ import annotations

import math
from bisect import insort

from servetwin.core import Batch, Decision, Policy, Repeat, Task, WorkerView
from servetwin.core.parameters import at_least
from servetwin.core.slo import latest

Item = tuple[float, int, Task]  # latest start of what is left, request id, task


class EDF(Policy):
    """Runs the *max_batch* requests of the least slack (deadline less the work left), an iteration at a time; by
    default as many as the worker allows."""

    def __init__(self, max_batch: int | None = None, drop_late: bool = True) -> None:
        at_least(1, "edf", max_batch=max_batch)
        self.max_batch = max_batch
        self.drop_late = drop_late
        self.batch: list[Task] = []  # in order of urgency; a new list whenever it changes
        self.others: list[Item] = []  # likewise; those that are not in the batch
        self.ends: dict[Task, float] = {}  # when each task's loop here must end

    def start(self, view: WorkerView) -> None:
        self.most = min(self.max_batch or view.limit, view.limit)
        self.step = view.estimate(view.stage.loop, 1) if view.stage.loop else 0.0

    def _urgency(self, task: Task) -> tuple[float, int]:
        return self.ends[task] - task.left * self.step, task.id

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        here = task.left * self.step
        # Who would end exactly at the deadline is not dropped for a last bit: latest() has the tolerance of scores.
        end = self.ends[task] = latest(task.deadline) - (view.solo(task) - here)
        insort(self.others, (end - here, task.id, task))
        return True

    def decide(self, view: WorkerView, now: float) -> Decision:
        late = self._next_late() if self.drop_late else math.inf
        drop = self._hopeless(now) if late < now else ()
        changed = bool(self.others or drop)
        if self.others:
            self._form()
        if not self.batch:
            return Decision((), drop)
        return Decision(self.batch, drop, None if self.others else self._repeat(None if changed else late))

    def _form(self) -> None:
        """Fill the batch, then let those that wait and are more urgent change places with those that run."""
        ends, step, others = self.ends, self.step, self.others
        batch = self.batch
        while others:
            if len(batch) == self.most:
                last = batch[-1]
                item = (ends[last] - last.left * step, last.id, last)
                if item < others[0]:
                    return
                batch = batch[:-1]
                insort(others, item)
            else:
                batch = batch[:]
            insort(batch, others.pop(0)[2], key=self._urgency)
            self.batch = batch

    def _next_late(self) -> float:
        """When the first request becomes hopeless; running ones gain on this."""
        batch, others = self.batch, self.others
        late = others[0][0] if others else math.inf
        if batch:
            first = self.ends[batch[0]] - batch[0].left * self.step
            return first if first < late else late
        return late

    def _hopeless(self, now: float) -> list[Task]:
        """Take out those that cannot make it any more: the first ones, if any."""
        drop = []
        batch, others = self.batch, self.others
        while batch and self._urgency(batch[0])[0] < now:
            drop.append(batch[0])
            batch = self.batch = batch[1:]
        late = 0
        while late < len(others) and others[late][0] < now:
            late += 1
        drop += [task for _, _, task in others[:late]]
        del others[:late]
        for task in drop:
            del self.ends[task]
        return drop

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        if batch.leaves:
            self.batch = self.batch[:]
            for task in [t for t in batch.tasks if not t.left]:
                if self.ends.pop(task, None) is not None:  # else it was removed while it ran
                    self.batch.remove(task)

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        self.ends.pop(task, None)
        self.batch = [t for t in self.batch if t is not task]
        self.others = [item for item in self.others if item[2] is not task]

    # -- speed only -----------------------------------------------------------------------------------------

    def _repeat(self, late: float | None) -> Repeat:
        """Where nobody is left out, nothing changes until somebody is *late* (None: that is to be found anew)."""
        if late is None:
            late = self._next_late() if self.drop_late else math.inf
        return Repeat(self.batch[0].left, late)
