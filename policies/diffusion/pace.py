"""Batches by the pace that requests need: as many together as all of them can bear, and if not all can, those that
end soonest.

A policy of ServeTwin's own. A request that has *left* iterations to run by a time *end* needs a pace of (end - now) /
left seconds per iteration at most. A batch of n takes c l(n), where l is the profile's time and c how much longer
iterations have taken here so far (joins, hand-overs and neighbours on the device included) than it says. So it is
known which batches are too large for whom.

Each time, before an iteration::

    requests that could not make it even alone are dropped
    if all can bear the batch of all, it runs
    else, for each size n: the n requests with the fewest iterations left, of those that can bear a batch of n
         the size is taken at which the most is got done per second, where a request counts for left ** -focus

With *focus* 0 that is the most iterations per second, however far from their end requests are; with 1 a request
counts for what an iteration is of its rest, so the shortest come first, in small batches. What lies between serves
large batches of fresh requests, who can bear them, and still brings to an end what has begun. Unlike NeuStream's, the
bound on the batch follows what its requests can bear now, and nobody runs who would be late at that pace.

Stages without a loop run by deadline, as many together as the first of them can bear.

Where it stands beside other policies and the best possible: docs/reports/2026-11-league.md.
"""

from __future__ import annotations

from servetwin.core import Batch, Decision, Repeat, Task, WorkerView
from servetwin.core.parameters import above, at_least
from servetwin.core.slo import latest
from servetwin.policies.diffusion._ends import Ends

#: Iterations of one request that the measured pace begins with, at what the profile says; and how much of what was
#: measured counts on when a request leaves.
BEGINS_WITH, STAYS = 100, 0.98


class Pace(Ends):
    """*focus* says how much requests near their end come first, *kept* by which factor those that have begun count as
    nearer to it. *reserve* is the time in seconds that is set aside for each hand-over to a later stage. *max_batch*
    bounds the batch (None: by the worker's limit)."""

    #: Those that are further from their end, or bear less, may wait for as long as others keep coming.
    starves = True

    def __init__(
        self, focus: float = 0.25, kept: float = 0.8, reserve: float = 0.01, max_batch: int | None = None
    ) -> None:
        at_least(0, "pace", focus=focus, reserve=reserve)
        above(0, "pace", kept=kept)
        at_least(1, "pace", max_batch=max_batch)
        self.focus, self.kept, self.reserve, self.max_batch = focus, kept, reserve, max_batch
        self.factor = 1.0  # what iterations take over the profile, as measured
        self.took = self.planned = 0.0  # seconds of iterations, and what the profile says of them

    def start(self, view: WorkerView) -> None:
        super().start(view)
        loop, most = view.stage.loop, min(self.max_batch or view.limit, view.limit)
        modules = (loop,) if loop else view.stage.modules
        times = [sum(view.estimate(m, n) for m in modules) for n in range(1, most + 1)]
        self.alone = times[0]
        # Where a larger batch is quicker by the profile, that is noise: the smaller is no slower.
        self.seconds = [0.0, *(min(times[n:]) for n in range(most))]
        self.step = self.seconds[1]
        self.looped = loop is not None

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        later = view.solo(task) - task.left * self.alone
        self.ends[task] = latest(task.deadline) - later - self.reserve * view.stage.hops
        return True

    def latest_start(self, task: Task) -> float:
        return self.ends[task] - task.left * self.step * min(self.factor, 1.0)

    def decide(self, view: WorkerView, now: float) -> Decision:
        tasks = [task for queue in (view.running, view.waiting) for task in queue]
        if not self.looped:
            return Decision(self._by_deadline(tasks, now))
        drop = self.give_up(tasks, now)
        if drop:
            tasks = [task for task in tasks if task in self.ends]
        if not tasks:
            return Decision((), drop)
        if len(tasks) < len(self.seconds):
            pace = self.factor * self.seconds[len(tasks)]
            until = min([self.ends[task] - task.left * pace for task in tasks])
            if now <= until:
                return Decision(tasks, drop, self._repeat(tasks, until, pace))
        return Decision(self._best(tasks, view, now), drop)

    def _by_deadline(self, tasks: list[Task], now: float) -> list[Task]:
        order = sorted(tasks, key=lambda task: (self.ends[task], task.id))[: len(self.seconds) - 1]
        size = len(order)
        while size and now + self.seconds[size] > self.ends[order[0]]:
            size -= 1
        return order[:size] if size else order  # who is late by the profile may not be: large batches make up for it

    def _best(self, tasks: list[Task], view: WorkerView, now: float) -> list[Task]:
        """The batch by which the most is got done per second."""
        running = view.running
        order = sorted([(t.left * (self.kept if t in running else 1.0), t.id, t) for t in tasks])
        worth = [(rank**-self.focus, (self.ends[task] - now) / task.left, task) for rank, _, task in order]
        best, chosen = 0.0, [max(worth, key=lambda one: one[1])[2]]
        for size in range(1, min(len(tasks), len(self.seconds) - 1) + 1):
            pace = self.factor * self.seconds[size]
            found = [(value, task) for value, needs, task in worth if needs >= pace][:size]
            done = sum([value for value, _ in found]) / pace
            if len(found) == size and done > best:
                best, chosen = done, [task for _, task in found]
        return chosen

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        super().ended(batch, view, now)
        if not self.looped:
            return
        self.took += now - batch.start
        self.planned += batch.iterations * batch.count * self.seconds[batch.size]
        if batch.leaves:
            # Not in between: a factor that changed at each iteration would leave no `Repeat` true.
            first = BEGINS_WITH * self.step
            self.factor = round((self.took + first) / (self.planned + first), 3)
            self.took, self.planned = STAYS * self.took, STAYS * self.planned

    # -- speed only -----------------------------------------------------------------------------------------

    def _repeat(self, tasks: list[Task], until: float, pace: float) -> Repeat:
        """The batch of all goes on while all can bear it; each iteration brings them nearer to their end."""
        return Repeat(min([task.left for task in tasks]), until, pace)
