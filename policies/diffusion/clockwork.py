"""Clockwork: whole requests, started at the last moment that still meets the deadline.

Source: "Serving DNNs like Clockwork" (OSDI'20), as the NeuStream artifact wrote it anew for diffusion. A batch runs
from its first step to its last without change, so its requests must have the same number of steps; with 20 to 50
step counts about, batches are nearly always of one. The artifact has two versions, which differ in how
the controller knows when the GPU is free; both are kept here, quirks included:

"tracked" (DiT, Palette)
    A tracker sums the expected durations of what is outstanding and hears when batches end. The controller decides up
    to 10 ms ahead, so that at most one batch waits behind the running one.
"table" (Stable Diffusion)
    The controller believes its table: it sends the next batch 5 ms before the last one *should* end, also if the GPU
    is late (batches then pile up) or early (it then idles).
"""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

from servetwin.core import BadInput, Batch, Decision, Task, WorkerView
from servetwin.core.arithmetic import float_sum
from servetwin.core.parameters import above, at_least
from servetwin.core.slo import latest
from servetwin.policies.diffusion._waiting_lists import WaitingLists


class Clockwork(WaitingLists):
    """Runs whole requests of equal step count in batches of up to *max_batch* (by default the worker's limit).

    *ahead_of* is how early in seconds the controller decides (0.010 tracked, 0.005 by the table), *lag* how long the
    tracker still believes in a batch that is overdue, *future* the least that it takes a batch to be away.
    """

    ahead = True

    def __init__(
        self,
        pacing: Literal["tracked", "table"] = "tracked",
        max_batch: int | None = None,
        ahead_of: float | None = None,
        lag: float = 0.010,
        future: float = 0.001,
    ) -> None:
        if pacing not in ("tracked", "table"):
            raise BadInput(f"pacing is {pacing!r}", where="clockwork", right="'tracked' or 'table'")
        at_least(1, "clockwork", max_batch=max_batch)
        above(0, "clockwork", ahead_of=ahead_of)
        at_least(0, "clockwork", lag=lag, future=future)
        self.pacing = pacing
        self.max_batch = max_batch
        self.classes, self.places = {}, {}
        self.ahead_of = ahead_of if ahead_of is not None else (0.010 if pacing == "tracked" else 0.005)
        self.lag = lag
        self.future = future
        self.outstanding: deque[float] = deque()  # expected durations
        self.begin = 0.0
        self.busy_until = -math.inf

    def decide(self, view: WorkerView, now: float) -> Decision:
        if self.pacing == "table":
            return self._decide_by_table(now)
        self._forget_lost(view, now)
        return self._decide_tracked(now)

    # -- tracked -----------------------------------------------------------------------------------------

    def _forget_lost(self, view: WorkerView, now: float) -> None:
        """Of batches that were lost with their worker, or did not fit into its memory, no end is heard."""
        if not self.outstanding:
            return
        under_way = len(view.backlog) + (view.in_flight is not None)
        while len(self.outstanding) > under_way:  # the first are lost first
            self.outstanding.popleft()
            self.begin = now

    def _free_at(self, now: float) -> float:
        begin = self.begin
        if self.outstanding and begin + self.outstanding[0] + self.lag < now:
            begin = now - self.lag - self.outstanding[0]
        return max(begin + float_sum(self.outstanding), now + self.future)

    def _candidates(self, steps: int, most: int) -> list[tuple[float, int, int]]:
        lists = self.classes[steps]
        return [
            (lists[n][0].deadline - self.duration(steps, n), steps, n)
            for n in range(most, 0, -1)
            if len(lists[n]) >= n
        ]

    def _decide_tracked(self, now: float) -> Decision:
        free = self._free_at(now)
        if now < free - self.ahead_of:
            return Decision(idle_until=free - self.ahead_of)
        drop: list[Task] = []
        batch: list[Task] = []
        candidates = [c for steps in sorted(self.classes) for c in self._candidates(steps, self.sizes[-1])]
        while candidates and not batch:
            # Of equally urgent ones the last that was listed goes first.
            _, steps, n = min(reversed(candidates), key=lambda c: c[0])
            candidates = [c for c in candidates if c[1] != steps]
            batch = self._take(steps, n, free, drop)
            if not batch:
                candidates += self._candidates(steps, n - 1)
        if not batch:
            wake = self._give_up(now, drop)
            self._forget_empty()
            return Decision(drop=drop, idle_until=wake)
        self._forget_empty()
        if not self.outstanding:
            self.begin = max(now, self.begin)
        self.outstanding.append(self.duration(batch[0].iterations, len(batch)))
        return Decision(batch, drop=drop, whole=True)

    def _take(self, steps: int, least: int, free: float, drop: list[Task]) -> list[Task]:
        lists = self.classes[steps]
        self._expire(steps, free, drop)
        size = 1
        while size < self.sizes[-1] and len(lists[size + 1]) >= size + 1:
            size += 1
        if len(lists[size]) < size or size < least:
            return []
        batch = [lists[size].popleft() for _ in range(size)]
        for task in batch:
            del self.places[task]
        last = batch[-1]
        for waiting in lists.values():
            # Older requests of the class that were too late for this size go too, even if they could make it alone.
            while last in waiting:
                self._leave_list(waiting.popleft(), drop)
        return batch

    # -- by the table ------------------------------------------------------------------------------------

    def _decide_by_table(self, now: float) -> Decision:
        if now < self.busy_until - self.ahead_of:
            return Decision(idle_until=self.busy_until - self.ahead_of)
        drop: list[Task] = []
        best = (math.inf, 0, 0)
        for steps, lists in sorted(self.classes.items()):
            for n, waiting in lists.items():
                if not waiting:
                    continue
                duration = self.duration(steps, n)
                while waiting and latest(waiting[0].deadline) < now + duration:
                    self._leave_list(waiting.popleft(), drop)
                if len(waiting) == n:  # exactly: a longer list is blocked until it shrinks
                    best = min(best, (waiting[0].deadline - duration, steps, n))
        _, steps, n = best
        if not n:
            self._forget_empty()
            return Decision(drop=drop, idle_until=self._next_expiry())
        batch = list(self.classes[steps][n])
        for task in batch:
            for waiting in self.classes[steps].values():
                if task in waiting:
                    waiting.remove(task)
            del self.places[task]
        self._forget_empty()
        self.busy_until = now + self.duration(steps, n)
        return Decision(batch, drop=drop, whole=True)

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        if self.pacing == "tracked":
            self.outstanding.popleft()
            self.begin = now
