"""FastServe: queues by how long requests have been served; long ones give way at each token (skip-join MLFQ).

Source: "FastServe: Iteration-Level Preemptive Scheduling for Large Language Model Inference" (NSDI'26; arXiv
2305.05920, "Fast Distributed Inference Serving"), its skip-join multi-level feedback queue, and `MLFQ` in
`fastserve/scheduler.py` of its code for what the paper leaves open.

- Queue 0 has a quantum of *quantum* seconds, each next one *ratio* times that of the one before. A request joins the
  first queue whose quantum lasts for its prefill (without *skip_join*: queue 0, which is plain MLFQ).
- Each iteration takes requests from the first queue on, in the order in which they came to it, up to *max_batch* and
  to the tokens of a step: prompts, and tokens of those that decode. Others pause and keep their memory.
- Who has been served for the quantum of its queue goes to the end of the next one.
- At every *every*-th decision that leaves somebody out, who has not been served for *starve* seconds goes to the end
  of queue 0.
- Where memory lacks for somebody, those behind it lose theirs, the last one first. (Where it is computed anew,
  that costs a prefill for each change of places, and a long prompt among many short ones may come to nothing again
  and again: with many more requests than the engine holds this policy then wastes most of its time.)

Deviations: memory is taken when it is needed, not ahead of that; whether it goes to the host, as in FastServe, or is
computed anew, is the engine's setting (`preemption`). Queues are told apart by all the time that a request has been
served since it joined: what an iteration takes beyond a quantum counts for the next one. A prompt that no step can
hold is dropped.
"""

from __future__ import annotations

import sys

from servetwin.core import Repeat
from servetwin.core.llm import ALL, Step, TokenPolicy, TokenTask, TokenView
from servetwin.core.parameters import above, at_least
from servetwin.policies.llm._by_rank import never_fitting, select


class Stay:
    """Where a request stands: its queue, when it came there, how long it was served since it joined (until *since*,
    from which on it is being served), and the sum of the quanta up to the end of its queue."""

    __slots__ = ("entered", "idle_from", "level", "served", "since", "spent_at")

    def __init__(self, level: int, quantum: float, now: float) -> None:
        self.level, self.spent_at, self.entered, self.idle_from = level, quantum, now, now
        self.served, self.since = 0.0, -1.0


class FastServe(TokenPolicy):
    """*quantum* and *starve* are in seconds; by default *quantum* is what a decode step of one request takes.
    *max_batch* is by default what the engine allows."""

    whole_prompts = True
    starves = True  # whose memory is taken again and again before its prompt is of use

    def __init__(
        self,
        quantum: float | None = None,
        ratio: float = 2.0,
        starve: float = 3.0,
        every: int = 1000,
        skip_join: bool = True,
        max_batch: int | None = None,
    ) -> None:
        above(0, "fastserve", quantum=quantum, starve=starve)
        above(1, "fastserve", ratio=ratio)
        at_least(1, "fastserve", every=every, max_batch=max_batch)
        self.quantum, self.ratio, self.starve, self.every = quantum, ratio, starve, every
        self.crowded = 0  # decisions so far that left somebody out
        self.skip_join, self.max_batch = skip_join, max_batch
        self.stays: dict[TokenTask, Stay] = {}
        #: Which change with time for those alone that are served.
        self.ranks: dict[TokenTask, tuple[int, float, int]] = {}
        self.batch: set[TokenTask] = set()

    def start(self, view: TokenView) -> None:
        self.most = min(self.max_batch or view.max_sequences, view.max_sequences)
        self.base = self.quantum or view.estimate_decode(1, 0)

    def decide(self, view: TokenView, now: float) -> Step:
        live = [*view.running, *view.waiting]
        if self.crowded and self.crowded % self.every == 0:
            self._lift_those_that_starve(live, now)
        ranks, batch = self.ranks, self.batch
        for task in [task for task in live if task not in ranks or task in batch]:
            ranks[task] = self._rank(task, view, now)
        order = sorted(live, key=ranks.__getitem__)
        drop = never_fitting(view.waiting, view)
        if drop:
            order = [task for task in order if task not in drop]
        prefill, decode, preempt = select(order, [task for task in order if task in view.running], self.most, view)
        if not prefill and not decode:  # whoever is first does not fit though nobody else is there
            return Step(decode=ALL, drop=drop)
        self._serve({*decode, *(task for task, _ in prefill)}, now)
        if len(self.stays) > 2 * len(live) + 64:
            self.stays = {task: self.stays[task] for task in live}
            self.ranks = {task: self.ranks[task] for task in live}
        if len(decode) == len(live):
            return DECODE
        self.crowded += len(decode) + len(prefill) < len(live)
        return Step(prefill, ALL if len(decode) == view.decoding else decode, preempt=preempt, drop=drop)

    def _rank(self, task: TokenTask, view: TokenView, now: float) -> tuple[int, float, int]:
        """Its queue, and its place there."""
        stay = self.stays.get(task)
        if stay is None:
            level, quantum = 0, self.base
            while self.skip_join and quantum < view.estimate_prefill(task.pending):
                level, quantum = level + 1, quantum * self.ratio
            stay = self.stays[task] = Stay(level, quantum, now)
        if stay.since >= 0.0:
            served = stay.served + (now - stay.since)
            while served > stay.spent_at:
                stay.entered = stay.since + (stay.spent_at - stay.served)
                stay.level += 1
                stay.spent_at += self.base * self.ratio**stay.level
        return stay.level, stay.entered, task.id

    def _lift_those_that_starve(self, live: list[TokenTask], now: float) -> None:
        for task in live:
            stay = self.stays.get(task)
            if stay is not None and stay.level and stay.since < 0.0 and now - stay.idle_from >= self.starve:
                self.stays[task] = Stay(0, self.base, now)
                self.ranks.pop(task, None)

    def _serve(self, batch: set[TokenTask], now: float) -> None:
        """*batch* is served from *now* on, until the next decision."""
        stays = self.stays
        for task in self.batch - batch:
            stay = stays.get(task)
            if stay is not None:
                stay.served, stay.since, stay.idle_from = stay.served + (now - stay.since), -1.0, now
        for task in batch - self.batch:
            stays[task].since = now
        self.batch = batch


# -- speed only -----------------------------------------------------------------------------------------------------

#: All decode, until something changes: where nobody waits or pauses, it does not matter in which queue who stands.
DECODE = Step(decode=ALL, repeat=Repeat(sys.maxsize))
