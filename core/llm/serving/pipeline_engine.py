"""Engines whose model stands on several devices, layer after layer (pipeline parallel): a step a stage in flight.

As in vLLM (0.27: ``v1/engine/core.py``, ``step_with_batch_queue``, with synchronous scheduling): the host decides one
step after the other until its queue holds as many as there are stages, and then waits for the oldest. A step of
which nothing could be decided takes a place there too, until its turn comes. A request whose token is in flight is in
no other step until that is out, so those that decode fall into as many groups as there are steps. Chunks of a prompt
may follow each other without a gap. Who is preempted while a token of it is in flight is passed over until that has
come out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from ...serving.worker import UNASKED, Loop
from ..batch import Piece, TokenBatch
from ..policy import Chunk, Step, TokenView
from ..request import TokenTask
from .adapter_engine import PassingOver
from .async_engine import Flight, TokenEngineAhead
from .caching import Caching
from .host import LLMWorker


class PipelineView(TokenView):
    """A `TokenView` of an engine with stages: requests of which a token is in flight run, and do not decode."""

    __slots__ = ("owed",)

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        #: Whether a token of a task is in flight.
        self.owed: Callable[[TokenTask], bool] = _never

    def admissible(self, prefill: Iterable[Chunk], *, decode: int = 0) -> list[Chunk]:
        return super().admissible([chunk for chunk in prefill if not self.owed(chunk[0])], decode=decode)

    def fill(
        self,
        tasks: Iterable[TokenTask],
        tokens: int,
        *,
        begun: Iterable[Chunk] = (),
        decode: int = 0,
        chunked: bool = True,
    ) -> list[Chunk]:
        free = [task for task in tasks if not self.owed(task)]
        return super().fill(free, tokens, begun=begun, decode=decode, chunked=chunked)


# What the engines below have in common, for type checkers an engine itself.
if TYPE_CHECKING:
    _Ahead = TokenEngineAhead
else:
    _Ahead = object


class _Staged(PassingOver, _Ahead):
    """An engine with `EngineLimits.pipeline_parallel_size` steps in flight, none of which waits for tokens of
    another."""

    view: PipelineView

    def __init__(self, loop: Loop, worker: LLMWorker) -> None:
        super().__init__(loop, worker)
        self.depth = self.view.limits.pipeline_parallel_size
        self.queue: deque[bool] = deque()  # the steps that the host has decided: whether each does something
        self.view.owed = self._owed

    def _owed(self, task: TokenTask) -> bool:
        return any(task in flight.owed for flight in self.flights)

    def _barred(self) -> Callable[[TokenTask], bool]:
        return self._owed

    def _chosen(self, decode: Sequence[TokenTask]) -> list[TokenTask]:
        return super()._chosen([task for task in decode if not self._owed(task)])

    def _admit(
        self, prefill: Sequence[Chunk], chosen: Sequence[TokenTask] | None, decode: int, crowded: bool, now: float
    ) -> list[Piece]:
        free = [chunk for chunk in prefill if not self._owed(chunk[0])]
        return super()._admit(prefill if len(free) == len(prefill) else free, chosen, decode, crowded, now)

    # -- the host -----------------------------------------------------------------------------------------------

    def turn(self, now: float, fresh: bool = False) -> None:
        worker, view, queue = self.worker, self.view, self.queue
        self.deciding = True
        step: Step = UNASKED
        try:
            while True:
                if worker.inbox:
                    self._take_in(now)
                if not view.waiting and not view.running:
                    break
                if len(queue) == self.depth:
                    if queue[0]:
                        break  # the host waits for it, whatever comes
                    queue.popleft()
                    continue
                before, view.checked = len(self.flights), None
                step = (self.guard or worker.policy).decide(worker.shown, now)
                if self.booked:
                    self._wrong(step)
                changed = self._carry_out(step, now)
                if len(self.flights) > before:
                    queue.append(True)
                    batch = cast("TokenBatch", view.backlog[-1] if view.backlog else view.in_flight)
                    self._free = now + self.ahead.launching(batch)
                    self._rest(self._free - now)  # and then decides the next one
                    return
                if self.flights:
                    queue.append(False)
                elif not changed and not worker.inbox:
                    worker.set_alarm(step.idle_until, now)
                    break
        except Exception as error:
            worker.explain(error, step)
            raise
        self.deciding = False
        if self._unheard:
            self._hear_when_launched()

    # -- a step begins, and ends ------------------------------------------------------------------------------

    def _tick_ahead(self, flight: Flight, decode: int) -> None:
        self._advance_ahead(flight, [*self.bases])

    def _owes(self, flight: Flight, task: TokenTask) -> None:
        """It does not decode until that token is out."""
        flight.owed[task] = None
        if task.base_generated >= self.lengths[task]:
            flight.leaving[task] = None
        self.keep_books(task)

    def settle(self, batch: TokenBatch) -> float:
        flight, queue = self.flights[0], self.queue
        while not queue.popleft():
            pass
        now = super().settle(batch)
        for task in flight.owed:
            if task not in flight.leaving and task in self.view.running and task.decoding and task not in self.bases:
                self._join(task)
        return now


class PipelineEngine(_Staged, TokenEngineAhead):
    """`TokenEngineAhead` with a step a stage in flight."""


class PipelineEngineCaching(_Staged, Caching, TokenEngineAhead):
    """`PipelineEngine` with a prefix cache. (All that a step computes is known when it is decided.)"""


def _never(task: TokenTask) -> bool:
    return False
