"""Engines of which some prefill and others decode (prefill and decode apart).

Source of what happens: DistServe (Zhong et al., OSDI 2024, section 4.3: the decode side fetches KV when it has
room), Splitwise (Patel et al., ISCA 2024), and vLLM's KV connectors, whose decode engine reserves blocks first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from ...serving.worker import Loop
from ..batch import Piece, TokenBatch
from ..policy import Chunk
from ..request import HandedTask, TokenTask
from .engine import TokenEngine
from .handover import Handover
from .host import LLMWorker


class PrefillEngine(TokenEngine):
    """Computes prompts, and keeps their KV until it has been handed over. A request of a single token ends here,
    unless first tokens come from decode engines."""

    __slots__ = ("handover", "kept", "sending")

    kind = HandedTask

    def __init__(self, loop: Loop, worker: LLMWorker) -> None:
        super().__init__(loop, worker)
        assert worker.handover is not None
        self.handover: Handover = worker.handover
        self.kept: dict[HandedTask, None] = {}  # whose prompts stand and whose KV is needed; they do not run any more
        self.sending = 0  # prompts that are on their way from here

    @property
    def stands_still(self) -> bool:
        """Whether it sends, and computes nothing meanwhile."""
        return self.sending > 0 and not self.handover.transfer.overlap

    def turn(self, now: float, fresh: bool = False) -> None:
        if self.handover.transfer.overlap or not self.handover.standstill(self):
            super().turn(now, fresh)

    def _prefilled(self, pieces: Sequence[Piece], now: float) -> None:
        here = self.handover.transfer.first_token == "prefill"
        for piece in pieces:
            task: Any = piece[0]
            if task.base_computed < task.prompt or task.request.outcome is not None:
                self.keep_books(task)
                continue
            self._fruitless = 0
            if here:
                task.base_generated, task.first_token = 1, now
                if self.keep_times:
                    task.token_times.append(now)
                if self.lengths[task] == 1:
                    self.finish(task, now)
                    continue
            else:
                task.base_computed -= 1
            self._hand_over(task, now)

    def _hand_over(self, task: HandedTask, now: float) -> None:
        del self.view.running[task]
        self.kept[task] = None
        task.prefilled, task.prefilled_by = now, self.worker.place
        length = self.lengths.pop(task)
        if self.booked:
            self.check_out(task)
        self.handover.offer(task, length, self)

    def let_go(self, task: HandedTask) -> None:
        """The KV of *task* is not needed here any more."""
        del self.kept[task]
        self.view.free_blocks += self.view.blocks_for(task.prompt)
        self.wake()

    def wake(self) -> None:
        """Ask the policy again, unless it will be anyway."""
        if self.view.in_flight is None and not self.deciding and not self.loop.stopped:
            self.loop.call(self.worker)

    def withdraw(self, task: TokenTask, now: float) -> None:
        if task in self.kept:
            self.handover.release(task)
        else:
            super().withdraw(task, now)


class DecodeEngine(TokenEngine):
    """Decodes what others have prefilled.

    Who has been handed over waits as one that was swapped out does: one token is pending, and the KV before it
    stands elsewhere. Being admitted, it reserves its memory and has its KV sent here, which takes no step of this
    engine; then it decodes with the others. A place among the sequences that may run is taken meanwhile. Who is
    preempted here is computed anew here, prompt and tokens.
    """

    __slots__ = ("away", "first_tokens", "handover", "here")

    kind = HandedTask

    def __init__(self, loop: Loop, worker: LLMWorker) -> None:
        super().__init__(loop, worker)
        assert worker.handover is not None
        self.handover: Handover = worker.handover
        self.seen = False  # requests have arrived when they came to the engine that prefilled them
        self.away: set[TokenTask] = set()  # whose KV is not here; those whose memory is reserved are on the wire
        self.here: list[HandedTask] = []  # whose KV has come while a step was in flight
        self.first_tokens: set[TokenTask] = set()  # those that decode without a token that has come out

    def take_over(self, task: HandedTask, length: int) -> None:
        """*task*, whose prompt stands elsewhere, goes on here."""
        self.lengths[task] = length
        task.worker = self.worker.place
        if self._outgrown(task):
            del self.lengths[task]
            self.handover.release(task)
            tokens = task.prompt + task.base_generated
            self.loop.fail(task.request, f"its {tokens} tokens do not fit into {self.view.name}")
            return
        self.away.add(task)
        self.keep_books(task)
        self.worker.inbox.append(task)
        self._wake()

    def _wake(self) -> None:
        if self.view.in_flight is None and not self.deciding and not self.loop.stopped:
            self.loop.call(self.worker)

    def seconds_alone(self, request: Any, now: float) -> float:
        return self.view.solo(next(task for task in reversed(request.tasks) if task.stage is self.stage))

    # -- memory and the way here ------------------------------------------------------------------------------

    def _admit(
        self, prefill: Sequence[Chunk], chosen: Sequence[TokenTask] | None, decode: int, crowded: bool, now: float
    ) -> list[Piece]:
        pieces = super()._admit(prefill, chosen, decode, crowded, now)
        away = self.away
        kept = [piece for piece in pieces if piece[0] not in away] if away else pieces
        self.fetched = len(kept) < len(pieces)
        if self.fetched:
            for task, _, _ in pieces:
                if task in away:
                    self._fetch(cast("HandedTask", task))
        return kept

    def _fetch(self, task: HandedTask) -> None:
        """*task* has been admitted with the one token that it has pending: have what is before it sent."""
        view = self.view
        del view.running[task]
        task.base_computed -= 1
        before = view.blocks_for(task.base_computed)
        view.free_blocks += view.blocks_for(task.base_computed + 1) - before
        if task.base_computed:
            self.swapped -= before
        view.max_sequences -= 1
        self.worker.coming[task] = None
        self.handover.fetch(task, self)

    def kv_came(self, task: HandedTask) -> None:
        """The KV of *task* is here."""
        self.here.append(task)
        if self.view.in_flight is None and not self.deciding:
            self._join_all()
            self._wake()

    def _join_all(self) -> None:
        for task in self.here:
            del self.worker.coming[task]
            self.away.discard(task)
            self.view.max_sequences += 1
            self.view.running[task] = None
            if not task.base_generated:
                self.first_tokens.add(task)
            self._join(task)
        self.here.clear()

    def _leave_wire(self, task: HandedTask) -> None:
        """*task*, whose request has ended, is not waited for any more."""
        del self.worker.coming[task]
        if task in self.here:
            self.here.remove(task)
        self.view.max_sequences += 1
        self.view.free_blocks += self.view.blocks_for(task.base_computed)
        self._visit_over(task)

    def withdraw(self, task: TokenTask, now: float) -> None:
        if task in self.worker.coming:
            self._leave_wire(cast("HandedTask", task))
            return
        super().withdraw(task, now)
        if task in self.away:  # not taken in yet
            self.away.discard(task)
            self.handover.release(cast("HandedTask", task))

    # -- steps ----------------------------------------------------------------------------------------------

    def settle(self, batch: TokenBatch) -> float:
        now = super().settle(batch)
        if self.here:
            self._join_all()
        return now

    def _all_decode(self, repeat: Any, fresh: bool, now: float) -> bool:
        # When first tokens come out is to be known of each.
        return super()._all_decode(None if self.first_tokens else repeat, fresh, now)

    def _tick(self, batch: TokenBatch, now: float) -> None:
        if self.first_tokens:
            self._first_came(list(self.first_tokens), now)
        super()._tick(batch, now)

    def _advance(self, chosen: Sequence[TokenTask], now: float) -> None:
        if self.first_tokens:
            self._first_came([task for task in chosen if task in self.first_tokens], now)
        super()._advance(chosen, now)

    def _first_came(self, tasks: Sequence[TokenTask], now: float) -> None:
        self.first_tokens.difference_update(tasks)
        for task in tasks:
            task.first_token = now
            if self.booked:
                self._came_out(task, now)

    # -- ends ---------------------------------------------------------------------------------------------------

    def _release(self, task: TokenTask) -> None:
        self.first_tokens.discard(task)
        super()._release(task)

    def _visit_over(self, task: TokenTask) -> None:
        super()._visit_over(task)
        self.away.discard(task)
        self.handover.release(cast("HandedTask", task))
        self.handover.freed(self.stage)

    def finish(self, task: TokenTask, now: float) -> None:
        super().finish(task, now)
        self.handover.freed(self.stage)
