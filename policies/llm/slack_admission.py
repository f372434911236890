"""A prompt is begun only where it is in time and no token that is due afterwards becomes late by it.

A policy of ServeTwin's own. All that decode do so in every step; what is decided is whose prompt is computed beside
them. Each token has a deadline, so each request that decodes has a deadline for its last token, and from the profile
(`TokenView.estimate_step`, `estimate_decode`) it is known what a prompt costs it: once, the longer step in which that
is computed, and from then on, step for step, one more in the batch. So each time that requests wait::

    drop who could not have his first token in time even if his prompt were computed alone at once
    for each of the others, the shortest prompt first: it is begun, if
        its own first token, and those of the prompts chosen before it, come in time by a step with all these prompts
        all that decode, and it too, have their last token in time if so many decode from then on
        keys and values of all fit in memory until the last one ends, if each puts out all that it may
    the prompts that were begun are computed in this step as far as the next token that is due allows,
    the rest in the next ones

Whoever is late already is nobody's concern: he decodes with the others, but what he still gets is not looked at.
As a prompt is declined while it would cost others their deadlines, there are never more that decode than can go on
in time; vLLM's policies, and NeuStream's, fill the memory first, and then all are late together.

Where it stands beside other policies: docs/reports/2026-11-league.md.
"""

from __future__ import annotations

import math
import sys

from servetwin.core import BadInput, Repeat
from servetwin.core.llm import ALL, Step, TokenPolicy, TokenTask, TokenView
from servetwin.core.parameters import above, at_least
from servetwin.core.slo import latest
from servetwin.policies.llm.vllm_v1 import partly_prefilled

Chunks = list[tuple[TokenTask, int]]


class SlackAdmission(TokenPolicy):
    """Needs the deadlines of single tokens (`TokenView.slo`). *safety* multiplies what the profile says that a step
    takes. *memory* is the part of what requests may still put out for which memory is set aside. *drop_late* off: who
    is late is not dropped, but begun where it costs nobody else a deadline."""

    chunks = True
    starves = True  # who would make others late waits, for as long as others come that would not

    def __init__(self, safety: float = 1.0, memory: float = 1.0, drop_late: bool = True) -> None:
        above(0, "slack-admission", safety=safety)
        at_least(0, "slack-admission", memory=memory)
        self.safety, self.memory, self.drop_late = safety, memory, drop_late

    def start(self, view: TokenView) -> None:
        if view.slo is None:
            raise BadInput("slack-admission needs deadlines of tokens", where=view.name, right="an SLO such as 3+1.5")
        self.slo = view.slo

    def decide(self, view: TokenView, now: float) -> Step:
        begun = partly_prefilled(view, len(view.running) - view.decoding)
        if not view.waiting and not begun:
            return DECODE
        timely = sorted([(t.pending, t.id, t) for t in view.waiting if self._can_be_in_time(t, view, now)])
        order = [task for *_, task in timely]
        known = set(order)
        late = [task for task in view.waiting if task not in known]
        drop = [task for task in late if not task.generated] if self.drop_late else []
        order += [task for task in late if task not in drop]
        seconds = self._next_due(view, now) - now
        chunks = self._fill(self._begin(begun, order, seconds, view, now), seconds, view)
        chunks = view.admissible(chunks, decode=view.decoding)
        if chunks or drop:
            return Step(chunks, ALL, drop=drop)
        return Step(decode=ALL)

    def _due(self, task: TokenTask) -> float:
        """Until when its next token is in time."""
        return latest(self.slo.deadline(task, task.generated + 1))

    def _can_be_in_time(self, task: TokenTask, view: TokenView, now: float) -> bool:
        """Whether the next token of *task*, which waits, is in time if its prompt is computed alone at once."""
        return now + self.safety * view.estimate_prefill(task.pending) <= self._due(task)

    def _next_due(self, view: TokenView, now: float) -> float:
        """When the first token is due of those that a decode step can still bring in time."""
        soonest = now + self.safety * view.estimate_decode(view.decoding, view.context) if view.decoding else now
        dues = [self._due(task) for task in view.running if task.decoding]
        return min([due for due in dues if due >= soonest], default=math.inf)

    def _begin(
        self, begun: list[TokenTask], order: list[TokenTask], seconds: float, view: TokenView, now: float
    ) -> list[TokenTask]:
        """*begun*, and those of *order* that may begin beside all that run, whose next token is due in *seconds*."""
        slo, safety = self.slo, self.safety
        lives = [(task.limit - task.generated, task.computed + task.pending) for task in view.running]
        # Of whom is in time: until when the last token is, and steps until then.
        timely = [task for task in view.running if self._due(task) >= now]
        rooms = [(latest(slo.deadline(task, task.limit)), task.limit - task.generated) for task in timely]
        prompts = list(begun)
        first = min([due for due in map(self._due, begun) if due >= now], default=math.inf)
        decode = safety * view.estimate_decode(view.decoding, view.context) if view.decoding else 0.0
        context = sum([tokens + left / 2 for left, tokens in lives])
        for task in order:
            if len(lives) >= view.max_sequences:
                break
            left, tokens, due = task.limit - task.generated, task.computed + task.pending, self._due(task)
            own = (
                [(latest(slo.deadline(task, task.limit)), left - 1)] if self._can_be_in_time(task, view, now) else []
            )
            if lives:  # (alone it disturbs nobody)
                took = safety * view.estimate_step([(t, t.pending) for t in (*prompts, task)], view.decoding)
                out = now + took + _cuts(took - decode, seconds - decode) * decode
                step = safety * view.estimate_decode(len(lives) + 1, int(context + tokens + left / 2))
                if out > first or (own and out > due):
                    continue
                if any(now + took + steps * step > end for end, steps in (*rooms, *own)):
                    continue
                if not self._fits([*lives, (left, tokens)], view):
                    continue
            prompts.append(task)
            lives.append((left, tokens))
            rooms += own
            first = min(first, due) if own else first
            context += tokens + left / 2
        return prompts

    def _fits(self, lives: list[tuple[int, int]], view: TokenView) -> bool:
        """Whether memory lasts for *lives*, (tokens to come, tokens that are there), until the last of them ends."""
        tokens = count = most = 0
        for left, has in sorted(lives, reverse=True):
            count += 1
            tokens += has
            most = max(most, tokens + int(count * self.memory * left))  # when this one ends, and the others go on
        return most + count * view.block_size <= (view.blocks - view.watermark) * view.block_size

    def _fill(self, prompts: list[TokenTask], seconds: float, view: TokenView) -> Chunks:
        """The most tokens of *prompts*, in order, that a step of so many *seconds* holds beside all decodes."""

        def cut(tokens: int) -> Chunks:
            chunks = []
            for task in prompts:
                count = min(tokens, task.pending)
                if count < 1:
                    break
                chunks.append((task, count))
                tokens -= count
            return chunks

        low = 0
        high = max(0, min(sum([task.pending for task in prompts]), view.max_batched_tokens - view.decoding))
        while low < high:
            middle = (low + high + 1) // 2
            if self.safety * view.estimate_step(cut(middle), view.decoding) <= seconds:
                low = middle
            else:
                high = middle - 1
        return cut(low)


def _cuts(seconds: float, room: float) -> float:
    """How often prompts of so many *seconds* are cut where a step has *room* for no more."""
    if seconds <= room:
        return 0
    return math.ceil(seconds / room) - 1 if room > 0 else math.inf


# -- speed only -----------------------------------------------------------------------------------------------------

#: All decode, until something changes. (The word to repeat it saves time, and no more.)
DECODE = Step(decode=ALL, repeat=Repeat(sys.maxsize))
