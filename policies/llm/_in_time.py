"""Which tokens can still be in time, and how much of prompts a step holds until the next one is due.

For policies that let all decode in every step and fill it up with prompts. What is known of those that wait and run
is kept between decisions, so that a decision costs by what has changed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import accumulate
from math import inf
from typing import Any

from servetwin.core.llm import EarliestDue, TokenSLO, TokenTask, TokenView, WaitingOrder
from servetwin.core.llm.policy import Chunk
from servetwin.core.slo import latest


def due(slo: TokenSLO, task: TokenTask) -> float:
    """Until when the next token of *task* is in time, by *slo*."""
    return latest(slo.deadline(task, task.generated + 1))


class InTime:
    """Those that wait at the engine of *view*: first, by *rank*, whose next token can be in time if all that is
    pending is computed alone at once, then the others, by *late_rank*; with equal ranks in the order of the queue.
    *safety* multiplies what the profile says that this takes.

    A rank must not change while a task waits. Who is late stays late, so of the others those alone are looked at
    again whose time has come.
    """

    def __init__(
        self,
        view: TokenView,
        slo: TokenSLO,
        safety: float,
        rank: Callable[[TokenTask], Any],
        late_rank: Callable[[TokenTask], Any],
    ) -> None:
        self.view, self.slo, self.safety, self.rank, self.late_rank = view, slo, safety, rank, late_rank
        # Where what is pending may change while a task waits, all are looked at anew at each decision.
        self.fixed = not (view.limits.keep_freed or view.limits.enable_prefix_caching)
        self.order = WaitingOrder(self._enter, fixed=self.fixed, anywhere=view.limits.passes_over)
        self.now = 0.0
        self.until: list[tuple[float, int, TokenTask]] = []  # by when a prefill must begin, of whom can be in time

    def follow(self, view: TokenView, now: float) -> None:
        """Take note of who has come, left, or become late."""
        self.now = now
        self.order.follow(view.waiting)
        close, until = now + 1e-9 + 1e-13 * now, self.until  # (far more than is lost by rounding)
        if until and until[0][0] < close:
            come = []
            while until and until[0][0] < close:
                come.append(heappop(until)[2])
            for task in come:
                if task in view.waiting:
                    self.order.rank_again(task)

    def split(self) -> tuple[list[TokenTask], list[TokenTask]]:
        """Who can be in time, and who is late."""
        tasks = [task for _, _, task in self.order.entries]
        until = bisect_left(self.order.entries, ((True,),))
        return tasks[:until], tasks[until:]

    def key(self, task: TokenTask) -> tuple[bool, Any]:
        """Whether *task* is late, and its rank."""
        late = due(self.slo, task) < self.now + self._alone(task)
        return late, (self.late_rank if late else self.rank)(task)

    def _alone(self, task: TokenTask) -> float:
        return self.safety * self.view.estimate_prefill(task.pending)

    def _enter(self, task: TokenTask) -> tuple[bool, Any]:
        late, rank = self.key(task)
        if not late and self.fixed:
            heappush(self.until, (due(self.slo, task) - self._alone(task), task.id, task))
        return late, rank


class NextDue:
    """When the next token is due of those that decode at an engine, by *slo*."""

    def __init__(self, slo: TokenSLO, safety: float) -> None:
        self.slo, self.safety = slo, safety
        self.first = EarliestDue(self._due, lambda t: self._growth(t, min), most=lambda t: self._growth(t, max))

    def after_step(self, view: TokenView, now: float) -> float:
        """When the first token is due of those that a decode step can still bring in time; infinite if none is."""
        soonest = now + self.safety * view.estimate_decode(view.decoding, view.context) if view.decoding else now
        return self.first.earliest(view.running, since=soonest)

    def _due(self, task: TokenTask) -> tuple[float, float]:
        time = due(self.slo, task) if task.decoding else inf
        return time, time

    def _growth(self, task: TokenTask, end: Callable[[float, float], float]) -> float:
        """By how much that grows with each token, at least (*end* is `min`) or at most (`max`)."""
        own = self.slo.for_task(task)
        return own.decode_scale * (own.d0 + end(0.0, own.d1 * (task.prompt + task.limit + 1)))


class LastDue(dict[TokenTask, float]):
    """Until when the last token of a request is in time, by *slo*, if it puts out all that it may; of *most* requests
    at a time."""

    def __init__(self, slo: TokenSLO, most: int) -> None:
        self.slo, self.most = slo, most

    def __missing__(self, task: TokenTask) -> float:
        if len(self) >= self.most:
            self.clear()
        found = self[task] = latest(self.slo.deadline(task, task.limit))
        return found


def fill(prompts: list[TokenTask], seconds: float, view: TokenView, safety: float) -> list[Chunk]:
    """The most tokens of *prompts*, in order, that a step of so many *seconds* holds beside all decodes."""
    if not prompts:
        return []
    ends = [0, *accumulate([task.pending for task in prompts])]

    def first(tokens: int) -> list[Chunk]:
        until = bisect_left(ends, tokens)
        return [(task, min(tokens, ends[i + 1]) - ends[i]) for i, task in enumerate(prompts[:until])]

    low, high = 0, max(0, min(ends[-1], view.max_batched_tokens - view.decoding))
    if seconds == inf:
        low = high
    while low < high:
        middle = (low + high + 1) // 2
        if safety * view.estimate_step(first(middle), view.decoding) <= seconds:
            low = middle
        else:
            high = middle - 1
    return first(low)
