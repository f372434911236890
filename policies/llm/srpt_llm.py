"""Shortest remaining processing time, by predicted output: short ones take the memory of long ones, if early enough.

Source: "Don't Stop Me Now: Embedding Based Scheduling for LLMs" (Trail, arXiv 2410.01035), its variant of SRPT with
limited preemption. What remains of a request is its predicted output less the tokens that it has put out. At each
step those with the least that remains are served, as many as memory and the engine's limits hold; others wait, or
lose their memory. But who has put out the share *firm* of its predicted output keeps its place to the end, since by
then it holds much memory that would have to be computed anew (0: nobody is interrupted once it runs).

It needs a prediction for each request (`TokenTask.predicted`, which the workload declares with its error) and refuses
one that comes without. Trail predicts anew at each token, from the model's own layers; here a request's prediction
stays what it was when it came, and one that has put out more than that counts as nearly done. A prompt longer than a
step, or than memory, is dropped. Without deadlines or ageing, long ones may wait for long.
"""

from __future__ import annotations

import sys

from servetwin.core import Repeat
from servetwin.core.llm import ALL, Step, TokenPolicy, TokenTask, TokenView
from servetwin.core.parameters import at_least
from servetwin.policies.llm._by_rank import never_fits, predicted, select


class SRPTLLM(TokenPolicy):
    """*firm* is the share of its predicted output from which on a request is not interrupted any more. Raises
    `BadInput` at a request without a prediction."""

    whole_prompts = True
    starves = True  # who is expected to put out much waits as long as others come that are not

    def __init__(self, firm: float = 0.8) -> None:
        at_least(0, "srpt-llm", firm=firm)
        self.firm = firm

    def admit(self, task: TokenTask, view: TokenView, now: float) -> bool:
        predicted(task, view, "srpt-llm")
        return True

    def decide(self, view: TokenView, now: float) -> Step:
        if not view.waiting:
            return DECODE

        def rank(task: TokenTask) -> tuple[bool, int, int]:
            expected = predicted(task, view, "srpt-llm")
            stays = task in view.running and task.generated >= self.firm * expected
            return not stays, max(expected - task.generated, 1), task.id

        drop = [task for task in view.waiting if never_fits(task, view)]
        order = sorted([task for task in (*view.running, *view.waiting) if task not in drop], key=rank)
        prefill, decode, preempt = select(order, view.max_sequences, view)
        if not prefill and not decode:  # whoever is first does not fit though nobody else is there
            return Step(decode=ALL, drop=drop)
        return Step(prefill, ALL if len(decode) == view.decoding else decode, preempt=preempt, drop=drop)


# -- speed only -----------------------------------------------------------------------------------------------------

#: All decode, until something changes. (The word to repeat it saves time, and no more.)
DECODE = Step(decode=ALL, repeat=Repeat(sys.maxsize))
