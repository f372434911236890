"""An executor whose workers may be down, stand still or run out of memory; messages may be late or lost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from ..arithmetic import float_sum
from ..policy import Batch
from ..request import Task
from ..serving.executor import Executor, Handle
from ..serving.worker import Worker


class Breakable(Executor, Protocol):
    """An executor that can do to a worker what faults do. *starts* says whether it really starts workers again, which
    takes as long as it takes; else they are back at the time that was said."""

    starts: bool

    def abort(self, worker: Worker) -> float:
        """Forget what *worker* computes: nobody is called when that would have been over. Gives when the iteration
        or step began that it was at."""

    def set_slowdown(self, worker: Worker, factor: float) -> None:
        """From now on all that *worker* computes takes *factor* times as long, what it is at included; infinite: it
        stands still, and goes on where it was when that is over."""

    def start(self, worker: Worker, ready: Callable[[], None]) -> None:
        """Start *worker* again, which was aborted; call *ready* when it can serve, unless it is aborted before."""


class FaultyExecutor:
    """Passes everything on to *inner*, but for what *faults* say (`servetwin.core.faults.faults.Faults`)."""

    def __init__(self, inner: Breakable, faults: Any) -> None:
        self.inner = inner
        self.faults = faults
        self.now = inner.now
        self.when_settled = inner.when_settled

    def run(self, worker: Worker, batch: Batch, done: Callable[[Any], None]) -> None:
        state = self.faults.states[worker.name]
        memory = state.out_of_memory
        if memory is not None and batch.size >= memory.batch:
            self.inner.call_at(self.inner.now(), partial(self.faults.ran_out, state, batch, state.lives))
        elif state.paused_until is not None:
            state.held_runs.append((batch, done))
        elif self.inner.starts:
            self.inner.run(worker, batch, partial(self._heard, state, done))
        else:
            self.inner.run(worker, batch, done)

    def _heard(self, state: Any, done: Callable[[Any], None], answer: Any) -> None:
        """A process that is stopped may have said just before that a batch is over."""
        done(answer)  # which says when the batch ended
        state.heard = self.inner.now()

    def send(self, source: Worker | None, task: Task, deliver: Callable[[Task], None]) -> None:
        faults = self.faults
        assert task.worker is not None
        if faults.begins(task):
            deliver = partial(self._deliver_again, deliver)
        state = faults.states.get(task.worker.name)
        if state is None:
            self.inner.send(source, task, deliver)
            return
        if state.loses:
            faults.message_lost(state, task)
            return

        def arrive(task: Task) -> None:
            if state.outage is not None:
                faults.came_too_late(state, task)
            elif state.paused_until is not None:
                state.held_messages.append((task, deliver))
            else:
                deliver(task)

        if state.late:
            later = self.inner.now() + float_sum(state.late)
            self.inner.call_at(later, partial(self.inner.send, source, task, arrive))
        else:
            self.inner.send(source, task, arrive)

    def _deliver_again(self, deliver: Callable[[Task], None], task: Task) -> None:
        self.faults.is_there(task)
        deliver(task)

    def call_at(self, when: float, callback: Callable[[], None]) -> Handle:
        return self.inner.call_at(when, callback)
