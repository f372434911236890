"""Who waits and is passed over: those behind may go first, those preempted after that may not.

As in vLLM (0.27: ``v1/core/sched/scheduler.py``), which keeps those that it passes over in a queue of their own,
ahead of all others that wait (`skipped_waiting`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ...policy import Repeat
from ...serving.worker import Loop
from ..batch import Piece
from ..policy import Chunk
from ..request import TokenTask
from .engine import TokenEngine
from .host import LLMWorker

# What engines that pass over have in common, for type checkers an engine itself.
if TYPE_CHECKING:
    _Base = TokenEngine
else:
    _Base = object


class PassingOver(_Base):
    """*passed* are those who wait and were passed over, in the order of the queue."""

    def __init__(self, loop: Loop, worker: LLMWorker) -> None:
        super().__init__(loop, worker)
        self.passed: dict[TokenTask, None] = {}

    def _barred(self) -> Callable[[TokenTask], bool]:
        """Tells of one who waits whether the next step would pass it over."""
        raise NotImplementedError

    def _admit(
        self, prefill: Sequence[Chunk], chosen: Sequence[TokenTask] | None, decode: int, crowded: bool, now: float
    ) -> list[Piece]:
        waiting = self.view.waiting
        queue = [*waiting]
        pieces = super()._admit(prefill, chosen, decode, crowded, now)
        for task, _, _ in pieces:
            self.passed.pop(task, None)
        if len(waiting) < len(queue):
            while queue[-1] in waiting:
                queue.pop()
            self.passed.update((task, None) for task in queue if task in waiting)
        return pieces

    def _launch(
        self, decode: int, context: int, pieces: Sequence[Piece], chosen: Sequence[TokenTask] | None, now: float
    ) -> None:
        if not self.preempted:
            self._pass_over(decode + sum(count for _, count, _ in pieces))
        super()._launch(decode, context, pieces, chosen, now)

    def _all_decode(self, repeat: Repeat | None, fresh: bool, now: float) -> bool:
        self._pass_over(self.view.decoding)
        return super()._all_decode(repeat, fresh, now)

    def _pass_over(self, tokens: int) -> None:
        """In a step of so many *tokens* those at the head of the queue who are barred are passed over, if it has room
        for more."""
        view = self.view
        most = getattr(self.worker.policy, "tokens_a_step", None) or view.max_batched_tokens
        if view.waiting and tokens < min(most, view.max_batched_tokens) and len(view.running) < view.max_sequences:
            barred = self._barred()
            for task in view.waiting:
                if not barred(task):
                    break
                self.passed[task] = None

    def _preempt(self, task: TokenTask) -> None:
        super()._preempt(task)
        waiting = self.view.waiting
        self.passed = {other: None for other in self.passed if other in waiting and other is not task}
        for other in reversed(self.passed):
            waiting.move_to_end(other, last=False)

    def finish(self, task: TokenTask, now: float) -> None:
        self.passed.pop(task, None)  # one that was preempted while its last token was in flight
        super().finish(task, now)

    def _visit_over(self, task: TokenTask) -> None:
        super()._visit_over(task)
        self.passed.pop(task, None)
