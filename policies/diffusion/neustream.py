"""NeuStream: batches re-formed at every iteration, as its artifact schedules them.

Source: "NeuStream: Bridging Deep Learning Serving and Stream Processing" (EuroSys'25), section 6; its artifact's
`utils/worker.py` where they differ.

A worker's batch is bounded once, at the start: the largest size at which an iteration still takes less than
``slo_factor * step_delta`` times one of a single request. Requests that never had to wait stand in a queue *high*, in
order of admission; those that did in a queue *low*, and the one that waited *least* goes first.

Each round, when the batch is done::

    the batch's unfinished requests go back to their queue
    requests that could not make it even if they were alone from now on are dropped   (looped stages)
    the batch is filled from high; what is left there has waited now and moves to low
    the batch is filled up from low; what is left there has waited once more
"""

from __future__ import annotations

import math
from typing import Literal

from servetwin.core import BadInput, Batch, Decision, Policy, Repeat, Task, WorkerView
from servetwin.core.arithmetic import float_sum
from servetwin.core.parameters import above, at_least
from servetwin.core.slo import latest
from servetwin.policies.diffusion._queue import FRONT, Entries, Entry, emptied, expired, strict

#: Slack (seconds) within which the time of the next drop is not trusted, and the exact test is made instead.
MARGIN = 1e-6


class NeuStream(Policy):
    """Step-level batching with a batch bound from the SLO.

    *step_delta* scales the SLO factor in the bound; *bound* replaces the computed one. *requeue* says where an
    unfinished task goes after it ran: with "sticky" (DiT, Palette) one that ever waited stays in the low queue for
    good; with "front" (Stable Diffusion) it goes back to the high queue, ahead of those that never waited.
    *handover* is the time in seconds that the drop test allows for each transfer to a later stage.
    """

    starves = True  # of those that wait in the low queue, who waited least goes first: without deadlines, for ever

    def __init__(
        self,
        step_delta: float = 0.95,
        bound: int | None = None,
        requeue: Literal["sticky", "front"] = "sticky",
        handover: float = 0.0,
        slo_factor: float | None = None,
    ) -> None:
        if requeue not in ("sticky", "front"):
            raise BadInput(f"requeue is {requeue!r}", where="neustream", right="'sticky' or 'front'")
        at_least(1, "neustream", bound=bound)
        above(0, "neustream", step_delta=step_delta, slo_factor=slo_factor)
        at_least(0, "neustream", handover=handover)
        self.step_delta, self.bound, self.slo_factor, self.handover = step_delta, bound, slo_factor, handover
        self.front = requeue == "front"
        self.high: Entries = []  # those that came since the last round
        self.low: Entries = []  # by keys less the rounds so far, which do not change while a request waits
        self.over = self.owed = 0  # rounds so far; of these, in which nobody came or went, low is yet to go through
        self.fresh: Entries = []  # of the batch, in order, those that go back to high
        self.aged: Entries = []  # and those that go back to low
        self.run: list[Task] = []  # the batch
        self.next_drop = math.inf  # no request can become hopeless before this
        self.stays = True  # as long as nobody comes or goes, the next round forms the current batch again
        self.admissions, self.rounds = 0, 1  # the latter: counted since the last decision
        self.first: tuple[Task, int] | None = None  # a task of the batch then decided, and what it had left

    def start(self, view: WorkerView) -> None:
        self.allowance, self.looped = self.handover * view.stage.hops, view.stage.loop is not None
        self.times = 2 if self.looped else 1  # that a round empties the queues
        self.step = view.estimate(view.stage.loop, 1) if view.stage.loop else 0.0
        self.bound = min(self.bound or self._bound(view), view.limit)

    def _bound(self, view: WorkerView) -> int:
        factor = self.slo_factor or view.slo_factor
        if factor is None:
            what = "neustream bounds its batches by an SLO factor, and this SLO has none"
            raise BadInput(what, right="an SLO with a factor, or the policy parameter slo_factor or bound")
        modules = (view.stage.loop,) if view.stage.loop else view.stage.modules
        longest = float_sum(view.estimate(m, 1) for m in modules) * factor * self.step_delta
        size = 0
        while size < view.limit and float_sum(view.estimate(m, size + 1) for m in modules) < longest:
            size += 1
        return max(size, 1)

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        alone = view.solo(task) + self.allowance
        if latest(task.deadline) < now + alone:
            return False
        here = task.left * self.step
        entry = Entry(task, self.admissions, task.deadline - (alone - here))
        self.admissions += 1
        self.high.append(entry)
        self.next_drop = min(self.next_drop, entry.due - here)
        return True

    def decide(self, view: WorkerView, now: float) -> Decision:
        late = self.looped and now >= self.next_drop - MARGIN
        drop = self._short_round(now, late)
        drop = self._round(now, late) if drop is None else drop
        if not self.run:
            self.run = [entry.task for entry in self.fresh] + [entry.task for entry in self.aged]
        return Decision(self.run, drop, self._repeat()) if self.run else Decision((), drop)

    def _round(self, now: float, late: bool = False) -> list[Task]:
        """Form the next batch; gives what is dropped, if it may be *late* for somebody."""
        front, bound, over, low, drop = self.front, self.bound or 1, self.over, self._settled(), list[Task]()
        high, back = emptied(self.high, self.fresh) if front else self.fresh + self.high, self.aged
        for entry in back:
            entry.key = entry.waits - over
        whole = self.looped and not late and len(high) <= bound
        if self.looped:  # to look for what is to be dropped is to empty the queues, which orders equal keys
            low, back = emptied(low, back, self.times if whole else 1), []
            if late:
                drop, self.next_drop = expired(now, self.step, high, low)
            high = emptied(high, []) if front else high
        for entry in high[bound:]:
            entry.waits += 1
            entry.key = entry.waits - over
            back.append(entry)
        low = low if whole else emptied(low, back)
        free = max(0, bound - len(high))
        served, self.low = low[:free], low[free:]
        for entry in served:
            entry.waits = entry.key + over
            # Served from low and put back in high ("front"), its count of waits stands against times of admission
            # since 1970: ahead of all that never waited. Negative keys say the same. Else it goes ahead of low.
            entry.key = entry.waits - FRONT if front else entry.key - 1
        self.fresh, self.aged = (high[:bound] + served, []) if front else (high[:bound], served)
        self.high, self.over = [], over + 1
        self._changed()
        return drop

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        self._catch_up(batch.count)
        if batch.leaves:
            self._settled()
            self.fresh, self.aged = [e for e in self.fresh if e.task.left], [e for e in self.aged if e.task.left]
            self._changed(less=True)

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        if view.in_flight is not None:
            self._catch_up(view.in_flight.count)
        elif self.first is not None:  # the batch is just being ended
            self._catch_up(self.first[1] - self.first[0].left)
        queues = (self.high, self._settled(), self.fresh, self.aged)
        self.high, self.low, self.fresh, self.aged = [[e for e in queue if e.task is not task] for queue in queues]
        self._changed(less=True)

    # -- speed only: rounds whose batch is known are left out -----------------------------------------------

    def _changed(self, less: bool = False) -> None:
        """The batch is another one; with *less*, what is left of it. The next round forms it again if the queue that
        it goes back to gives it in this order: those that are left out wait longer and longer, it does not."""
        back, queue = (self.fresh, []) if self.front else (self.aged, self.low)
        self.run = []
        self.stays = strict(back) or (not less and emptied(queue, back, self.times)[: len(back)] == back)

    def _short_round(self, now: float, late: bool) -> list[Task] | None:
        """A round that forms the same batch, but for those that are dropped, or for those that find room in it while
        nobody waits; None if it may be another one."""
        size = len(self.fresh) + len(self.aged)
        if self.high:
            return None if self.low or late else self._joined(size)
        if not self.stays or (self.low and (late or size != self.bound)):
            return None
        self.over, self.owed = self.over + 1, self.owed + 1
        if not late:
            return []
        drop, self.next_drop = expired(now, self.step, self.fresh, self.aged)
        self._changed(less=bool(drop))
        return drop

    def _joined(self, size: int) -> list[Task] | None:
        """The round if all that is in the high queue joins the batch of that *size*, in which nobody ever waited."""
        high = self.high
        if (self.front and (size or len(high) > 1)) or self.aged or size + len(high) > (self.bound or 1):
            return None
        self.fresh, self.high, self.run, self.stays, self.over = self.fresh + high, [], [], True, self.over + 1
        return []

    def _repeat(self) -> Repeat | None:
        first = self.run[0]
        self.rounds, self.first = 1, (first, first.left)
        return Repeat(first.left, self.next_drop - MARGIN if self.looped else math.inf) if self.stays else None

    def _catch_up(self, count: int) -> None:
        """Count the rounds that were not asked for (see `Repeat`), up to *count* in all."""
        rounds = max(count - self.rounds, 0)
        self.rounds, self.over, self.owed = self.rounds + rounds, self.over + rounds, self.owed + rounds

    def _settled(self) -> Entries:
        """Those that wait, once they have gone through the rounds in which nobody came or went: equal keys change
        places as heaps have it."""
        if self.owed and self.low:
            self.low = emptied(self.low, self.aged, self.times, self.owed)[len(self.aged) :]
        self.owed = 0
        return self.low
