"""As SLOs-Serve: each step is as long as the next token that is due allows, and prompts fill it, by deadline.

Source: "SLOs-Serve: Optimized Serving of Multi-SLO LLMs" (arXiv 2504.08784): the idea of its batches, which allot
each step's tokens by the deadlines of all requests and a model of what a step takes.

- All that decode do so in every step. The step must end before the first of their next tokens is due, of those that
  can still be in time.
- What is left of that time goes to prompts, cut into chunks: as many tokens as fit by the profile
  (`TokenView.estimate_step`), first to those whose first token is due soonest. Where nothing is due, or nothing can
  be in time, the engine's tokens of a step bound it.
- Whose first token would be late even if its prompt were computed alone at once comes after all others, or is dropped
  if *drop_late* is on (the paper's declined requests are served with what is left over, too).

Deviations: the paper plans many steps ahead, with a dynamic program that also says which requests to admit; here each
step is filled for itself, by earliest deadline, and the memory of a prompt is taken when it is begun. No speculative
decoding, no routing among replicas.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from heapq import merge
from math import inf

from servetwin.core import BadInput, Repeat
from servetwin.core.llm import ALL, Step, TokenPolicy, TokenTask, TokenView
from servetwin.core.parameters import above
from servetwin.policies.llm._in_time import InTime, NextDue, fill
from servetwin.policies.llm.vllm_v1 import partly_prefilled


class SLOsServe(TokenPolicy):
    """Needs the deadlines of single tokens (`TokenView.slo`). *safety* multiplies what the profile says that a step
    takes; *drop_late*: give up whose first token would be late even alone."""

    chunks = True
    starves = True  # who is late is served with what those leave over that can be in time

    def __init__(self, safety: float = 1.0, drop_late: bool = False) -> None:
        above(0, "slos-serve", safety=safety)
        self.safety, self.drop_late = safety, drop_late

    def start(self, view: TokenView) -> None:
        if view.slo is None:
            raise BadInput("slos-serve needs deadlines of tokens", where=view.name, right="an SLO such as 3+1.5")
        self.slo = view.slo
        self.waits = InTime(view, self.slo, self.safety, self._rank, lambda task: (task.arrival, task.id))
        self.next_due = NextDue(self.slo, self.safety)

    def decide(self, view: TokenView, now: float) -> Step:
        partly = partly_prefilled(view, len(view.running) - view.decoding)
        if not view.waiting and not partly:
            return DECODE
        self.waits.follow(view, now)
        drop = self._too_late() if self.drop_late else []
        free = view.free_blocks - view.watermark
        prompts: list[TokenTask] = []
        for task in self._by_deadline(partly):
            if task in drop:
                continue
            runs = task in view.running
            free -= view.blocks_for(task.computed + task.pending) - (view.blocks_for(task.computed) if runs else 0)
            if runs or (free >= 0 and len(prompts) < view.max_sequences - len(view.running) + len(partly)):
                prompts.append(task)
            else:
                break
        prompts.sort(key=lambda task: task not in view.running)  # the engine asks for those that have begun first
        seconds = self.next_due.after_step(view, now) - now if prompts else inf
        chunks = view.admissible(fill(prompts, seconds, view, self.safety), decode=view.decoding)
        if chunks or drop:
            return Step(chunks, ALL, drop=drop)
        return Step(decode=ALL)

    def _by_deadline(self, partly: list[TokenTask]) -> Iterator[TokenTask]:
        """*partly* and all that wait: whose next token can be in time, by when it is due; then the others, by
        arrival."""
        begun = sorted([(self.waits.key(task), 0, task) for task in partly])
        return (task for _, _, task in merge(begun, self.waits.order.entries))

    def _rank(self, task: TokenTask) -> tuple[float, int]:
        return self.slo.deadline(task, task.generated + 1), task.id

    def _too_late(self) -> list[TokenTask]:
        """Those that wait whose first token can be in time no more."""
        _, late = self.waits.split()
        return [task for task in late if not task.generated]


# -- speed only -----------------------------------------------------------------------------------------------------

#: All decode, until something changes. (The word to repeat it saves time, and no more.)
DECODE = Step(decode=ALL, repeat=Repeat(sys.maxsize))
