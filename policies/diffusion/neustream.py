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
from heapq import heappush
from typing import Literal

from servetwin.core import BadInput, Batch, Decision, Policy, Repeat, Task, WorkerView
from servetwin.core.parameters import above, at_least
from servetwin.core.slo import latest, slack
from servetwin.policies.diffusion._queue import FRONT, Entry, Items, Ties, expired, merged, ordered, taken_out, tied

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
        self.high: Items = []
        self.low: Items = []  # by keys less the rounds so far, which do not change while a request waits
        self.over = 0  # rounds so far
        self.current: list[Entry] = []
        self.admissions = 0
        self.next_drop = math.inf  # no request can become hopeless before this
        self.stays = True  # as long as nobody comes or goes, the next round forms the current batch again
        self.tied = False  # entries that wait have equal keys
        self.ties = Ties()
        self.rounds = 1  # that the queues have gone through since the last decision
        self.first: tuple[Task, int] | None = None  # a task of the batch then decided, and what it had left

    def start(self, view: WorkerView) -> None:
        self.allowance, self.looped = self.handover * view.stage.hops, view.stage.loop is not None
        self.step = view.estimate(view.stage.loop, 1) if view.stage.loop else 0.0
        self.bound = min(self.bound or self._bound(view), view.limit)

    def _bound(self, view: WorkerView) -> int:
        factor = self.slo_factor or view.slo_factor
        if factor is None:
            what = "neustream bounds its batches by an SLO factor, and this SLO has none"
            raise BadInput(what, right="an SLO with a factor, or the policy parameter slo_factor or bound")
        modules = (view.stage.loop,) if view.stage.loop else view.stage.modules
        longest = sum(view.estimate(m, 1) for m in modules) * factor * self.step_delta
        size = 0
        while size < view.limit and sum(view.estimate(m, size + 1) for m in modules) < longest:
            size += 1
        return max(size, 1)

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        alone = view.solo(task) + self.allowance
        if latest(task.deadline) < now + alone:
            return False
        here = task.left * self.step
        entry = Entry(task, self.admissions, task.deadline - (alone - here))
        self.admissions += 1
        heappush(self.high, (entry.key, entry.blank, entry))
        self.next_drop = min(self.next_drop, entry.due - here)
        return True

    def decide(self, view: WorkerView, now: float) -> Decision:
        late = self.looped and now >= self.next_drop - MARGIN
        drop = self._short_round(now, late)
        if drop is None:
            drop = self._round(now, late)
        if not self.current:
            return Decision((), drop)
        return Decision([entry.task for entry in self.current], drop, self._repeat())

    def _round(self, now: float, late: bool = False) -> list[Task]:
        """Form the next batch; gives what is dropped, if it may be *late* for somebody."""
        front, bound, over = self.front, self.bound or 1, self.over
        to_low = [(e.key - over, e.blank, e) for e in self.current if e.waits and not front]
        back = [(e.key, e.blank, e) for e in self.current if front or not e.waits]
        high = merged(self.high, back) if front else back + self.high
        low, drop, same = self.low, list[Task](), False
        if self.looped:  # to look for what is to be dropped is to empty the queues, which orders equal keys
            low, same, to_low = *ordered(low, to_low), []
            if late:
                drop, self.next_drop = expired(now, self.step, high, low)
            high = merged(high, []) if front else high
        for _, _, entry in high[bound:]:
            entry.waits += 1
            # Served from low and put back in high ("front"), its count of waits stands against times of admission
            # since 1970: ahead of all that never waited. Negative keys say the same.
            entry.key = entry.waits - FRONT if front else entry.waits
            to_low.append((entry.key - over, entry.blank, entry))
        if to_low or same or not self.looped:  # else it is in order
            low, same = ordered(low, to_low)
        free = max(0, bound - len(high))
        self.current = [entry for _, _, entry in high[:bound]]
        for key, _, entry in low[:free]:
            entry.key = key + over
            entry.waits = entry.key + FRONT if front else entry.key
            self.current.append(entry)
        self.high, self.low = [], low[free:]
        self.over += 1
        self._foresee(same)
        return drop

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
        taken_out(task, self.high, self.low)

    # -- speed only: rounds whose batch is known are left out -----------------------------------------------

    def _foresee(self, same: bool) -> None:
        """Whether the next round forms this very batch again. It does if it finds it in this order: those that are
        left out wait longer and longer, those in the batch do not. *same*: there were equal keys in the low queue."""
        self.tied = same and tied(self.low)
        keys = [entry.key for entry in self.current if self.front or entry.waits]
        self.stays = len(keys) < 2 or keys == sorted(set(keys))

    def _short_round(self, now: float, late: bool) -> list[Task] | None:
        """A round that forms the same batch, but for those that are dropped, or for those that find room in it while
        nobody waits; None if it may be another one."""
        if self.high:
            return None if self.low or late else self._joined(self.current, self.high)
        if not self.stays or (self.low and (late or len(self.current) != self.bound)):
            return None
        self._wait(1)
        if not late:
            return []
        drop = [e.task for e in self.current if e.due - now <= e.task.left * self.step + slack(now)]
        self.current = [e for e in self.current if e.task not in drop]
        self.next_drop = min([e.due - e.task.left * self.step for e in self.current], default=math.inf)
        return drop

    def _joined(self, current: list[Entry], high: Items) -> list[Task] | None:
        """The round if all that is in the high queue joins the batch, in which nobody ever waited."""
        waited = current or len(high) > 1 if self.front else [e for e in current if e.waits]
        if waited or len(current) + len(high) > (self.bound or 1):
            return None
        self.current = current + [entry for _, _, entry in high]
        self.high, self.tied, self.stays, self.over = [], False, True, self.over + 1
        return []

    def _repeat(self) -> Repeat | None:
        first = self.current[0].task
        self.rounds, self.first = 1, (first, first.left)
        return Repeat(first.left, self.next_drop - MARGIN if self.looped else math.inf) if self.stays else None

    def _catch_up(self, count: int) -> None:
        """Let the queues go through the rounds that were not asked for (see `Repeat`), up to *count* in all."""
        rounds, self.rounds = max(count - self.rounds, 0), max(count, self.rounds)
        self._wait(rounds)

    def _wait(self, rounds: int) -> None:
        """Those that are left out wait so many rounds more."""
        self.over += rounds
        for _ in range(rounds if self.tied else 0):  # the order of equal keys changes as heaps have it
            ahead = 0 if self.front else sum([entry.waits > 0 for entry in self.current])
            self.low = self.ties.after(self.low, ahead, 2 if self.looped else 1)
