"""Symphony: a batch is put off until one more request would not fit into it any more.

Source: "Symphony: Optimized DNN Model Serving using Deferred Batch Scheduling" (arXiv 2308.07470), the schedulable
window, for one GPU and one model. Which requests are in a batch is as in the dispatcher of Nexus's later code,
`BatchPolicyBySlidingWindowWithFreeLunch`.

- Candidate batch: as in `nexus`, a window of the size that the SLO allows slides over those that wait, by deadline;
  and then it takes more of them as long as its first request can bear that.
- Schedulable window: a batch of b requests, the first of which is due at d, may begin from d - l(b + 1), since until
  then another one could still join it in time, to d - l(b). It begins as soon as it may, or if it cannot grow (it has
  the largest size that there is) at once. So an idle GPU waits where others run what they have.

Deviations: those of `nexus`; the size is that of one GPU, of which two on end keep the SLO (of N GPUs that take turns
1 + 1/N would). How many GPUs share the requests of many models is no matter of one worker's policy. With times that
vary, d - l(b + 1) may be too late: *safety* leaves room for that. It is for a stage that serves requests from end
to end (``deployment: whole``): put off at one, they come to the next with no time left.
"""

from __future__ import annotations

import math

from servetwin.core import Decision, Task, WorkerView
from servetwin.policies.diffusion._windows import Item, Windows


class Symphony(Windows):
    """Runs whole requests in batches begun as late as joining pays, *max_batch* at most (by default the worker's
    limit). *safety* multiplies the profile's times; more than 1 leaves room for times that vary."""

    def __init__(self, max_batch: int | None = None, safety: float = 1.0) -> None:
        self.bounds("symphony", max_batch, safety)

    def decide(self, view: WorkerView, now: float) -> Decision:
        batch, late = self.window(now)
        if not batch:
            self.queue = []
            return Decision(drop=late)
        self._fill(batch, late, now)
        begin = self._may_begin(batch)
        run = [item[2] for item in batch] if begin <= now else []
        self.leave(run + late)
        if run:
            return Decision(run, late, whole=True)
        return Decision(drop=late, idle_until=begin)

    def _fill(self, batch: list[Item], late: list[Task], now: float) -> None:
        """Add to *batch* who else waits, as long as its first request can bear it."""
        end, steps = batch[0][0], max(item[2].left for item in batch)
        there = {item[2] for item in batch}.union(late)
        for item in self.queue:
            if len(batch) == self.most:
                return
            longest = max(steps, item[2].left)
            if item[2] not in there and end >= now + self.seconds(longest, len(batch) + 1):
                batch.append(item)
                steps = longest

    def _may_begin(self, batch: list[Item]) -> float:
        """From when on *batch* may begin, in seconds since the run began."""
        if len(batch) == self.most or batch[0][0] == math.inf:  # without a deadline there is no last moment
            return 0.0
        return batch[0][0] - self.seconds(max(item[2].left for item in batch), len(batch) + 1)
