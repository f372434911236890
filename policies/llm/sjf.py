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

from servetwin.core import Repeat
from servetwin.core.llm import ALL, Step, TokenPolicy, TokenTask, TokenView
from servetwin.policies.llm._by_rank import predicted


class SJF(TokenPolicy):
    """Takes no parameters. Raises `BadInput` at a request without a prediction."""

    whole_prompts = True
    starves = True  # who is expected to put out much waits as long as others come that are not

    def admit(self, task: TokenTask, view: TokenView, now: float) -> bool:
        predicted(task, view, "sjf")
        return True

    def decide(self, view: TokenView, now: float) -> Step:
        if not view.waiting:
            return DECODE
        drop = [task for task in view.waiting if task.pending > view.max_batched_tokens]
        order = sorted(
            [task for task in view.waiting if task not in drop],
            key=lambda task: (not task.preemptions, predicted(task, view, "sjf"), task.id),
        )
        prefill = view.admissible([(task, task.pending) for task in order])
        return Step(prefill, () if prefill else ALL, drop=drop)


# -- speed only -----------------------------------------------------------------------------------------------------

#: All decode, until something changes. (The word to repeat it saves time, and no more.)
DECODE = Step(decode=ALL, repeat=Repeat(sys.maxsize))
