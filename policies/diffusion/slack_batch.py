"""The batch by which the most is got done per second, of those requests that all end in time with it.

A policy of ServeTwin's own. Its batch stays until a request arrives, ends or is given up. Then it is chosen anew::

    requests that could not make it even alone are dropped
    for each size n: go through the rest, those with the fewest iterations left first, and take whom n will not
                     make late, until there are n
    the size is taken at which the most is got done per second, where a request counts for left ** -focus,
    and against it counts half of what those count for who have begun and could not make it after that

*Whom n will not make late.* If the batch is left to itself, whoever has the fewest iterations left ends first, and
the others go on in a smaller and quicker batch. With the profile's l(n), the end of each is known by that::

    end of the first  = now + left_1 l(n) + each
    end of the second = end of the first + (left_2 - left_1) l(n - 1) + each   ...

where *each* is what a request has cost here so far beyond the profile (joining, hand-over, a neighbour on the device
that goes on with it), as measured. A request that has not begun yet must besides have *spare* seconds in hand, or a
fifth of its slack if that is less, for it will find itself in larger batches than this one.

With *focus* 0 the most iterations per second are done, whatever requests have left; with 1 a request counts for what
an iteration is of its rest, so the shortest come first, in small batches. What lies between serves large batches of
fresh requests, who can bear them, and still brings to an end what has begun. Unlike NeuStream's bound on the batch,
this one follows what its requests can bear now, and nobody is run who would be late by it.

*Where nobody has time to step aside.* A request whose slack on arrival is less than *tight* of the time that it takes
alone is lost if it is left out for another that is served meanwhile. While all that are here are such, batches are
formed otherwise (`_keeping`): all that have begun run on, as NeuStream lets them, and of the others, the latest to
come first, those join by whom nobody becomes late, with a twentieth of the slack left in hand. A batch of more than
five must be borne as it is for the whole rest, as under NeuStream's bound; a smaller one counts on becoming quicker
as its requests end.

Stages without a loop run by deadline, as many together as the first of them can bear.

Where it stands beside other policies and the best possible: docs/reports/2026-11-league.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from servetwin.core import BadInput, Batch, Decision, Repeat, Task, WorkerView
from servetwin.core.arithmetic import float_sum
from servetwin.core.parameters import above, at_least
from servetwin.policies.diffusion._ends import Ends
from servetwin.policies.diffusion._keeping import keep_and_join

#: How much of what was measured still counts each time that a request has left.
STAYS = 0.98
#: The largest part of its slack that a fresh request must have in hand.
PART = 0.2
#: How much of what a request counts for counts against a batch by which it is lost after it has begun.
LOST = 0.5

#: Of a request: the iterations that it has left, what it counts for, until when it must end, and itself.
Row = tuple[int, float, float, Task]


class SlackBatch(Ends):
    """*focus* says how much more requests near their end count for, *kept* by which factor those that have begun
    count as nearer to it. *spare* is the time in seconds that fresh requests must have in hand, *reserve* that which
    is set aside for each hand-over to a later stage. *max_batch* bounds the batch (None: by the worker's limit).
    *tight* is the slack, as a part of the time alone, below which a request has no time to step aside (0: never)."""

    #: Those that are further from their end, or bear less, may wait for as long as others keep coming.
    starves = True

    def __init__(
        self,
        focus: float = 0.25,
        kept: float = 0.8,
        spare: float = 0.15,
        reserve: float = 0.01,
        max_batch: int | None = None,
        tight: float = 0.75,
    ) -> None:
        at_least(0, "slack-batch", focus=focus, spare=spare, reserve=reserve, tight=tight)
        above(0, "slack-batch", kept=kept)
        at_least(1, "slack-batch", max_batch=max_batch)
        try:
            kept**-focus  # what a request counts for at most
        except OverflowError:
            what, right = f"focus {focus:g} with kept {kept:g} gives numbers beyond all bounds", "focus 0.25, say"
            raise BadInput(what, where="slack-batch", right=right) from None
        self.focus, self.kept, self.spare, self.reserve, self.max_batch = focus, kept, spare, reserve, max_batch
        self.tight = tight
        self.batch: list[Task] = []  # that runs until something changes; none: it is to be chosen
        self.each = self.beyond = self.gone = 0.0  # seconds beyond the profile: of a request; of so many that left

    def start(self, view: WorkerView) -> None:
        super().start(view)
        loop, most = view.stage.loop, min(self.max_batch or view.limit, view.limit)
        modules = (loop,) if loop else view.stage.modules
        times = [float_sum(view.estimate(m, n) for m in modules) for n in range(1, most + 1)]
        # Where a larger batch is quicker by the profile, that is noise: the smaller is no slower.
        self.seconds = [0.0, *(min(times[n:]) for n in range(most))]
        self.looped = loop is not None

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        super().admit(task, view, now)
        self.ends[task] -= self.reserve * view.stage.hops
        self.batch = []
        return True

    def decide(self, view: WorkerView, now: float) -> Decision:
        tasks = [*view.running, *view.waiting]
        if not self.looped:
            return Decision(self._by_deadline(tasks, now))
        drop = self.give_up(tasks, now)
        if drop:
            tasks = [task for task in tasks if task in self.ends]
            self.batch = []
        if not tasks:
            return Decision((), drop)
        if not self.batch:
            self.batch = self._kept(tasks, view, now) or self._choose(tasks, view, now)
        return Decision(self.batch, drop, self._repeat(tasks))

    def _by_deadline(self, tasks: list[Task], now: float) -> list[Task]:
        order = sorted(tasks, key=lambda task: (self.ends[task], task.id))[: len(self.seconds) - 1]
        size = len(order)
        while size and now + self.seconds[size] > self.ends[order[0]]:
            size -= 1
        return order[:size] if size else order  # who is late by the profile may not be: large batches make up for it

    def _kept(self, tasks: list[Task], view: WorkerView, now: float) -> list[Task]:
        """The batch where nobody of *tasks* has time to step aside; none if somebody has, or none may be begun."""
        ends, alone = self.ends, (1 + self.tight) * self.step
        if not self.tight:
            return []
        for task in tasks:
            if ends[task] - (task.admitted or 0.0) >= task.iterations * alone:
                return []
        return keep_and_join(tasks, view.running, ends, self.seconds, self.each, now)

    def _choose(self, tasks: list[Task], view: WorkerView, now: float) -> list[Task]:
        """The batch by which the most is got done per second."""
        ends, step, running = self.ends, self.step, view.running
        rows: list[Row] = []
        begun: list[tuple[float, float, Task]] = []  # until when its rest may begin, what it counts for, itself
        for left, _, task in sorted([(task.left, task.id, task) for task in tasks]):
            end = ends[task]
            if task in running:
                counts = (left * self.kept) ** -self.focus
                begun.append((end - left * step, counts, task))
            else:
                counts = left**-self.focus
                end -= min(self.spare, PART * (end - now - left * step))
            rows.append((left, counts, end, task))
        best, chosen = 0.0, [max(tasks, key=lambda task: ((ends[task] - now) / task.left, -task.id))]
        for size in range(min(len(tasks), len(self.seconds) - 1), 0, -1):
            found, worth = self._in_time(rows, size, now)
            if len(found) == len(tasks):
                return found
            if found:
                seconds = self.seconds[len(found)]
                first = now + found[0].left * seconds + self.each  # who waits until then, and may not, is lost
                lost = [counts for start, counts, task in begun if start < first and task not in found]
                worth -= LOST * float_sum(lost)
                if worth / seconds > best:
                    best, chosen = worth / seconds, found
        return chosen

    def _in_time(self, rows: Sequence[Row], size: int, now: float) -> tuple[list[Task], float]:
        """Those of *rows*, in order, that end in time in a batch of *size* which is left to itself; and what they
        count for together."""
        seconds, each = self.seconds, self.each
        found: list[Task] = []
        worth, over = 0.0, 0  # iterations until the last of *found* ends, at *now*
        for left, counts, end, task in rows:
            ends = now + (left - over) * seconds[size] + each
            if ends <= end:
                found.append(task)
                worth += counts
                now, over, size = ends, left, size - 1
                if not size:
                    break
        return found, worth

    def ended(self, batch: Batch, view: WorkerView, now: float) -> None:
        super().ended(batch, view, now)
        if not self.looped:
            return
        self.beyond += now - batch.start - batch.iterations * batch.count * self.seconds[batch.size]
        if batch.leaves:
            self.batch = []
            self.gone += batch.leaves
            self.each = max(0.0, self.beyond / (self.gone + 1.0))
            self.beyond, self.gone = STAYS * self.beyond, STAYS * self.gone

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        super().removed(task, view, now)
        self.batch = []

    # -- speed only -----------------------------------------------------------------------------------------

    def _repeat(self, tasks: list[Task]) -> Repeat:
        """The batch stays until somebody leaves it, or somebody of all *tasks* is late."""
        return Repeat(min([task.left for task in self.batch]), self.next_late(tasks))
