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

import math
import sys

from servetwin.core import BadInput, Repeat
from servetwin.core.llm import ALL, Step, TokenPolicy, TokenTask, TokenView
from servetwin.core.parameters import above
from servetwin.core.slo import latest
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

    def decide(self, view: TokenView, now: float) -> Step:
        partly = partly_prefilled(view, len(view.running) - view.decoding)
        if not view.waiting and not partly:
            return DECODE
        order, late = self._by_deadline([*partly, *view.waiting], view, now)
        drop = [task for task in late if task in view.waiting and not task.generated] if self.drop_late else []
        order += [task for task in late if task not in drop]
        free = view.free_blocks - view.watermark
        prompts: list[TokenTask] = []
        for task in order:
            runs = task in view.running
            free -= view.blocks_for(task.computed + task.pending) - (view.blocks_for(task.computed) if runs else 0)
            if runs or (free >= 0 and len(prompts) < view.max_sequences - len(view.running) + len(partly)):
                prompts.append(task)
            else:
                break
        prompts.sort(key=lambda task: task not in view.running)  # the engine asks for those that have begun first
        chunks = self._fill(prompts, self._until_due(view, now), view)
        chunks = view.admissible(chunks, decode=view.decoding)
        if chunks or drop:
            return Step(chunks, ALL, drop=drop)
        return Step(decode=ALL)

    def _by_deadline(
        self, tasks: list[TokenTask], view: TokenView, now: float
    ) -> tuple[list[TokenTask], list[TokenTask]]:
        """*tasks* whose next token can be in time, by when it is due; and the others, by arrival."""
        timely: list[tuple[float, int, TokenTask]] = []
        late: list[tuple[float, int, TokenTask]] = []
        for task in tasks:
            due = self.slo.deadline(task, task.generated + 1)
            if latest(due) >= now + self.safety * view.estimate_prefill(task.pending):
                timely.append((due, task.id, task))
            else:
                late.append((task.arrival, task.id, task))
        return [task for *_, task in sorted(timely)], [task for *_, task in sorted(late)]

    def _until_due(self, view: TokenView, now: float) -> float:
        """The seconds until the first token is due of those that can still be in time with a decode step."""
        soonest = now + self.safety * view.estimate_decode(view.decoding, view.context) if view.decoding else now
        dues = [self.slo.deadline(task, task.generated + 1) for task in view.running if task.decoding]
        return min([latest(due) - now for due in dues if latest(due) >= soonest], default=math.inf)

    def _fill(self, prompts: list[TokenTask], seconds: float, view: TokenView) -> list[tuple[TokenTask, int]]:
        """The most tokens of *prompts*, in order, that a step of so many *seconds* holds beside all decodes."""

        def first(tokens: int) -> list[tuple[TokenTask, int]]:
            chunks = []
            for task in prompts:
                count = min(tokens, task.pending)
                if count < 1:
                    break
                chunks.append((task, count))
                tokens -= count
            return chunks

        decode = view.decoding
        most = max(0, min(sum([task.pending for task in prompts]), view.max_batched_tokens - decode))
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self.safety * view.estimate_step(first(middle), decode) <= seconds:
                low = middle
            else:
                high = middle - 1
        return first(low)


# -- speed only -----------------------------------------------------------------------------------------------------

#: All decode, until something changes. (The word to repeat it saves time, and no more.)
DECODE = Step(decode=ALL, repeat=Repeat(sys.maxsize))
