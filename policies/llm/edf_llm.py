"""Least slack first, for language models: whoever must be served soonest decides what a step does.

The slack of a waiting request is the time left until it must be prefilled alone to generate its first token in
time; that of a running one, until the step must begin that generates its next token. If those that run are the more
urgent, they decode. Else the waiting ones that are more urgent than they are prefilled, most urgent first. A request
whose first token would be late even if it were prefilled alone at once is dropped, unless *drop_late* is off.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from math import inf

from servetwin.core import BadInput, Repeat
from servetwin.core.llm import ALL, EarliestDue, Step, TokenPolicy, TokenTask, TokenView, WaitingOrder
from servetwin.core.slo import latest


class EDFLLM(TokenPolicy):
    """Needs the deadlines of single tokens (`TokenView.slo`)."""

    def __init__(self, drop_late: bool = True) -> None:
        self.drop_late = drop_late

    def start(self, view: TokenView) -> None:
        if view.slo is None:
            raise BadInput("edf-llm needs deadlines of tokens", where=view.name, right="an SLO such as 3+1.5")
        self.slo = view.slo

        self.most = view.max_batched_tokens
        self.estimate = view.estimate_prefill
        limits = view.limits
        self.order = WaitingOrder(self._urgency, fixed=not limits.keep_freed, anywhere=limits.passes_over)
        self.next_due = EarliestDue(self._due, self._growth)

    def decide(self, view: TokenView, now: float) -> Step:
        if not view.waiting:
            return DECODE
        self.order.follow(view.waiting)
        drop = self._hopeless(now)
        urgent = inf
        if view.decoding:
            urgent = self.next_due.earliest(view.running) - view.estimate_decode(view.decoding, view.context)
        more_urgent = bisect_left(self.order.entries, ((True, urgent),))
        order = [task for _, _, task in self.order.entries[:more_urgent] if task not in drop]
        prefill = view.admissible([(task, task.pending) for task in order]) if order else []
        if prefill:
            return Step(prefill, drop=drop)
        return Step((), ALL, drop=drop) if drop else WAIT

    def _hopeless(self, now: float) -> list[TokenTask]:
        """Those that wait and are to be dropped, in the order of the queue."""
        until = bisect_left(self.order.entries, ((True, now),))
        if not until:
            return []
        late = [(place, task, rank[0]) for rank, place, task in self.order.entries[:until]]
        return [task for _, task, fits in sorted(late) if not fits or (self.drop_late and not task.generated)]

    def _urgency(self, task: TokenTask) -> tuple[bool, float, int]:
        """Whether a step can hold it, and when its prefill must begin, alone, for its next token to be in time."""
        begin = latest(self.slo.deadline(task, task.generated + 1)) - self.estimate(task.pending)
        return task.pending <= self.most, begin, task.id

    def _due(self, task: TokenTask) -> tuple[float, float]:
        """When its next token is due; twice, since nothing but its tokens changes that."""
        due = self.slo.deadline(task, task.generated + 1)
        return due, due

    def _growth(self, task: TokenTask) -> float:
        """By how much that grows at least with each token."""
        slo = self.slo.for_task(task)
        return slo.decode_scale * (slo.d0 + min(0.0, slo.d1 * 2 * task.limit))


# -- speed only -----------------------------------------------------------------------------------------------------

#: All decode, until something changes (the promise to repeat it only saves time); or until the next decision.
DECODE, WAIT = Step(decode=ALL, repeat=Repeat(sys.maxsize)), Step(decode=ALL)
