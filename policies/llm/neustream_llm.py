"""NeuStream for language models: prefill the shortest prompts, as many as no running request's deadlines forbid.

Source: the NeuStream artifact's LLM part (vLLM 0.5.4 with a predictor in its scheduler). Tokens have cumulative
deadlines: T_j = arrival + P B(n) + D I(n, j - 1). Before each step, if requests both wait and run:

- A request gets some *lenience*: for each of the first *lenient_steps* tokens that it has not generated yet, what a
  decode step may take (D times *b0*) beyond what the last one did take.
- A waiting request is dropped if prefilled alone now it would miss its first deadline by more than its lenience.
- The others are ordered by length, shortest first. The largest number of them is sought (by bisection) whose prefill,
  followed by a decode step of all, leaves everybody's next token on time, give or take the lenience.
- That many are prefilled; if it is none, all that run decode. Prefill and decode never share a step.

If nobody runs, all that wait are prefilled, in order of the queue, and nobody is dropped.

What the artifact does otherwise than its description says, or by accident, is an option; each default is the
corrected behaviour, the second value the artifact's. That requests are stamped when the engine first sees them is the
engine's matter (`EngineLimits.stamp`).

============  ======================  ==============================================================================
*b0*          None (1.1 d0) / 0.072   The decode step that the budget is made for, in seconds.
*batch_cost*  "chosen" / "queue"      A prefill of m costs what the m chosen cost, or what the queue's first m would.
*preempted*   "own" / "fresh"         Who lost its memory is judged by the token that it is at and by all that must be
                                      computed anew; or as if it had just come.
*search*      "bisect" / "bisect"     "all" tries every number, from the largest: feasibility may have gaps.
*offset*      False / True            Whether 2 to 4 ms are added to decode steps of 45 ms or more (by hand, for
                                      OPT-13B on an A6000).
*lookahead*   0 / 33                  Who has fewer tokens than this is looked at for as many steps as are lacking.
*feedback*    True / True             Whether the last decode step's time enters the budget, or *b0* does.
*lenient*     "all" / "all"           "waiting": running requests get no lenience (the Multi-Agent build).
============  ======================  ==============================================================================
"""

from __future__ import annotations

import sys
from itertools import accumulate
from math import inf
from typing import Literal

from servetwin.core import BadInput, Repeat
from servetwin.core.llm import ALL, Step, TokenPolicy, TokenTask, TokenView, WaitingOrder
from servetwin.core.parameters import above, at_least
from servetwin.core.slo import slack
from servetwin.policies.llm._lenience import Fact, NextTokens, Sums

#: Seconds that the artifact adds to a decode step predicted to take at least so many.
OFFSETS = ((0.055, 0.004), (0.050, 0.003), (0.045, 0.002))


class NeuStreamLLM(TokenPolicy):
    """Needs the deadlines of single tokens (`TokenView.slo`). The options are told above."""

    def __init__(
        self,
        lenient_steps: int = 30,
        b0: float | None = None,
        batch_cost: Literal["chosen", "queue"] = "chosen",
        preempted: Literal["own", "fresh"] = "own",
        search: Literal["bisect", "all"] = "bisect",
        offset: bool = False,
        lookahead: int = 0,
        feedback: bool = True,
        lenient: Literal["all", "waiting"] = "all",
    ) -> None:
        for name, value, right in (
            ("batch_cost", batch_cost, ("chosen", "queue")),
            ("preempted", preempted, ("own", "fresh")),
            ("search", search, ("bisect", "all")),
            ("lenient", lenient, ("all", "waiting")),
        ):
            if value not in right:
                raise BadInput(f"{name} is {value!r}", where="neustream-llm", right=" or ".join(map(repr, right)))
        at_least(0, "neustream-llm", lenient_steps=lenient_steps, lookahead=lookahead)
        above(0, "neustream-llm", b0=b0)
        self.lenient_steps, self.b0, self.lookahead = lenient_steps, b0, lookahead
        self.batch_cost, self.preempted, self.search = batch_cost, preempted, search
        self.offset, self.feedback, self.lenient = offset, feedback, lenient

    def start(self, view: TokenView) -> None:
        if view.slo is None:
            raise BadInput("neustream-llm needs deadlines of tokens", where=view.name, right="an SLO such as 3+1.5")
        self.slo, limits = view.slo, view.limits
        self.base = self.b0 if self.b0 is not None else 1.1 * view.slo.d0
        self.pending_stays = not (limits.keep_freed or limits.enable_prefix_caching)
        self.waits = WaitingOrder(self._look, fixed=not limits.keep_freed, anywhere=limits.passes_over)
        self.runs = NextTokens(view.slo, self.lenient_steps if self.lenient == "all" else 0, 0.02 * self.base)
        self.facts: dict[TokenTask, Fact] = {}
        self.sums = self._sums([])

    def decide(self, view: TokenView, now: float) -> Step:
        if not view.waiting:
            return DECODE
        queue = self._queue(view)
        most, drop = view.max_batched_tokens, []
        if queue.longest > most:
            drop = [task for task in self.waits.queue() if task.pending > most]  # vLLM never runs them
        if not view.running:
            chosen = [task for task in self.waits.queue() if task not in drop]
        else:
            last = view.last_decode if self.feedback and view.last_decode else self.base
            beta = self.slo.decode_scale * self.base - last
            if queue.spare + self.lenient_steps * beta - now < 1e-6:  # else none is hopeless
                drop += [t for t in self.waits.queue() if t not in drop and self._hopeless(t, beta, now)]
            ordered = queue if not drop else self._sums([t for t in queue.order if t not in drop])
            chosen = ordered.order[: self._largest(ordered, beta, view, now)]
            self.waits.settle()
        prefill = view.admissible([(task, task.pending) for task in chosen]) if chosen else []
        if prefill or drop:
            return Step(prefill, () if prefill else ALL, drop=drop)
        return self._wait(queue, view) if chosen and view.running and self.pending_stays else WAIT

    def _length(self, task: TokenTask) -> int:
        """The tokens that its prefill computes, as the policy counts them."""
        return task.prompt if self.preempted == "fresh" else task.pending

    def _due(self, task: TokenTask, more: int) -> float:
        """When *task* must have generated so many tokens more, without its lenience."""
        return self.slo.deadline(task, more if self.preempted == "fresh" else task.generated + more)

    def _hopeless(self, task: TokenTask, beta: float, now: float) -> bool:
        _, _, left, due, _, alone = self.facts[task]
        return due + left * beta + slack(now) - now < alone

    def _largest(self, ordered: Sums, beta: float, view: TokenView, now: float) -> int:
        """How many of *ordered* can be prefilled."""
        since = now - slack(now)
        soonest = self.runs.soonest(view.running, beta, since) if ordered.order else -inf
        if soonest < since:
            return 0  # somebody is late beyond lenience as it is
        totals, squares, contexts = ordered.added_up()
        candidates = [due + left * beta for _, _, left, _, due, _ in ordered.facts]
        tightest = list(accumulate(candidates, min, initial=soonest))

        def feasible(m: int) -> bool:
            cost = view.estimate_prefill(totals[m - 1], None if m == 1 else squares[m - 1])
            batch, context = len(view.running) + m, view.context + contexts[m - 1]
            end = now + cost + self._decode(view, batch, context)
            if tightest[m] < end - slack(end):
                return False
            return not self.lookahead or looks_well(m, end, context)

        def looks_well(m: int, end: float, context: int) -> bool:
            """Whether those who have few tokens yet stay on time in the steps that they are looked at for."""
            steps = [self.lookahead - task.computed - 1 for task in view.running]
            steps += [self.lookahead - self._length(task) - 1 for task in ordered.order[:m]]
            slacks = [*map(self.runs.due, view.running), *candidates[:m]]
            for step in range(1, max(steps)):
                context += len(slacks)
                end += self._decode(view, len(slacks), context)
                if any(due < end for due, n in zip(slacks, steps, strict=True) if n > step):
                    return False
            return True

        if self.search == "all":
            return next((m for m in range(len(ordered.order), 0, -1) if feasible(m)), 0)
        best, low, high = 0, 0, len(ordered.order)
        while low <= high and (m := (low + high + 1) // 2):
            if feasible(m):
                best, low = max(best, m), m + 1
            else:
                high = m - 1
        return best

    def _decode(self, view: TokenView, batch: int, context: int) -> float:
        seconds = view.estimate_decode(batch, context)
        if self.offset:
            seconds += next((more for least, more in OFFSETS if seconds >= least), 0.0)
        return seconds

    # -- speed only: what has been found is kept until it changes -------------------------------------------

    def _wait(self, queue: Sums, view: TokenView) -> Step:
        """All decode, as the first of *queue* does not fit. Nor will it until somebody ends, so this is said again
        until somebody is hopeless, or the last decode step, by which lenience goes, has taken much longer."""
        longest = max(1.25 * view.last_decode, self.base)
        limit = queue.hopeless_from(self.slo.decode_scale * self.base - longest) - 1e-5
        return Step(decode=ALL, repeat=Repeat(sys.maxsize, limit, longest=longest))

    def _queue(self, view: TokenView) -> Sums:
        if self.waits.follow(view.waiting) or self.batch_cost == "queue":
            if len(self.facts) > 2 * len(view.waiting) + 64:
                self.facts = {task: self.facts[task] for task in view.waiting}
            self.sums = self._sums([task for _, _, task in self.waits.entries])
        return self.sums

    def _look(self, task: TokenTask) -> int:
        length, left = self._length(task), max(0, self.lenient_steps - task.generated)
        alone = self.slo.for_task(task).alone(length if task.generated else task.prompt)
        self.facts[task] = length, task.pending, left, self._due(task, 1), self._due(task, 2), alone
        return length

    def _sums(self, order: list[TokenTask]) -> Sums:
        facts, priced = [self.facts[task] for task in order], None
        if self.batch_cost == "queue":
            priced = [self.facts[task][0] for task in self.waits.queue() if task in order]
        return Sums(order, facts, priced, self.lenient_steps)


#: All decode, until something changes (the promise to repeat it only saves time); or until the next decision.
DECODE, WAIT = Step(decode=ALL, repeat=Repeat(sys.maxsize)), Step(decode=ALL)
