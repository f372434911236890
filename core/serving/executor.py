"""What an executor does: it runs batches and keeps the clock, in simulated or in real time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..policy import Batch
from ..request import Task
from .worker import Handle, Worker

__all__ = ["Executor", "Handle"]


class Executor(Protocol):
    """Runs batches and keeps the clock. Times are seconds since the run began."""

    def now(self) -> float: ...

    def run(self, worker: Worker, batch: Batch, done: Callable[[Batch], None]) -> None:
        """Start *batch*; call *done* with it when it has ended and the worker can decide again."""

    def send(self, source: Worker | None, task: Task, deliver: Callable[[Task], None]) -> None:
        """Carry the request of *task* to the queue of its worker, from a worker or (None) from the client; then call
        *deliver* with the task."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Handle: ...

    def when_settled(self, callback: Callable[[], None]) -> bool:
        """Whether anything else happens at this very instant; *callback* is then called when all of that has.

        Whoever is about to decide asks, so that what comes at the same instant is there together. A real clock, on
        which no two things happen at once, says no.
        """
