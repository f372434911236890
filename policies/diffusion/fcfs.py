"""First come, first served: static batches of whole requests.

What serving systems did before continuous batching: when the worker is free it takes what waits, up to its
batch limit, and runs it to the end. Nothing joins a batch under way, and the shorter requests of a batch
hold their place until the longest is done. Nothing is dropped.
"""

from __future__ import annotations

from itertools import islice

from servetwin.core import Decision, Policy, WorkerView
from servetwin.core.parameters import at_least


class FCFS(Policy):
    """Runs the *max_batch* oldest requests (by default as many as the worker allows) to their end."""

    pools = True
    turn = "arrival"

    def __init__(self, max_batch: int | None = None) -> None:
        at_least(1, "fcfs", max_batch=max_batch)
        self.max_batch = max_batch

    def decide(self, view: WorkerView, now: float) -> Decision:
        most = min(self.max_batch or view.limit, view.limit)
        return Decision(list(islice(view.waiting, most)), whole=True)
