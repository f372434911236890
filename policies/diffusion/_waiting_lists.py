"""The lists in which requests of one step count wait for a batch of each size, as Clockwork's artifact keeps them."""

from __future__ import annotations

import math
from collections import deque

from servetwin.core import Policy, Task, WorkerView
from servetwin.core.arithmetic import float_sum
from servetwin.core.slo import latest

Lists = dict[int, deque[Task]]

#: Wake this much (seconds) after the moment from which a request cannot make it any more.
JUST_AFTER = 1e-6


class WaitingLists(Policy):
    """Who waits, by step count and batch size: in each list stands who could still make it in such a batch."""

    max_batch: int | None
    classes: dict[int, Lists]  # steps -> batch size -> tasks that could run in a batch of that size
    places: dict[Task, int]  # task -> in how many lists it still stands

    def start(self, view: WorkerView) -> None:
        most = min(self.max_batch or view.limit, view.limit)
        self.sizes = range(1, most + 1)
        loop, once = view.stage.loop, (*view.stage.before, *view.stage.after)
        self.step = {n: view.estimate(loop, n) if loop else 0.0 for n in self.sizes}
        self.once = {n: float_sum(view.estimate(m, n) for m in once) for n in self.sizes}

    def duration(self, steps: int, size: int) -> float:
        """Seconds that a batch of *size* requests of *steps* steps should take."""
        return steps * self.step[size] + self.once[size]

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        lists = self.classes.setdefault(task.iterations, {n: deque() for n in self.sizes})
        for waiting in lists.values():
            waiting.append(task)
        self.places[task] = len(lists)
        return True

    def _expire(self, steps: int, begin: float, drop: list[Task]) -> None:
        """Take the requests out of the lists of their class that could not make it if they began at *begin*."""
        step, once = self.step, self.once
        for n, waiting in self.classes[steps].items():
            seconds = steps * step[n] + once[n]  # `duration`, written out
            while waiting and latest(waiting[0].deadline) < begin + seconds:
                self._leave_list(waiting.popleft(), drop)

    def _give_up(self, now: float, drop: list[Task]) -> float | None:
        """Drop those that could not make it any more in any list in which they stand, begun *now*; return when the
        next one cannot.

        With a table in which a larger batch is the quicker one, who is too late to run alone may stand in lists that
        are too short to run, which are never tried. The artifact leaves him there; so does this, since the heads of
        lists say how urgent a class is, but the request is given up.
        """
        best: dict[Task, float] = {}
        for steps, lists in self.classes.items():
            for n, waiting in lists.items():
                if not waiting:
                    continue
                seconds = self.duration(steps, n)
                for task in waiting:
                    if task in self.places:
                        best[task] = min(best.get(task, math.inf), seconds)
        wake = math.inf
        for task, seconds in best.items():
            if latest(task.deadline) < now + seconds:
                del self.places[task]
                drop.append(task)
            else:
                wake = min(wake, task.deadline - seconds)
        return max(wake, now) + JUST_AFTER if wake < math.inf else None

    def _leave_list(self, task: Task, drop: list[Task]) -> None:
        """*task* went from one list; once it stands in none it is given up."""
        places = self.places.get(task)
        if places is None:
            return  # it is in the batch, or was given up
        if places > 1:
            self.places[task] = places - 1
        else:
            del self.places[task]
            drop.append(task)

    def _forget_empty(self) -> None:
        self.classes = {s: lists for s, lists in self.classes.items() if any(lists.values())}

    def _next_expiry(self) -> float | None:
        """When the next request falls out of a list, if any is left that cannot run now."""
        last = [w[0].deadline - self.duration(s, n) for s, ls in self.classes.items() for n, w in ls.items() if w]
        return min(last) + JUST_AFTER if last else None

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        if self.places.pop(task, None) is not None:
            for waiting in self.classes[task.iterations].values():
                if task in waiting:
                    waiting.remove(task)
