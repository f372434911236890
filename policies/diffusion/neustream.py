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
from servetwin.core.slo import latest, slack

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


def _distinct(queue: Queue) -> bool:
    return len(queue) < 2 or len({key for key, _ in queue}) == len(queue)


def _popped(queue: Queue) -> Queue:
    """Empty *queue*: what it gave, in order. Equal keys come as heaps have it, others more quickly by sorting."""
    if len(queue) < 2 or _distinct(queue):
        popped = sorted(queue) if len(queue) > 1 else queue[:]
        queue.clear()
        return popped
    return [heappop(queue) for _ in range(len(queue))]


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
        self.stays = True  # as long as nobody comes or goes, the next round forms the current batch again
        self.admissions = 0
        self.next_drop = math.inf  # no request can become hopeless before this
        self.tied = False  # entries that wait have equal keys
        self.rounds = 1  # that the queues have gone through since the last decision
        self.first: tuple[Task, int] | None = None  # of the batch then decided: a task, and what it had left

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
        if latest(task.deadline) < now + alone:
            return False
        here = task.left * self.step
        entry = Entry(task, self.admissions, task.deadline - (alone - here))
        self.admissions += 1
        heappush(self.high, (entry.key, entry))
        self.next_drop = min(self.next_drop, entry.due - here)
        return True

    def decide(self, view: WorkerView, now: float) -> Decision:
        drop: list[Task] = []
        late = now >= self.next_drop - MARGIN and view.stage.loop is not None
        if self.stays and not self.high and not self.low:
            # The batch is as the queues would give it back.
            if late:
                drop = self._expire_current(now)
        elif self.stays and not self.high and not self.tied and not late and len(self.current) == self.bound:
            self._wait_on(1)
        else:
            self._scatter()
            if late:
                drop = self._expire(now)
            elif view.stage.loop is not None:
                self._drain()
            self._form()
        if not self.current:
            return Decision((), drop)
        batch = [entry.task for entry in self.current]
        self.rounds, self.first = 1, (batch[0], batch[0].left)
        if not self.stays:
            return Decision(batch, drop)
        limit = self.next_drop - MARGIN if view.stage.loop is not None else math.inf
        return Decision(batch, drop, Repeat(batch[0].left, limit))

    def _catch_up(self, count: int) -> None:
        """Let the queues go through the rounds that were not asked for (see `Repeat`), up to *count* in all."""
        rounds = count - self.rounds
        if rounds <= 0:
            return
        self.rounds = count
        if self.tied:  # their order changes as heaps have it
            for _ in range(rounds):
                self._scatter()
                self._drain()
                self._form()
        else:
            self._wait_on(rounds)

    def _wait_on(self, rounds: int) -> None:
        """Those that are left out wait so many rounds more."""
        for _, entry in self.low:
            entry.waits += rounds
            entry.key += rounds
        self.low = [(entry.key, entry) for _, entry in self.low]

    def _scatter(self) -> None:
        """Put the tasks of the last batch back, with the keys that they had."""
        high, low, front = self.high, self.low, self.requeue == "front"
        for entry in self.current:
            heappush(high if front or entry.waits == 0 else low, (entry.key, entry))
        self.current = []

    def _hopeless(self, entry: Entry, now: float) -> bool:
        # Who would end exactly when it is due is hopeless, as in the artifact, whatever the last bit.
        return entry.due - now <= entry.task.left * self.step + slack(now)

    def _expire_current(self, now: float) -> list[Task]:
        drop = [e.task for e in self.current if self._hopeless(e, now)]
        if drop:
            self.current = [e for e in self.current if not self._hopeless(e, now)]
        self.next_drop = min((e.due - e.task.left * self.step for e in self.current), default=math.inf)
        return drop

    def _expire(self, now: float) -> list[Task]:
        """Drop what cannot make it any more."""
        drop: list[Task] = []
        step, next_drop, since = self.step, math.inf, now + slack(now)
        for queue in (self.high, self.low):
            kept: Queue = []
            for item in _popped(queue):
                entry = item[1]
                here = entry.task.left * step
                if entry.due - since <= here:
                    drop.append(entry.task)
                else:
                    kept.append(item)
                    if entry.due - here < next_drop:
                        next_drop = entry.due - here
            queue[:] = kept  # in ascending order, so it is a heap
        self.next_drop = next_drop
        return drop

    def _drain(self) -> None:
        """Empty both queues and fill them again, as if looking for what is to be dropped: it orders equal keys."""
        for queue in (self.high, self.low):
            if len(queue) > 1 and not _distinct(queue):
                queue[:] = _popped(queue)

    def _form(self) -> None:
        bound = self.bound or 1
        high = _popped(self.high)
        served, left_out = high[:bound], high[bound:]
        self.high = []
        for _, entry in left_out:
            entry.waits += 1
            # Served from low and put back in high ("front"), its count of waits stands against times of admission
            # since 1970: ahead of all that never waited. Negative keys say the same.
            entry.key = entry.waits - (1 << 40) if self.requeue == "front" else entry.waits
            heappush(self.low, (entry.key, entry))
        low = _popped(self.low)
        free = bound - len(served)
        from_low, left_out = low[:free], low[free:]
        for _, entry in left_out:
            entry.waits += 1
            entry.key += 1
        self.low = [(entry.key, entry) for _, entry in left_out]
        self.tied = len(self.low) > 1 and not _distinct(self.low)
        self.current = [entry for _, entry in served + from_low]
        # The next round forms this very batch again if it finds it in this order: those that are left out wait longer
        # and longer, those in the batch do not.
        again = served + from_low if self.requeue == "front" else from_low
        keys = [key for key, _ in again]
        self.stays = len(keys) < 2 or keys == sorted(set(keys))

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        self._catch_up(batch.count)
        if batch.leaves:
            self.current = [e for e in self.current if e.task.left]

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        if view.in_flight is not None:
            self._catch_up(view.in_flight.count)
        elif self.first is not None:  # the batch is just being ended
            self._catch_up(self.first[1] - self.first[0].left)
        self.current = [e for e in self.current if e.task is not task]
        for queue in (self.high, self.low):
            kept = [item for item in queue if item[1].task is not task]
            queue.clear()
            for item in kept:
                heappush(queue, item)
