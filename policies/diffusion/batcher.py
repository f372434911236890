"""A batcher: requests leave it in batches that are full, or that have been open for long enough.

Source: the Server scenario's batcher of NVIDIA's MLPerf harness for SDXL (mlcommons/inference_results_v4.1,
closed/NVIDIA/code/stable-diffusion-xl/tensorrt, ``batch_samples``). It goes by the clock alone and knows no device:
a batch is closed with the request that fills it, with the first that comes *seconds* or more after the last batch was
closed, or *seconds* after the last request if no other comes. Closed batches run in order. So they close, and may be
small, while nobody could run them yet; a policy that closes a batch only when the device is free has larger ones.
"""

from __future__ import annotations

from collections import deque

from servetwin.core import Decision, Policy, Task, WorkerView
from servetwin.core.parameters import above, at_least


class Batcher(Policy):
    """Runs whole requests in batches of *max_batch* (by default the worker's limit), or of those that came within
    *seconds*."""

    turn = "arrival"

    def __init__(self, max_batch: int | None = None, seconds: float = 0.1) -> None:
        at_least(1, "batcher", max_batch=max_batch)
        above(0, "batcher", seconds=seconds)
        self.max_batch, self.seconds = max_batch, seconds
        self.forming: list[Task] = []
        self.ready: deque[list[Task]] = deque()
        self.since: float | None = None  # when the last batch was closed, or the first request came
        self.last = 0.0  # when the last request came

    def start(self, view: WorkerView) -> None:
        self.most = min(self.max_batch or view.limit, view.limit)

    def admit(self, task: Task, view: WorkerView, now: float) -> bool:
        came = task.queued  # a busy worker takes in later
        self._time_out(came)
        if self.since is None:
            self.since = came
        self.forming.append(task)
        self.last = came
        if len(self.forming) == self.most or came - self.since >= self.seconds:
            self._close(came)
        return True

    def decide(self, view: WorkerView, now: float) -> Decision:
        self._time_out(now)
        if self.ready:
            return Decision(self.ready.popleft(), whole=True)
        return Decision(idle_until=self.last + self.seconds if self.forming else None)

    def _time_out(self, now: float) -> None:
        """Nobody has come until *now*."""
        if self.forming and now >= self.last + self.seconds:
            self._close(self.last + self.seconds)

    def _close(self, at: float) -> None:
        self.ready.append(self.forming)
        self.forming, self.since = [], at

    def removed(self, task: Task, view: WorkerView, now: float) -> None:
        self.forming = [other for other in self.forming if other is not task]
        kept = ([other for other in batch if other is not task] for batch in self.ready)
        self.ready = deque(batch for batch in kept if batch)
