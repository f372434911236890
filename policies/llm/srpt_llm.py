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
from heapq import merge
from itertools import islice, takewhile

from servetwin.core import Repeat
from servetwin.core.llm import ALL, Step, TokenPolicy, TokenTask, TokenView, WaitingOrder
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

    def start(self, view: TokenView) -> None:
        self.view = view
        limits = view.limits
        self.waits = WaitingOrder(self._rank, fixed=not limits.keep_freed, anywhere=limits.passes_over)

    def decide(self, view: TokenView, now: float) -> Step:
        if not view.waiting:
            return DECODE
        self.view = view
        self.waits.follow(view.waiting)
        drop = [task for _, _, task in takewhile(lambda entry: not entry[0][0], self.waits.entries)]
        runs = sorted([(self._rank(task), task) for task in view.running])
        waits = ((rank, task) for rank, _, task in islice(self.waits.entries, len(drop), None))
        order = (task for _, task in merge(runs, waits))
        prefill, decode, preempt = select(order, [task for _, task in runs], view.max_sequences, view)
        if not prefill and not decode:  # whoever is first does not fit though nobody else is there
            return Step(decode=ALL, drop=drop)
        return Step(prefill, ALL if len(decode) == view.decoding else decode, preempt=preempt, drop=drop)

    def _rank(self, task: TokenTask) -> tuple[bool, bool, int, int]:
        """Whether it fits at all (of those that wait they come first that do not); if not to be interrupted, it comes
        before all others; what remains of it; and its number."""
        expected, runs = predicted(task, self.view, "srpt-llm"), task in self.view.running
        if not runs and never_fits(task, self.view):
            return False, True, 0, 0
        stays = runs and task.generated >= self.firm * expected
        return True, not stays, max(expected - task.generated, 1), task.id


# -- speed only -----------------------------------------------------------------------------------------------------

#: All decode, until something changes. (The word to repeat it saves time, and no more.)
DECODE = Step(decode=ALL, repeat=Repeat(sys.maxsize))
