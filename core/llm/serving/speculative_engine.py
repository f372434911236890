"""Engines that speculate (`servetwin.core.llm.speculation`): each that decodes gets one token a step or several.

How many differs from request to request, so they are counted one by one: a step costs here as many operations as
requests decode. As in vLLM (0.27: ``v1/core/sched/scheduler.py``) memory for all that a step may keep is taken when
it is decided, in order of admission, and for *lookahead* tokens more; what rejected drafts leave stays with its
request, for its next step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from ...isolation.answers import fault
from ...policy import Repeat
from ...serving.worker import Loop
from ..batch import Piece, TokenBatch
from ..policy import Chunk
from ..request import TokenTask
from ..speculation import Speculation, SpeculativeTask, SpeculativeView
from .caching import Caching
from .engine import TokenEngine
from .host import LLMWorker


class SpeculativeEngine(TokenEngine):
    """`TokenEngine` with the `Speculation` of its *worker*. *held* are the blocks of each that runs."""

    __slots__ = ("ahead", "each", "gained", "held", "rolls", "speculation")

    kind = SpeculativeTask
    view: SpeculativeView

    def __init__(self, loop: Loop, worker: LLMWorker) -> None:
        super().__init__(loop, worker)
        assert worker.speculation is not None
        self.speculation: Speculation = worker.speculation
        self.each = 1 + self.speculation.drafts  # tokens of a sequence that decodes
        self.ahead = self.view.lookahead = self.speculation.lookahead
        self.longest -= self.ahead
        self.held: dict[TokenTask, int] = {}
        self.gained: dict[TokenTask, int] = {}  # the tokens that each got with its last step
        self.rolls: dict[TokenTask, Callable[[], int]] = {}

    # -- memory -------------------------------------------------------------------------------------------

    def _need(self, task: TokenTask, tokens: int) -> int:
        """New blocks of *task*, which runs, for a step of so many of its tokens."""
        needed = -(-(task.computed + tokens + self.ahead) // self.size)
        return max(0, needed - self.held[task])

    def _blocks_of_a_step(self, chosen: Sequence[TokenTask] | None) -> int:
        return sum([self._need(task, self.each) for task in (self.bases if chosen is None else chosen)])

    def _take(self, task: TokenTask, blocks: int) -> None:
        self.held[task] = self.held.get(task, 0) + blocks
        self.view.free_blocks -= blocks

    def _surplus(self, task: TokenTask) -> int:
        """How many blocks *task* holds beyond those of its computed tokens; it holds none any more."""
        self.gained.pop(task, None)
        return self.held.pop(task) - -(-task.computed // self.size)

    def _release(self, task: TokenTask) -> None:
        more = self._surplus(task)
        super()._release(task)
        self.view.free_blocks += more

    def finish(self, task: TokenTask, now: float) -> None:
        self.view.free_blocks += self._surplus(task)
        self.rolls.pop(task, None)
        super().finish(task, now)

    def _visit_over(self, task: TokenTask) -> None:
        super()._visit_over(task)
        self.rolls.pop(task, None)

    def _outgrown(self, task: TokenTask) -> bool:
        most = task.prompt + task.base_generated + self.each + self.ahead
        return self.view.blocks_for(most) > self.view.blocks - self.view.watermark

    def _make_room(self, chosen: Sequence[TokenTask] | None, prefill: Sequence[Chunk]) -> bool:
        """As of `DecodeSums`: as many of the last that were admitted lose their memory as it takes."""
        view = self.view
        needs = {task: self._need(task, self.each) for task in (self.bases if chosen is None else chosen)}
        needs |= {task: self._need(task, count) for task, count in prefill if task in view.running}
        needed, before = sum(needs.values()), len(view.running)
        while needed > view.free_blocks:
            self._serve_before([needs.get(task, 0) for task in view.running])
            last = next(reversed(view.running))
            needed -= needs.get(last, 0)
            self._preempt(last)
        return len(view.running) < before

    # -- a step -------------------------------------------------------------------------------------------

    def _all_decode(self, repeat: Repeat | None, fresh: bool, now: float) -> bool:
        view = self.view
        if self._blocks_of_a_step(None) > view.free_blocks:
            return False
        self._launch(view.decoding, view.context, (), None, now)
        return True

    def _launch(
        self, decode: int, context: int, pieces: Sequence[Piece], chosen: Sequence[TokenTask] | None, now: float
    ) -> None:
        if decode:
            for task in self.bases if chosen is None else chosen:
                self._take(task, self._need(task, self.each))
        super()._launch(decode, context, pieces, chosen, now)

    def _admit(
        self, prefill: Sequence[Chunk], chosen: Sequence[TokenTask] | None, decode: int, crowded: bool, now: float
    ) -> list[Piece]:
        view = self.view
        soon = self._blocks_of_a_step(chosen) if decode else 0  # which those who decode take at once
        tokens = view.max_batched_tokens - decode * self.each
        sequences = view.max_sequences - len(view.running)
        pieces: list[Piece] = []
        admitted = 0
        for task, count in prefill:
            self._check_chunk(task, count, pieces, admitted)
            tokens -= count
            if tokens < 0:
                break
            new, whole = view.blocks_of_chunk(task, count)
            if task in view.waiting:
                least = soon + view.watermark
                if crowded or sequences == admitted or view.free_blocks - max(new, whole) < least:
                    break
                admitted += 1
                del view.waiting[task]
                view.running[task] = None
                if task.started is None:
                    task.started = now
            elif crowded and task not in view.running:
                break  # it was there until now
            elif task not in view.running:
                self._not_there(task)
            self._take(task, new)
            computed = task.base_computed
            task.base_computed = computed + count
            pieces.append((task, count, computed))
        return pieces

    def _check_chunk(self, task: TokenTask, count: int, pieces: Sequence[Piece], admitted: int) -> None:
        view = self.view
        if type(count) is not int:
            self._no_chunk(task, count)
        if task in self.bases:
            raise fault(self.worker.policy, f"it prefills {task}, which is decoding at {view.name}")
        if pieces and task in view.running:
            self._not_first(task, pieces, admitted)
        if task in view.waiting or task in view.running:
            self._check(task)
            if not 0 < count <= task.prompt + task.base_generated - task.base_computed:
                self._no_chunk(task, count)

    # -- tokens that come out -------------------------------------------------------------------------------

    def _join(self, task: TokenTask) -> None:
        """*task* decodes from now on. (The clock of those who decode stands still: each has its own counts.)"""
        task.ticks = self.ticks
        self.bases[task] = task.base_generated
        if self.booked:
            self.marks[task] = task.started, task.first_token, task.preemptions
            self._books.pop(task, None)
        self.view.decoding += 1
        self.view.context += task.base_computed
        if self.keep_times:
            self.joined[task] = 0
        if task not in self.rolls:
            self.rolls[task] = self.speculation.dice(task.id, self.stage.name)

    def part(self, task: TokenTask) -> None:
        view, base = self.view, self.bases.pop(task)
        if self.booked:
            self._check_decoding(task, base)
        task.base_generated = base
        task.base_computed = computed = task.prompt + base - 1
        task.ticks = None
        view.decoding -= 1
        view.context -= computed
        self.joined.pop(task, None)

    def _tick(self, batch: TokenBatch, now: float) -> None:
        self._advance([*self.bases], now)

    def _advance(self, chosen: Sequence[TokenTask], now: float) -> None:
        self._fruitless = 0
        self._recomputed.difference_update(chosen)
        view, drafts = self.view, self.speculation.drafts
        for task in chosen:
            accepted = self.rolls[task]()
            speculative = cast("SpeculativeTask", task)
            speculative.verified += 1
            speculative.drafted += drafts
            speculative.accepted += accepted
            base = self.bases[task]
            if self.booked and task.base_generated != base:
                self.part(task)  # which says who wrote it
            count = min(1 + accepted, self.lengths[task] - base)  # what comes after its last token is thrown away
            self.bases[task] = task.base_generated = base + count
            self.gained[task] = count
            view.context += count
            if task.token_times is not None:
                task.token_times.extend([now] * count)
            if base + count == self.lengths[task]:
                self.part(task)
                self.finish(task, now)


class SpeculativeEngineCaching(Caching, SpeculativeEngine):
    """`SpeculativeEngine` with a prefix cache. Only tokens that were accepted can be found again, once a step after
    theirs has been decided; where what drafts reads states of the model, the last block of what is there is computed
    anew."""

    kind = SpeculativeTask
    view: SpeculativeView

    def __init__(self, loop: Loop, worker: LLMWorker) -> None:
        super().__init__(loop, worker)
        self.cache.anew = int(self.speculation.reads_states)

    def _blocks_of(self, task: TokenTask) -> int:
        return self.held[task]

    def _blocks_upto(self, tokens: int) -> int:
        return -(-(tokens + self.ahead) // self.size)

    def _takes(self, task: TokenTask, blocks: int) -> None:
        self.held[task] = blocks

    def _unknown(self, task: TokenTask) -> int:
        return max(0, self.gained.get(task, 0) - 1)
