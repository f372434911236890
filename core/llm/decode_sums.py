"""The sums that an LLM engine keeps of the requests that decode together: a step costs the same for few and many.

A tick of a common clock gives each of them a token (`TokenTask.generated` reads it), their context is a running sum,
how many need a new block at a tick is known by phase (computed tokens modulo the block size), and who puts out the
last token at which tick stands in a bucket of that tick.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from heapq import heappush
from typing import TYPE_CHECKING

from ..invariants.engine_ledger import TokenBooks
from .policy import Chunk
from .request import Ticks, TokenTask

if TYPE_CHECKING:
    from .policy import TokenView


class DecodeSums(TokenBooks):
    """The sums for the engine of *view*; with *keep_times* also when each token comes out."""

    __slots__ = (
        "_bases", "_buckets", "_ends", "_first", "_joined", "_leaving", "_lengths", "_phases", "_ticks",
        "_trim_at",
        "headroom", "keep_times", "size", "tick", "view",
    )  # fmt: skip

    _recomputed: set[TokenTask]  # those that decode again after a preemption, and no token came yet

    def __init__(self, view: TokenView, *, keep_times: bool) -> None:
        super().__init__()
        self.view, self.keep_times = view, keep_times
        self.size, self.headroom = view.block_size, view.limits.headroom
        self._lengths: dict[TokenTask, int] = {}  # the true ones
        self._ticks = Ticks()
        self.tick = 0  # what they should count
        self._phases = [0] * self.size  # decoding tasks by (computed - ticks) modulo the block size
        self._buckets: dict[int, list[TokenTask]] = {}  # tick -> those that have put out all then
        self._leaving: list[int] = []  # the ticks of the buckets, a heap
        self._ends = array("d")  # of the last ticks, for `TokenTask.times`
        self._first, self._trim_at = 0, 8192  # the former: the tick that *ends* begins with
        self._joined: dict[TokenTask, int] = {}  # the tick after which each began to decode, with keep_times
        self._bases: dict[TokenTask, int] = {}  # the output tokens of each that decodes before the first tick

    def _join(self, task: TokenTask) -> None:
        """*task* decodes with the others from now on."""
        view, tick = self.view, self._ticks.count
        computed, generated = task._computed, task._generated
        task._generated = base = generated - tick
        task._ticks = self._ticks
        self._bases[task] = base
        if self.booked:
            self._marks[task] = task.started, task.first_token, task.preemptions
            self._books.pop(task, None)
        view.decoding += 1
        view.context += computed
        self._phases[(computed - tick) % self.size] += 1
        last = tick + self._lengths[task] - generated
        if last in self._buckets:
            self._buckets[last].append(task)
        else:
            self._buckets[last] = [task]
            heappush(self._leaving, last)
        if self.keep_times:
            self._joined[task] = tick

    def _part(self, task: TokenTask) -> None:
        """*task* does not decode with the others any more; its counts are its own again."""
        view, tick = self.view, self._ticks.count
        base = self._bases.pop(task)
        if self.booked:
            self._check_decoding(task, base)
        task._generated = generated = base + tick
        task._computed = computed = task.prompt + generated - 1
        task._ticks = None
        view.decoding -= 1
        view.context -= computed
        self._phases[(computed - tick) % self.size] -= 1
        if self.keep_times:
            self._tell_times(task)
            del self._joined[task]

    def _tell_times(self, task: TokenTask) -> None:
        """Give *task*, which decodes with the others, the times of its tokens so far."""
        tick = self._ticks.count
        first, self._joined[task] = self._joined[task], tick
        task._times.extend(self._ends[first - self._first : tick - self._first])  # type: ignore[union-attr]

    def _blocks_of_a_step(self, chosen: Sequence[TokenTask] | None) -> int:
        """New blocks that a decode step takes."""
        if chosen is None:
            return self._phases[-self._ticks.count % self.size]
        return sum([task.computed % self.size == 0 for task in chosen])

    def _affordable(self, times: int) -> int:
        """For how many steps, up to *times*, all that decode can go on without anybody being preempted."""
        free, phases, size, tick = self.view.free_blocks - self.headroom, self._phases, self.size, self._ticks.count
        for done in range(times):
            free -= phases[-(tick + done) % size]
            if free < 0:
                return done
        return times

    def _trim(self) -> None:
        """Forget the ends of steps that no task needs any more."""
        first = min(self._joined.values(), default=self._ticks.count)
        del self._ends[: first - self._first]
        self._first = first
        self._trim_at = max(8192, 2 * len(self._ends))

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
            decodes = task._ticks is not None and (chosen is None or task in some)
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
            needed -= need(order[-1])[0]
            self._preempt(order.pop())

    def _preempt(self, task: TokenTask) -> None:
        """*task* loses its memory."""
        raise NotImplementedError
