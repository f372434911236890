"""Nexus: batches as large as the SLO allows; who would make them smaller is given up early.

Source: "Nexus: A GPU Cluster Engine for Accelerating DNN-Based Video Analysis" (SOSP'19), the part that one GPU plays
for one model; `ModelExecutor::GetBatchTask` of its code where the paper leaves something open.

- Size of batches (section 4.1): the largest B of which two on end keep the SLO, 2 l(B) <= SLO, where l(B) is what a
  batch of B takes: a request that just missed a batch waits for that one, and runs in the next.
- Early drop (section 6.3): those that wait stand in order of deadline. A window as long as a batch slides over them
  until its first request can bear the whole window's batch; those before it are dropped, though some could have made
  it in a smaller one. If fewer wait than the window is long, it is that much shorter. The window runs at once.

Deviations: requests differ in steps, so each has its own SLO and thus a size of its own, and that of the first in the
window counts; a batch lasts as long as the request with the most steps, and who has more than the first can wait for
is left for later. Later stages count as if alone (Nexus splits an SLO over a pipeline by search, section 4.2). How
models share GPUs (squishy bin packing) and prefixes is no matter of one worker's policy.
"""

from __future__ import annotations

from servetwin.core import Decision, WorkerView
from servetwin.policies.diffusion._windows import Windows


class Nexus(Windows):
    """Runs whole requests in batches of a size from their SLO, *max_batch* at most (by default the worker's limit).
    *safety* multiplies the profile's times; more than 1 leaves room for times that vary."""

    def __init__(self, max_batch: int | None = None, safety: float = 1.0) -> None:
        self.bounds("nexus", max_batch, safety)

    def decide(self, view: WorkerView, now: float) -> Decision:
        window, drop = self.window(now)
        run = [item[2] for item in window]
        if run or drop:
            self.leave(run + drop)
        return Decision(run, drop, whole=True)
