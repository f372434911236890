"""An LLM engine that fails: what is lost with it, and how another engine takes up what was lost."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from ..llm.batch import TokenBatch
    from ..llm.request import TokenTask
    from ..llm.serving.engine import TokenEngine
    from ..serving.worker import Handle


class FailingEngine:
    """What a `servetwin.core.llm.serving.engine.TokenEngine` does when it fails, and after others have."""

    __slots__ = ()

    _resting: Handle | None  # the call that ends what lies between two steps
    _taken_up: dict[TokenTask, float]  # visits that follow lost ones, until they are taken in: when those were queued

    def restart(self) -> None:
        """It begins anew while nothing is here: what it kept between requests is lost."""

    def fail(self, now: float) -> list[TokenTask]:
        """It fails: gives who was here. All KV is lost, and all tokens that have not come out."""
        engine = cast("TokenEngine", self)
        view, worker, batch = engine.view, engine.worker, engine.view.in_flight
        if batch is not None:
            self._cut_off(cast("TokenBatch", batch), now)
        lost = [*view.running, *view.waiting]
        for task in lost:
            engine.withdraw(task, now)
        view.in_flight = view.checked = None
        view.backlog.clear()
        for task in cast("list[TokenTask]", worker.inbox):
            del engine.lengths[task]
            if task.request.outcome is None:
                lost.append(task)
        worker.inbox = []
        if engine._resting is not None:
            engine._resting.cancel()
        engine._resting, engine.deciding, engine.stale = None, False, False
        engine._untaken = engine.swapped = engine._fruitless = 0
        engine.preempted, engine.regrouped = [], None
        engine._recomputed.clear()
        engine._taken_up.clear()
        engine.restart()
        return lost

    def _cut_off(self, batch: TokenBatch, now: float) -> None:
        """*batch* ends now, in the middle of its last step."""
        batch.count -= 1
        if batch.ends is not None:
            del batch.ends[batch.count :]
        engine = cast("TokenEngine", self)
        if batch.count:
            engine._tick(batch, now)
        for task, _, _ in batch.prefill:
            engine.keep_books(task)  # what it counts was to be written when the step is over
        engine.view.in_flight = None

    def take_up(self, task: TokenTask, lost: TokenTask) -> None:
        """*task*, which is about to be sent here, follows *lost*. What the client has got stays sent, and the rest is
        waited for since *lost* was; KV is computed again, as after a preemption."""
        engine = cast("TokenEngine", self)
        task.arrival, task.admitted, task.started = lost.arrival, lost.admitted, lost.started
        task.first_token, task.preemptions, task.budget = lost.first_token, lost.preemptions, lost.budget
        task.base_generated = lost.generated
        if engine.keep_times and lost.token_times is not None:
            task.token_times = array("d", lost.token_times)
        task.queued = engine._taken_up[task] = lost.queued
        engine.keep_books(task)
