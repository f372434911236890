"""NeuStream: batches re-formed at every iteration, as its artifact schedules them.

Source: "NeuStream: Bridging Deep Learning Serving and Stream Processing" (EuroSys'25), section 6, and what the
artifact's `utils/worker.py` does where the two differ.

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
from heapq import heappop, heappush
from typing import Literal

from servetwin.core import BadInput, Batch, Decision, Policy, Repeat, Task, WorkerView

#: Slack (seconds) within which the time of the next drop is not trusted, and the exact test is made instead.
MARGIN = 1e-6


class Entry:
    """A task in a queue. Entries with equal keys do not compare: a heap then leaves them as they come."""

    __slots__ = ("due", "key", "task", "waits")

    def __init__(self, task: Task, key: int, due: float) -> None:
        self.task = task
        self.key = key
        self.due = due  # when its last iteration here must end, so that the rest can still be in time
        self.waits = 0

    def __lt__(self, other: Entry) -> bool:
        return False


Queue = list[tuple[int, Entry]]


class NeuStream(Policy):
    """Step-level batching with a batch bound from the SLO.

    *step_delta* scales the SLO factor in the bound; *bound* replaces the computed one. *requeue* says where an
    unfinished task goes after it ran: with "sticky" (DiT, Palette) one that ever waited stays in the low queue for
    good; with "front" (Stable Diffusion) it goes back to the high queue, ahead of those that never waited.
    *handover* is the time in seconds that the drop test allows for each hand-over to a later stage.
    """

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
        self.step_delta = step_delta
        self.bound = bound
        self.requeue = requeue
        self.handover = handover
        self.slo_factor = slo_factor
        self.high: Queue = []
        self.low: Queue = []
        self.current: list[Entry] = []
        self.plain = True  # nothing in the current batch ever waited
        self.admissions = 0
        self.next_drop = math.inf  # no request can become hopeless before this

    def start(self, view: WorkerView) -> None:
        stage = view.stage
        self.allowance = self.handover * stage.hops
        self.step = view.estimate(stage.loop, 1) if stage.loop else 0.0
        if self.bound is None:
            self.bound = self._bound(view)
        self.bound = min(self.bound, view.limit)

    def _bound(self, view: WorkerView) -> int:
        factor = self.slo_factor or view.slo_factor
        if factor is None:
            raise BadInput(
                "neustream bounds its batches by an SLO factor, and this SLO has none",
                right="an SLO with a factor, or the policy parameter slo_factor or bound",
            )
        modules = (view.stage.loop,) if view.stage.loop else view.stage.modules
        alone = sum(view.estimate(m, 1) for m in modules)
        size = 0
        while (
            size < view.limit and sum(view.estimate(m, size + 1) for m in modules) < alone * factor * self.step_delta
        ):
            size += 1
        return max(size, 1)

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        alone = view.solo(task) + self.allowance
        if task.deadline < now + alone:
            return False
        here = task.left * self.step
        entry = Entry(task, self.admissions, task.deadline - (alone - here))
        self.admissions += 1
        heappush(self.high, (entry.key, entry))
        self.next_drop = min(self.next_drop, entry.due - here)
        return True

    def decide(self, view: WorkerView, now: float) -> Decision:
        if self.plain and not self.high and not self.low:
            self.current = [e for e in self.current if e.task.left]  # as the queues would give them back
            drop = self._expire_current(now) if now >= self.next_drop - MARGIN else []
        else:
            self._scatter()
            drop = self._expire(now) if view.stage.loop else []
            self._form()
        if not self.current:
            return Decision(drop=drop)
        repeat = None
        if self.plain and not self.low:
            limit = self.next_drop - MARGIN if view.stage.loop else math.inf
            repeat = Repeat(self.current[0].task.left, limit)
        return Decision([e.task for e in self.current], drop=drop, repeat=repeat)

    def _scatter(self) -> None:
        """Put the unfinished tasks of the last batch back, with the keys that they had."""
        for entry in self.current:
            if entry.task.left:
                queue = self.high if entry.waits == 0 or self.requeue == "front" else self.low
                heappush(queue, (entry.key, entry))
        self.current = []

    def _hopeless(self, entry: Entry, now: float) -> bool:
        return entry.due - now <= entry.task.left * self.step

    def _expire_current(self, now: float) -> list[Task]:
        drop = [e.task for e in self.current if self._hopeless(e, now)]
        if drop:
            self.current = [e for e in self.current if not self._hopeless(e, now)]
        self.next_drop = min((e.due - e.task.left * self.step for e in self.current), default=math.inf)
        return drop

    def _expire(self, now: float) -> list[Task]:
        """Drop what cannot make it any more. Both queues are drained and filled again, which orders equal keys."""
        drop: list[Task] = []
        next_drop = math.inf
        for queue in (self.high, self.low):
            kept: Queue = []
            while queue:
                item = heappop(queue)
                entry = item[1]
                if self._hopeless(entry, now):
                    drop.append(entry.task)
                else:
                    kept.append(item)
                    next_drop = min(next_drop, entry.due - entry.task.left * self.step)
            queue.extend(kept)  # in ascending order, so it is a heap
        self.next_drop = next_drop
        return drop

    def _form(self) -> None:
        high, low, batch, bound = self.high, self.low, self.current, self.bound or 1
        self.plain = True
        while high and len(batch) < bound:
            entry = heappop(high)[1]
            self.plain = self.plain and entry.waits == 0
            batch.append(entry)
        while high:
            self._wait_in_low(heappop(high)[1])
        while low and len(batch) < bound:
            batch.append(heappop(low)[1])
            self.plain = False
        waiting = []
        while low:
            waiting.append(heappop(low)[1])
        for entry in waiting:
            self._wait_in_low(entry)

    def _wait_in_low(self, entry: Entry) -> None:
        entry.waits += 1
        # Served from low and put back in high ("front"), its count of waits stands against times of admission since
        # 1970: ahead of all that never waited. Negative keys say the same.
        entry.key = entry.waits - (1 << 40) if self.requeue == "front" else entry.waits
        heappush(self.low, (entry.key, entry))

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        if not view.stage.loop:
            self.current = []

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        self.current = [e for e in self.current if e.task is not task]
        for queue in (self.high, self.low):
            kept = [item for item in queue if item[1].task is not task]
            queue.clear()
            for item in kept:
                heappush(queue, item)
