"""Least slack first, for language models: whoever must be served soonest decides what a step does.

The slack of a waiting request is the time left until it must be prefilled alone to generate its first token in
time; that of a running one, until the step must begin that generates its next token. If those that run are the more
urgent, they decode. Else the waiting ones that are more urgent than they are prefilled, most urgent first. A request
whose first token would be late even if it were prefilled alone at once is dropped, unless *drop_late* is off.
"""

from __future__ import annotations

import sys

from servetwin.core import BadInput, Repeat
from servetwin.core.llm import ALL, Step, TokenPolicy, TokenTask, TokenView
from servetwin.core.slo import latest


class EDFLLM(TokenPolicy):
    """Needs the deadlines of single tokens (`TokenView.slo`)."""

    def __init__(self, drop_late: bool = True) -> None:
        self.drop_late = drop_late

    def start(self, view: TokenView) -> None:
        if view.slo is None:
            raise BadInput("edf-llm needs deadlines of tokens", where=view.name, right="an SLO such as 3+1.5")
        self.slo = view.slo

    def decide(self, view: TokenView, now: float) -> Step:
        if not view.waiting:
            return DECODE
        slo, most = self.slo, view.max_batched_tokens
        drop: list[TokenTask] = []
        order: list[tuple[float, int, TokenTask]] = []
        for task in view.waiting:
            begin = latest(slo.deadline(task, task.generated + 1)) - view.estimate_prefill(task.pending)
            if task.pending > most or (self.drop_late and begin < now and not task.generated):
                drop.append(task)
            else:
                order.append((begin, task.id, task))
        order.sort()
        if view.decoding:
            step = view.estimate_decode(view.decoding, view.context)
            urgent = min([slo.deadline(task, task.generated + 1) for task in view.running]) - step
            order = [item for item in order if item[0] < urgent]
        prefill = view.admissible((task, task.pending) for _, _, task in order)
        if prefill:
            return Step(prefill, drop=drop)
        return Step((), ALL, drop=drop) if drop else Step(decode=ALL)


# -- speed only -----------------------------------------------------------------------------------------------------

#: All decode, until something changes. (The promise to repeat it only saves time.)
DECODE = Step(decode=ALL, repeat=Repeat(sys.maxsize))
