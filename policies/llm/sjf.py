"""Shortest job first, by predicted output: prompts are taken in the order of what they are expected to put out.

Source: "Efficient Interactive LLM Serving with Proxy Model-based Sequence Length Prediction" (arXiv 2404.08509),
speculative shortest job first: of those that wait, those whose predicted output is shortest are prefilled, as many as
fit, before the others decode; who runs is not interrupted for a shorter one. `srpt_llm` is the same with preemption.

It needs a prediction for each request (`TokenTask.predicted`, which the workload declares with its error) and refuses
one that comes without. How long an output will really be is not told to it. Who was preempted by the engine comes
first. A prompt longer than a step is dropped. Without deadlines or ageing, long ones may wait for long.
"""

from __future__ import annotations

import sys
from itertools import islice, takewhile

from servetwin.core import Repeat
from servetwin.core.llm import ALL, Step, TokenPolicy, TokenTask, TokenView, WaitingOrder
from servetwin.policies.llm._by_rank import predicted


class SJF(TokenPolicy):
    """Takes no parameters. Raises `BadInput` at a request without a prediction."""

    whole_prompts = True
    starves = True  # who is expected to put out much waits as long as others come that are not

    def admit(self, task: TokenTask, view: TokenView, now: float) -> bool:
        predicted(task, view, "sjf")
        return True

    def start(self, view: TokenView) -> None:
        self.view = view
        limits = view.limits
        self.order = WaitingOrder(self._rank, fixed=not limits.keep_freed, anywhere=limits.passes_over)

    def decide(self, view: TokenView, now: float) -> Step:
        if not view.waiting:
            return DECODE
        self.view = view
        self.order.follow(view.waiting)
        drop = [task for _, _, task in takewhile(lambda entry: not entry[0][0], self.order.entries)]
        order = islice(self.order.entries, len(drop), None)
        prefill = view.admissible((task, task.pending) for _, _, task in order)
        return Step(prefill, () if prefill else ALL, drop=drop) if prefill or drop else WAIT

    def _rank(self, task: TokenTask) -> tuple[bool, bool, int, int]:
        """Whether a step can hold it (they come first that none can), and its place among those that wait."""
        if task.pending > self.view.max_batched_tokens:
            return False, True, 0, 0
        return True, not task.preemptions, predicted(task, self.view, "sjf"), task.id


# -- speed only -----------------------------------------------------------------------------------------------------

#: All decode, until something changes (the promise to repeat it only saves time); or until the next decision.
DECODE, WAIT = Step(decode=ALL, repeat=Repeat(sys.maxsize)), Step(decode=ALL)
