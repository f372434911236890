"""The sums that an LLM engine keeps of the requests that decode together: a step costs the same for few and many.

A tick of a common clock gives each of them a token (`TokenTask.generated` reads it), their context is a running sum,
how many need a new block at a tick is known by phase (computed tokens modulo the block size), and who generates the
last token at which tick stands in a bucket of that tick.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from heapq import heappush
from typing import Any, cast

from ...serving.worker import Handle
from ..batch import TokenBatch
from ..policy import Chunk, TokenView
from ..request import Ticks, TokenTask
from .engine_ledger import TokenBooks


class DecodeSums(TokenBooks):
    """The sums for the engine of *view*; with *keep_times* also when each token comes out."""

    __slots__ = (
        "bases",
        "buckets",
        "ends",
        "first_end",
        "headroom",
        "joined",
        "keep_times",
        "leaving",
        "lengths",
        "phases",
        "size",
        "tick",
        "ticks",
        "trim_at",
        "view",
    )  # fmt: skip

    _recomputed: set[TokenTask]  # those that decode again after a preemption, and no token came yet

    def __init__(self, view: TokenView, *, keep_times: bool) -> None:
        super().__init__()
        self.view, self.keep_times = view, keep_times
        self.size, self.headroom = view.block_size, view.limits.headroom
        self.lengths: dict[TokenTask, int] = {}  # the true ones
        self.ticks = Ticks()
        self.tick = 0  # what they should count
        self.phases = [0] * self.size  # decoding tasks by (computed - ticks) modulo the block size
        self.buckets: dict[int, list[TokenTask]] = {}  # tick -> those that have generated all then
        self.leaving: list[int] = []  # the ticks of the buckets, a heap
        self.ends = array("d")  # of the last ticks, for `TokenTask.times`
        self.first_end, self.trim_at = 0, 8192  # the former: the tick that *ends* begins with
        self.joined: dict[TokenTask, int] = {}  # the tick after which each began to decode, with keep_times
        self.bases: dict[TokenTask, int] = {}  # the output tokens of each that decodes before the first tick

    def _join(self, task: TokenTask) -> None:
        """*task* decodes with the others from now on."""
        view, tick = self.view, self.ticks.count
        computed, generated = task.base_computed, task.base_generated
        task.base_generated = base = generated - tick
        task.ticks = self.ticks
        self.bases[task] = base
        if self.booked:
            self.marks[task] = task.started, task.first_token, task.preemptions
            self._books.pop(task, None)
        view.decoding += 1
        view.context += computed
        self.phases[(computed - tick) % self.size] += 1
        last = tick + self.lengths[task] - generated
        if last in self.buckets:
            self.buckets[last].append(task)
        else:
            self.buckets[last] = [task]
            heappush(self.leaving, last)
        if self.keep_times:
            self.joined[task] = tick

    def part(self, task: TokenTask) -> None:
        """*task* does not decode with the others any more; its counts are its own again."""
        view, tick = self.view, self.ticks.count
        base = self.bases.pop(task)
        if self.booked:
            self._check_decoding(task, base)
        task.base_generated = generated = base + tick
        task.base_computed = computed = task.prompt + generated - 1
        task.ticks = None
        view.decoding -= 1
        view.context -= computed
        self.phases[(computed - tick) % self.size] -= 1
        if self.keep_times:
            task.token_times.extend(self.ends_since(self.joined.pop(task)))  # type: ignore[union-attr]

    def ends_since(self, tick: int) -> array[float]:
        """When the tokens of the ticks after this one came out."""
        return self.ends[tick - self.first_end : self.ticks.count - self.first_end]

    def _blocks_of_a_step(self, chosen: Sequence[TokenTask] | None) -> int:
        """New blocks that a decode step takes."""
        if chosen is None:
            return self.phases[-self.ticks.count % self.size]
        return sum([task.computed % self.size == 0 for task in chosen])

    def affordable(self, times: int) -> int:
        """For how many steps, up to *times*, all that decode can go on without anybody being preempted."""
        free, phases, size, tick = self.view.free_blocks - self.headroom, self.phases, self.size, self.ticks.count
        for done in range(times):
            free -= phases[-(tick + done) % size]
            if free < 0:
                return done
        return times

    def _trim(self) -> None:
        """Forget the ends of steps that no task needs any more."""
        first = min(self.joined.values(), default=self.ticks.count)
        del self.ends[: first - self.first_end]
        self.first_end = first
        self.trim_at = max(8192, 2 * len(self.ends))

    def _make_room(self, chosen: Sequence[TokenTask] | None, prefill: Sequence[Chunk]) -> bool:
        """Make sure that memory lasts for the step of those that run; whether somebody had to be preempted.

        In order of admission each gets what it needs; while there is too little, the last of all is preempted. What
        must be free grows along that order, so the last that decodes (for the headroom) and the last of all decide.
        Who was computed anew but for one token needs no headroom for that one: it would be preempted again and again
        without ever putting it out.
        """
        view, size = self.view, self.size
        running = view.running
        needed = self._blocks_of_a_step(chosen)
        for task, count in prefill:
            if task in running:
                computed = task.computed
                needed += -(-(computed + count) // size) + -computed // size
        if needed + self.headroom <= view.free_blocks:
            return False
        before = len(running)
        self._preempt_last(chosen, {task: n for task, n in prefill if task in running})
        return len(running) < before

    def _preempt_last(self, chosen: Sequence[TokenTask] | None, chunks: dict[TokenTask, int]) -> None:
        """Preempt as many as it takes, while prompts that have been begun get on by *chunks* (see `_make_room`)."""
        view, size, headroom = self.view, self.size, self.headroom
        some = set(chosen or ())

        def need(task: TokenTask) -> tuple[int, bool]:
            """New blocks of *task*, and whether it decodes."""
            if task in chunks:
                return -(-(task.computed + chunks[task]) // size) + -task.computed // size, False
            decodes = task.ticks is not None and (chosen is None or task in some)
            return int(decodes and task.computed % size == 0), decodes

        needed = self._blocks_of_a_step(chosen) + sum([need(t)[0] for t in chunks])
        order = list(view.running)
        while order:
            most = upto = needed
            for task in reversed(order):
                blocks, decodes = need(task)
                upto -= blocks
                if decodes and task not in self._recomputed:
                    most = max(most, upto + max(blocks, headroom))
                    break
            if most <= view.free_blocks:
                break
            self._serve_before([need(task)[0] for task in order])
            needed -= need(order[-1])[0]
            self._preempt(order.pop())

    def _serve_before(self, needs: Sequence[int]) -> None:
        """The last of those that run, who want *needs* new blocks each in their order, is about to be preempted:
        until there was too little, those before got theirs."""

    def _preempt(self, task: TokenTask) -> None:
        """*task* loses its memory."""
        raise NotImplementedError


class FailingEngine(DecodeSums):
    """What an engine does when it fails, and after others have (`servetwin.core.faults`)."""

    __slots__ = (
        "_fruitless",
        "_resting",
        "_taken_up",
        "_untaken",
        "deciding",
        "preempted",
        "regrouped",
        "stale",
        "swapped",
    )

    # What `engine.TokenEngine` has besides.
    deciding: bool
    stale: bool
    swapped: int
    preempted: list[TokenTask]
    regrouped: Any
    _fruitless: int
    _untaken: int
    _resting: Handle | None  # the call that ends what lies between two steps
    _taken_up: dict[TokenTask, float]  # visits that follow lost ones, until they are taken in: when those were queued

    def withdraw(self, task: TokenTask, now: float) -> None:
        raise NotImplementedError

    def _tick(self, batch: TokenBatch, now: float) -> None:
        raise NotImplementedError

    def restart(self) -> None:
        """It begins anew while nothing is here: what it kept between requests is lost."""

    def fail(self, now: float) -> list[TokenTask]:
        """It fails: gives who was here. All KV is lost, and all tokens that have not come out."""
        view, worker, batch = self.view, self.worker, self.view.in_flight
        if batch is not None:
            self._cut_off(cast("TokenBatch", batch), now)
        lost = [*view.running, *view.waiting]
        for task in lost:
            self.withdraw(task, now)
        view.in_flight = view.checked = None
        view.backlog.clear()
        for task in cast("list[TokenTask]", worker.inbox):
            del self.lengths[task]
            if task.request.outcome is None:
                lost.append(task)
        worker.inbox = []
        if self._resting is not None:
            self._resting.cancel()
        self._resting, self.deciding, self.stale = None, False, False
        self._untaken = self.swapped = self._fruitless = 0
        self.preempted, self.regrouped = [], None
        self._recomputed.clear()
        for task in lost:  # those who are still on their way come later
            self._taken_up.pop(task, None)
        self.restart()
        return lost

    def _cut_off(self, batch: TokenBatch, now: float) -> None:
        """*batch* ends now, in the middle of its last step."""
        batch.count -= 1
        if batch.ends is not None:
            del batch.ends[batch.count :]
        if batch.count:
            self._tick(batch, now)
        for task, _, _ in batch.prefill:
            self.keep_books(task)  # what it counts was to be written when the step is over
        self.view.in_flight = None

    def take_up(self, task: TokenTask, lost: TokenTask) -> None:
        """*task*, which is about to be sent here, follows *lost*. What the client has got stays sent, and the rest is
        waited for since *lost* was; KV is computed again, as after a preemption."""
        task.arrival, task.admitted, task.started = lost.arrival, lost.admitted, lost.started
        task.first_token, task.preemptions, task.budget = lost.first_token, lost.preemptions, lost.budget
        task.base_generated = lost.generated
        if self.keep_times and lost.token_times is not None:
            task.token_times = array("d", lost.token_times)
        task.queued = self._taken_up[task] = lost.queued
        self.keep_books(task)
