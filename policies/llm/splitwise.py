"""Splitwise's machines: prompts whole and in order, up to so many tokens a step, beside all that decode.

Source: "Splitwise: Efficient Generative LLM Inference Using Phase Splitting" (ISCA'24), section 4.2 (the scheduler of
a machine) and 5.1 (mixed continuous batching). A step takes prompts first come, first served, while their tokens are
*prompt_tokens* together at most, 2,048 in the paper, beyond which its machines compute fewer prompt tokens a second.
A longer prompt is not cut: it is the only one of its step. All that run decode in the same step. So one policy serves
machines that compute prompts, that generate tokens, and that do both, as the paper's baselines do.

Deviations: nobody is paused to let a prompt in, and none is, since all decode beside it; which machine a request goes
to, and machines that do the other's work when there is too much (the paper's mixed pool), are no matter of a policy.
A prompt that is longer than a step of the engine is dropped.
"""

from __future__ import annotations

import sys

from servetwin.core import Repeat
from servetwin.core.llm import ALL, Step, TokenPolicy, TokenTask, TokenView
from servetwin.core.parameters import at_least


class Splitwise(TokenPolicy):
    """A step computes *prompt_tokens* tokens of prompts at most, or one prompt."""

    whole_prompts = True

    def __init__(self, prompt_tokens: int = 2048) -> None:
        at_least(1, "splitwise", prompt_tokens=prompt_tokens)
        self.prompt_tokens = prompt_tokens

    def decide(self, view: TokenView, now: float) -> Step:
        if not view.waiting:
            return DECODE
        drop: list[TokenTask] = []
        prefill: list[tuple[TokenTask, int]] = []
        left = self.prompt_tokens
        for task in view.waiting:
            if task.pending > view.max_batched_tokens:
                drop.append(task)
                continue
            left -= task.pending
            if prefill and left < 0:
                break
            prefill.append((task, task.pending))
        prefill = view.admissible(prefill, decode=view.decoding)
        if prefill or drop:
            return Step(prefill, ALL, drop=drop)
        return DECODE


# -- speed only -----------------------------------------------------------------------------------------------------

#: All decode, until something changes. (The word to repeat it saves time, and no more.)
DECODE = Step(decode=ALL, repeat=Repeat(sys.maxsize))
