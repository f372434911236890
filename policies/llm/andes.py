"""Andes: memory goes to those whose readers gain most by it, per token of context; others pause.

Source: "Andes: Defining and Enhancing Quality-of-Experience in LLM-Based Text Streaming Services" (arXiv 2404.16283),
its scheduler of requests at token granularity, and `AndesScheduler` of its code for when it is asked.

A reader expects token j of an answer at a time of its own: here the token's deadline (`TokenView.slo`). The quality
of experience is 1 less the delay of the tokens against that, over the delay that there would be without any token:
the areas between the curves of expected and of delivered tokens. A token that comes sooner than expected is no gain.

- As long as memory lasts, requests are prefilled in order of arrival, before the others decode, as `vllm` does it.
- When somebody waits and *watermark* of the memory is used, at every *every*-th of such steps the engine's requests
  are chosen anew. For batches of several sizes B: what each request would gain over the next *horizon* seconds by
  being served in a batch of B instead of waiting, over the tokens of its context, is its priority; by that requests
  are taken until B are, or memory is full. The size with the largest sum of gains counts.
- Who is not chosen loses its memory, those that are chosen and wait are prefilled. There are no more such preemptions
  than *preemptions* per request that has come.

Deviations: expected times are even over the horizon, so that a gain has a closed form; the search over B is of
*sizes* sizes from the most that keeps up with the fastest reader to the most that memory could hold, not of all. The
paper's second trigger, steps slower than readers read while nobody waits, is left out.
"""

from __future__ import annotations

import sys

from servetwin.core import BadInput, Repeat
from servetwin.core.llm import ALL, Step, TokenPolicy, TokenTask, TokenView
from servetwin.core.parameters import above, at_least

#: A request, when its next token is expected and how long after that the next but one, when it comes by a prefill
#: (None: by a step), what all its tokens make of quality, and its context.
Known = tuple[TokenTask, float, float, float | None, float, int]
#: What it gains, and its context.
Gain = tuple[float, TokenTask, int]


class Andes(TokenPolicy):
    """Needs expected times of single tokens (`TokenView.slo`). *horizon* is in seconds, by default what 50 decode
    steps of one request take; *watermark* is a share of the blocks."""

    whole_prompts = True

    def __init__(
        self,
        horizon: float | None = None,
        watermark: float = 0.9,
        preemptions: float = 1.0,
        every: int = 10,
        sizes: int = 8,
    ) -> None:
        above(0, "andes", horizon=horizon)
        at_least(0, "andes", watermark=watermark, preemptions=preemptions)
        at_least(1, "andes", every=every, sizes=sizes)
        self.horizon, self.full, self.allowed = horizon, watermark, preemptions
        self.every, self.sizes = every, sizes
        self.requests = self.preempted = self.asked = 0
        self.gave_way: dict[TokenTask, int] = {}  # whose memory it took -> as how many

    def start(self, view: TokenView) -> None:
        if view.slo is None:
            raise BadInput("andes needs deadlines of tokens", where=view.name, right="an SLO such as 3+1.5")
        self.slo = view.slo
        self.ahead_for = self.horizon or 50 * view.estimate_decode(1, 0)

    def admit(self, task: TokenTask, view: TokenView, now: float) -> bool:
        self.requests += 1
        return True

    def decide(self, view: TokenView, now: float) -> Step:
        waiting = view.waiting
        if not waiting:
            return DECODE
        drop = [task for task in waiting if task.pending > view.max_batched_tokens]
        waits = sorted([task for task in waiting if task not in drop], key=lambda task: self.gave_way.get(task, 0))
        self.asked += 1
        crowded = view.free_blocks <= (1.0 - self.full) * view.blocks
        if crowded and waits and self.asked % self.every == 0:
            admit, preempt = self._choose([*view.running, *waits], view, now)
            if admit:
                for task in preempt:
                    self.preempted += 1
                    self.gave_way[task] = self.preempted
                return Step([(task, task.pending) for task in admit], preempt=preempt, drop=drop)
        prefill = view.admissible([(task, task.pending) for task in waits])
        return Step(prefill, drop=drop) if prefill else Step(decode=ALL, drop=drop)

    def _choose(self, tasks: list[TokenTask], view: TokenView, now: float) -> tuple[list[TokenTask], list[TokenTask]]:
        """Those of *tasks* that wait and are to run, first the one that gains most, and those that give way."""
        best, chosen = -1.0, tasks[:0]
        known = [self._known(task, view, now) for task in tasks]
        for size in self._sizes(known, view):
            gains = self._gains(known, size, view, now)
            total, batch = self._pack(gains, size, view)
            if total > best:
                best, chosen = total, batch
        kept = set(chosen)
        give_way = [task for task in view.running if task not in kept]
        allowed = int(self.allowed * self.requests) - self.preempted
        if len(give_way) > allowed:
            return [], []
        return [task for task in chosen if task in view.waiting], give_way

    def _known(self, task: TokenTask, view: TokenView, now: float) -> Known:
        """What of *task* is the same whatever the size of the batch."""
        due, second = (self.slo.deadline(task, task.generated + j) for j in (1, 2))
        gap = second - due
        comes = None if task in view.running else now + view.estimate_prefill(task.pending)
        whole = _area(now + self.ahead_for, self.slo.deadline(task, 1), gap, task.limit)
        return task, due, gap, comes, whole, task.computed + task.pending

    def _sizes(self, known: list[Known], view: TokenView) -> list[int]:
        """The sizes of batches that are looked at."""
        free, most = view.blocks - view.watermark, 0
        for blocks in sorted([view.blocks_for(tokens) + 1 for *_, tokens in known]):
            free -= blocks
            most += free >= 0
        most = max(1, min(most, view.max_sequences))
        context = sum([tokens for *_, tokens in known]) / len(known)
        fastest = min([gap for _, _, gap, *_ in known])
        least = most
        while least > 1 and view.estimate_decode(least, int(least * context)) > fastest:
            least -= 1
        count = min(self.sizes, most - least + 1)
        return sorted({least + round(i * (most - least) / max(1, count - 1)) for i in range(count)})

    def _gains(self, known: list[Known], size: int, view: TokenView, now: float) -> list[Gain]:
        """What each gains in quality by being served over the horizon in a batch of that *size*."""
        context = sum([tokens for *_, tokens in known]) * size // len(known)
        step, end = view.estimate_decode(size, context), now + self.ahead_for
        gains = []
        for task, due, gap, comes, whole, tokens in known:
            first = now + step if comes is None else comes
            gain = _late_or_due(end, due, gap, first, step, task.limit - task.generated)
            gains.append((gain / whole if whole > 0 else 0.0, task, tokens))
        return gains

    def _pack(self, gains: list[Gain], size: int, view: TokenView) -> tuple[float, list[TokenTask]]:
        """Up to *size* requests that fit into memory, by their gain over their context; and the gains' sum."""
        order = sorted(gains, key=lambda item: (-item[0] / item[2], item[1].id))
        free, total = view.blocks - view.watermark, 0.0
        batch: list[TokenTask] = []
        for gain, task, tokens in order:
            if len(batch) == size:
                break
            blocks = view.blocks_for(tokens) + 1  # room for what it puts out next
            if blocks <= free:
                free -= blocks
                total += gain
                batch.append(task)
        return total, batch


def _area(end: float, first: float, gap: float, most: int) -> float:
    """The sum of what is left until *end* from the times *first*, *first* + *gap*, ..., of *most* at most."""
    if first >= end or most < 1:
        return 0.0
    count = most if gap <= 0 else min(most, int((end - first) / gap) + 1)
    return count * (end - first) - gap * count * (count - 1) / 2


def _late_or_due(end: float, due: float, gap: float, comes: float, step: float, most: int) -> float:
    """The same from the later of two times, of which one goes on by *gap* and the other by *step*: when a token is
    expected, and when it comes."""
    if step == gap:
        return _area(end, max(due, comes), gap, most)
    # They cross once: up to there one is the later, and then the other.
    before = (due, gap) if due > comes else (comes, step)
    after = (comes, step) if due > comes else (due, gap)
    if after[1] <= before[1]:
        return _area(end, *before, most)
    cross = min(most, int((before[0] - after[0]) / (after[1] - before[1])) + 1)
    return _area(end, *before, cross) + _area(end, after[0] + cross * after[1], after[1], most - cross)


# -- speed only -----------------------------------------------------------------------------------------------------

#: All decode, until something changes. (The word to repeat it saves time, and no more.)
DECODE = Step(decode=ALL, repeat=Repeat(sys.maxsize))
