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

import sys
from itertools import accumulate
from math import ceil, inf

from servetwin.core import BadInput, Repeat
from servetwin.core.arithmetic import float_sum
from servetwin.core.llm import ALL, Step, TokenPolicy, TokenTask, TokenView
from servetwin.core.parameters import above, at_least
from servetwin.policies.llm._in_time import InTime, LastDue, NextDue, due, fill
from servetwin.policies.llm.vllm_v1 import partly_prefilled

#: Until when the last token of a request is in time, its steps until then, and the request.
Room = tuple[float, int, TokenTask]


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
        self.slo = slo = view.slo
        self.waits = InTime(view, slo, self.safety, lambda task: (task.pending, task.id), lambda _: ())
        self.next_due = NextDue(slo, self.safety)
        self.ends = LastDue(slo, 4 * view.max_sequences)

    def decide(self, view: TokenView, now: float) -> Step:
        begun = partly_prefilled(view, len(view.running) - view.decoding)
        if not view.waiting and not begun:
            return DECODE
        self.waits.follow(view, now)
        timely, late = self.waits.split()
        drop = [task for task in late if not task.generated] if self.drop_late else []
        order = [*timely, *[task for task in late if task not in drop]]
        seconds = self.next_due.after_step(view, now) - now
        prompts = self._begin(begun, order, len(timely), seconds, view, now)
        chunks = view.admissible(fill(prompts, seconds, view, self.safety), decode=view.decoding)
        if chunks or drop:
            return Step(chunks, ALL, drop=drop)
        return Step(decode=ALL)

    def _begin(
        self, begun: list[TokenTask], order: list[TokenTask], timely: int, seconds: float, view: TokenView, now: float
    ) -> list[TokenTask]:
        """*begun*, and those of *order* that may begin beside all that run, whose next token is due in *seconds*; the
        first so many of *order* are *timely*."""
        slo, safety = self.slo, self.safety
        new: list[TokenTask] = []
        first = min([time for task in begun if (time := due(slo, task)) >= now], default=inf)
        decode = safety * view.estimate_decode(view.decoding, view.context) if view.decoding else 0.0
        lives: list[tuple[int, int]] = []  # of all that run, and of the new ones, once somebody asks
        rooms: list[Room] = []
        for place, task in enumerate(order):
            count, in_time = len(view.running) + len(new), place < timely
            if count >= view.max_sequences:
                break
            left, tokens = task.limit - task.generated, task.prompt + task.generated
            own = [(self.ends[task], left - 1, task)] if in_time else []
            if count:  # (alone it disturbs nobody)
                took = safety * view.estimate_step([(t, t.pending) for t in (*begun, *new, task)], view.decoding)
                out = now + took + _cuts(took - decode, seconds - decode) * decode
                if out > first or (own and out > due(slo, task)):
                    continue
                if not lives:
                    rooms = [(self.ends[t], t.limit - t.generated, t) for t in view.running]
                    lives = [(n, t.prompt + t.limit - n) for _, n, t in rooms]
                context = float_sum([there + n / 2 for n, there in lives]) + tokens + left / 2
                step = safety * view.estimate_decode(count + 1, int(context))
                ends = now + took
                # (Who is late already may end later still.)
                if any(ends + n * step > end and due(slo, t) >= now for end, n, t in (*rooms, *own)):
                    continue
                if not self._fits([*lives, (left, tokens)], view):
                    continue
            new.append(task)
            lives.append((left, tokens))
            rooms += own
            if own:
                first = min(first, due(slo, task))
        return [*begun, *new]

    def _fits(self, lives: list[tuple[int, int]], view: TokenView) -> bool:
        """Whether memory lasts for *lives*, (tokens to come, tokens that are there), until the last of them ends."""
        order = sorted(lives, reverse=True)
        memory, there = self.memory, accumulate([has for _, has in order])
        # When each ends, and those before it go on.
        most = max([has + int(count * memory * order[count - 1][0]) for count, has in enumerate(there, 1)])
        return most + len(lives) * view.block_size <= (view.blocks - view.watermark) * view.block_size


def _cuts(seconds: float, room: float) -> float:
    """How often prompts of so many *seconds* are cut where a step has *room* for no more."""
    if seconds <= room:
        return 0
    return ceil(seconds / room) - 1 if room > 0 else inf


# -- speed only -----------------------------------------------------------------------------------------------------

#: All decode, until something changes. (The word to repeat it saves time, and no more.)
DECODE = Step(decode=ALL, repeat=Repeat(sys.maxsize))
